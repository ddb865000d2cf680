"""Core's torch.compile node, before and after ours."""

from __future__ import annotations

import comfy.ldm.modules.attention as core_attention
import comfy.ldm.wan.model as wan
import pytest
import torch
from comfy_extras.nodes_torch_compile import TorchCompileModel
from comfy_run import patched, run_node, velocity
from support import relative_error, seeded

LATENT, CONTEXT = seeded(1, 16, 3, 8, 12), seeded(1, 16, 4096, seed=1)


@pytest.mark.parametrize(("rule", "compile_first"), [("ultragen", False), ("ultragen", True), ("t3", False)])
def test_cores_compile_node_in_either_order(dense, rule, compile_first, monkeypatch):
    """What is compiled is our attention, and steps do not compile it again."""
    monkeypatch.setattr(wan, "optimized_attention", core_attention.attention_pytorch)
    expected = [velocity(patched(dense, rule), LATENT, CONTEXT, sigma) for sigma in (0.9, 0.5, 0.2)]
    graphs, counts = [], []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def compiled(model):
        return run_node(TorchCompileModel, model, backend=backend)

    torch._dynamo.reset()
    model = patched(compiled(dense), rule) if compile_first else compiled(patched(dense, rule))
    for sigma, reference in zip((0.9, 0.5, 0.2), expected, strict=True):
        assert relative_error(velocity(model, LATENT, CONTEXT, sigma), reference) < 1e-5
        counts.append(len(graphs))
    assert counts[0] > 0 and counts[1] == counts[2]
