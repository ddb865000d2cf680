"""The demo's video shows what its prompt asks for, on a real server, and the demo says so."""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace

import pytest

from tools import demo, workflow
from tools.server import ROOT
from training.miniature.reading import frames_of, read
from training.miniature.scenes import CHECKED, understood

PROMPT = "A foggy lake at DUSK; hills, and the sun on the left."


@pytest.fixture(scope="module")
def painted(server):
    """The graph and what came out of it: the demo's own size and steps, and half of its frames."""
    args = Namespace(**workflow.SMALL | {"frames": 9}, seed=0, prompt=PROMPT)
    graph = demo.queued_graph(server, args)
    return graph, server.run(graph)


def test_picture_follows_the_prompt(server, painted):
    (file,) = demo.saved_videos(server, painted[1])
    frames = frames_of(file)
    assert frames.shape == (9, 352, 640, 3)
    meant = understood(PROMPT)
    assert read(frames) == {name: getattr(meant, name) for name in CHECKED}


def test_report_says_what_was_understood_and_seen(server, painted, capsys):
    graph, outputs = painted
    demo.report_painted(server, outputs, graph)
    said = capsys.readouterr().out
    assert "Understood     foggy dusk lake hills sun left" in said and "Seen           that (read from" in said
    demo.prompt_node(graph)["inputs"]["text"] = "a clear lake at dusk, the moon on the right"
    demo.report_painted(server, outputs, graph)
    assert "Seen           foggy instead of clear, left instead of right (read" in capsys.readouterr().out
    demo.prompt_node(graph)["inputs"]["text"] = "bad hands"
    demo.report_painted(server, outputs, graph)
    assert "Understood     nothing" in capsys.readouterr().out


@pytest.mark.parametrize(("first", "then"), [("--random", ""), ("", "--random"), ("--trained", "")])
def test_tiny_models_are_made_again_when_others_are_wanted(monkeypatch, tmp_path, first, then):
    asked = []
    monkeypatch.setattr(demo, "_run", lambda command, what: asked.append(command[5:]))
    for option in (first, then, then):
        demo.make_tiny_models("python", "tree", tmp_path, option)
    assert asked == [[option] if option else [] for option in (first, then)]


@pytest.mark.parametrize("name", ["demo", "serve"])
def test_a_client_of_another_comfyui_needs_no_torch(name):
    script = f"import sys; sys.modules['torch'] = None; from tools import dev; print(dev.command({name!r}).__name__)"
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout.strip() == {"demo": "run", "serve": "serve"}[name], found.stderr
