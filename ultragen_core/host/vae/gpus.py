"""A pass of a decode over several GPUs: one of ComfyUI's threads for each, and results in the calling thread."""

from __future__ import annotations

import contextlib
import functools
import logging
import queue
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import comfy.model_management as mm
import torch
from torch import Tensor, nn

from ...out_of_ram import is_host_out_of_memory
from ...vae.context import Context, moved
from ...vae.layers import Layer
from ..compat import cast_parameters, gpu_pool_class
from ..memory import is_out_of_memory
from ..multigpu.devices import SECONDS_WITHOUT_ANSWER, Workers, gpus

WAITING = 3  # results of one GPU that may wait for the calling thread
POLL_SECONDS = 0.05

T = TypeVar("T")
Work = Callable[[Iterable[T], Context, Callable[..., None]], None]
"""work(items, context, send): computes items on context.device, and hands each result over as send(*result)."""

log = logging.getLogger(__name__)


@contextlib.contextmanager
def decode_workers(vae, count: int) -> Iterator[Workers | None]:
    """Threads for at most `count` GPUs, the VAE's first; 0 is all. None, and no thread, where only one GPU works."""
    devices = gpus(count, vae.device)
    if len(devices) > 1:
        with Workers(devices) as workers:
            yield workers
        return
    if count != 1 and gpu_pool_class() is None:
        log.info("UltraGen VAE: decoding on one GPU, because several need ComfyUI 0.30.0 or newer.")
    elif count != 1:
        log.info("UltraGen VAE: decoding on one GPU, because ComfyUI sees no other of the VAE's type.")
    yield None


def on_device(device: torch.device) -> contextlib.AbstractContextManager:
    """Make a CUDA device the current one, on which kernels are launched."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


class MultiGPUPasses:
    """Runs the passes of one video on `devices`, in the threads of `workers`.

    All GPUs compute with the same weights, which are read once, since ComfyUI's cast is not made for several threads.
    """

    def __init__(self, vae, layers: Sequence[Layer], workers: Workers, devices: Sequence[torch.device]):
        self._dtype, self._workers, self._devices = vae.vae_dtype, workers, devices
        self._weights = _weights_on_host(vae, layers)

    def run(self, items: Sequence[T], work: Work[T], take: Callable[..., None]) -> None:
        """Call work(items, context, send) on every GPU, with items from one queue, and take(*result) in this thread.

        An item is computed once, on the first GPU that is free. The results of a GPU come in its order, and at most
        WAITING of them wait. Returns or raises when every thread is idle. When memory runs out on one GPU, the others
        complete the items that they have begun; any other error stops them. Raises the first error.
        """
        devices = self._devices[: len(items)]
        shared = _SharedPass(items, devices)

        def work_on(device: torch.device) -> None:
            def weights(module: nn.Module) -> tuple[Tensor, Tensor | None]:
                weight, bias = self._weights[module]
                return moved(weight, device), None if bias is None else moved(bias, device)

            context = Context(weights, device, self._dtype, shared.check_stopped)
            work(shared.items(), context, functools.partial(shared.send, device))

        jobs = [self._workers.start(device, functools.partial(shared.work, device, work_on)) for device in devices]
        try:
            shared.take_all(take)
        finally:
            shared.stopped = True
            late = [str(job.device) for job in jobs if not self._workers.finish(job, SECONDS_WITHOUT_ANSWER)]
            if late:
                log.error("UltraGen VAE: the thread of %s does not end. Start ComfyUI again.", ", ".join(late))
        shared.raise_first()


class _Stopped(Exception):
    """Ends the work of a GPU where the pass has failed elsewhere."""


class _SharedPass:
    """One pass: items to compute, results on their way to the calling thread, errors."""

    def __init__(self, items: Iterable, devices: Sequence[torch.device]):
        self.stopped, self._left, self._working, self._errors = False, deque(items), set(devices), []
        self._results: queue.SimpleQueue[tuple[torch.device, tuple | None]] = queue.SimpleQueue()
        self._slots = {device: queue.SimpleQueue() for device in devices}
        for slots in self._slots.values():
            for _ in range(WAITING):
                slots.put(None)

    def check_stopped(self) -> None:
        if self.stopped:
            raise _Stopped

    def items(self) -> Iterator:
        while True:
            self.check_stopped()
            try:
                item = self._left.popleft()
            except IndexError:
                return
            yield item

    def work(self, device: torch.device, work_on: Callable[[torch.device], None]) -> None:
        """Work in the thread of a GPU; never raises."""
        try:
            with on_device(device):
                work_on(device)
        except _Stopped:
            pass
        except BaseException as error:
            self._errors.append(error)
            self._left.clear()
            if is_out_of_memory(error) or is_host_out_of_memory(error):
                log.warning("UltraGen VAE: memory ran out on %s.", device)
            else:
                self.stopped = True
        finally:
            self._results.put((device, None))

    def send(self, device: torch.device, *result) -> None:
        """Hand over a result, when fewer than WAITING of this GPU wait."""
        while True:
            self.check_stopped()
            with contextlib.suppress(queue.Empty):
                self._slots[device].get(timeout=POLL_SECONDS)
                break
        self._results.put((device, result))

    def take_all(self, take: Callable[..., None]) -> None:
        """take(*result) for all results, until no GPU works; raises ComfyUI's interruption."""
        silent = 0.0
        while self._working:
            mm.throw_exception_if_processing_interrupted()
            try:
                device, result = self._results.get(timeout=POLL_SECONDS)
            except queue.Empty:
                silent += POLL_SECONDS
                if silent > SECONDS_WITHOUT_ANSWER:
                    names = ", ".join(sorted(map(str, self._working)))
                    raise RuntimeError(
                        f"The VAE got no answer from {names} in {SECONDS_WITHOUT_ANSWER} s. Decode on one GPU (gpus 1),"
                        " and start ComfyUI again."
                    ) from None
                continue
            silent = 0.0
            if result is None:
                self._working.discard(device)
            elif not self.stopped:
                with on_device(device):
                    take(*result)
                self._slots[device].put(None)

    def raise_first(self) -> None:
        """Raise the first error of the GPUs, if there is one, without the tensors of the calls that it ended."""
        if not self._errors:
            return
        error = self._errors[0]
        self._errors.clear()
        traceback.clear_frames(error.__traceback__)
        try:
            raise error
        finally:
            del error


def _weights_on_host(vae, layers: Sequence[Layer]) -> dict[nn.Module, tuple[Tensor, Tensor | None]]:
    modules = {part for layer in layers for part in vars(layer).values() if isinstance(part, (nn.Conv2d, nn.Conv3d))}
    weights = {}
    for module in modules:
        weight, bias = cast_parameters(module, vae.vae_dtype, vae.device)
        weights[module] = weight.detach().cpu(), None if bias is None else bias.detach().cpu()
    return weights
