"""Exponential moving averages (EMA) of the learning parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


def decay_at(step: int, decay: float) -> float:
    """Return the EMA decay of a step: small at first, so that the average forgets the initial weights."""
    return min(decay, (1 + step) / (10 + step))


class AveragedWeights:
    """Averages of parameters, on the same device and sharded in the same way."""

    def __init__(self, parameters: Sequence[nn.Parameter]):
        self._parameters = list(parameters)
        self._averages = [parameter.detach().clone() for parameter in self._parameters]

    def update(self, decay: float) -> None:
        get_ema_multi_avg_fn(decay)(self._averages, [p.detach() for p in self._parameters], None)

    @torch.no_grad()
    def take_over(self) -> None:
        """Set the averages to the parameters' current values."""
        for average, parameter in zip(self._averages, self._parameters, strict=True):
            average.copy_(parameter)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averages into the parameters inside the context."""
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
