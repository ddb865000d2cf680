"""docs/headless: templates in API format, and the script that queues them."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading

import pytest

from tools import workflow
from tools.server import ROOT
from tools.templates import write as templates

HEADLESS = ROOT / "docs" / "headless"


@pytest.mark.parametrize("example", templates.HEADLESS, ids=lambda file: file.stem)
def test_api_format_is_that_of_the_template(example, server):
    shown = json.loads(example.read_text(encoding="utf-8"))
    assert shown == workflow.to_api(templates.FOLDER / example.name, server.get("/object_info"))
    readme = " ".join((HEADLESS / "README.md").read_text().split())
    assert f"({example.name})" in readme
    ids = {node["class_type"]: key for key, node in reversed(shown.items())}
    assert f"The prompt is the text of node {ids['CLIPTextEncode']}, " in readme
    assert (
        f"size and frames are in node {ids['UltraGenEmptyLatent']}, the seed is in node {ids['RandomNoise']}." in readme
    )


def queue(server, graph: dict, folder, *settings: str) -> subprocess.CompletedProcess:
    file = folder / "workflow.json"
    file.write_text(json.dumps(graph))
    command = [sys.executable, HEADLESS / "run.py", file, server.url, *settings]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_client_queues_and_tells_the_files(server, tmp_path):
    graph = json.loads((HEADLESS / f"{workflow.SHIPPED.stem}.json").read_text())
    graph = workflow.with_stand_ins(workflow.make_small(graph, width=96, height=64, frames=5, steps=1, seed=3))
    done = queue(server, graph, tmp_path)
    assert done.returncode == 0, done.stderr
    files = [file["filename"] for output in json.loads(done.stdout).values() for file in output.get("images", [])]
    assert len(files) == 1 and files[0].endswith(".mp4")


def test_client_ends_with_1_where_a_workflow_is_refused(server, tmp_path):
    prompts = {"class_type": "UltraGenPrompts", "inputs": {"text": "# nothing", "file": "none"}}
    shown = {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}
    assert queue(server, {"1": prompts, "2": shown}, tmp_path).returncode == 1


def test_client_says_what_a_node_raised(server, tmp_path):
    text = {
        "class_type": "PrimitiveString",
        "inputs": {"value": "# nothing"},
    }  # linked, so read only when the graph runs
    prompts = {"class_type": "UltraGenPrompts", "inputs": {"text": ["3", 0], "file": "none"}}
    shown = {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}
    done = queue(server, {"1": prompts, "2": shown, "3": text}, tmp_path)
    assert done.returncode == 1 and "UltraGenPrompts (node 1): " in done.stderr
    assert "must hold at least one prompt" in done.stderr and "Traceback" not in done.stderr


def test_client_without_a_server_or_a_workflow_says_so(tmp_path):
    file = tmp_path / "workflow.json"
    file.write_text("{}")
    for arguments, message in (
        ((), "run.py WORKFLOW.json"),
        ((file, "http://127.0.0.1:9"), "does not answer"),
        ((tmp_path / "none.json",), "none.json cannot be read"),
    ):
        done = subprocess.run([sys.executable, HEADLESS / "run.py", *arguments], capture_output=True, text=True)
        assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("setting", ["5.txt=A lake", "50.text=A lake", "text=A lake", "5.text"])
def test_client_refuses_settings_that_comfyui_would_ignore(tmp_path, setting):
    file = tmp_path / "workflow.json"
    file.write_text(json.dumps({"5": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["2", 0]}}}))
    command = [sys.executable, HEADLESS / "run.py", file, "http://127.0.0.1:9", setting]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    there = "inputs of node 5: text, clip" if setting.startswith("5.") else "nodes: 5"
    assert done.stderr == f"Expected NODE.INPUT=VALUE with an input of the workflow, got {setting}; {there}.\n"


def test_client_keeps_the_type_of_what_it_sets(tmp_path):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["prompt"])
            self.send_error(400)

    received, inputs = [], {"text": "a", "seed": 1, "fps": 1.5, "trim": True, "linked": ["1", 0]}
    (tmp_path / "workflow.json").write_text(json.dumps({"5": {"inputs": inputs}}))
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as served:
        threading.Thread(target=served.handle_request, daemon=True).start()
        settings = ["5.text=7", "5.seed=-2", "5.fps=24", "5.trim=false", "5.linked=a lake"]
        command = [sys.executable, HEADLESS / "run.py", tmp_path / "workflow.json"]
        subprocess.run([*command, f"http://127.0.0.1:{served.server_port}", *settings], capture_output=True)
    assert received == [{"5": {"inputs": {"text": "7", "seed": -2, "fps": 24, "trim": False, "linked": "a lake"}}}]


def test_client_goes_through_a_list_until_its_end(server, tmp_path):
    batch = workflow.to_api(templates.FOLDER / "ultragen_batch_1080p.json", server.get("/object_info"))
    assert batch["5"]["class_type"] == "UltraGenPrompts"
    graph = {"5": batch["5"], "1": {"class_type": "PreviewAny", "inputs": {"source": ["5", 0]}}}
    shown = []
    while (done := queue(server, graph, tmp_path, f"5.index={len(shown)}", "5.text=one\ntwo")).returncode == 0:
        shown += json.loads(done.stdout)["1"]["text"]
    assert shown == ["one", "two"]
    assert "index must be at most 1, the last of 2 prompts, got 2." in done.stderr
