"""Tables of rotary position embeddings (RoPE) over token grids whose positions start at 0 on every axis."""

from __future__ import annotations

import torch
from torch import Tensor

from ..built_once import built_once
from ..grid import TokenGrid

THETA = 10000.0
Scale = tuple[float, float, float]
NO_SCALE: Scale = (1.0, 1.0, 1.0)


def axis_dims(head_dim: int) -> tuple[int, int, int]:
    """How many of a head's channels Wan gives to t, h and w."""
    third = 2 * (head_dim // 6)
    return head_dim - 2 * third, third, third


@torch.inference_mode(False)  # a table made for sampling may serve training next
def rope_table(grid: TokenGrid, head_dim: int, device: torch.device, scale: Scale = NO_SCALE) -> Tensor:
    """Cosine and sine of every rotation, float32 (tokens, head_dim / 2, 2); positions are multiplied by `scale`.

    Angles are computed in float64 on the CPU, because not every device has it.
    """
    per_axis = []
    for length, dim, factor in zip(grid, axis_dims(head_dim), scale, strict=True):
        frequency = THETA ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        per_axis.append(torch.outer(factor * torch.arange(length, dtype=torch.float64), frequency))
    t, h, w = per_axis
    angles = torch.cat(
        [
            t[:, None, None].expand(*grid, -1),
            h[None, :, None].expand(*grid, -1),
            w[None, None, :].expand(*grid, -1),
        ],
        dim=-1,
    ).flatten(0, 2)
    return torch.stack((angles.cos(), angles.sin()), dim=-1).float().to(device)


class RopeTables:
    """The RoPE tables of one run, each computed once for all devices. The run owns them: up to 44 MiB at 4K on the host
    and on each device are freed with it.
    """

    def __init__(self) -> None:
        self._tables: dict[tuple, Tensor] = {}
        self._on_host = built_once(maxsize=64)(self._computed)

    @torch.compiler.disable  # a compiled graph would compute the table in every call
    def table(self, grid: TokenGrid, head_dim: int, device: torch.device, scale: Scale) -> Tensor:
        """As `rope_table`."""
        key = grid, head_dim, device, scale
        if key not in self._tables:
            with torch.inference_mode(False):
                self._tables[key] = self._on_host(grid, head_dim, scale).to(device)
        return self._tables[key]

    @staticmethod
    def _computed(grid: TokenGrid, head_dim: int, scale: Scale) -> Tensor:
        return rope_table(grid, head_dim, torch.device("cpu"), scale)


class CutRopeTables:
    """RoPE tables cut from a given one, for models whose rotations are not Wan's own. A window gets those of the grid's
    first tokens, because only relative positions matter.

    table: cosine and sine of every rotation (tokens, head_dim / 2, 2) of `grid`.
    """

    def __init__(self, table: Tensor, grid: TokenGrid) -> None:
        self._table = table.unflatten(0, grid)

    def table(self, grid: TokenGrid, head_dim: int, device: torch.device, scale: Scale) -> Tensor:
        """As `rope_table`. scale: the distance of neighbours, in tokens."""
        steps = map(int, scale)
        t, h, w = (slice(0, length * step, step) for length, step in zip(grid, steps, strict=True))
        return self._table[t, h, w].flatten(0, 2).float()
