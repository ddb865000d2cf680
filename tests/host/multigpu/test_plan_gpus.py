"""The plan of a video on several GPUs: rectangles, and the bytes that an evaluation really exchanges."""

from __future__ import annotations

import pytest
import torch
from helpers.comfy_run import patched, sample
from helpers.signatures import needs
from helpers.support import seeded

from ultragen_core.host.compat import gpu_pool_class
from ultragen_core.host.multigpu.evaluation import Part
from ultragen_core.host.multigpu.patch import gpus_here, use_gpus
from ultragen_core.host.plan import ITEMSIZE, plan, plan_of
from ultragen_core.plan.picture import picture
from ultragen_core.plan.split import GPUs
from ultragen_core.rules.t3 import t3_rule
from ultragen_core.sizes import VideoSize
from ultragen_core.wan import WAN_1_3B

several = needs(gpu_pool_class() is not None, "a thread pool for GPUs")
SHAPE = (1, 16, 2, 16, 24)


@several
@pytest.mark.parametrize("rule", ["ultragen", "t3", "dense"])
def test_bytes_are_those_that_an_evaluation_exchanges(tiny, dense, rule, cpus, monkeypatch):
    cpus(4)
    exchanges, compute = [], Part.compute
    monkeypatch.setattr(Part, "compute", lambda part: exchanges.append(part.port.exchange) or compute(part))
    model = use_gpus({"ultragen": tiny, "t3": patched(dense, "t3"), "dense": dense}[rule], 0, "video")
    sample(model, SHAPE, seeded(1, 8, 4096, seed=1), steps=1, cfg=1.0)
    (shares,) = plan_of(model, SHAPE).shares
    in_float32 = torch.float32.itemsize // ITEMSIZE
    assert len(shares.rectangles) == 4
    assert [in_float32 * size for size in shares.received] == exchanges[0].bytes_into and min(shares.received) > 0


@several
def test_a_split_model_loads_its_weights_once_on_each_gpu(tiny, cpus):
    cpus(3)
    one, three = (plan_of(model, SHAPE) for model in (tiny, use_gpus(tiny, 0, "video")))
    assert three.weights == one.weights and not one.shares


def lines(made):
    return [line for line in made.text() if "GPU" in line]


def test_prompts_decide_how_many_gpus_share_one():
    size, rule = VideoSize(1920, 1088, 81), t3_rule(WAN_1_3B)

    def of(count, by):
        return lines(plan(rule, WAN_1_3B, size, gpus=GPUs(count, by)))

    one, two = of(4, "auto")
    assert one.startswith("1 prompt (CFG 1): 4 GPUs share a prompt: rectangles of 21x68x30 tokens; an evaluation moves")
    assert two.startswith("2 prompts (CFG): 2 GPUs share a prompt: rectangles of 21x68x60 tokens; an evaluation moves")
    assert of(2, "auto")[1] == "2 prompts (CFG): each GPU computes whole prompts: nothing is exchanged"
    assert of(4, "prompts") == ["each GPU computes whole prompts: nothing is exchanged"]
    (three,) = of(3, "auto")
    assert three.startswith("3 GPUs share a prompt: rectangles of 21x68x40 tokens") and of(1, "auto") == []


def test_the_picture_shows_every_rectangle_with_its_bytes():
    made = plan(t3_rule(WAN_1_3B), WAN_1_3B, VideoSize(1920, 1088, 81), gpus=GPUs(4))
    drawn = picture(made)
    for shares in made.shares:
        count = len(shares.rectangles)
        assert shares.heading in drawn and drawn.count(f": 21x68x{120 // count} tokens, ") == count
    assert drawn.count("GiB into its GPU in an evaluation") == 4 + 2
    assert "into its GPU" not in picture(plan(t3_rule(WAN_1_3B), WAN_1_3B, VideoSize(1920, 1088, 81)))


def test_a_plan_on_several_gpus_of_the_largest_size_is_arithmetic():
    made = plan(None, WAN_1_3B, VideoSize(16384, 16384, 4097), gpus=GPUs(64))
    assert len(made.shares[0].rectangles) == 64
    rule = t3_rule(WAN_1_3B)
    grid = rule.published.grid
    large = grid._replace(t=48 * grid.t, h=4 * grid.h, w=4 * grid.w)
    assert all(len(counts) == 64 for counts in rule.received(large, 64).values())


def test_the_canvas_plans_for_gpus_that_are_not_there(monkeypatch, cpus):
    (one,) = gpus_here(4, "auto").warnings
    if gpu_pool_class() is None:
        assert gpus_here(4, "auto").count == 1 and "older than 0.30.0" in one
        return
    assert gpus_here(4, "auto")[:2] == (4, "auto")
    assert one == "UltraGen MultiGPU finds 1 GPU on this computer. The plan is for 4."
    assert gpus_here(0, "video") == GPUs(1, "video", ("UltraGen MultiGPU finds 1 GPU on this computer.",))
    cpus(4)
    assert gpus_here(0, "video") == GPUs(4, "video") and gpus_here(2, "auto") == GPUs(2, "auto")


@several
def test_what_cannot_be_split_is_planned_in_whole_prompts(dense, cpus):
    cpus(2)
    model = use_gpus(dense, 0, "video")
    model.set_model_attn1_patch(lambda *args: args)
    made = plan_of(model, SHAPE)
    assert made.warnings == ("Each prompt stays on one GPU, because another node has patched its blocks.",)
    assert lines(made)[0] == "each GPU computes whole prompts: nothing is exchanged"
