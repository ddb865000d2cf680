"""Hosts on all machines of a Ray cluster: started, watched, replaced."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial

import ray
from ray.exceptions import RayError

from tools.cluster.display import MOST_HOSTS
from tools.cluster.drive import Done, Ended, Event, Failed, Joined, Lost
from tools.cluster.fetch import Fetcher
from tools.cluster.host import Request, Setup
from tools.cluster.jobs import Job, Workflow
from tools.cluster.pack import VERSION, printable
from tools.cluster.ray_cluster import Actor, Slot, explain, slots, start_host
from tools.cluster.results import Results
from tools.console import Trouble

LOOK, ASK = 2.0, 2.0  # seconds between two looks at the cluster's machines, and at what hosts do
MOST_STARTS = 3  # hosts in a row that may fail to start on the same GPUs
MOST_LOST = 10  # hosts in a row that may be lost there without a finished job: one bad job costs three
FETCHERS = 8  # files that are fetched at a time
STOP_SECONDS = 30


class RayHosts:
    def __init__(
        self,
        setup: Setup,
        workflow: Workflow,
        results: Results,
        gpus: float = 1,
        say: Callable[[str], None] = print,
    ):
        """gpus: of each host; 0 for one host a machine, on the CPU. say: prints a line for the user."""
        self.setup, self.workflow, self.results, self.gpus, self.say = setup, workflow, results, gpus, say
        self.actors: dict[str, Actor] = {}
        self._busy: dict[str, Actor] = {}  # the longest-running job first, as the display shows them
        self.given_up: dict[Slot, str] = {}  # with the reason
        self._failed_starts: Counter[Slot] = Counter()
        self._lost_in_a_row: Counter[Slot] = Counter()
        self._started: Counter[Slot] = Counter()
        self._pending: dict[object, Callable[[object], None]] = {}  # Ray's references, and who wants their value
        self._stops: list[object] = []  # references of hosts that are not used
        self._events: list[Event] = []
        self._fetcher = Fetcher(results, setup.shared)
        self._pool = ThreadPoolExecutor(FETCHERS)
        self._fetches: list[tuple[Actor, Future]] = []
        self._trouble: Trouble | None = None  # raised when the events before it are taken
        self._next_look = self._next_question = 0.0

    # What the driver calls.

    def begin(self, host: str, job: Job) -> None:
        actor, token = self.actors[host], secrets.token_hex(8)
        try:
            images = {f"{job.id[:16]}{job.image.suffix.lower()}": job.image.read_bytes()} if job.image else {}
        except OSError as error:
            return self._end(actor, Failed(f"The start image cannot be read: {error}."))
        graph = self.workflow.fill(job, f"{token}/{job.name}", next(iter(images), None))
        self._busy[host], actor.step = actor, ""
        self._when_done(actor.handle.run.remote(Request(job.id, token, graph, images)), self._ran, actor, job, token)

    def events(self) -> list[Event]:
        if self._trouble:
            raise self._trouble
        self._start_missing()
        self._ask()
        if self._pending:
            references = list(self._pending)
            ready, _ = ray.wait(references, num_returns=1, timeout=0.2, fetch_local=False)
            if ready:
                ready, _ = ray.wait(references, num_returns=len(references), timeout=0, fetch_local=False)
            for reference in ready:
                self._pending.pop(reference)(reference)
        else:
            time.sleep(0.05)
        return self._take_events()

    def close(self) -> list[Event]:
        """Receive what finished jobs have written, and stop all servers. Returns the last events."""
        wait([fetch for _, fetch in self._fetches], timeout=STOP_SECONDS)
        events = self._take_events()
        stopped = self._stops + [actor.handle.stop.remote() for actor in self.actors.values()]
        if stopped:
            ray.wait(stopped, num_returns=len(stopped), timeout=STOP_SECONDS)
        for actor in self.actors.values():
            ray.kill(actor.handle)
        self.actors.clear()
        self._pending.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)
        return events

    def step_of(self, host: str) -> str:
        return self.actors[host].step if host in self.actors else ""

    def starting(self) -> int:
        return sum(not actor.joined for actor in self.actors.values())

    # Hosts that come and leave.

    def _start_missing(self) -> None:
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK
        found = slots(self.gpus)
        for actor in [actor for actor in self.actors.values() if actor.slot not in found]:
            self._lost(actor, "its machine has left the cluster")  # nobody waits for an answer of an idle host
        taken = {actor.slot for actor in self.actors.values()}
        if not found and not self._started:
            raise Trouble(f"No machine has the GPUs of a host ({self.gpus:g}). Use --cpu to run without GPUs.")
        for slot in found:
            if slot not in taken and slot not in self.given_up:
                self._start(slot)
        if found and not self.actors:
            reasons = "".join(f"\n    {slot}: {reason}" for slot, reason in self.given_up.items())
            raise Trouble(f"No host can run the workflow.{reasons}")

    def _start(self, slot: Slot) -> None:
        self._started[slot] += 1
        again = f"#{self._started[slot]}" if self._started[slot] > 1 else ""
        handle = start_host(slot, self.gpus, self.setup)
        actor = self.actors[f"{slot}{again}"] = Actor(f"{slot}{again}", slot, handle)
        self._when_done(handle.facts.remote(), self._up, actor)

    def _up(self, actor: Actor, reference) -> None:
        actor.facts = self._value(actor, reference)
        if actor.facts and actor.facts["version"] != VERSION:
            self._give_up(actor, f"it has UltraGen {actor.facts['version']}, the driver {VERSION}. Update one of them.")
        elif actor.facts:
            self._when_done(actor.handle.lacking.remote(self.workflow.graph), self._checked, actor)

    def _checked(self, actor: Actor, reference) -> None:
        lacking = self._value(actor, reference)
        if lacking:
            self._give_up(actor, f"it lacks {', '.join(lacking)}")
        elif lacking is not None:
            actor.joined = True
            self._failed_starts[actor.slot] = 0
            self._events.append(Joined(actor.name, str(actor.slot)))

    def _give_up(self, actor: Actor, reason: str) -> None:
        self.given_up[actor.slot] = reason
        self.say(f"{actor.name} is not used: {reason}")
        del self.actors[actor.name]
        self._stops.append(actor.handle.stop.remote())
        self._when_done(self._stops[-1], self._stopped, actor)

    def _stopped(self, actor: Actor, reference) -> None:
        ray.kill(actor.handle)

    def _value(self, actor: Actor, reference):
        """Return the value of a reference; None if the host is lost."""
        try:
            return ray.get(reference)
        except Exception as error:  # Ray's own errors, and whatever the host raised
            self._lost(actor, explain(error))
            return None

    def _lost(self, actor: Actor, reason: str) -> None:
        if self.actors.pop(actor.name, None) is None:
            return
        self._busy.pop(actor.name, None)
        ray.kill(actor.handle)  # it may live on, cut off from us
        if actor.joined:
            self._events.append(Lost(actor.name, reason))
            self._lost_in_a_row[actor.slot] += 1
        else:
            self.say(f"{actor.name} could not start: {printable(reason)}")
            self._failed_starts[actor.slot] += 1
        if self._failed_starts[actor.slot] >= MOST_STARTS or self._lost_in_a_row[actor.slot] >= MOST_LOST:
            self.given_up[actor.slot] = f"too many hosts in a row were lost; the last: {reason}"

    # Jobs and their results.

    def _ran(self, actor: Actor, job: Job, token: str, reference) -> None:
        outcome = self._value(actor, reference)
        if isinstance(outcome, Done) or getattr(outcome, "kept", ()):
            self._fetches.append((actor, self._pool.submit(self._fetcher.fetch, actor, job, token, outcome)))
        elif outcome is not None:
            self._end(actor, outcome)

    def _take_fetched(self) -> None:
        ended = [(actor, fetch) for actor, fetch in self._fetches if fetch.done()]
        self._fetches = [each for each in self._fetches if each not in ended]
        for actor, fetch in ended:
            try:
                self._end(actor, fetch.result())
            except RayError as error:
                self._lost(actor, explain(error))
            except OSError as error:
                self._trouble = Trouble(f"Results cannot be written to {self.results.folder}: {error}.")

    def _end(self, actor: Actor, outcome) -> None:
        self._busy.pop(actor.name, None)
        if isinstance(outcome, Done):
            self._lost_in_a_row[actor.slot] = 0
        self._events.append(Ended(actor.name, outcome))

    def _take_events(self) -> list[Event]:
        self._take_fetched()
        events, self._events = self._events, []
        return events

    # Progress.

    def _ask(self) -> None:
        if time.monotonic() >= self._next_question:
            self._next_question = time.monotonic() + ASK
            for actor in list(self._busy.values())[:MOST_HOSTS]:
                self._when_done(actor.handle.status.remote(), self._told, actor)

    def _told(self, actor: Actor, reference) -> None:
        try:
            title, done, of = ray.get(reference)
        except Exception:  # the job's own reference tells that the host is lost
            return
        actor.step = f"{title} {done:g} of {of:g}" if of else title

    def _when_done(self, reference, act: Callable, *arguments) -> None:
        self._pending[reference] = partial(act, *arguments)
