"""The driver on fake hosts, in simulated time: how many jobs a second it handles, and that it loses and repeats none.

With --actors, on real Ray actors that do nothing: Ray's own share.
"""

from __future__ import annotations

import argparse
import heapq
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tools.cluster import ledger
from tools.cluster.drive import Done, Driver, Ended, Event, Failed, Joined, Lost, Refused
from tools.cluster.jobs import Job
from tools.cluster.ledger import Ledger, ResultFile, read_lines
from tools.console import say


@dataclass(frozen=True)
class Rates:
    """Shares of all attempts that end so; all others are done. late: of lost hosts, those whose result still arrives.

    refused is a share of the jobs: a job is refused everywhere.
    """

    refused: float = 0.001
    failed: float = 0.01
    lost: float = 0.005
    late: float = 0.5


@dataclass
class FakeHosts:
    """Hosts that end their jobs after a random time. A lost host comes back under another name.

    done: how often each job succeeded on a host that stayed.
    """

    count: int
    rates: Rates
    chance: random.Random
    now: float = 0.0
    done: Counter = field(default_factory=Counter)

    def __post_init__(self):
        self._names = 0
        self._queue: list[tuple[float, int, Event]] = []
        self._order = 0
        for _ in range(self.count):
            self._join(self.chance.random())

    def begin(self, host: str, job: Job) -> None:
        end = self.now + self.chance.uniform(60, 600)
        outcome = self.outcome(job)
        if outcome is None:
            self._add(end, Lost(host, "the machine was taken away"))
            if self.chance.random() < self.rates.late:
                self._add(end + 1, Ended(host, Done(())))
            self._join(end + self.chance.uniform(30, 300))
        else:
            self._add(end, Ended(host, outcome))
            self.done[job.id] += isinstance(outcome, Done)

    def outcome(self, job: Job) -> Done | Failed | Refused | None:
        """Draw how an attempt ends; None: its host is lost."""
        if random.Random(job.id).random() < self.rates.refused:
            return Refused("Prompt outputs failed validation")
        draw = self.chance.random()
        if draw < self.rates.lost:
            return None
        if draw < self.rates.lost + self.rates.failed:
            return Failed("SamplerCustomAdvanced: out of memory")
        return Done((ResultFile(f"{job.name}_00001_.mp4", 40_000_000, job.id),))

    def events(self) -> Sequence[Event]:
        self.now, _, event = heapq.heappop(self._queue)
        return [event]

    def _join(self, when: float) -> None:
        self._names += 1
        self._add(when, Joined(f"host-{self._names}"))

    def _add(self, when: float, event: Event) -> None:
        self._order += 1
        heapq.heappush(self._queue, (when, self._order, event))


def fake_jobs(count: int) -> list[Job]:
    return [Job(n, f"{n:064x}", f"a cloudy lake at dusk, number {n}", None, n, None) for n in range(1, count + 1)]


def ends(folder: Path) -> dict[str, list[str]]:
    """Return how each job ended by the ledger: {id: events}, one event each if nothing was lost or done twice."""
    found: dict[str, list[str]] = {}
    for line in read_lines(folder):
        if line["event"] in (ledger.DONE, ledger.FAILED):
            found.setdefault(line["job"], []).append(line["event"])
    return found


class TimedLedger(Ledger):
    """Measures how long it waits for the disk."""

    waited = 0.0

    def sync(self) -> None:
        began = time.perf_counter()
        super().sync()
        self.waited += time.perf_counter() - began


def simulate(notes: Ledger, hosts: FakeHosts, jobs: Sequence[Job]) -> Driver:
    """Drive jobs on fake hosts. Raises AssertionError unless each ends exactly once, and as its hosts said."""
    with notes:
        driver = Driver(jobs, hosts, notes, clock=lambda: hosts.now)
        driver.run()
    found = ends(notes.path.parent)
    assert found.keys() == {job.id for job in jobs}, "jobs were lost"
    assert all(len(events) == 1 for events in found.values()), "jobs ended twice"
    done = {job for job, (event,) in found.items() if event == ledger.DONE}
    assert done == set(+hosts.done) and max(hosts.done.values(), default=1) == 1, "results differ from what hosts did"
    return driver


def run(args: argparse.Namespace) -> int:
    if args.actors:
        from tools.cluster import ray_share

        return ray_share.run(args)
    with tempfile.TemporaryDirectory(prefix="ultragen-cluster-") as name:
        folder, hosts = Path(name), FakeHosts(args.hosts, Rates(), random.Random(args.seed))
        notes, began = TimedLedger(folder), time.perf_counter()
        driver = simulate(notes, hosts, fake_jobs(args.jobs))
        took, size = time.perf_counter() - began, notes.path.stat().st_size
        events = Counter(line["event"] for line in read_lines(folder))
    say(f"{args.jobs} jobs on {args.hosts} hosts: {', '.join(f'{n} {event}' for event, n in sorted(events.items()))}")
    say(f"{len(driver.lost_hosts)} hosts were lost. Each job ended exactly once.")
    own = took - notes.waited
    say(
        f"{took:.1f} s, {notes.waited:.1f} of them for the disk: {args.jobs / took:.0f} jobs a second,"
        f" {args.jobs / own:.0f} without the disk."
    )
    say(f"Ledger: {size / 1e6:.1f} MB, {size / args.jobs:.0f} bytes a job.")
    say(f"In simulated time: {hosts.now / 3600:.1f} h, {args.jobs / hosts.now:.2f} jobs a second.")
    return 0
