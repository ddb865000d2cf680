"""What a host checks and says, and that no server outlives it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT
from helpers.waiting import ended, wait_until

from tools import server
from tools.cluster import orphans, tied
from tools.cluster.host import Host, Request, Setup, clean_environment, lacking, refusal, without_token
from tools.cluster.tied import start_time

INFO = {
    "Loader": {"input": {"required": {"name": [["a.safetensors", "b.ckpt"], {}]}}},
    "New": {
        "input": {"required": {}, "optional": {"name": ["COMBO", {"options": ["c.gguf"]}], "text": ["STRING", {}]}}
    },
}
SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def test_missing_nodes_and_model_files_are_named():
    graph = {
        "1": node("Loader", name="b.ckpt"),
        "2": node("Loader", name="none.safetensors"),
        "3": node("New", name="d.gguf", text="a story.ckpt"),
        "4": node("New", name=["1", 0]),
        "5": node("Unheard"),
        "6": node("Loader", name="a word"),
    }
    assert lacking(graph, INFO) == [
        "the file none.safetensors (Loader.name)",
        "the file d.gguf (New.name)",
        "the node Unheard",
    ]


def test_a_refusal_is_one_sentence():
    answer = {
        "error": {"message": "Prompt outputs failed validation", "details": ""},
        "node_errors": {
            "13": {"class_type": "Save", "errors": [{"message": "Value not in list", "details": "codec: 'x'"}]}
        },
    }
    assert refusal(answer) == "Prompt outputs failed validation; node 13 (Save): Value not in list: codec: 'x'"


def test_a_server_does_not_inherit_what_ray_needs(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), "/mine"]))
    clean_environment("6")
    assert os.environ["OMP_NUM_THREADS"] == "6" and os.environ["PYTHONPATH"] == "/mine"
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    clean_environment(None)
    assert "OMP_NUM_THREADS" not in os.environ and "PYTHONPATH" not in os.environ


@pytest.fixture
def host(tmp_path):
    """A host in a shared folder whose server writes nothing: it reports what `host.reported` says."""
    made = object.__new__(Host)
    made.setup, made.folder, made.output = Setup("", "", shared=str(tmp_path)), tmp_path / "host", tmp_path / "output"
    for folder in (made.folder / "input", made.output):
        folder.mkdir(parents=True)
    (made.output / "token").mkdir()
    (made.output / "token" / "a.mp4").write_bytes(b"video")
    made.reported = {"images": [{"filename": "a.mp4", "subfolder": "token", "type": "output"}]}
    made.failure = None

    def run(graph, on_event):
        on_event("progress", {"node": "1", "value": 3, "max": 30})
        if made.failure:
            raise server.Failed({"node_type": "Save", "exception_message": made.failure})
        return {"1": made.reported}

    made.server = SimpleNamespace(run=run)
    return made


def asked(job: str) -> Request:
    return Request(job, "token", {"1": node("Sampler")}, {"a.png": b"image"})


def test_a_job_gets_its_images_and_a_folder_of_its_own_for_states(host, tmp_path):
    for job in ("one", "two", "two"):
        assert [file.name for file in host.run(asked(job)).files] == ["token/a.mp4"]
        (host.output / "ultragen_resume" / "state").write_text(job)
    assert {path.parent.name for path in tmp_path.glob(".states/*/state")} == {"one", "two"}
    assert [path.name for path in (host.folder / "input").iterdir()] == ["a.png"] and host.status() == (
        "Sampler",
        3,
        30,
    )


def keep_latent(host: Host) -> Path:
    latent = host.output / "latents" / "token" / "a.latent"
    latent.parent.mkdir(parents=True)
    latent.write_bytes(b"latent")
    (latent.parent / "b.latent.part").write_bytes(b"lat")
    return latent


def test_a_kept_latent_is_sent_with_the_video(host):
    keep_latent(host)
    outcome = host.run(asked("one"))
    assert [file.name for file in outcome.files] == ["token/a.mp4"]
    assert [without_token(file, "token").name for file in outcome.kept] == ["latents/a.latent"]


def test_a_kept_latent_is_sent_after_a_failed_decode(host):
    host.failure = f"Out of memory. The latent is kept in {keep_latent(host)}. UltraGen Load Latent loads it again."
    outcome = host.run(asked("one"))
    assert {file.name for file in outcome.kept} == {"latents/token/a.latent", "token/a.mp4"}
    assert "is kept in latents/token/a.latent. UltraGen" in outcome.reason


def test_a_workflow_that_reports_no_file_has_failed(host):
    host.reported = {"text": ["a.mp4"]}
    assert host.run(asked("one")).reason == "The workflow reported no file."


@pytest.mark.parametrize(("subfolder", "reason"), [("other", "No such file"), ("../..", "must be inside")])
def test_results_that_cannot_be_read_are_the_jobs_failure_not_the_hosts(host, subfolder, reason):
    host.reported = {"images": [{"filename": "a.mp4", "subfolder": subfolder, "type": "output"}]}
    assert reason in host.run(asked("one")).reason


def test_what_a_job_wrote_is_removed_and_no_other_file(host):
    for name in ("token/a.mp4", "latents/token/a.latent", "other/b.mp4", "latents/other/b.latent"):
        (host.output / name).parent.mkdir(parents=True, exist_ok=True)
        (host.output / name).touch()
    host.forget("token")
    assert {path.name for path in host.output.rglob("*") if path.is_file()} == {"b.mp4", "b.latent"}


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="no /proc here")


def test_a_tied_program_ends_with_its_parent(tmp_path):
    script = "import os, subprocess, sys; a = sys.argv; subprocess.Popen([a[1], a[2], str(os.getpid()), *a[3:]]).wait()"
    parent = subprocess.Popen(
        [sys.executable, "-c", script, sys.executable, tied.__file__, str(tmp_path / "pid"), *SLEEP]
    )
    noted = json.loads(wait_until(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text()))
    assert start_time(noted["pid"]) == noted["started"]
    parent.kill()
    parent.wait()
    wait_until(lambda: ended(noted["pid"]))


def test_a_program_whose_parent_has_ended_does_not_start(tmp_path):
    done = subprocess.run([sys.executable, tied.__file__, "1", str(tmp_path / "pid"), *SLEEP], capture_output=True)
    assert done.returncode == 1 and b"The parent has ended" in done.stderr and not (tmp_path / "pid").exists()


def leave(folder: Path, command: list[str]) -> subprocess.Popen:
    """A host's folder with a server whose host has ended."""
    folder.mkdir(parents=True)
    process = subprocess.Popen(command, start_new_session=True)
    (folder / orphans.PID_FILE).write_text(json.dumps({"pid": process.pid, "started": start_time(process.pid)}))
    return process


def test_a_new_host_ends_the_servers_of_killed_ones_with_their_children(tmp_path):
    script = "import subprocess, sys; p = subprocess.Popen(sys.argv[1:]); print(p.pid, flush=True); p.wait()"
    folder = tmp_path / "host-dead"
    folder.mkdir()
    server = subprocess.Popen([sys.executable, "-c", script, *SLEEP], start_new_session=True, stdout=subprocess.PIPE)
    child = int(server.stdout.readline())
    noted = {"pid": server.pid, "started": start_time(server.pid)}
    (folder / orphans.PID_FILE).write_text(json.dumps(noted))
    server.kill()  # its child lives on in its session
    server.wait()
    assert start_time(child) is not None
    made = orphans.new_folder(tmp_path)
    wait_until(lambda: ended(child))
    assert not folder.exists() and made.is_dir()
    assert orphans.new_folder(tmp_path) != made and made.is_dir()  # its host lives: this process


def test_a_folder_is_not_removed_before_it_is_locked(tmp_path, monkeypatch):
    make, others = tempfile.mkdtemp, []

    def make_while_another_host_starts(**where):
        folder = make(**where)
        monkeypatch.setattr(tempfile, "mkdtemp", make)
        others.append(threading.Thread(target=orphans.new_folder, args=(tmp_path,)))
        others[0].start()
        others[0].join(0.5)
        return folder

    monkeypatch.setattr(tempfile, "mkdtemp", make_while_another_host_starts)
    made = orphans.new_folder(tmp_path)
    others[0].join()
    assert made.is_dir() and len(list(tmp_path.glob("host-*"))) == 2


def test_another_process_with_the_same_number_is_left_alone(tmp_path):
    folder = tmp_path / "host-dead"
    process = leave(folder, SLEEP)
    try:
        noted = json.loads((folder / orphans.PID_FILE).read_text())
        (folder / orphans.PID_FILE).write_text(json.dumps(noted | {"started": noted["started"] - 1}))
        orphans.end_server(folder)
        assert process.poll() is None
        (folder / orphans.PID_FILE).write_text(json.dumps(noted))
        orphans.end_server(folder)
        assert process.wait(timeout=60) == -signal.SIGKILL
    finally:
        process.kill()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x", "started": 1}'])
def test_an_unreadable_pid_file_ends_nothing(tmp_path, text):
    (tmp_path / orphans.PID_FILE).write_text(text)
    orphans.end_server(tmp_path)
