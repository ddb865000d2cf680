"""What other nodes add to a model acts with our attention as without it, before and after our node."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import MethodType

import comfy.ldm.wan.model as wan
import pytest
import torch
from comfy_extras.nodes_context_windows import WanContextWindowsManualNode
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from comfy_extras.nodes_model_merging import ModelMergeSimple
from comfy_extras.nodes_rope import ScaleROPE
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT
from conftest import ROOT
from helpers.comfy_run import RULES, TINY, patched, run_node, sample, with_another_embedder, with_lora
from helpers.support import relative_error, seeded

from ultragen_core.host.attention.load import load_model

SHAPE, CONTEXT = (1, 16, 3, 8, 12), seeded(1, 16, 4096, seed=1)


@dataclass(frozen=True)
class Companion:
    """What another node does to a model, and how a run must be for that to show."""

    add: Callable
    run: dict = field(default_factory=dict)


def merged(model):
    """With another model, whose weights are a LoRA's away."""
    return ModelMergeSimple().merge(model, with_lora(load_model(TINY, "dense", {"dtype": torch.float32})), 0.3)[0]


def overridden(model):
    """As packs with attention kernels do it."""
    model = model.clone()
    options = model.model_options["transformer_options"]
    options["optimized_attention_override"] = lambda func, *args, **kwargs: 0.8 * func(*args, **kwargs)
    return model


def replaced(model):
    """A block replaced by one that calls the original."""

    def half(args, extra):
        return {"img": (args["img"] + extra["original_block"](args)["img"]) / 2}

    model = model.clone()
    model.set_model_patch_replace(half, "dit", "double_block", 2)
    return model


def patched_blocks(model):
    model = model.clone()
    model.set_model_attn2_patch(lambda args: 0.9 * args["x"])
    model.set_model_double_block_patch(lambda args: {"img": 0.9 * args["img"]})
    return model


def guided(model):
    """Normalised attention guidance, as packs bring it to Wan: in place of every cross-attention's forward."""

    def forward(module, x, context, **kwargs):
        positive, negative = (type(module).forward(module, x, c, **kwargs) for c in (context, 0 * context))
        out = 3 * positive - 2 * negative
        return out * (1.5 * positive.norm(dim=-1, keepdim=True) / out.norm(dim=-1, keepdim=True)).clamp(max=1)

    model = model.clone()
    for index, block in enumerate(model.model.diffusion_model.blocks):
        patch = MethodType(forward, block.cross_attn)
        model.add_object_patch(f"diffusion_model.blocks.{index}.cross_attn.forward", patch)
    return model


COMPANIONS = {
    "LoRA": Companion(with_lora),
    "ModelSamplingSD3": Companion(lambda model: ModelSamplingSD3().patch(model, 3.0)[0]),
    "step distillation": Companion(
        lambda model: ModelSamplingSD3().patch(with_lora(model), 5.0)[0], {"steps": 4, "cfg": 1.0}
    ),
    "EasyCache": Companion(lambda model: run_node(EasyCacheNode, model, reuse_threshold=3.0), {"steps": 6}),
    "LazyCache": Companion(lambda model: run_node(LazyCacheNode, model, reuse_threshold=3.0), {"steps": 6}),
    "context windows": Companion(
        lambda model: run_node(
            WanContextWindowsManualNode,
            model,
            context_length=5,
            context_overlap=4,
            context_schedule="standard_static",
            fuse_method="pyramid",
        )
    ),
    "ScaleROPE": Companion(lambda model: run_node(ScaleROPE, model, scale_x=0.5, scale_y=0.5)),
    "position embedding": Companion(with_another_embedder),
    "SkipLayerGuidanceDiT": Companion(
        lambda model: run_node(SkipLayerGuidanceDiT, model, double_layers="1", start_percent=0.0, end_percent=1.0)
    ),
    "ModelMergeSimple": Companion(merged),
    "optimized_attention_override": Companion(overridden),
    "double_block replacer": Companion(replaced),
    "cross-attention patch": Companion(guided),
    "attn2 and block patches": Companion(patched_blocks),
}
# 0.3.75's Wan asks nobody there.
ASKED = {"attn2 and block patches": "attn2_patch" in inspect.getsource(wan.WanAttentionBlock.forward)}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", [name for name in COMPANIONS if ASKED.get(name, True)])
def test_in_either_order_both_act(dense, name, rule, bounded):
    add, run = COMPANIONS[name].add, partial(sample, shape=SHAPE, context=CONTEXT, **COMPANIONS[name].run)
    result = run(add(patched(dense, rule)))
    assert torch.equal(run(patched(add(dense), rule)), result)
    assert relative_error(run(patched(dense, rule)), result) > 1e-3, "the companion is lost"
    assert relative_error(run(add(dense)), result) > 1e-3, "our attention is lost"
    rooms = bounded()
    assert relative_error(run(add(patched(dense, rule))), result) < 1e-4 and rooms


def test_every_row_of_the_table_names_a_test_that_there_is():
    rows = [line for line in (ROOT / "docs" / "companions.md").read_text().splitlines() if line.startswith("| ")][1:]
    trees = [ast.parse(path.read_text()) for path in (ROOT / "tests").rglob("test_*.py")]
    functions = {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    named = [re.findall(r"`(test_\w+)(?:\[(.+?)\])?`", row) for row in rows]
    assert all(named) and {name for row in named for name, _ in row} <= functions
    assert {case for row in named for _, case in row if case} == COMPANIONS.keys()
