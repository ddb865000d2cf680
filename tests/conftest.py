"""All tests run on a real ComfyUI, the tree at COMFYUI_PATH, on the CPU, in float32 unless a test says otherwise."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
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
    gc.disable()  # until the tests begin: what is imported stays
    comfyui = os.environ.get("COMFYUI_PATH")
    if not comfyui or not (Path(comfyui) / "comfy").is_dir():
        raise pytest.UsageError("COMFYUI_PATH must name a ComfyUI folder; `python3 tools/dev.py test` sets it for you.")
    # Triton decides at its first import whether it can interpret kernels, and ComfyUI imports it.
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(ImportError):
        patch.setenv("TRITON_INTERPRET", "1")
        importlib.import_module("triton.language")
    # ComfyUI first, the pack last: our nodes/ must not shadow ComfyUI's nodes.py.
    sys.path.insert(0, comfyui)
    sys.path.append(str(ROOT))
    # First, as in ComfyUI's main.py: its nodes put comfy/ on the path, which has another `utils`.
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


def pytest_collection_finish(session):
    gc.freeze()  # the collector would look at half a million imported objects again and again
    gc.enable()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        from helpers.signatures import LACKS

        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if "GPU" not in reason and LACKS not in reason:
            report.outcome = "failed"
            report.longrepr = f"In CI a skipped test fails unless a GPU is missing or {LACKS} what it tests. {reason}"


@pytest.fixture(scope="session")
def pack():
    """The pack, imported as ComfyUI imports a custom node: under the name of any folder."""
    spec = importlib.util.spec_from_file_location(
        "any_folder_name", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def new_server(tmp_path_factory):
    """`new_server(base, frontend, name)`: a tools.server.Server, not started, with pack, demo nodes and tiny models.

    base: of another server, to use its folders; None creates new ones. frontend: a folder; None is the installed one.
    name: of log and database, if several servers run on one base.
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
    validation errors, or Failed with the message of the node that raised. Also: `server.get("/object_info")`,
    `server.base` (with models/, input/ and output/), `server.log` (a file) and `server.url`. One server serves the
    whole session: write only files with your own names into its folders, and change none that are there.
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
    """That checkpoint, loaded in float32 and patched."""
    return _load(tiny_path, "auto")


@pytest.fixture
def dense(tiny_path):
    """Its base weights, unpatched."""
    return _load(tiny_path, "dense")


@pytest.fixture
def unreadable(tmp_path) -> str:
    """A folder that the system refuses to look into, as one on a network disk that is not connected."""
    return str(tmp_path / ("x" * 300))


@pytest.fixture
def looked_up(monkeypatch):
    """The names, as text, that the file system is asked for."""
    names = []
    for name in ("stat", "lstat"):
        ask = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda path, *more, ask=ask, **options: names.append(str(path)) or ask(path, *more, **options)
        )
    return names


@pytest.fixture
def kitchen(monkeypatch):
    """A stand-in for comfy-kitchen, with an int8 attention that runs on the CPU."""
    importlib.import_module("comfy.sd")  # ComfyUI itself keeps the real one
    from helpers.kitchen import Kitchen

    from ultragen_core.host.attention.int8_kernel import Int8Kernel

    made = Kitchen()
    monkeypatch.setitem(sys.modules, "comfy_kitchen", made)
    monkeypatch.setattr(Int8Kernel, "device_types", ("cuda", "cpu"))
    return made


@pytest.fixture
def fp8_layers(monkeypatch):
    """Models loaded with fp8_optimizations multiply in fp8, as on an NVIDIA GPU that can; see helpers.fp8_layers."""
    importlib.import_module("comfy.sd")
    import comfy.model_management
    import comfy.ops
    from helpers.fp8_layers import Fp8Layers

    made = Fp8Layers(comfy.ops.fp8_linear)
    monkeypatch.setattr(comfy.model_management, "supports_fp8_compute", lambda device=None: True)
    monkeypatch.setattr(comfy.ops, "fp8_linear", made)
    return made


def _load(path, rule):
    import torch

    from ultragen_core.host.attention.load import load_model

    return load_model(path, rule, {"dtype": torch.float32})


def _leave_out_overflow_checks(monkeypatch):
    """Without debug, Triton's interpreter computes every sum of integers a second time and ignores what it finds."""
    from triton.runtime.interpreter import interpreter_builder as builder

    if not builder.options.debug:
        monkeypatch.setattr(builder, "options", dataclasses.replace(builder.options, sanitize_overflow=False))


def _round_as_gpus(monkeypatch):
    """Triton's interpreter halves what it rounds up to a power of two in fp8: the carry to the exponent is lost.
    It truncates to bfloat16 instead of rounding.
    """
    import torch
    import triton.language as tl
    from triton.runtime import interpreter

    inexact = interpreter._convert_float

    def convert(x, before, after, rounding):
        if (before, after) == (tl.float32, tl.bfloat16):
            return torch.from_numpy(x).to(torch.bfloat16).view(torch.int16).numpy().view("uint16")
        if (before, after) != (tl.float32, tl.float8e4nv):
            return inexact(x, before, after, rounding)
        return torch.from_numpy(x).to(torch.float8_e4m3fn).view(torch.uint8).numpy()

    monkeypatch.setattr(interpreter, "_convert_float", convert)


@pytest.fixture
def interpreted_kernels(monkeypatch):
    """The Triton kernels in Triton's interpreter, standing in for the plain functions on the CPU."""
    triton = pytest.importorskip("triton", reason="no Triton here; it comes with PyTorch for a GPU")
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 2):
        pytest.skip("Triton's interpreter runs these kernels from 3.2 on; older ones need a GPU")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    _round_as_gpus(monkeypatch)
    _leave_out_overflow_checks(monkeypatch)
    from ultragen_core.ops.dispatch import use_triton

    with use_triton(True):
        yield
