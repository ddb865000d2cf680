"""What a sampling run computes once: its gates, by the schedule, and its windows."""

from __future__ import annotations

import comfy.model_management
import comfy.sample
import comfy.samplers
import pytest
import torch
from helpers.comfy_run import sample
from helpers.support import seeded

from ultragen_core.attention.gate import Gate, GateTable
from ultragen_core.host.attention.patch import Settings, apply, runtime_of
from ultragen_core.host.resume.stepwise import STEPS, ResumeOptions, resumable
from ultragen_core.host.server import RunningNode
from ultragen_core.rules.t3 import PublishedWindows
from ultragen_core.sampling import flow_sigmas
from ultragen_core.storage.states import StateFolder

SHAPE = (1, 16, 2, 8, 8)
CONTEXT = seeded(1, 12, 4096, seed=1)
GRAPH = {"1": {"class_type": "SamplerCustomAdvanced", "inputs": {}}}


@pytest.fixture
def passes(monkeypatch):
    """The numbers of timesteps of every pass over a gate's weights."""
    counts, of_embeddings = [], Gate.of_embeddings

    def counted(gate, embeddings):
        counts.append(len(embeddings))
        return of_embeddings(gate, embeddings)

    monkeypatch.setattr(Gate, "of_embeddings", counted)
    return counts


def run(model, sampler, sigmas: torch.Tensor, callback=None) -> torch.Tensor:
    """Sample with both prompts through ComfyUI's custom sampling."""
    latent, conds = torch.zeros(SHAPE), ([[CONTEXT, {}]], [[torch.zeros_like(CONTEXT), {}]])
    noise = comfy.sample.prepare_noise(latent, 0)
    sampler = comfy.samplers.sampler_object(sampler) if isinstance(sampler, str) else sampler
    return comfy.sample.sample_custom(
        model, noise, 5.0, sampler, sigmas, *conds, latent, callback=callback, disable_pbar=True, seed=0
    )


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m"])
def test_gate_weights_are_read_once_a_run(tiny, passes, sampler):
    gates = 2 * len(runtime_of(tiny).rule.blocks)
    for runs in (1, 2):
        run(tiny, sampler, flow_sigmas(4, 5.0))
        assert passes == [5] * gates * runs


def test_timesteps_between_those_of_the_schedule_are_computed_when_they_come(tiny, passes):
    gates = 2 * len(runtime_of(tiny).rule.blocks)
    run(tiny, "dpm_2", flow_sigmas(4, 5.0))
    assert passes[:gates] == [5] * gates and set(passes[gates:]) == {1} and len(passes) % gates == 0


def test_a_resumed_run_has_the_gates_of_the_whole_run_bit_for_bit(tiny, passes, monkeypatch, tmp_path):
    gates, at = [], GateTable.at

    def noting(table, t, *args):
        found = at(table, t, *args)
        gates[-1] |= {(t[0].item(), block): pair for block, pair in found.items()}
        return found

    def interrupt(step, *_):
        if step == 1:
            raise comfy.model_management.InterruptProcessingException()

    monkeypatch.setattr(GateTable, "at", noting)
    sigmas, options = flow_sigmas(5, 5.0), ResumeOptions(StateFolder(tmp_path), 1, STEPS, lambda name: [])
    sampler = resumable(comfy.samplers.sampler_object("euler"), options, lambda: RunningNode("1", 0, GRAPH))
    gates.append({})
    whole = run(tiny, "euler", sigmas)
    gates.append({})
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(tiny, sampler, sigmas, interrupt)
    gates.append({})
    passes.clear()
    assert torch.equal(run(tiny, sampler, sigmas), whole)
    assert passes == [6] * 2 * len(runtime_of(tiny).rule.blocks)
    assert [len(each) // 2 for each in gates] == [5, 2, 3]
    for (t, block), pair in (gates[1] | gates[2]).items():
        assert all(torch.equal(one, other) for one, other in zip(pair, gates[0][t, block], strict=True))


def test_the_windows_of_t3_are_searched_once_a_run(tiny, monkeypatch):
    searched, windows_of = [], PublishedWindows.windows_of

    def counted(self, block_index, grid):
        searched.append(block_index)
        return windows_of(self, block_index, grid)

    monkeypatch.setattr(PublishedWindows, "windows_of", counted)
    PublishedWindows.table.cache_clear()
    sample(apply(tiny, Settings(rule="t3")), (1, 16, 3, 16, 24), CONTEXT, steps=3)
    assert searched == [0, 1, 2, 3, 4]
