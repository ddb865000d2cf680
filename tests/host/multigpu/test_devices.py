"""Devices, and calls in the threads of ComfyUI's GPU pool; names of the CPU stand for GPUs."""

import threading

import comfy.model_management
import pytest
import torch
from helpers.signatures import needs

from ultragen_core.host.compat import gpu_pool_class
from ultragen_core.host.multigpu.devices import Workers, gpus

pytestmark = needs(gpu_pool_class() is not None, "a thread pool for GPUs")
CPUS = [torch.device("cpu", index) for index in range(3)]


def test_the_models_gpu_leads(monkeypatch):
    monkeypatch.setattr(comfy.model_management, "get_all_torch_devices", lambda: [*CPUS, torch.device("cuda:0")])
    assert gpus(0, CPUS[1]) == [CPUS[1], CPUS[0], CPUS[2]]
    assert gpus(2, CPUS[1]) == [CPUS[1], CPUS[0]] and gpus(9, CPUS[0]) == CPUS


def test_calls_run_at_the_same_time_in_threads_that_stay():
    meeting = threading.Barrier(3, timeout=60)

    def meet():
        meeting.wait()
        return threading.get_ident(), torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    with Workers(CPUS) as workers, torch.inference_mode():
        first, second = (workers.run(dict.fromkeys(CPUS, meet)) for _ in range(2))
        assert first == second and len({ident for ident, *_ in first.values()}) == 3
        assert all(modes == [True, False] for _, *modes in first.values())


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_all_calls_end_before_an_error_is_raised_and_the_threads_serve_on(error):
    ended = []

    def fail():
        raise error("from a thread")

    with Workers(CPUS) as workers:
        for _ in range(2):
            with pytest.raises(error, match="from a thread"):
                workers.run({CPUS[0]: fail, CPUS[1]: lambda: threading.Event().wait(0.05) or ended.append(1)})
        assert len(ended) == 2 and workers.run({device: device.__str__ for device in CPUS})[CPUS[2]] == "cpu:2"


def test_a_pool_of_the_caller_has_no_answer_left_and_stays():
    pool = gpu_pool_class()(CPUS[:1])
    with Workers(CPUS[:1], pool) as workers:
        job = workers.start(CPUS[0], lambda: 7)
        assert workers.finish(job, 60) and job.result() == 7
    pool.submit(CPUS[0], lambda: 8)
    assert pool.get_result(CPUS[0]) == (8, None)
    pool.shutdown()
