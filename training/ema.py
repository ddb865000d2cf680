"""The running average of the weights that learn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


def decay_at(step: int, decay: float) -> float:
    """The share of the old average; small at first, so that the average forgets where training started."""
    return min(decay, (1 + step) / (10 + step))


class AveragedWeights:
    """Averages beside parameters, on the same device and, where those are sharded, sharded like them."""

    def __init__(self, parameters: Sequence[nn.Parameter]):
        self._parameters = list(parameters)
        self._averages = [parameter.detach().clone() for parameter in self._parameters]

    def update(self, decay: float) -> None:
        get_ema_multi_avg_fn(decay)(self._averages, [p.detach() for p in self._parameters], None)

    @torch.no_grad()
    def take_over(self) -> None:
        """The parameters' values are the averages from now on."""
        for average, parameter in zip(self._averages, self._parameters, strict=True):
            average.copy_(parameter)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the parameters hold their averages."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, parameter in zip(self._averages, self._parameters, strict=True):
            held = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(held)
