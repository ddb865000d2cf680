"""The `demo` and `serve` commands: the shipped workflow with a tiny model in a real ComfyUI server."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tools import comfyui, contact_sheet, workflow
from tools.console import ProgressLine, Trouble, say
from tools.server import ROOT, Failed, Refused, Server, make_base
from training.miniature import WEIGHTS
from training.miniature.scenes import understood

DEMO_NODES = ROOT / "tools" / "demo_nodes"
SERVED = "ultragen_demo"
PROMPT = "a cloudy lake at dusk, peaks, the sun on the right"
REPORT = re.compile(r"UltraGen: (.*rule .* in \d+ of \d+ blocks.*)")


def run(cache: Path, args: argparse.Namespace) -> int:
    with start(cache, "demo", args) as server:
        say(f"ComfyUI runs at {server.url} (log: {server.log})")
        graph = queued_graph(server, args)
        progress = Progress(graph)
        try:
            outputs = run_graph(server, graph, progress.on_event)
        finally:
            progress.line.end()
        report(server, outputs, progress)
        if args.random:
            say("This model is untrained: it shows that everything runs, not what UltraGen can paint.")
        else:
            report_painted(server, outputs, graph)
    return 0


def serve(cache: Path, args: argparse.Namespace) -> int:
    with start(cache, "serve", args) as server:
        file = server.base / "user" / "default" / "workflows" / f"{SERVED}.json"
        if not file.exists():  # it may have been changed in the browser
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(workflow.for_canvas(PROMPT, **workflow.SMALL)), encoding="utf-8")
        say(f"ComfyUI with UltraGen runs at {server.url} (log: {server.log}). Ctrl-C ends it.")
        say(f"Open the workflow {SERVED} and press Run: the templates need text encoders that are not here.")
        try:
            return server.process.wait()
        except KeyboardInterrupt:
            return 0


def start(cache: Path, name: str, args: argparse.Namespace) -> Server:
    """Prepare a server with the tiny model in its folder; `with` starts it."""
    tree = Path(args.comfyui) if args.comfyui else comfyui.tree_of(comfyui.NEWEST, cache)
    python = Path(args.python) if args.comfyui else Path(sys.executable)
    base = make_base(cache / name, DEMO_NODES)
    server = Server(python, tree, base, args.port, args.gpu)
    make_tiny_models(python, tree, base, "--random" if args.random else "--trained" if name == "demo" else "")
    say("Starting ComfyUI ...")
    return server


def make_tiny_models(python: Path, tree: Path, base: Path, option: str = "") -> None:
    """Make the tiny models once, and again when their sources change. option: of tools/tiny_bundle.py."""
    sources = sorted([*(ROOT / "tools").glob("tiny_*.py"), *WEIGHTS.glob("*.safetensors")])
    options = [option] if option else []
    recipe = b"".join(file.read_bytes() for file in sources) + str(options).encode()
    stamp, digest = base / "recipe", hashlib.sha256(recipe).hexdigest()
    if stamp.is_file() and stamp.read_text() == digest:
        return
    say("Making the tiny models ...")
    _run([str(python), "-m", "tools.tiny_bundle", str(tree), str(base), *options], f"run {tree}")
    stamp.write_text(digest)


def _run(command: list[str], what: str) -> str:
    """Run a program of this repository with ComfyUI's Python, `command[0]`, and return its output."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        reason = ((done.stdout + done.stderr).strip().splitlines() or ["no output"])[-1]
        raise Trouble(f"{command[0]} cannot {what}: {reason}. Name the Python that ComfyUI runs with in --python.")
    return done.stdout


def run_graph(server: Server, graph: dict, *on_event: Callable[[str, dict], None]) -> dict:
    """Run a graph as `server.run` does. Raises Trouble with the end of the log where ComfyUI cannot."""
    try:
        return server.run(graph, *on_event)
    except (Refused, Failed) as error:
        raise Trouble(f"ComfyUI could not run the workflow. {error}\n{server.last_words()}") from None


def queued_graph(server: Server, args: argparse.Namespace) -> dict:
    graph = workflow.to_api(workflow.SHIPPED, server.get("/object_info"))
    graph = workflow.make_small(graph, args.width, args.height, args.frames, args.steps, args.seed)
    if args.prompt is not None:
        prompt_node(graph)["inputs"]["text"] = args.prompt
    return workflow.with_stand_ins(graph)


def prompt_node(graph: dict) -> dict:
    return next(node for node in graph.values() if node["_meta"]["title"] == "Prompt")


class Progress:
    """Shows which node runs and its progress, and times the sampling steps."""

    def __init__(self, graph: dict):
        self.titles = {key: node["_meta"]["title"] for key, node in graph.items()}
        self.sampler = next(key for key, node in graph.items() if node["class_type"] == "SamplerCustomAdvanced")
        self.line = ProgressLine()
        self.started = time.monotonic()
        self.step_ends: list[float] = []

    def on_event(self, kind: str, data: dict) -> None:
        node = data.get("node")
        if kind == "executing" and node:
            self._show(node, "")
        elif kind == "progress" and node:
            if node == self.sampler:
                self.step_ends.append(time.monotonic())
                self._show(node, f"{data['value']:.0f} of {data['max']:.0f}")
            else:
                self._show(node, f"{data['value'] / data['max']:.0%}")

    @property
    def seconds_per_step(self) -> float | None:
        """The mean over all steps but the first, which also loads the model; None where there is no other."""
        ends = self.step_ends
        return (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else None

    def _show(self, node: str, done: str) -> None:
        self.line.show(f"{time.monotonic() - self.started:6.1f} s  {self.titles.get(node, node)} {done}")


def report(server: Server, outputs: dict, progress: Progress) -> None:
    took, step = time.monotonic() - progress.started, progress.seconds_per_step
    (video_file,) = saved_videos(server, outputs)
    sheet_file = video_file.with_suffix(".png")
    video = contact_sheet.draw(video_file, sheet_file)
    attention = REPORT.findall(server.log.read_text(errors="replace"))
    if not attention:
        raise Trouble(f"UltraGen's attention did not report that it ran. {server.last_words()}")
    say(f"\nVideo          {video_file}")
    say(f"               {video.width}x{video.height}, {video.frames} frames, {video.fps:g} fps, {video.codec}")
    say(f"Contact sheet  {sheet_file}")
    say(f"Time           {'' if step is None else f'{step:.2f} s a step, '}{took:.0f} s in all")
    say(f"Attention      {attention[-1]}")


def report_painted(server: Server, outputs: dict, graph: dict) -> None:
    """Print what the prompt asked for and what the video's pixels show."""
    meant = understood(prompt_node(graph)["inputs"]["text"])
    if meant is None:
        say("Understood     nothing: the tiny model knows weather, time, ground, hills or peaks, side of the sun")
    else:
        (video_file,) = saved_videos(server, outputs)
        shown = json.loads(
            _run([server.command[0], "-m", "training.miniature.reading", str(video_file)], "read the video")
        )
        wanted = {name: getattr(meant, name) for name in shown}
        wrong = [f"{shown[name]} instead of {word}" for name, word in wanted.items() if shown[name] != word]
        say(f"Understood     {meant.caption}")
        say(f"Seen           {', '.join(wrong) or 'that'} (read from the pixels: {', '.join(shown)})")
    say("The tiny model knows painted landscapes alone: it shows how UltraGen works, not what its real weights paint.")


def saved_videos(server: Server, outputs: dict) -> list[Path]:
    files = [file for output in outputs.values() for file in output.get("ultragen_files", [])]
    videos = [file for file in files if file["filename"].endswith(".mp4")]
    if not videos:
        raise Trouble(f"The workflow ended without a video. {server.last_words()}")
    return [server.base / "output" / video["subfolder"] / video["filename"] for video in videos]
