"""Which GPUs work, and work that runs in one thread per GPU: those of ComfyUI's own pool."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import comfy.model_management
import torch

from ..compat import gpu_pool_class

SECONDS_WITHOUT_ANSWER = 120

_unanswered: dict[torch.device, Job] = {}  # calls that nobody waits for any more


def gpus(count: int, first: torch.device) -> list[torch.device]:
    """At most `count` GPUs of the type of `first`, which leads the list. count: 0 is all.

    Only `first` where there is no other GPU, or where ComfyUI is too old to run several.
    """
    if gpu_pool_class() is None:
        return [first]
    found = [device for device in comfy.model_management.get_all_torch_devices() if device.type == first.type]
    others = [device for device in found if device != first]
    return [first, *others][: count or None]


class Job:
    """One call in the thread of a GPU. Whatever the call raises is kept, too, for the thread that asks for it."""

    def __init__(self, device: torch.device, function: Callable[[], Any]):
        self.device, self._function = device, function
        self._done, self._modes = threading.Event(), (torch.is_inference_mode_enabled(), torch.is_grad_enabled())
        self._value: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        """Call the function with the gradient modes of the thread that made this job, which new threads lack."""
        inference, gradients = self._modes
        try:
            with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
                self._value = self._function()
        except BaseException as error:  # ComfyUI's threads catch nothing but Exception, and nobody would answer
            self.error = error
        finally:
            self._function = None
            self._done.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for at most `seconds`. Returns whether the call has returned or raised."""
        return self._done.wait(seconds)

    def result(self) -> Any:
        """What the call returned; raises what it raised. Waits for it."""
        self._done.wait()
        if self.error is not None:
            raise self.error
        return self._value


def check_answers(devices: Iterable[torch.device]) -> None:
    """Raise RuntimeError where a call of an earlier run is still inside a thread of one of these GPUs: it uses the same
    model, and may wake up in the middle of the next run.
    """
    for device in devices:
        if device in _unanswered and not _unanswered[device].wait(0):
            raise RuntimeError(f"{device} has not answered since an earlier run. Restart ComfyUI.")
        _unanswered.pop(device, None)


class Workers:
    """Threads, one per GPU: a context manager around a pool of ComfyUI's.

    pool: one that is running and stays so; None starts one, which ends with the context.
    """

    def __init__(self, devices: list[torch.device], pool=None):
        self.devices, self._own = list(devices), pool is None
        self._pool = gpu_pool_class()(self.devices) if pool is None else pool

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_) -> None:
        if self._own:
            self._pool.shutdown()

    def start(self, device: torch.device, function: Callable[[], Any]) -> Job:
        """Call the function in the thread of this GPU, after what was started there before. Raises RuntimeError where
        a call of an earlier run is still inside it.
        """
        check_answers([device])
        job = Job(device, function)
        self._pool.submit(device, job.run)
        return job

    def finish(self, job: Job, seconds: float | None = None) -> bool:
        """As `job.wait`, and take the job's answer from ComfyUI's pool. Call it once for every job, in order. A GPU
        whose job has not ended gets no other.
        """
        done = job.wait(seconds)
        if done:
            self._pool.get_result(job.device)
        else:
            _unanswered[job.device] = job
        return done

    def run(self, work: Mapping[torch.device, Callable[[], Any]]) -> dict[torch.device, Any]:
        """Call all functions at the same time -> their results. All have ended before the first error is raised."""
        jobs = [self.start(device, function) for device, function in work.items()]
        for job in jobs:
            self.finish(job)
        return {job.device: job.result() for job in jobs}
