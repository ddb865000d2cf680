"""A fault in any operation of any member: all stop, the error tells what happened, and the next evaluation is right."""

from __future__ import annotations

import itertools
import os
import random
import threading

import comfy.model_management
import pytest
import torch
from helpers.signatures import needs
from helpers.support import relative_error, seeded
from helpers.waiting import wait_until
from helpers.wan_models import KINDS, load
from torch.utils._python_dispatch import TorchDispatchMode

from ultragen_core.host.compat import gpu_pool_class
from ultragen_core.host.multigpu import exchange
from ultragen_core.host.multigpu.cores import current_core
from ultragen_core.host.multigpu.devices import Workers, check_answers
from ultragen_core.host.multigpu.evaluation import Part
from ultragen_core.host.multigpu.group import Group
from ultragen_core.host.multigpu.patch import use_gpus
from ultragen_core.host.multigpu.split import Run

pytestmark = needs(gpu_pool_class() is not None, "a thread pool for GPUs")
Interrupt = comfy.model_management.InterruptProcessingException
COUNT = 2
OPERATIONS = 300  # about as many as each member runs


class FaultAt(TorchDispatchMode):
    """Calls `fault` in operation number `number`."""

    def __init__(self, number: int, fault):
        super().__init__()
        self.left, self.fault = number, fault

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.left -= 1
        if self.left == 0:
            self.fault()
        return function(*args, **kwargs or {})


def two_blocks():
    model = load(KINDS["Wan2.1 T2V"])
    del model.model.diffusion_model.blocks[2:]
    model.cached_patcher_init = two_blocks, ()
    return model


@pytest.fixture
def group(cpus, monkeypatch):
    """`evaluate(member, number, fault)` of a small model by three members; without arguments there is no fault."""
    devices = cpus(COUNT)
    model = use_gpus(two_blocks(), 0, "video")
    patchers = [model, *model.get_additional_models_with_key("multigpu")]
    comfy.model_management.load_models_gpu(patchers)
    for patcher in patchers:
        patcher.pre_run()
    given = seeded(1, 16, 2, 8, 12), torch.tensor([500.0]), seeded(1, 4, 4096, seed=1), None, None
    compute, planned = Part.compute, {}

    def faulty(part):
        if part.port.index not in planned:
            return compute(part)
        with FaultAt(*planned.pop(part.port.index)):
            return compute(part)

    monkeypatch.setattr(Part, "compute", faulty)

    def evaluate(group, member=None, number=0, fault=None):
        planned.clear()
        if fault:
            planned[member] = number, fault
        with torch.no_grad():
            return group.evaluate(*given, {"sigmas": torch.tensor([0.5])}, {})

    def warn(share: float) -> None:
        """On a CPU that other programs use, too, any share may be measured."""

    with Workers(devices) as workers:
        yield evaluate, lambda seconds=20.0: Group(devices, patchers, Run().runtime, workers, warn, seconds)


def raising(error):
    def fault():
        raise error

    return fault


def test_faults_anywhere_leave_the_next_evaluation_right(group):
    evaluate, made = group
    chosen, numbers, threads = made(), random.Random(0), set(threading.enumerate())
    expected = evaluate(chosen)
    faults = (ValueError("bad"), Interrupt(), SystemExit(3), torch.OutOfMemoryError("CUDA out of memory"))
    for turn in range(200):
        error = faults[turn % len(faults)]
        member, number = numbers.randrange(COUNT), numbers.randrange(1, OPERATIONS)
        try:
            result = evaluate(chosen, member, number, raising(error))
            assert relative_error(result, expected) < 1e-6, "retried with smaller chunks, or the fault came too late"
        except type(error) as raised:
            assert raised is error and not isinstance(raised, torch.OutOfMemoryError)
        if turn % 10 == 9:
            chosen._runtime.run.budgets.clear()
            assert torch.equal(evaluate(chosen), expected), (turn, member, number)
    assert set(threading.enumerate()) <= threads


def test_a_fault_before_a_member_computes_is_not_taken_for_silence(group, monkeypatch):
    evaluate, made = group
    chosen, error = made(seconds=2.0), ValueError("bad")
    monkeypatch.setattr(chosen.patchers[1], "apply_hooks", lambda hooks: raising(error)())
    with pytest.raises(ValueError) as raised:
        evaluate(chosen)
    assert raised.value is error
    monkeypatch.undo()
    assert torch.isfinite(evaluate(chosen)).all()


@pytest.mark.skipif(current_core() is None, reason="This system does not tell a thread's core.")
def test_members_stay_on_one_core_once_plans_are_built(group, monkeypatch):
    evaluate, made = group
    chosen, compute, cores, hooked = made(), Part.compute, [], []
    chosen._core = current_core()  # as on GPUs
    before = os.sched_getaffinity(0)

    def noted(part):
        cores.append(os.sched_getaffinity(0))
        return compute(part)

    monkeypatch.setattr(Part, "compute", noted)
    monkeypatch.setattr(chosen.patchers[1], "apply_hooks", lambda hooks: hooked.append(os.sched_getaffinity(0)))
    expected = evaluate(chosen)
    assert torch.equal(evaluate(chosen), expected)
    assert cores == [before] * COUNT + [{chosen._core}] * COUNT and os.sched_getaffinity(0) == before
    assert hooked == [before] * 2, "weights for hooks may be computed on the CPU"
    cores.clear()
    monkeypatch.setattr(chosen.patchers[1], "loaded_size", lambda: 0)
    evaluate(chosen)
    assert cores == [before] * COUNT, "offloaded weights are transferred by all cores"


class Hang:
    """A fault: a member that does not answer until it is `released`. From then on an hour passes whenever an exchange
    looks at the clock, so that the others give up on it, and on nobody before, however slow this machine is.
    """

    def __init__(self, monkeypatch):
        self.began, self.released, self.hours = threading.Event(), threading.Event(), itertools.count(1)
        monkeypatch.setattr(exchange, "time", self)

    def monotonic(self) -> float:
        return 3600.0 * next(self.hours) if self.began.is_set() else 0.0

    def __call__(self) -> None:
        self.began.set()
        assert self.released.wait(60)


@pytest.fixture
def hang(monkeypatch):
    return Hang(monkeypatch)


@pytest.mark.parametrize("member", [0, 1])
def test_a_member_that_does_not_answer_is_named(group, member, hang, monkeypatch):
    evaluate, made = group
    chosen = made()
    abort = chosen.exchange.abort
    monkeypatch.setattr(chosen.exchange, "abort", lambda error: (abort(error), hang.released.set()))
    name = f"{chosen.devices[member]} .block [01]"
    with pytest.raises(RuntimeError, match=f"No answer from {name}.* while GPUs compute one video"):
        evaluate(chosen, member, 150, hang)


def refused(device: torch.device) -> bool:
    try:
        check_answers([device])
    except RuntimeError:
        return True
    return False


def test_a_gpu_that_still_hangs_is_refused_in_the_next_run(group, hang):
    """Its thread uses the clone's layers, and would take them off in the middle of that run."""
    evaluate, made = group
    with pytest.raises(RuntimeError, match="No answer from cpu:0 .block [01]"):
        evaluate(made(seconds=1.0), 1, 150, hang)
    with pytest.raises(RuntimeError, match="cpu:0 has not answered since an earlier run. Restart ComfyUI"):
        evaluate(made())
    hang.released.set()
    wait_until(lambda: not refused(torch.device("cpu", 0)))
    hang.began.clear()
    assert torch.equal(evaluate(made()), evaluate(made()))


def test_an_interrupt_while_members_wait_reaches_the_user_once(group):
    evaluate, made = group
    chosen = made()
    expected = evaluate(chosen)
    with pytest.raises(Interrupt):
        evaluate(chosen, 1, 150, comfy.model_management.interrupt_current_processing)
    assert not comfy.model_management.processing_interrupted()
    assert torch.equal(evaluate(chosen), expected)
