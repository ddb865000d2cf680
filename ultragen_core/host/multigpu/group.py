"""A group of GPUs that computes evaluations of one model together."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable
from functools import partial

import comfy.ldm.common_dit
import comfy.model_management
import torch
from torch import Tensor

from ...wan import PATCH
from ..attention.runtime import EVALUATION, Evaluation, Runtime
from ..memory import is_out_of_memory
from .cores import current_core, on_core, start_cpu_threads
from .devices import SECONDS_WITHOUT_ANSWER, Job, Workers
from .evaluation import Inputs, Part, latent_slices
from .exchange import Aborted, Exchange, MeasuredPort, Port

BUILDING_EVALUATION = 1  # of a run: it also builds plans and tables
MEASURED_EVALUATION = 2
MOST_EXCHANGE = 0.5  # share of an evaluation

log = logging.getLogger(__name__)


class Group:
    """The first device leads: its thread calls `evaluate`, and computes a part of its own.

    patchers: the model's clones, one on each device. runtime: of a model without a rule. workers: the threads.
    warn: gets the exchange's share of an evaluation, from 0 to 1, where that is more than half. seconds: how long the
    members wait for one that does not answer.
    """

    def __init__(
        self,
        devices: list[torch.device],
        patchers: list,
        runtime: Runtime,
        workers: Workers,
        warn: Callable[[float], None],
        seconds: float = SECONDS_WITHOUT_ANSWER,
    ):
        self.devices, self.patchers, self._runtime, self._workers = devices, patchers, runtime, workers
        self._seconds, self.exchange = seconds, Exchange(devices, seconds)
        self._warn, self._evaluations = warn, 0
        self._core = None if devices[0].type == "cpu" else current_core()  # for all threads that launch

    def evaluate(
        self, x: Tensor, timestep: Tensor, context: Tensor, clip_fea, time_dim_concat, options: dict, others: dict
    ) -> Tensor:
        """As WanModel.forward, x (b, c, t, h, w) on the leader's device.

        Out of memory on one GPU makes the chunks of all smaller, and repeats the evaluation.
        """
        options = dict(options)
        evaluation = options.pop(EVALUATION, None) or Evaluation(self._runtime, options["sigmas"])
        inputs = Inputs(
            _padded(x), timestep, context, clip_fea, _padded(time_dim_concat), options, others, tuple(x.shape[-2:]),
            evaluation.t,
        )  # fmt: skip
        self._evaluations += 1
        if self._evaluations == BUILDING_EVALUATION:
            start_cpu_threads()
        measured = self._evaluations == MEASURED_EVALUATION
        while True:
            ports = self.exchange.new_ports(MeasuredPort if measured else Port)
            parts = [
                Part(patcher.model, device, evaluation.runtime, inputs, len(self.devices), port)
                for patcher, device, port in zip(self.patchers, self.devices, ports, strict=True)
            ]
            failed = self._attempt(parts)
            if failed is None:
                if measured:
                    self._warn_of_exchange(ports)
                return self._output(x, parts)
            self.exchange.restart()
            device, error = failed
            if not is_out_of_memory(error):
                raise error
            log.warning("UltraGen: %s is out of memory.", device)
            if not all([part.budget.shrink() for part in parts]):
                raise error
            log.warning("UltraGen: all GPUs retry with %d tokens at a time.", parts[0].budget.tokens_at_a_time)
            failed = error = parts = None
            gc.collect()  # errors hold the tensors that filled the memory, in cycles
            comfy.model_management.soft_empty_cache()

    def _warn_of_exchange(self, ports: list[MeasuredPort]) -> None:
        self.exchange.copies.synchronize()
        # The slowest member waits least for others: its exchanges are copies above all.
        share = min(port.share() for port in ports)
        if share > MOST_EXCHANGE:
            self._warn(share)

    def _attempt(self, parts: list[Part]) -> tuple[torch.device, BaseException] | None:
        """Compute all parts. Returns the first error with its device, when all threads have ended."""
        hooks, core = self.patchers[0].current_hooks, self._core if self._only_launches() else None
        leader, *others = [
            partial(self._compute, part, patcher, hooks, core)
            for part, patcher in zip(parts, self.patchers, strict=True)
        ]
        jobs = [self._workers.start(device, work) for device, work in zip(self.devices[1:], others, strict=True)]
        own = Job(self.devices[0], leader)
        own.run()
        # After an error members stop at their next exchange; else the exchange reports a late member first.
        late = self._late(jobs, (1.1 if own.error is None else 0.1) * self._seconds)
        failed = [(job.device, job.error) for job in (own, *jobs) if job.error is not None]
        # Those that were aborted only tell that another failed.
        first = next((each for each in failed if not isinstance(each[1], Aborted)), failed[0] if failed else None)
        if late:  # and may still be inside: no retry
            raise first[1] if first else late
        return first

    def _only_launches(self) -> bool:
        """False where threads also compute on the CPU, or transfer offloaded weights: then they use all cores."""
        resident = all([patcher.loaded_size() >= patcher.model_size() for patcher in self.patchers])
        return resident and self._evaluations > BUILDING_EVALUATION

    def _compute(self, part: Part, patcher, hooks, core: int | None) -> None:
        """hooks: the leader's, which ComfyUI has applied there. core: on which the thread stays."""
        try:
            patcher.apply_hooks(hooks=hooks)  # may compute weights on the CPU
            with on_core(core):
                part.output = part.compute()
        except BaseException as error:
            self.exchange.abort(error)
            raise

    def _late(self, jobs: list[Job], seconds: float) -> RuntimeError | None:
        """Wait for all jobs. Returns an error if one has not ended in time."""
        late, give_up = None, time.monotonic() + seconds
        for job in jobs:
            if not self._workers.finish(job, max(give_up - time.monotonic(), 0)):
                late = RuntimeError(f"No answer from {job.device} for {self._seconds:.0f} s. Restart ComfyUI.")
                self.exchange.abort(late)
        return late

    def _output(self, x: Tensor, parts: list[Part]) -> Tensor:
        first, (h, w) = parts[0].output, x.shape[-2:]
        height, width = PATCH[1] * parts[0].member.grid.h, PATCH[2] * parts[0].member.grid.w
        out = first.new_empty(*first.shape[:3], height, width)
        for part in parts:
            rows, columns = latent_slices(part.rectangle)
            out[..., rows, columns] = part.output.to(out.device)
        return out[..., :h, :w]


def _padded(latent: Tensor | None) -> Tensor | None:
    return None if latent is None else comfy.ldm.common_dit.pad_to_patch_size(latent, PATCH)
