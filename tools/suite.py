"""The `test` command: ruff, then pytest against each ComfyUI version."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tools import browser, comfyui, package_tools
from tools.console import say

ROOT = Path(__file__).resolve().parent.parent
# What calls nothing of ComfyUI's, training, and this repository's tools, which use the newest themselves: one run is
# enough.
NEWEST_ONLY = tuple(
    f"tests/{name}"
    for name in (
        "attention", "install", "metrics", "ops", "plan", "prompts", "rules", "tools", "training", "weights",
        *(f"video/test_{name}.py" for name in ("codecs", "encoder", "frames", "reader")),
    )
)  # fmt: skip
NO_TESTS_COLLECTED = 5
MOST_WORKERS = 4  # each has its own ComfyUI server


def run(cache: Path, arguments: Sequence[str]) -> int:
    """Both versions. The newer one's summary ends the output; what failed before is named again above its run."""
    browser.install(cache)
    package_tools.install(cache)
    lint = _call([_tool("ruff"), "check", "--output-format", "concise", "."])
    older = _pytest(comfyui.OLDEST, cache, arguments, [f"--ignore={path}" for path in NEWEST_ONLY])
    if older == NO_TESTS_COLLECTED:
        older = 0  # what was asked for runs with the newer version only
    if older:
        say(f"\nComfyUI {comfyui.OLDEST.version}: FAILED, see above (pytest's exit code {older}).")
    if lint:
        say("\nruff: FAILED, see above.")
    newer = _pytest(comfyui.NEWEST, cache, arguments, [])
    return max(lint, older, newer)


def _pytest(release: comfyui.Release, cache: Path, arguments: Sequence[str], options: Sequence[str]) -> int:
    say(f"\nTests on ComfyUI {release.version}")
    # Toy tensors gain nothing from threads, and threads of several processes are in each other's way.
    environment = {**os.environ, "COMFYUI_PATH": str(comfyui.tree_of(release, cache)), "OMP_NUM_THREADS": "1"}
    workers = ["-n", "auto", "--maxprocesses", str(MOST_WORKERS), "--dist", "loadfile"]
    return _call([_tool("pytest"), *workers, *options, *arguments], environment)


def _call(command: list[str], environment: dict[str, str] | None = None) -> int:
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    try:
        return process.wait()
    except SystemExit:  # we are asked to end: let pytest end its servers
        process.send_signal(signal.SIGINT)
        process.wait()
        raise


def _tool(name: str) -> str:
    return str(Path(sys.executable).parent / name)
