"""Ray: connecting, the GPUs of its machines, actors on them, and its errors in words."""

from __future__ import annotations

from dataclasses import dataclass, field

import ray
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tools.cluster.host import Host, Setup
from tools.console import Trouble, say

STORE = 256 * 2**20  # bytes of a local Ray's store, through which files come in pieces


def connect(address: str | None, dashboard: bool = False) -> None:
    """Connect to a Ray cluster, or start Ray on this machine alone. Raises Trouble."""
    local = {} if address else {"object_store_memory": STORE, "include_dashboard": dashboard}
    try:
        context = ray.init(address or "local", log_to_driver=False, logging_level="ERROR", **local)
    except Exception as error:  # Ray raises many, among them plain ones where a start takes too long
        failed = f"Ray cannot connect to the cluster at {address}" if address else "Ray cannot start on this machine"
        raise Trouble(f"{failed}: {error}") from None
    if context.dashboard_url:
        say(f"Ray's dashboard: http://{context.dashboard_url}")


@dataclass(frozen=True)
class Slot:
    """GPUs of one machine, for one host."""

    node: str
    machine: str
    number: int

    def __str__(self) -> str:
        return f"{self.machine}.{self.number}"


@dataclass
class Actor:
    """A host's process. name: unique among all that were ever started. handle: Ray's.

    joined: it is ready for jobs. facts: what Host.facts returned. step: what it does, for the display.
    """

    name: str
    slot: Slot
    handle: object
    joined: bool = False
    facts: dict = field(default_factory=dict)
    step: str = ""


def slots(gpus: float) -> list[Slot]:
    """Return what the cluster's machines have for hosts of `gpus` GPUs each; 0: one host a machine, on the CPU."""
    found = []
    for node in ray.nodes():
        if node["Alive"]:
            machine = f"{node['NodeManagerHostname']}-{node['NodeID'][:4]}"
            count = int(node["Resources"].get("GPU", 0) / gpus) if gpus else 1
            found += [Slot(node["NodeID"], machine, number) for number in range(count)]
    return found


def start_host(slot: Slot, gpus: float, setup: Setup):
    """Start a host, without waiting for it, and return Ray's handle of the actor."""
    # Four threads: one runs the job, the others answer meanwhile. No CPUs: a host only waits for its server.
    options = {"num_cpus": 0, "num_gpus": gpus, "max_concurrency": 4, "max_restarts": 0, "max_task_retries": 0}
    affinity = NodeAffinitySchedulingStrategy(slot.node, soft=False)
    return ray.remote(Host).options(**options, scheduling_strategy=affinity).remote(setup)


def explain(error: BaseException) -> str:
    """Explain why a host is lost. A host's own error is quoted, Ray's are named."""
    if isinstance(error, RayTaskError):
        error = error.cause or error
        return str(error) or type(error).__name__
    cause = getattr(error, "__cause__", None)
    text = str(cause or error).strip().splitlines()
    return f"{type(error).__name__}: {' '.join(line.strip() for line in text[:6])}"
