"""UltraGen Resume on several GPUs: cut off and resumed, the bits are those of an uninterrupted run."""

from __future__ import annotations

import comfy.model_management
import comfy.sample
import comfy.samplers
import pytest
import torch
from helpers.comfy_run import patched
from helpers.signatures import needs
from helpers.support import seeded

from ultragen_core.host.compat import gpu_pool_class
from ultragen_core.host.multigpu.evaluation import Part
from ultragen_core.host.multigpu.patch import use_gpus
from ultragen_core.host.resume.stepwise import STEPS, ResumeOptions, resumable
from ultragen_core.host.server import RunningNode
from ultragen_core.sampling import flow_sigmas
from ultragen_core.storage.states import StateFolder

GRAPH = {
    "1": {"class_type": "UltraGenLoadModel", "inputs": {"model": "wan.safetensors"}},
    "2": {"class_type": "UltraGenMultiGPU", "inputs": {"model": ["1", 0], "gpus": 2, "split": "video"}},
    "4": {"class_type": "UltraGenResume", "inputs": {"sampler": ["3", 0], "every": 1, "unit": "steps"}},
    "5": {"class_type": "SamplerCustomAdvanced", "inputs": {"sampler": ["4", 0], "model": ["2", 0]}},
}
STEP_COUNT, Interrupt = 3, comfy.model_management.InterruptProcessingException


@needs(gpu_pool_class() is not None, "a thread pool for GPUs")
def test_an_interrupt_inside_a_member_and_a_second_run(dense, cpus, tmp_path, monkeypatch):
    cpus(2)
    model, states = use_gpus(patched(dense, "t3"), 0, "video"), StateFolder(tmp_path / "states")
    euler, computed, compute = comfy.samplers.sampler_object("euler"), [], Part.compute
    options = ResumeOptions(states, 1, STEPS, lambda name: [])
    resuming = resumable(euler, options, lambda: RunningNode("5", 0, GRAPH))

    def noted(part):
        computed.append(part)
        if len(computed) == 2 * 2 + 1:  # in the third step, of two
            comfy.model_management.interrupt_current_processing()
        return compute(part)

    def run(sampler):
        latent, context = torch.zeros(1, 16, 2, 16, 20), seeded(1, 12, 4096, seed=1)
        conds, noise = ([[context, {}]], [[0 * context, {}]]), comfy.sample.prepare_noise(latent, 3)
        sigmas = flow_sigmas(STEP_COUNT, 5.0)
        return comfy.sample.sample_custom(model, noise, 1.0, sampler, sigmas, *conds, latent, disable_pbar=True, seed=3)

    undisturbed = run(euler)
    monkeypatch.setattr(Part, "compute", noted)
    with pytest.raises(Interrupt):
        run(resuming)
    del computed[:]
    monkeypatch.setattr(Part, "compute", lambda part: computed.append(part) or compute(part))
    assert torch.equal(run(resuming), undisturbed) and len(computed) == 2, "one step of two parts was left"
