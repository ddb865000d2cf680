"""The driver: hands jobs to idle hosts, tries failed ones again, and notes everything in the ledger.

It knows nothing of Ray or ComfyUI, so that it runs on fake hosts, too (simulation.py).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tools.cluster import ledger
from tools.cluster.jobs import Job
from tools.cluster.ledger import Ledger, ResultFile

MOST_LOST = 3  # hosts that are lost with a job before it counts as failed


@dataclass(frozen=True)
class Done:
    """The graph ran. files: what its output nodes reported. kept: what else it wrote, such as the latent."""

    files: tuple[ResultFile, ...]
    kept: tuple[ResultFile, ...] = ()


@dataclass(frozen=True)
class Refused:
    """The server did not accept the graph, and no other would. reason: its sentence."""

    reason: str


@dataclass(frozen=True)
class Failed:
    """The graph raised while it ran. reason: the server's sentence. kept: what it wrote, such as the latent."""

    reason: str
    kept: tuple[ResultFile, ...] = ()


Outcome = Done | Refused | Failed


@dataclass(frozen=True)
class Joined:
    """A host is ready for jobs. slot: its GPUs, which hosts that replace it have, too; by default its name."""

    host: str
    slot: str = ""


@dataclass(frozen=True)
class Lost:
    """A host is lost, with the job that it ran."""

    host: str
    reason: str


@dataclass(frozen=True)
class Ended:
    """A host has ended its job and is idle."""

    host: str
    outcome: Outcome


Event = Joined | Lost | Ended


class Hosts(Protocol):
    def begin(self, host: str, job: Job) -> None:
        """Start a job on an idle host, without waiting for it."""

    def events(self) -> Sequence[Event]:
        """Wait a moment for something to happen. Raises Trouble where no host is left and none will come."""


@dataclass
class Attempts:
    """What has happened to a job so far. failed: whether it has raised. lost: how many hosts were lost with it.

    avoided: the slots on which that was.
    """

    job: Job
    failed: bool = False
    lost: int = 0
    avoided: set[str] = field(default_factory=set)
    started: float = 0.0


class Driver:
    def __init__(
        self,
        jobs: Sequence[Job],
        hosts: Hosts,
        ledger: Ledger,
        show: Callable[[Driver], None] = lambda driver: None,
        clock: Callable[[], float] = time.monotonic,
        most_lost: int = MOST_LOST,
    ):
        """show: called after each round, with the driver. clock: seconds."""
        self.hosts, self.ledger, self.show, self.clock, self.most_lost = hosts, ledger, show, clock, most_lost
        self.waiting = deque(map(Attempts, jobs))
        self.running: dict[str, Attempts] = {}
        self.present: dict[str, str] = {}  # hosts and their slots
        self._idle: dict[str, None] = {}  # in the order in which they became idle
        self.seconds: list[float] = []  # of each finished job
        self.failures: list[tuple[Job, str]] = []
        self.lost_hosts: list[Lost] = []

    def run(self) -> None:
        """Return when every job is done or has failed."""
        while self.waiting or self.running:
            self._hand_out()
            for event in self.hosts.events():
                self._take(event)
            self.ledger.sync()
            self.show(self)

    def finish(self, events: Sequence[Event]) -> None:
        """Note the jobs that are done after the end of `run`, so that the next run does not repeat them."""
        for event in events:
            if isinstance(event, Ended) and isinstance(event.outcome, Done):
                self._take(event)
        self.ledger.sync()

    def _hand_out(self) -> None:
        for host in list(self._idle):
            if not self.waiting:
                break
            attempts = self._next_for(host)
            if attempts is not None:
                del self._idle[host]
                self.running[host] = attempts
                attempts.started = self.clock()
                self.ledger.write(ledger.HANDED_OUT, attempts.job.id, host)
                self.hosts.begin(host, attempts.job)

    def _next_for(self, host: str) -> Attempts | None:
        """Take the first job in line that neither failed nor was lost on this slot, or that has no other to go to."""
        for position, attempts in enumerate(self.waiting):
            if self.present[host] not in attempts.avoided or attempts.avoided.issuperset(self.present.values()):
                del self.waiting[position]
                return attempts
        return None

    def _take(self, event: Event) -> None:
        if isinstance(event, Joined):
            self.present[event.host] = event.slot or event.host
            self._idle[event.host] = None
        elif event.host not in self.present:
            pass  # a late message of a host that counts as lost: its job is another's now
        elif isinstance(event, Lost):
            slot = self.present.pop(event.host)
            self._idle.pop(event.host, None)
            self.lost_hosts.append(event)
            if event.host in self.running:
                attempts = self.running.pop(event.host)
                attempts.avoided.add(slot)
                self._lost(attempts, event)
        elif event.host in self.running:
            self._idle[event.host] = None
            self._ended(self.running.pop(event.host), event.host, event.outcome)

    def _ended(self, attempts: Attempts, host: str, outcome: Outcome) -> None:
        if isinstance(outcome, Done):
            self.seconds.append(self.clock() - attempts.started)
            self.ledger.write_done(attempts.job, host, self.seconds[-1], outcome.files)
        elif isinstance(outcome, Refused) or attempts.failed:
            self._failed(attempts.job, host, outcome.reason)
        else:
            attempts.failed = True
            attempts.avoided.add(self.present[host])
            self.waiting.appendleft(attempts)
            self.ledger.write(ledger.RETRIED, attempts.job.id, host, reason=outcome.reason)

    def _lost(self, attempts: Attempts, event: Lost) -> None:
        attempts.lost += 1
        self.ledger.write(ledger.LOST, attempts.job.id, event.host, reason=event.reason)
        if attempts.lost < self.most_lost:
            self.waiting.appendleft(attempts)
        else:
            reason = f"Hosts that were lost while they ran this job: {attempts.lost}. The last: {event.reason}"
            self._failed(attempts.job, event.host, reason)

    def _failed(self, job: Job, host: str, reason: str) -> None:
        self.failures.append((job, reason))
        self.ledger.write(ledger.FAILED, job.id, host, reason=reason)
