"""A run's gates: every timestep once, in one pass over the weights, with the same bits whatever else is computed."""

from __future__ import annotations

import pytest
import torch
from helpers.support import relative_error, seeded

from ultragen_core.attention.gate import NO_GATES, Gate, GateLine, GateSources, GateTable

C = 48
SCHEDULE = torch.tensor([1000.0, 937.5, 803.25, 512.0, 77.7, 0.0])


class CountedGate(Gate):
    """Counts the passes over its weights."""

    passes = 0

    def of_embeddings(self, embeddings):
        self.passes += 1
        return super().of_embeddings(embeddings)


def random_gate(dtype=torch.bfloat16, channels: int = C, seed: int = 0) -> CountedGate:
    gate = CountedGate(channels, dtype=dtype).requires_grad_(False)
    for index, parameter in enumerate(gate.parameters()):
        parameter.copy_(seeded(*parameter.shape, seed=seed + index) * parameter.shape[-1] ** -0.5)
    return gate


def test_every_weight_is_read_once_for_a_whole_schedule():
    hierarchical, global_ = random_gate(), random_gate(seed=9)
    sources, table = GateSources(C, {2: (hierarchical, global_), 3: (GateLine(0.2, 1.0), global_)}), GateTable()
    for t in SCHEDULE.split(1):
        for _ in range(2):  # both prompts
            gates = table.at(t, sources, SCHEDULE)
    assert (hierarchical.passes, global_.passes) == (1, 2)
    assert gates.keys() == {2, 3} and gates[3].hierarchical.shape == (1, 1, C)
    table.at(torch.tensor([640.0]), sources, SCHEDULE)  # a sampler's midpoint
    table.at(torch.tensor([640.0]), sources, SCHEDULE)
    assert (hierarchical.passes, global_.passes) == (2, 4)


@pytest.mark.parametrize("channels", [24, C, 200])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_timesteps_bits_do_not_depend_on_the_others(dtype, channels):
    gate, line = random_gate(dtype, channels), GateLine(0.25, 0.9)
    sources = GateSources(channels, {0: (gate, line)})
    whole = GateTable()
    batch = whole.at(SCHEDULE[[4, 1]], sources, SCHEDULE)[0]
    for index, t in ((0, SCHEDULE[4:5]), (1, SCHEDULE[1:2])):
        for alone in (GateTable().at(t, sources, t)[0], GateTable().at(t, sources, SCHEDULE[3:])[0]):
            for one, both in zip(alone, batch, strict=True):
                assert torch.equal(one[0], both[index])
        assert torch.equal(alone.hierarchical, gate(t))
        assert torch.equal(alone.global_, line(t).expand(1, 1, channels))


def test_gate_lines_are_linear_in_t():
    gates = GateTable().at(torch.tensor([250.0, 1000.0]), GateSources(C, {0: (GateLine(0.2, 1.0),) * 2}), SCHEDULE)
    assert torch.allclose(gates[0].hierarchical[:, 0, 0], torch.tensor([0.8, 0.2]))
    assert gates[0].global_.shape == (2, 1, C)


def test_a_rule_without_gates_computes_none():
    assert GateTable().at(torch.empty(1, device="meta"), NO_GATES, SCHEDULE) == {}


def test_evaluations_outside_a_run_do_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(GateTable, "MAX_TIMESTEPS", 4)
    gate, table = random_gate(), GateTable()
    sources = GateSources(C, {0: (gate, gate)})
    first = table.at(torch.tensor([1.0]), sources, torch.tensor([1.0]))
    for t in (2.0, 3.0, 4.0, 5.0):
        table.at(torch.tensor([t]), sources, torch.tensor([t]))
    assert gate.passes == 10
    again = table.at(torch.tensor([1.0]), sources, torch.tensor([1.0]))  # forgotten
    assert gate.passes == 12 and torch.equal(again[0].global_, first[0].global_)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_computes_the_gates_of_the_cpu_and_keeps_no_weights():
    gates = [random_gate(channels=1536, seed=seed) for seed in (0, 9)]
    sources, t = GateSources(1536, {0: tuple(gates)}), torch.tensor([803.25], device="cuda")
    torch.ones(2, 2, device="cuda") @ torch.ones(2, 2, device="cuda")  # allocates cuBLAS's workspace
    before = torch.cuda.memory_allocated()
    on_gpu = GateTable().at(t, sources, SCHEDULE)[0]
    assert torch.cuda.memory_allocated() - before < 2**20
    for one, other in zip(on_gpu, GateTable().at(t.cpu(), sources, SCHEDULE)[0], strict=True):
        assert one.is_cuda and relative_error(one.cpu(), other) < 1e-5
    again = GateTable().at(t, sources, t)[0]
    assert all(torch.equal(one, other) for one, other in zip(on_gpu, again, strict=True))
