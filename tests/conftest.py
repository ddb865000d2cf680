"""Every test runs against a real ComfyUI: the tree that COMFYUI_PATH names, on the CPU, in float32 unless a test says
otherwise.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data"


# Property tests: the same examples in every run, or many new ones: `tools/dev.py test --hypothesis-profile thorough`.
settings.register_profile(
    "normal",
    max_examples=200,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=set(Phase) - {Phase.explain},  # which takes minutes where an example takes a tenth of a second
)
settings.register_profile(
    "thorough", settings.get_profile("normal"), max_examples=20_000, derandomize=False, database=None
)
settings.load_profile("normal")


def pytest_configure(config):
    comfyui = os.environ.get("COMFYUI_PATH")
    if not comfyui or not (Path(comfyui) / "comfy").is_dir():
        raise pytest.UsageError("COMFYUI_PATH must name a ComfyUI folder; `python3 tools/dev.py test` sets it for you.")
    # Triton decides at its first import whether its library can be interpreted, and ComfyUI imports it.
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(ImportError):
        patch.setenv("TRITON_INTERPRET", "1")
        importlib.import_module("triton.language")
    # ComfyUI first, the pack last: our nodes/ must not shadow ComfyUI's nodes.py.
    sys.path.insert(0, comfyui)
    sys.path.append(str(ROOT))
    # As ComfyUI's main does: its nodes put comfy/, which has a module of that name, first on the path.
    importlib.import_module("utils.extra_config")
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    from tools.demo_nodes import convolution

    convolution.install()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from helpers.schedule import Groups

    return Groups(config, log)


@pytest.hookimpl(trylast=True)  # after pytest has sorted by fixtures
def pytest_collection_modifyitems(config, items):
    if hasattr(config, "workerinput"):  # a worker of xdist
        from helpers.schedule import rank

        items.sort(key=lambda item: rank(item.nodeid))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if "GPU" not in reason:
            report.outcome = "failed"
            report.longrepr = f"In CI a skipped test is a failure unless it names a missing GPU. {reason}"


@pytest.fixture(scope="session")
def pack():
    """The pack, imported the way ComfyUI imports a custom node: under a name that is not the repository's."""
    spec = importlib.util.spec_from_file_location(
        "any_folder_name", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def new_server(tmp_path_factory):
    """`new_server(base, frontend)`: a tools.server.Server of COMFYUI_PATH, not started yet, with the pack, the demo's
    nodes and the tiny models.

    base: None is a folder of its own; with that of another server it takes its place. frontend: the folder of one; None
        is the one installed. name: of its log and database, where several share a base.
    """
    from tools import tiny_bundle
    from tools.demo import DEMO_NODES
    from tools.server import Server, make_base

    def make(base: Path | None = None, frontend: Path | None = None, name: str = "server") -> Server:
        if base is None:
            base = make_base(tmp_path_factory.mktemp("comfyui"), DEMO_NODES)
            tiny_bundle.write(base)
            for placeholder in tiny_bundle.PLACEHOLDERS:
                (base / placeholder).parent.mkdir(exist_ok=True)
                (base / placeholder).touch()
        return Server(Path(sys.executable), Path(os.environ["COMFYUI_PATH"]), base, frontend=frontend, name=name)

    return make


@pytest.fixture(scope="session")
def server(new_server):
    """A running server, with the frontend that this ComfyUI asks for.

    `server.run(graph)` queues a graph in API format and returns {node id: what it reported}; it raises Refused with the
    validation errors, Failed with the message of the node that raised. `server.get("/object_info")`, `server.base`
    (models/, input/ and output/ in it), `server.log` (a file) and `server.url` are the rest of what tests need. One
    server serves the whole session, so leave files of your own names in its folders and change none that are there.
    """
    from tools import browser

    frontend = browser.frontend_folder(Path(os.environ["COMFYUI_PATH"]).name)
    with new_server(frontend=frontend if frontend.is_dir() else None) as running:
        yield running


@pytest.fixture(scope="session")
def tiny_path():
    """A small checkpoint in the published format: blocks 1 and 2 of 4 have UltraGen's weights."""
    return DATA / "tiny_ultragen.safetensors"


@pytest.fixture
def tiny(tiny_path):
    """That checkpoint in ComfyUI, in float32, patched."""
    return _load(tiny_path, "auto")


@pytest.fixture
def dense(tiny_path):
    """The same base weights, unpatched."""
    return _load(tiny_path, "dense")


def _load(path, rule):
    import torch

    from ultragen_core.host.attention.load import load_model

    return load_model(path, rule, {"dtype": torch.float32})


@pytest.fixture
def interpreted_kernels(monkeypatch):
    """The Triton kernels in Triton's interpreter, standing in for the plain functions on the CPU."""
    triton = pytest.importorskip("triton", reason="no Triton here; it comes with PyTorch for a GPU")
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 2):
        pytest.skip("Triton's interpreter runs these kernels from 3.2 on; older ones need a GPU")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    from ultragen_core.ops.dispatch import use_triton

    with use_triton(True):
        yield
