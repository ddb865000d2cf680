"""A list of prompts, one video per run."""

from __future__ import annotations

import json

import av
import pytest
from helpers.waiting import wait_until
from PIL import Image

from tools import workflow
from tools.demo import saved_videos
from tools.server import Failed, Refused
from tools.templates import write as templates


@pytest.fixture(scope="module")
def batch(server):
    """Return the template, small, in its own folder, at an index of its list."""
    graph = workflow.to_api(templates.FOLDER / "ultragen_batch_1080p.json", server.get("/object_info"))
    graph = workflow.with_stand_ins(workflow.make_small(graph, width=96, height=64, frames=5, steps=1, seed=11))
    ids = {node["class_type"]: key for key, node in graph.items()}
    graph[ids["UltraGenSaveVideo"]]["inputs"]["filename_prefix"] = "one_by_one/video"

    def at(index: int, **inputs) -> dict:
        changed = json.loads(json.dumps(graph))
        changed[ids["UltraGenPrompts"]]["inputs"] |= {"index": index, **inputs}
        return changed

    return at


def test_each_video_is_saved_before_the_next_begins(server, batch):
    queued = [server.queue(batch(index)) for index in range(3)]
    history = wait_until(lambda: server.get(f"/history/{queued[-1]}"), 600)
    runs = [server.get(f"/history/{prompt}")[prompt] for prompt in queued]
    begun = [dict(run["status"]["messages"])["execution_start"]["timestamp"] / 1000 for run in runs]
    files = [video for run in runs for video in saved_videos(server, run["outputs"])]
    assert [file.name for file in files] == [f"video_{number:05}_.mp4" for number in (1, 2, 3)]
    assert files[0].stat().st_mtime < begun[1] and files[1].stat().st_mtime < begun[2]
    assert history[queued[-1]]["status"]["status_str"] == "success"
    told = [json.loads(comment(file)) for file in files]
    assert [each["index"] for each in told] == [0, 1, 2]
    assert len({each["prompt"] for each in told}) == 3 and {each["seed"] for each in told} == {11}


def comment(file) -> str:
    with av.open(str(file)) as video:
        return video.metadata["comment"]


def test_what_is_beyond_the_list_is_refused_when_it_is_queued(server, batch):
    with pytest.raises(Refused) as refused:
        server.queue(batch(3))
    (complaint,) = refused.value.error["node_errors"].values()
    assert "index must be at most 2, the last of 3 prompts, got 3." in complaint["errors"][0]["details"]
    with pytest.raises(Refused, match="must be a file in"):
        server.queue(batch(0, file="../secret.csv"))


def pictures(prompts: dict, linked: str = "image") -> dict:
    output = ["prompt", "negative", "seed", "image"].index(linked)
    shown = ("PreviewImage", "images") if linked == "image" else ("PreviewAny", "source")
    show = {"class_type": shown[0], "inputs": {shown[1]: ["1", output]}}
    return {"1": {"class_type": "UltraGenPrompts", "inputs": {"file": "none", **prompts}}, "2": show}


def test_images_of_a_list(server):
    for number, color in enumerate(("red", "blue")):
        Image.new("RGB", (20 + number, 10), color).save(server.base / "input" / f"{color}.png")
    text = "prompt,image\na lake,red.png\na hill,blue.png"
    done = server.run(pictures({"text": text}))
    files = [server.base / "temp" / image["filename"] for image in done["2"]["images"]]
    assert [Image.open(file).size for file in files] == [(20, 10), (21, 10)]
    with pytest.raises(Refused, match="The image of prompt 1: red.jpg must be a file in"):
        server.queue(pictures({"text": text.replace("red.png", "red.jpg")}))


def test_lists_without_images_run_where_none_are_linked(server):
    prompts = {"text": "a lake without a picture\na hill"}
    assert server.run(pictures(prompts, "prompt"))["2"]["text"]
    with pytest.raises(Failed, match="Prompt 1 has no image"):
        server.run(pictures(prompts))  # from ComfyUI's cache
    with pytest.raises(Failed, match="Prompt 1 has no image"):
        server.run(pictures({"text": "another lake without a picture"}))
