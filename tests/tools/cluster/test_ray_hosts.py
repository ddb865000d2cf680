"""RayHosts on a fake Ray, whose calls end when the test says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tools.cluster import fetch, ray_hosts
from tools.cluster.drive import Done, Ended, Failed, Joined, Lost
from tools.cluster.host import Setup
from tools.cluster.pack import VERSION
from tools.cluster.ray_cluster import Slot
from tools.cluster.ray_hosts import RayHosts
from tools.cluster.results import Results, describe_file
from tools.cluster.simulation import fake_jobs
from tools.console import Trouble


class Reference:
    """Of a value that comes at once, or later: when `value` is set."""

    value: object = None


class Cluster:
    """Hosts with an output folder each. asked: hosts whose status was asked. runs: {host: (reference, request)}."""

    def __init__(self, slots: list[Slot], folder: Path):
        self.slots, self.folder = slots, folder
        self.asked, self.runs, self.handles = [], {}, {}

    def start(self, slot: Slot, *_):
        name = str(slot)

        def remote(act: Callable):
            return SimpleNamespace(remote=lambda *arguments: self.answer(act, arguments))

        def run(request):
            self.runs[name] = (Reference(), request)
            return self.runs[name][0]

        return SimpleNamespace(
            facts=remote(lambda: {"version": VERSION, "folder": name}), lacking=remote(lambda graph: []),
            status=remote(lambda: self.asked.append(name) or ("Sample", 1, 2)), stop=remote(lambda: True),
            run=SimpleNamespace(remote=run), forget=remote(lambda token: True),
            read=remote(lambda *piece: self.read(*piece)),
        )  # fmt: skip

    def answer(self, act: Callable, arguments: tuple) -> Reference:
        made = Reference()
        made.value = act(*arguments)
        return made

    def read(self, name: str, offset: int, size: int) -> bytes:
        return (self.folder / name).read_bytes()[offset : offset + size]

    def write(self, name: str, content: bytes):
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_bytes(content)
        return describe_file(self.folder / name, name)


@pytest.fixture
def start(tmp_path, monkeypatch):
    """`start(count)`: RayHosts with that many hosts, all joined, and the fake cluster."""

    def started(count: int):
        cluster = Cluster([Slot("node", "gpu", number) for number in range(count)], tmp_path / "host")
        fake = SimpleNamespace(
            get=lambda reference: reference.value, kill=lambda handle: None,
            wait=lambda references, **_: ([each for each in references if each.value is not None], []),
        )  # fmt: skip
        for module in (ray_hosts, fetch):
            monkeypatch.setattr(module, "ray", fake)
        monkeypatch.setattr(ray_hosts, "slots", lambda gpus: cluster.slots)
        monkeypatch.setattr(ray_hosts, "start_host", cluster.start)
        monkeypatch.setattr(ray_hosts, "LOOK", 0)
        monkeypatch.setattr(ray_hosts, "ASK", 0)
        workflow = SimpleNamespace(graph={}, fill=lambda *_: {})
        hosts = RayHosts(Setup("", ""), workflow, Results(tmp_path / "out"))
        joined = []
        while len(joined) < count:
            joined += hosts.events()
        assert all(isinstance(event, Joined) for event in joined)
        return hosts, cluster

    return started


def end(cluster: Cluster, host: str, outcome: Callable):
    reference, request = cluster.runs[host]
    reference.value = outcome(request.token)


def until_ended(hosts: RayHosts) -> Ended:
    while True:
        for event in hosts.events():
            if isinstance(event, Ended):
                return event


def test_a_kept_latent_is_fetched_with_the_video(start, tmp_path):
    hosts, cluster = start(1)
    hosts.begin("gpu.0", fake_jobs(1)[0])
    end(cluster, "gpu.0", lambda token: Done(
        (cluster.write(f"{token}/a.mp4", b"video"),), (cluster.write(f"latents/{token}/a.latent", b"latent"),)
    ))  # fmt: skip
    outcome = until_ended(hosts).outcome
    assert [file.name for file in outcome.files] == ["a.mp4"]
    assert (tmp_path / "out" / "latents" / "a.latent").read_bytes() == b"latent"


def test_the_latent_of_a_failed_decode_is_fetched_and_the_reason_tells_where_it_is_now(start, tmp_path):
    hosts, cluster = start(1)
    hosts.begin("gpu.0", fake_jobs(1)[0])
    end(cluster, "gpu.0", lambda token: Failed(
        f"Out of memory. The latent is kept in latents/{token}/a.latent.",
        (cluster.write(f"latents/{token}/a.latent", b"latent"),),
    ))  # fmt: skip
    latent = tmp_path / "out" / "latents" / "a.latent"
    assert until_ended(hosts).outcome.reason == f"Out of memory. The latent is kept in {latent}."
    assert latent.read_bytes() == b"latent"


def test_a_video_that_arrives_damaged_is_the_jobs_failure(start, tmp_path):
    hosts, cluster = start(1)
    hosts.begin("gpu.0", fake_jobs(1)[0])
    end(cluster, "gpu.0", lambda token: Done((replace(cluster.write(f"{token}/a.mp4", b"video"), sha256="ff"),)))
    assert "a.mp4 arrived damaged" in until_ended(hosts).outcome.reason and not (tmp_path / "out" / "a.mp4").exists()


def test_a_host_that_is_lost_while_it_sends_is_lost_with_its_job(start, monkeypatch):
    hosts, cluster = start(1)
    hosts.begin("gpu.0", fake_jobs(1)[0])

    def read(*_):
        raise ray_hosts.RayError("the connection is gone")

    monkeypatch.setattr(cluster, "read", read)
    end(cluster, "gpu.0", lambda token: Done((cluster.write(f"{token}/a.mp4", b"video"),)))
    events = []
    while not events:
        events = hosts.events()
    assert [type(event) for event in events] == [Lost] and "the connection is gone" in events[0].reason


def test_an_idle_host_whose_machine_has_left_is_lost(start):
    hosts, cluster = start(2)
    gone = cluster.slots.pop()
    assert hosts.events() == [Lost(str(gone), "its machine has left the cluster")] and hosts.actors.keys() == {"gpu.0"}


def test_jobs_that_ended_before_a_trouble_are_handed_on_first(start, tmp_path):
    hosts, cluster = start(2)
    for host, job in zip(("gpu.0", "gpu.1"), fake_jobs(2), strict=True):
        hosts.begin(host, job)
    end(cluster, "gpu.1", lambda token: Failed("oh"))
    end(cluster, "gpu.0", lambda token: Done((cluster.write(f"{token}/a.mp4", b"video"),)))
    (tmp_path / "out").write_text("no folder")
    ended = until_ended(hosts)
    assert ended == Ended("gpu.1", Failed("oh"))
    with pytest.raises(Trouble, match="Results cannot be written"):
        until_ended(hosts)


def test_closing_waits_for_videos_and_returns_their_events(start, tmp_path):
    hosts, cluster = start(1)
    hosts.begin("gpu.0", fake_jobs(1)[0])
    end(cluster, "gpu.0", lambda token: Done((cluster.write(f"{token}/a.mp4", b"video"),)))
    early = hosts.events()
    (ended,) = early or hosts.close()
    assert isinstance(ended.outcome, Done) and (tmp_path / "out" / "a.mp4").is_file()


def test_the_hosts_that_the_display_shows_are_asked(start):
    hosts, cluster = start(20)
    began = [f"gpu.{number}" for number in reversed(range(20))]
    for host, job in zip(began, fake_jobs(20), strict=True):
        hosts.begin(host, job)
    hosts.events()
    assert cluster.asked == began[:12]
