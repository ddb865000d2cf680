"""All GPUs share one interpreter: what a member's evaluation may cost it, in calls of Python."""

from __future__ import annotations

import importlib
import sys
from collections import defaultdict

import comfy.ldm.wan.model as wan
import pytest
from helpers.comfy_run import patched, sample
from helpers.signatures import needs
from helpers.support import seeded

from ultragen_core.host.compat import gpu_pool_class
from ultragen_core.host.multigpu.copies import Copies
from ultragen_core.host.multigpu.patch import use_gpus
from ultragen_core.ops import dispatch

SHAPE = (1, 16, 2, 16, 24)


class NoKernel:
    """Stands for a Triton kernel, whose launch on a CPU would itself be Python. The results are wrong."""

    def __getitem__(self, grid):
        return self

    def __call__(self, *args, **kwargs) -> None:
        pass


@pytest.fixture
def calls(interpreted_kernels, monkeypatch):
    """`calls(model)`: calls of Python by the forward of an evaluation, of the member with most. Waiting for others also
    costs calls: of each member the evaluation with fewest counts, but not the first, which builds plans.
    """
    for name in (
        *dispatch.ATTENTION_KERNEL_MODULES,
        *dispatch.BLOCK_KERNEL_MODULES,
        *dispatch.GATHER_KERNEL_MODULES,
    ):
        module = importlib.import_module(f"ultragen_core.ops.{name}")
        for kernel, value in vars(module).copy().items():
            if type(value).__module__.startswith("triton."):
                monkeypatch.setattr(module, kernel, NoKernel())
    # As where GPUs read each other's memory.
    monkeypatch.setattr(Copies, "fetch", lambda self, source, target, slot, part, received, in_place: part)
    counted, forward = defaultdict(list), wan.WanModel._forward

    def profiled(self, *args, **kwargs):
        def note(frame, event, arg) -> None:
            counted[id(self)][-1] += event == "call"

        counted[id(self)].append(0)
        sys.setprofile(note)
        try:
            return forward(self, *args, **kwargs)
        finally:
            sys.setprofile(None)

    def count(model) -> int:
        counted.clear()
        sample(model, SHAPE, seeded(1, 16, 4096, seed=1), steps=4, cfg=1.0)
        return max(min(later) for _, *later in counted.values())

    monkeypatch.setattr(wan.WanModel, "_forward", profiled)
    return count


@needs(gpu_pool_class() is not None, "a thread pool for GPUs")
@pytest.mark.parametrize(("rule", "most"), [("ultragen", 1.42), ("t3", 1.2)])
def test_a_member_makes_few_calls_more_than_one_gpu(tiny, dense, rule, most, calls, cpus):
    cpus(4)
    model = tiny if rule == "ultragen" else patched(dense, "t3")
    one, several = calls(model), calls(use_gpus(model, 0, "video"))
    assert several < most * one, (several, one, several / one)
