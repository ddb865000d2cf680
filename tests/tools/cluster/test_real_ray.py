"""Real Ray, real ComfyUI servers: hosts, machines and drivers are killed, and the videos are the same.

One Ray cluster for all tests. The second scenario begins while the first one waits for a server.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from conftest import ROOT
from helpers.waiting import ended, wait_until
from PIL import Image

from tools import tiny_bundle, workflow
from tools.cluster import ledger, orphans
from tools.cluster.drive import Driver
from tools.cluster.host import Setup
from tools.cluster.jobs import make_jobs, read_graph
from tools.cluster.ledger import Ledger, read_done, read_lines
from tools.cluster.results import Results, is_whole
from tools.demo import DEMO_NODES
from tools.endurance.folder import frames_digest
from tools.server import make_base

STEPS, STORE = 16, 80 * 2**20
LONGEST = 600  # seconds that anything may take
CODEC = "FFV1 lossless RGB"
GOOD = ["a foggy lake", "a clear lake", "a lake at dusk", "hills at noon", "peaks at dawn"]
FAULTS = '''
import os
import time

import latent_preview

class Faults:
    """Passes a text on, unless it asks for a fault."""

    RETURN_TYPES, FUNCTION = ("STRING",), "run"
    INPUT_TYPES = classmethod(lambda cls: {"required": {"text": ("STRING", {}), "image": ("IMAGE",)}})

    def run(self, text, image):
        assert image.shape == (1, 8, 12, 3)
        if text == "crash":
            os._exit(1)
        if text == "fail":
            raise RuntimeError("asked to fail")
        return (text,)

NODE_CLASS_MAPPINGS = {"Faults": Faults}

prepare_callback = latent_preview.prepare_callback

def slowed(*args):
    """The driver looks at its hosts five times a second: a fast machine must not finish a job in between."""
    callback = prepare_callback(*args)
    return lambda *step: (callback(*step), time.sleep(0.1))

latent_preview.prepare_callback = slowed
'''
SETTINGS = ["faults.text=prompt", "13.codec=negative"]  # a job with a wrong codec is refused
DRIVER = """
import sys
from tools.cluster import __main__, run
sys.exit(run.run(None, __main__.parser().parse_args(["run", *sys.argv[1:]])))
"""


@pytest.fixture(scope="module")
def new_base(tmp_path_factory):
    """`new_base()`: a folder with models and custom nodes for servers."""

    def make() -> Path:
        made = make_base(tmp_path_factory.mktemp("base"), DEMO_NODES)
        (made / "custom_nodes" / "faults.py").write_text(FAULTS)
        tiny_bundle.write_trained(made)
        return made

    return make


@pytest.fixture(scope="module")
def graph():
    made = read_graph(ROOT / "docs" / "headless" / "ultragen_t2v_1080p.json")
    made = workflow.with_stand_ins(workflow.make_small(made, width=96, height=64, frames=5, steps=STEPS, seed=3))
    made["11"]["inputs"] |= {"unit": "steps"}
    made["13"]["inputs"] |= {"codec": CODEC, "keep_latent": "off"}
    made["faults"] = {"class_type": "Faults", "inputs": {"text": "", "image": ["start", 0]}}
    made["start"] = {"class_type": "LoadImage", "inputs": {"image": "example.png"}}
    made["5"]["inputs"]["text"] = ["faults", 0]
    return made


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """Lists: of good prompts only, and of these with one that is refused, one that fails and one that crashes."""
    folder = tmp_path_factory.mktemp("prompts")
    Image.new("RGB", (12, 8)).save(folder / "start.png")
    lines = [{"prompt": prompt, "negative": CODEC} for prompt in [*GOOD, "refuse", "fail", "crash"]]
    lines[len(GOOD)]["negative"] = "no such codec"
    lines = [{**line, "image": "start.png"} for line in lines]
    (folder / "good.json").write_text(json.dumps(lines[: len(GOOD)]))
    (folder / "all.json").write_text(json.dumps(lines))
    return folder


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A Ray cluster of two machines in this one. The first has the cluster's head and stays."""
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ULTRAGEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("RAY_AUTH_TOKEN", uuid.uuid4().hex)
        started = Cluster()
        try:
            started.add_node(object_store_memory=STORE, include_dashboard=False)
            started.second = started.add_node(object_store_memory=STORE)
            yield started
        finally:
            ray.shutdown()
            started.shutdown()


def host_files(name: str) -> list[Path]:
    """The files of this name of all hosts that have not ended."""
    return list(Path(os.environ["ULTRAGEN_CACHE"]).glob(f"cluster/hosts/*/*/{name}"))


def server_on(base: Path) -> int | None:
    """The process of the server that runs on this base."""
    for file in host_files(orphans.PID_FILE):
        with contextlib.suppress(OSError, ValueError):
            pid = json.loads(file.read_text())["pid"]
            if f"\0{base}\0" in Path(f"/proc/{pid}/cmdline").read_text():
                return pid
    return None


class Assault:
    """Called by the driver in each round. Removes the second machine, then kills the first one's host, both while they
    sample a job that has not been lost before. `then` is called after that."""

    def __init__(self, cluster, hosts, then: Callable[[], None]):
        self.cluster, self.hosts, self.then = cluster, hosts, then
        self.removed = self.killed = None  # (host, prompt) of each
        self.continued = 0
        self.end = time.monotonic() + LONGEST

    def __call__(self, driver):
        assert time.monotonic() < self.end, "the jobs take too long"
        for host, attempts in list(driver.running.items()):
            actor = self.hosts.actors.get(host)
            if actor is None or attempts.lost or not self._samples(actor):
                continue
            first = actor.slot.node == self.cluster.head_node.node_id
            done_here = any(each.host == host for each in read_done(driver.ledger.path.parent).values())
            if not first and not self.removed and done_here:
                self.removed = self._end(host, attempts, partial(self.cluster.remove_node, self.cluster.second, False))
            elif first and self.removed and not self.killed:
                self.killed = self._end(host, attempts, partial(os.kill, actor.facts["pid"], signal.SIGKILL))
                self.then()
        unfinished = [*driver.waiting, *driver.running.values()]
        if len(driver.lost_hosts) == 2 and not any(attempts.lost for attempts in unfinished):
            driver.most_lost = 1  # or the crash, which comes last, would cost three hosts
        self._count_continued()

    def _end(self, host, attempts, act):
        server = self.hosts.actors[host].facts["server"]
        assert not ended(server)
        act()
        wait_until(partial(ended, server))  # before the driver could start another host, which ends it, too
        return host, attempts.job.prompt

    def _samples(self, actor) -> bool:
        import ray

        with contextlib.suppress(Exception):
            title, done, _ = ray.get(actor.handle.status.remote(), timeout=5)
            return title == "Sample" and 3 <= done < STEPS - 5
        return False

    def _count_continued(self):
        logs = (log.read_text(errors="replace") for log in host_files("server.log"))
        found = sum(log.count("continuing after step") for log in logs)
        self.continued = max(self.continued, found)


@pytest.fixture(scope="module")
def kill_and_repeat(cluster, new_base, graph, prompts, tmp_path_factory):
    """`kill_and_repeat()`: the good jobs by the command, which is killed after the first and run again, on one machine.

    Returns the folder and the job that the killed driver had finished.
    """
    folder, base = tmp_path_factory.mktemp("again"), new_base()
    (folder / "graph.json").write_text(json.dumps(graph))
    out, log = folder / "videos", folder / "log"
    command = [sys.executable, "-c", DRIVER, "--workflow", folder / "graph.json", "--prompts", prompts / "good.json"]
    command += ["--out", out, "--address", cluster.address, "--cpu", "--comfyui", os.environ["COMFYUI_PATH"]]
    command += ["--python", sys.executable, "--base-directory", base, *(f"--set={setting}" for setting in SETTINGS)]

    def start():
        return subprocess.Popen(list(map(str, command)), stdout=log.open("a"), stderr=subprocess.STDOUT, cwd=ROOT)

    def run():
        driver = start()
        try:
            wait_until(lambda: read_done(out) or driver.poll() is not None, LONGEST)
            server = server_on(base)
            driver.kill()
            driver.wait()
            wait_until(partial(ended, server))
            (first,) = read_done(out)
            driver = start()
            assert driver.wait(timeout=LONGEST) == 0, log.read_text()
        finally:
            driver.kill()
        return out, first

    return run


@pytest.fixture(scope="module")
def both(cluster, new_base, graph, prompts, tmp_path_factory, kill_and_repeat):
    """All jobs on both machines, with results in a shared folder: (driver, assault, folder). And what kill_and_repeat
    returns, which begins when one machine is left and its host is killed: both wait for a server then."""
    from tools.cluster.ray_cluster import connect
    from tools.cluster.ray_hosts import RayHosts

    out = tmp_path_factory.mktemp("shared")
    connect(cluster.address)
    filled, jobs = make_jobs(graph, prompts / "all.json", SETTINGS)
    setup = Setup(os.environ["COMFYUI_PATH"], sys.executable, str(new_base()), cpu=True, shared=str(out), threads="1")
    hosts = RayHosts(setup, filled, Results(out), gpus=0)
    joined = []
    wait_until(lambda: joined.extend(hosts.events()) or len(joined) == 2, LONGEST)  # or one host would do everything
    later = hosts.events
    hosts.events = lambda: [joined.pop()] if joined else later()
    with Ledger(out) as notes, ThreadPoolExecutor(1) as pool:
        repeated = []
        assault = Assault(cluster, hosts, then=lambda: repeated.append(pool.submit(kill_and_repeat)))
        driver = Driver(jobs, hosts, notes, assault)
        try:
            driver.run()
        finally:
            hosts.close()
            hosts.results.clean()
        return (driver, assault, out), repeated[0].result()


@pytest.fixture
def ran(both):
    return both[0]


@pytest.fixture
def again(both):
    return both[1]


def digests(out: Path) -> dict[str, str]:
    found = {}
    for line in read_lines(out):
        if line["event"] == ledger.DONE:
            (video,) = (file["name"] for file in line["files"] if file["name"].endswith(".mkv"))
            found[line["prompt"]] = frames_digest(out / video)
    return found


def test_two_hosts_make_the_frames_of_one_server(ran, again):
    _, _, out = ran
    done, made = read_done(out), digests(out)
    assert len({each.host for each in done.values()}) >= 2 and all(is_whole(each, out) for each in done.values())
    assert made.keys() == set(GOOD) and len(set(made.values())) == len(GOOD)
    assert digests(again[0]) == made
    assert not done.keys() & {folder.name for folder in out.glob(".states/*")} and not list(out.glob(".outputs/*"))


def test_refused_failing_and_crashing_jobs_fail_with_a_sentence(ran):
    driver, _, out = ran
    reasons = {job.prompt: reason for job, reason in driver.failures}
    assert reasons.keys() == {"refuse", "fail", "crash"}
    assert "node 13 (UltraGenSaveVideo)" in reasons["refuse"] and "no such codec" in reasons["refuse"]
    assert reasons["fail"] == "Faults: asked to fail" and "ComfyUI closed the connection" in reasons["crash"]
    handed = Counter(line["job"] for line in read_lines(out) if line["event"] == ledger.HANDED_OUT)
    assert [handed[job.id] for job, _ in sorted(driver.failures, key=lambda each: each[0].number)] == [1, 2, 1]


def host_that_finished(out: Path, prompt: str) -> str:
    (host,) = (line["host"] for line in read_lines(out) if line["event"] == ledger.DONE and line["prompt"] == prompt)
    return host


def test_a_removed_machines_job_is_finished_elsewhere_from_its_state(ran):
    """Its frames: test_two_hosts_make_the_frames_of_one_server."""
    driver, assault, out = ran
    host, prompt = assault.removed
    assert host_that_finished(out, prompt) != host
    assert host in [left.host for left in driver.lost_hosts] and assault.continued >= 1


def test_a_killed_hosts_job_is_finished_by_its_successor(ran):
    """Its server ended with it: see Assault."""
    _, assault, out = ran
    host, prompt = assault.killed
    assert host_that_finished(out, prompt) == f"{host}#2"


def test_a_killed_driver_repeats_nothing_when_it_is_run_again(again):
    out, first = again
    events = [(line["event"], line["job"]) for line in read_lines(out)]
    assert [event for event, job in events if job == first] == [ledger.HANDED_OUT, ledger.DONE]
    assert Counter(event for event, _ in events)[ledger.DONE] == len(list(out.glob("*.mkv"))) == len(GOOD)
    assert (out / "contact_sheet.html").read_text().count("<img") == len(GOOD)
