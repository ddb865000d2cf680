"""Gates: per channel, how much of a block's output comes from its local side; functions of the timestep alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
        dtype = torch.promote_types(self.projection.weight.dtype, torch.float32)
        x = timestep_embedding(t).to(dtype)
        for linear in (self.embedding_in, self.embedding_out, self.projection):
            x = F.linear(x, linear.weight.to(dtype), linear.bias.to(dtype))
            x = x.sigmoid() if linear is self.projection else F.silu(x)
        return x[:, None]


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


# The coarse branches settle the layout while there is noise, the windows add detail at the end.
UNTRAINED_GATE = GateLine(at_noise=0.5, at_end=1.0)


class Gates(NamedTuple):
    """Shares of the local side, each (b, 1, c): local against hierarchical, and both together against global."""

    hierarchical: Tensor
    global_: Tensor


class GateTable:
    """The gates of every block, computed once per timestep.

    Gates depend on nothing else, and their weights are four fifths of the extras: they stay on the CPU and never take
    device memory.
    """

    def __init__(
        self, channels: int, sources: Mapping[int, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]]
    ):
        """sources: for each block the hierarchical and the global gate, functions from t (b,) to (b, 1, c or 1)."""
        self.channels = channels
        self.sources = sources
        self._last: tuple[object, dict[int, Gates]] = (None, {})

    @torch.no_grad()
    def __call__(self, t: Tensor) -> dict[int, Gates]:
        """t (b,) = 1000 * sigma -> gates of each block, float32 on t's device."""
        values, device = tuple(t.tolist()), t.device
        key, gates = self._last
        if key != (values, device):
            steps = torch.tensor(values)
            shape = (len(values), 1, self.channels)
            flat = [gate(steps).expand(shape) for pair in self.sources.values() for gate in pair]
            gates = {
                i: Gates(*pair)
                for i, pair in zip(self.sources, torch.stack(flat).to(device).unflatten(0, (-1, 2)), strict=True)
            }
            self._last = ((values, device), gates)
        return gates
