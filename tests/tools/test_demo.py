"""The demo's video shows what its prompt asks for, on a real server, and the demo says so."""

from __future__ import annotations

from argparse import Namespace

import av
import pytest
import torch

from tools import demo
from tools.demo_nodes.scenes import understood
from tools.miniature.reading import read

PROMPT = "A foggy lake at DUSK; hills, and the sun on the left."


@pytest.fixture(scope="module")
def painted(server):
    """The graph and what came out of it."""
    args = Namespace(width=640, height=352, frames=17, steps=12, seed=0, prompt=PROMPT)
    graph = demo.queued_graph(server, args)
    return graph, server.run(graph)


def test_picture_follows_the_prompt(server, painted):
    (file,) = demo.saved_videos(server, painted[1])
    with av.open(str(file)) as container:
        frames = torch.stack(
            [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
        )
    assert frames.shape == (17, 352, 640, 3)
    asked = understood(PROMPT)
    assert read(frames / 255) == {name: getattr(asked, name) for name in ("weather", "time", "ground", "side")}


def test_report_says_what_was_asked_for_and_seen(server, painted, capsys):
    graph, outputs = painted
    demo.report_painted(server, outputs, graph)
    said = capsys.readouterr().out
    assert "Asked for      foggy dusk lake hills sun left" in said and "Seen           that (read from" in said
    demo.prompt_node(graph)["inputs"]["text"] = "a clear lake at dusk, the moon on the right"
    demo.report_painted(server, outputs, graph)
    assert "Seen           foggy instead of clear, left instead of right (read" in capsys.readouterr().out
    demo.prompt_node(graph)["inputs"]["text"] = "bad hands"
    demo.report_painted(server, outputs, graph)
    assert "nothing that the tiny model knows" in capsys.readouterr().out
