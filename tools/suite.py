"""The `test` command: ruff, then pytest against each ComfyUI version."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tools import browser, comfyui, overlays, package_tools
from tools.console import say
from tools.phases import Phase, running
from tools.venv import Venv

ROOT = Path(__file__).resolve().parent.parent
# Files, folders and tests whose code knows no difference between ComfyUI versions, with the reason. They run on the
# newest version only.
NEWEST_ONLY = {
    **dict.fromkeys(
        ("attention", "metrics", "ops", "plan", "prompts", "rules", "storage", "weights", "test_printable.py"),
        "plain PyTorch and Python: calls nothing of ComfyUI",
    ),
    **dict.fromkeys(
        ("test_rectangle.py", "video/test_frames.py", "video/test_prefix.py"),
        "plain PyTorch and Python: calls nothing of ComfyUI",
    ),
    **dict.fromkeys(("test_architecture.py", "test_documents.py"), "read this repository's sources and texts"),
    **dict.fromkeys(("install", "tools", "training"), "the repository's tools and trainer, used with the newest alone"),
    "vae/test_geometry.py": "our arithmetic on the layers that test_exact.py finds in both versions",
    "vae/test_properties.py": "random sizes for the same arithmetic; both versions decode the sizes in test_exact.py",
    "vae/test_exact.py::test_every_tile_size": "more tiles for the same arithmetic",
    "vae/test_exact.py::test_a_halo_smaller_by_one_is_wrong": "breaks our own halo",
    "host/attention/test_companions_order.py": "our order; test_companions.py has the nodes on both versions",
    "host/attention/test_leaks.py": "many runs; test_patch.py checks that one leaves nothing, on both versions",
    "host/attention/test_properties.py": "random settings for our layer; the fixed ones run on both versions",
    "host/save/test_save_names.py": "our choice of names; test_save.py asks both versions for their folders",
    "host/speed": "times our own layers and decode, which the rest of host/ checks on both versions",
    "nodes/test_metrics.py": "our lists of videos; host/metrics runs on both versions",
    "nodes/test_resume_server.py::test_each_prompt_of_a_list_has_a_state_of_its_own": (
        "a list is one prompt for ComfyUI; the other tests kill and interrupt prompts on both versions"
    ),
    **dict.fromkeys(
        (
            f"host/attention/test_companions_compile.py::test_compiled_in_either_order[{case}]"
            for case in ("ultragen-by_node-before-whole", "ultragen-by_node-after-whole", "t3-by_node-after-whole")
        ),
        "our order and rule; the other case compiles on both versions",
    ),
}
# Runs in a phase of its own, after the older version's tests: it starts many servers on a Ray cluster of its own.
ALONE = "tests/tools/cluster/test_real_ray.py"
NO_TESTS_COLLECTED = 5
# Each may have a ComfyUI server of its own. The older version has fewer tests, and runs beside the newer one.
MOST_WORKERS, OLDER_WORKERS = 4, 2


def run(cache: Path, arguments: Sequence[str]) -> int:
    """Both versions at the same time: tests of servers and browsers wait, and so does the last worker of a run.

    The older version has the oldest PyAV that it allows. The newer version's output comes last. Failures before it are
    repeated above it.
    """
    with ThreadPoolExecutor() as pool:
        chromium = pool.submit(browser.install_chromium)  # takes as long as the rest
        browser.install_frontends(cache)
        package_tools.install(cache)
        pyav = overlays.install_oldest_pyav(cache, Venv(Path(sys.prefix)))
        lint = subprocess.call([tool("ruff"), "check", "--output-format", "concise", "."], cwd=ROOT)
        chromium.result()
    together, alone = split_arguments(arguments)
    tree, oldest = comfyui.tree_of(comfyui.NEWEST, cache), comfyui.tree_of(comfyui.OLDEST, cache)
    older = _tests(oldest, together, [*spread(OLDER_WORKERS), *newest_only_options()], pyav)
    real_ray = _tests(tree, alone, [])
    newer = _tests(tree, together, spread(MOST_WORKERS))
    with running([[*older, *real_ray], newer]):
        codes = {"ruff": lint, f"ComfyUI {comfyui.OLDEST.version}": _show(older), ALONE: _show(real_ray)}
        for name, code in codes.items():
            if code not in (0, NO_TESTS_COLLECTED):
                say(f"\n{name}: FAILED, see above (exit code {code}).")
        _, *tests = codes.values()
        return max(lint, exit_code([*tests, _show(newer)]))


def run_on_tree(cache: Path, tree: Path, arguments: Sequence[str], newest_kernels: bool = False) -> int:
    """The tests on one ComfyUI tree, without those of this repository's tools, which use the pinned trees.

    With the registry's newest frontend, too. newest_kernels: with its newest comfy-kitchen and comfy-aimdo instead of
    those that the tree asks for.
    """
    browser.install_chromium()
    frontend = browser.install_newest_frontend(cache)
    kernels = overlays.install_kernels(cache, Venv(Path(sys.prefix))) if newest_kernels else None
    say(f"With {', '.join(overlays.versions(each) for each in (frontend, kernels) if each)}.")
    options = [*spread(MOST_WORKERS), "--ignore=tests/tools", "--ignore=tests/install"]
    tests = _tests(tree, arguments, options, kernels)
    with running([tests]):
        return _show(tests)


def newest_only_options() -> list[str]:
    """Return pytest's options that leave out what the older version need not run."""
    return [f"--{'deselect' if '::' in name else 'ignore'}=tests/{name}" for name in NEWEST_ONLY]


def split_arguments(arguments: Sequence[str]) -> tuple[list[str] | None, list[str] | None]:
    """Return pytest's arguments for the tests that run together, and for those in ALONE; None if no such are wanted."""
    paths = {argument: (ROOT / argument.split("::")[0]).resolve() for argument in arguments if argument[:1] != "-"}
    paths = {argument: path for argument, path in paths.items() if path.exists()}
    named = [argument for argument, path in paths.items() if path == ROOT / ALONE]
    asked_for = not paths or any((ROOT / ALONE).is_relative_to(path) for path in paths.values())
    others = not paths or len(named) < len(paths)
    together = [argument for argument in arguments if argument not in named]
    alone = [*(argument for argument in arguments if argument not in paths), *(named or [ALONE])]
    return together if others else None, alone if asked_for else None


def exit_code(runs: Sequence[int]) -> int:
    """Return one exit code for several runs. That of runs without tests counts only if all are so."""
    return max((code for code in runs if code != NO_TESTS_COLLECTED), default=NO_TESTS_COLLECTED)


def spread(most: int) -> list[str]:
    """Return pytest's options that run tests on several workers. tests/helpers/schedule.py says which share one."""
    # One more than there are CPUs: tests of the browser and of servers wait a third of their time.
    workers = min((os.cpu_count() or 1) + 1, most)
    return ["-n", str(workers), "--dist", "loadfile", f"--ignore={ALONE}"]


# For glibc: memory of large tensors is kept for the next ones. Fresh pages took the kernel a third of the time of tests
# that decode whole videos.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(256 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


def environment_of(tree: Path, packages: Path | None = None) -> dict[str, str]:
    """Return the environment variables of tests on a ComfyUI tree. packages: a folder that goes before all others."""
    # Toy tensors gain nothing from threads, and threads of several processes are in each other's way.
    variables = {**KEEP_MEMORY, **os.environ, "COMFYUI_PATH": str(tree), "OMP_NUM_THREADS": "1"}
    if packages:
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, [str(packages), os.environ.get("PYTHONPATH")]))
    return variables


def _tests(
    tree: Path, arguments: Sequence[str] | None, options: Sequence[str], packages: Path | None = None
) -> list[Phase]:
    """Return the phase that runs pytest on a ComfyUI tree, or none where no tests are wanted."""
    if arguments is None:
        return []
    colour = ["--color=yes"] if sys.stdout.isatty() else []
    command = [tool("pytest"), *colour, *options, *arguments]
    return [Phase(f"Tests on {tree}", command, ROOT, environment_of(tree, packages))]


def _show(phases: Sequence[Phase]) -> int:
    return exit_code([phase.show() for phase in phases])


def tool(name: str) -> str:
    """Return the path of a program of this environment."""
    return str(Path(sys.executable).parent / name)
