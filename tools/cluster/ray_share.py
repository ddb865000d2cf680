"""Ray's own share of the driver's work: jobs on real Ray actors that do nothing."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import ray

from tools.cluster.drive import Done, Driver, Ended, Event, Joined
from tools.cluster.jobs import Job
from tools.cluster.ledger import Ledger
from tools.cluster.ray_cluster import connect
from tools.cluster.simulation import fake_jobs
from tools.console import say

STARTS = 4  # actors that start at a time: hundreds would starve Ray itself on a small machine


class Idle:
    """An actor whose jobs take no time."""

    def run(self, job: str) -> str:
        return job


class IdleHosts:
    def __init__(self, count: int):
        began = time.perf_counter()
        make, self.actors = ray.remote(Idle).options(num_cpus=0), {}
        for first in range(0, count, STARTS):
            made = {f"actor-{number}": make.remote() for number in range(first, min(first + STARTS, count))}
            ray.get([actor.run.remote("") for actor in made.values()])
            self.actors |= made
        self.seconds_to_start = time.perf_counter() - began
        self._joined = [Joined(host) for host in self.actors]
        self._pending: dict[object, str] = {}

    def begin(self, host: str, job: Job) -> None:
        self._pending[self.actors[host].run.remote(job.id)] = host

    def events(self) -> list[Event]:
        if self._joined:
            joined, self._joined = self._joined, []
            return joined
        references = list(self._pending)
        ready, _ = ray.wait(references, num_returns=1)
        ready, _ = ray.wait(references, num_returns=len(references), timeout=0)
        ray.get(ready)
        return [Ended(self._pending.pop(reference), Done(())) for reference in ready]


def run(args: argparse.Namespace) -> int:
    connect(None)
    hosts = IdleHosts(args.actors)
    say(f"{args.actors} actors in {hosts.seconds_to_start:.0f} s.")
    with tempfile.TemporaryDirectory(prefix="ultragen-cluster-") as folder, Ledger(Path(folder)) as notes:
        driver, began = Driver(fake_jobs(args.jobs), hosts, notes), time.perf_counter()
        driver.run()
        took = time.perf_counter() - began
    say(f"{len(driver.seconds)} jobs in {took:.1f} s: {args.jobs / took:.0f} a second.")
    return 0
