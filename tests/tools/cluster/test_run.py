"""The command: which ComfyUI it takes, which jobs it skips, what a dry run says."""

from __future__ import annotations

import os
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from types import SimpleNamespace

import pytest
from conftest import ROOT

from tools.cluster import __main__ as command
from tools.cluster import run
from tools.cluster.drive import Done, Ended, Failed, Joined, Lost
from tools.cluster.ledger import Ledger, ResultFile, read_done
from tools.cluster.results import Results, describe_file
from tools.cluster.simulation import fake_jobs
from tools.console import Trouble


def test_the_comfyui_around_the_pack_is_found(monkeypatch, tmp_path):
    monkeypatch.setattr(command, "ROOT", tmp_path / "custom_nodes" / "ultragen")
    wanted = Namespace(tiny=False, comfyui=None)
    with pytest.raises(Trouble, match="No ComfyUI was found around this pack. Name its folder in --comfyui"):
        command.find_comfyui(wanted)
    (tmp_path / "comfy").mkdir()
    (tmp_path / "main.py").touch()
    assert command.find_comfyui(wanted) == str(tmp_path)
    assert command.find_comfyui(Namespace(tiny=True, comfyui=None)) is None
    with pytest.raises(Trouble, match="is not a ComfyUI folder"):
        command.find_comfyui(Namespace(tiny=False, comfyui=str(tmp_path / "custom_nodes")))


def test_tokens_are_on_in_every_process_that_imports_our_modules():
    """Ray reads RAY_AUTH_MODE once. Set too late, it applies to the Ray that we start and not to us."""
    look = "from ray._private.authentication.authentication_utils import is_token_auth_enabled as on; print(on())"
    variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", f"import tools.cluster.ray_hosts; {look}"],
        cwd=ROOT, env=variables, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "True\n"


def test_jobs_are_skipped_if_their_files_are_whole(tmp_path):
    jobs = fake_jobs(4)
    with Ledger(tmp_path) as notes:
        for job in jobs[:3]:
            (tmp_path / job.name).write_text(job.prompt)
            notes.write_done(job, "a", 1, [describe_file(tmp_path / job.name, job.name)])
        notes.write_done(fake_jobs(5)[4], "a", 1, [])  # of another list
    (tmp_path / jobs[1].name).write_text("changed")
    assert run.whole_jobs(tmp_path, jobs).keys() == {jobs[0].id, jobs[2].id}


class Hosts:
    """Hosts that are up after two rounds."""

    def __init__(self, actors):
        self.actors, self.rounds, self.closed, self.results = actors, 0, False, None

    def events(self):
        self.rounds += 1
        return []

    def starting(self):
        return 0 if self.rounds > 1 else 1

    def close(self):
        self.closed = True
        return []


def test_a_dry_run_names_the_hosts_and_stops_them(capsys):
    hosts = Hosts({"gpu1.0": SimpleNamespace(name="gpu1.0", facts={"devices": ["cuda:0 H100"]})})
    assert run.show_hosts(hosts) == 0 and hosts.closed
    assert capsys.readouterr().out == "gpu1.0 is ready: cuda:0 H100\n"
    assert run.show_hosts(Hosts({})) == 1


def test_a_dry_run_lists_the_jobs(capsys, tmp_path):
    first, second = fake_jobs(2)
    run.show_jobs([first, replace(second, image=tmp_path / "start.png")], {first.id})
    assert capsys.readouterr().out.splitlines() == [
        f"{first.name}  done, seed 1", f"{second.name}  to do, seed 2, image start.png", "2 jobs, 1 of them done.",
    ]  # fmt: skip


def test_a_run_ends_its_hosts_and_cleans_up_when_it_is_interrupted(tmp_path, capsys):
    class Interrupted(Hosts):
        def events(self):
            raise KeyboardInterrupt

        step_of = None

    hosts = Interrupted({})
    hosts.results = Results(tmp_path)
    (tmp_path / ".incoming").mkdir()
    with pytest.raises(KeyboardInterrupt), Ledger(tmp_path) as notes:
        run.drive(fake_jobs(2), hosts, notes, before=0)
    assert hosts.closed and not (tmp_path / ".incoming").exists()
    assert "Stopped. Jobs done in this run: 0. Run the same command again to continue." in capsys.readouterr().out


def test_a_job_whose_video_arrives_while_the_servers_are_stopped_is_done(tmp_path):
    file = ResultFile("a.mp4", 1, "ff")

    class Interrupted(Hosts):
        def begin(self, host, job):
            pass

        def events(self):
            if self.rounds:
                raise KeyboardInterrupt
            super().events()
            return [Joined("a"), Joined("b")]

        def close(self):
            return [Ended("a", Done((file,))), Ended("b", Failed("oh")), Lost("c", "killed")]

        step_of = None

    hosts, jobs = Interrupted({}), fake_jobs(2)
    hosts.results = Results(tmp_path)
    with pytest.raises(KeyboardInterrupt), Ledger(tmp_path) as notes:
        run.drive(jobs, hosts, notes, before=0)
    assert read_done(tmp_path).keys() == {jobs[0].id}


def test_hosts_end_also_if_the_ledger_cannot_be_written(tmp_path, monkeypatch):
    class Broken(Hosts):
        def begin(self, host, job):
            pass

        def events(self):
            raise Trouble("Results cannot be written")

        step_of = None

    def sync(notes):
        raise Trouble("The ledger cannot be written")

    hosts = Broken({})
    hosts.results = Results(tmp_path)
    with Ledger(tmp_path) as notes:
        with pytest.raises(Trouble), monkeypatch.context() as full:
            full.setattr(Ledger, "sync", sync)
            run.drive(fake_jobs(1), hosts, notes, before=0)
    assert hosts.closed


@pytest.mark.parametrize("gpus", ["0", "-1", "1.5", "nan", "inf", "two"])
def test_a_number_of_gpus_that_no_host_can_have_is_refused(gpus, capsys):
    needed = ["run", "--workflow", "a", "--prompts", "b", "--out", "c", "--gpus-per-host", gpus]
    with pytest.raises(SystemExit):
        command.parser().parse_args(needed)
    assert "or a share of one GPU, such as 0.5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "gpus"),
    [([], 1), (["--gpus-per-host", "4"], 4), (["--gpus-per-host", "0.5"], 0.5), (["--cpu"], 0), (["--tiny"], 0)],
)
def test_gpus_of_a_host(options, gpus):
    needed = ["run", "--workflow", "a", "--prompts", "b", "--out", "c"]
    assert run.gpus_of(command.parser().parse_args([*needed, *options])) == gpus


def test_the_tiny_model_is_for_this_machine_alone(tmp_path):
    options = ["run", "--workflow", "a", "--prompts", "b", "--out", "c", "--tiny", "--address", "far:6379"]
    with pytest.raises(Trouble, match="--tiny runs on this machine alone. Leave --address out and unset RAY_ADDRESS."):
        run.make_setup(tmp_path, command.parser().parse_args(options))
