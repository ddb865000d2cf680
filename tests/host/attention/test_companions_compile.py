"""torch.compile, by ComfyUI's node or as other packs do it, before and after ours."""

from __future__ import annotations

from collections.abc import Callable

import comfy.ldm.modules.attention as core_attention
import comfy.ldm.wan.model as wan
import pytest
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_torch_compile import TorchCompileModel
from helpers.comfy_run import patched, run_node, velocity
from helpers.support import relative_error, seeded

from ultragen_core.host.attention.layers import bounded_layers, dense_layers
from ultragen_core.host.attention.runtime import diffusion_model

# Dynamo ignores caches of functions, and says so to every user.
pytestmark = pytest.mark.filterwarnings("error:Dynamo detected a call to a `functools.lru_cache`")

LATENT, CONTEXT = seeded(1, 16, 3, 8, 12), seeded(1, 16, 4096, seed=1)


def by_node(model, backend):
    return run_node(TorchCompileModel, model, backend=backend)


def block_by_block(model, backend):
    model = model.clone()
    keys = [f"diffusion_model.blocks.{index}" for index in range(4)]
    set_torch_compile_wrapper(model, backend=backend, keys=keys)
    return model


CASES = [
    ("ultragen", by_node, "after", "whole"),
    ("ultragen", by_node, "before", "whole"),
    ("ultragen", block_by_block, "before", "bounded"),
    ("t3", by_node, "after", "whole"),
]


@pytest.mark.parametrize(("rule", "compiled", "order", "room"), CASES)
def test_compiled_in_either_order(dense, rule, compiled: Callable, order, room, bounded, monkeypatch):
    """What is compiled is our attention, and steps do not compile it again."""
    monkeypatch.setattr(wan, "optimized_attention", core_attention.attention_pytorch)  # CPUs' own breaks the graphs
    expected = [velocity(patched(dense, rule), LATENT, CONTEXT, sigma) for sigma in (0.9, 0.5, 0.2)]
    assert relative_error(velocity(dense, LATENT, CONTEXT, 0.9), expected[0]) > 1e-3
    graphs, counts, rooms = [], [], bounded() if room == "bounded" else []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    model = patched(compiled(dense, backend), rule) if order == "before" else compiled(patched(dense, rule), backend)
    for sigma, reference in zip((0.9, 0.5, 0.2), expected, strict=True):
        assert relative_error(velocity(model, LATENT, CONTEXT, sigma), reference) < 1e-5
        counts.append(len(graphs))
    assert counts[0] > 0 and counts[1] == counts[2] and bool(rooms) == (room == "bounded")


def test_compiled_blocks_get_bounded_layers_too(dense):
    dm = diffusion_model(dense.model)

    def layers():
        return (bounded_layers(dm, torch.float32, 9) | dense_layers(dm, 9)).keys()

    plain = layers()
    for index, block in enumerate(dm.blocks):
        dm.blocks[index] = torch.compile(block)
    assert layers() == plain
