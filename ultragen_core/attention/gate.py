"""Gates: per channel, how much of a block's output comes from its local side; functions of the timestep alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EMBEDDING_DIM = 256


def timestep_embedding(t: Tensor) -> Tensor:
    """Wan's sinusoidal embedding, cosines first: t (b,) = 1000 * sigma -> (b, 256) float32."""
    half = EMBEDDING_DIM // 2
    frequency = torch.pow(10000.0, -torch.arange(half, dtype=torch.float32, device=t.device) / half)
    phase = torch.outer(t.float(), frequency)
    return torch.cat((phase.cos(), phase.sin()), dim=-1)


class Gate(nn.Module):
    """g = sigmoid(Linear(SiLU(Linear(SiLU(Linear(sin256(t))))))): (b,) -> (b, 1, c), the share of the local side.

    The paper puts alpha on the global side; the published weights gate the local side. Computed at least in
    float32, whatever the weights' dtype.
    """

    def __init__(self, channels: int, **factory):
        super().__init__()
        self.embedding_in = nn.Linear(EMBEDDING_DIM, channels, **factory)
        self.embedding_out = nn.Linear(channels, channels, **factory)
        self.projection = nn.Linear(channels, channels, **factory)

    def forward(self, t: Tensor) -> Tensor:
        return self.of_embeddings([timestep_embedding(t)])[0]

    def of_embeddings(self, embeddings: Sequence[Tensor]) -> list[Tensor]:
        """Timestep embeddings, each (b, 256) -> their gates, each (b, 1, c). The weights are moved to the embeddings'
        device and cast once for all of them.
        """
        device = embeddings[0].device
        dtype = torch.promote_types(self.projection.weight.dtype, torch.float32)
        first, second, last = (
            # Moved before they are cast: the device casts faster.
            [parameter.to(device).to(dtype) for parameter in (linear.weight, linear.bias)]
            for linear in (self.embedding_in, self.embedding_out, self.projection)
        )

        def gate(x: Tensor) -> Tensor:
            return F.linear(F.silu(F.linear(F.silu(F.linear(x, *first)), *second)), *last).sigmoid()[:, None]

        return [gate(embedding.to(dtype)) for embedding in embeddings]


class BlockGates(nn.Module):
    """The two gates of one block."""

    def __init__(self, channels: int, **factory):
        super().__init__()
        self.global_gate = Gate(channels, **factory)
        self.hierarchical_gate = Gate(channels, **factory)


class GateLine(NamedTuple):
    """A gate without weights: the share of the local side, linear in t from 1000 (pure noise) to 0 (finished video)."""

    at_noise: float
    at_end: float

    def __call__(self, t: Tensor) -> Tensor:
        """(b,) -> (b, 1, 1)."""
        return (self.at_end + (self.at_noise - self.at_end) * t / 1000)[:, None, None]


def check_gate(gate: GateLine | None) -> None:
    """Raise ValueError where a share is not between 0 and 1."""
    if gate is not None and not all(0 <= share <= 1 for share in gate):
        raise ValueError(f"A gate's shares must be between 0 and 1, got {gate.at_noise} and {gate.at_end}.")


# Without trained weights the coarse branches settle the layout while there is noise, the windows add detail at the end.
# Chosen by experiment: docs/ablation.md.
UNTRAINED_HIERARCHICAL = GateLine(at_noise=0.2, at_end=1.0)
UNTRAINED_GLOBAL = GateLine(at_noise=0.5, at_end=1.0)


class Gates(NamedTuple):
    """Shares of the local side, each (b, 1, c): local against hierarchical, and both together against global."""

    hierarchical: Tensor
    global_: Tensor


class GateSources(NamedTuple):
    """Where a rule's gates come from. by_block: the hierarchical and the global gate of each block."""

    channels: int
    by_block: Mapping[int, tuple[Gate | GateLine, Gate | GateLine]]


NO_GATES = GateSources(0, {})


class GateTable:
    """The gates of one sampling run, each computed once per timestep and device.

    Gates depend on the timestep alone, and their weights are four fifths of the extras. They stay in host memory and
    pass through the device once, one gate after the other, for all timesteps of the run's schedule. Every timestep is
    computed by products of its own: its last bits must not depend on the others, or a run that continues from a saved
    state would differ.
    """

    MAX_TIMESTEPS = 512  # 150 MB for Wan 1.3B; evaluations outside a sampling run would fill the memory

    def __init__(self) -> None:
        self._by_device: dict[torch.device, dict[float, Tensor]] = {}

    @torch.no_grad()
    def at(self, t: Tensor, sources: GateSources, schedule: Tensor) -> dict[int, Gates]:
        """t (b,) = 1000 * sigma -> gates of each block, float32 (b, 1, c) on t's device.

        schedule: the timesteps that are likely to follow, which are computed together with the first. A timestep that
        is not among them is computed when it comes.
        """
        if not sources.by_block:
            return {}
        known, values = self._by_device.setdefault(t.device, {}), t.tolist()
        if any(value not in known for value in values):
            if len(known) >= self.MAX_TIMESTEPS:
                known.clear()
            new = [value for value in dict.fromkeys((*values, *schedule.tolist())) if value not in known]
            known.update(zip(new, _rows(new, sources, t.device), strict=True))
        rows = torch.stack([known[value] for value in values], dim=1).to(t.device).unbind()
        return {index: Gates(*rows[2 * i : 2 * i + 2]) for i, index in enumerate(sources.by_block)}


def _rows(timesteps: Iterable[float], sources: GateSources, device: torch.device) -> tuple[Tensor, ...]:
    """For each timestep the gates of all blocks, on the CPU: (2 * blocks, 1, c), hierarchical and global in turn."""
    steps = torch.tensor(list(timesteps)).split(1)
    embeddings = [timestep_embedding(step).to(device) for step in steps]
    columns = [
        torch.cat(gate.of_embeddings(embeddings) if isinstance(gate, Gate) else [gate(step) for step in steps])
        .cpu()
        .expand(-1, -1, sources.channels)
        for gates in sources.by_block.values()
        for gate in gates
    ]
    return torch.stack(columns, dim=1).unbind()
