"""Forward and backward pass of a training step as one CUDA graph.

Without it, a step of a small model takes as long as the CPU needs to launch its kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

WARM_UP = 3  # passes before the recorded one, as PyTorch's documentation of CUDA graphs asks for


class GraphedLoss:
    """Compute a loss and its gradients by replaying a CUDA graph, which the first call records.

    loss: maps tensors, which keep their shapes from call to call, to a scalar. parameters: all that the loss trains.
    Every call overwrites their gradients in place: do not set them to None.
    """

    def __init__(self, loss: Callable[..., Tensor], parameters: Sequence[nn.Parameter]):
        self._loss, self._parameters, self._graph = loss, parameters, None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return the detached loss. Its gradients replace the previous ones."""
        if self._graph is None:
            self._record(inputs)
        for static, new in zip(self._inputs, inputs, strict=True):
            static.copy_(new)
        self._graph.replay()
        return self._value.clone()

    def _record(self, inputs: Sequence[Tensor]) -> None:
        self._inputs = [tensor.clone() for tensor in inputs]
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._loss(*self._inputs).backward()
                for parameter in self._parameters:
                    parameter.grad = None
        torch.cuda.current_stream().wait_stream(stream)
        # thread_local: the data loader's thread pins memory meanwhile, which the default mode forbids.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            value = self._loss(*self._inputs)
            value.backward()
        self._value, self._graph = value.detach(), graph
