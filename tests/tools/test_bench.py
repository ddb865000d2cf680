"""The benchmarks measure what they name: a wrong baseline, or another method than the one asked for, would flatter."""

from __future__ import annotations

import argparse
import contextlib
import re
from dataclasses import replace

import pytest
import torch
from helpers import cudnn_frontend
from helpers.support import ToyAttention, dense_attention, relative_error, seeded

from tools.bench import bits, evaluation, kernel_layers, kernels, methods, model
from tools.bench.attention import GRIDS
from tools.bench.evaluation import FEW_TOKENS, few_tokens
from tools.bench.model import sample
from tools.bench.published import published_attention
from training.miniature.scenes import CHECKED
from ultragen_core.attention import rope
from ultragen_core.attention.config import GlobalConfig, LocalConfig
from ultragen_core.attention.engine import Engine
from ultragen_core.attention.extras import BlockExtras, ExtrasShape, initial_block
from ultragen_core.attention.gate import Gate, Gates, GateTable
from ultragen_core.attention.layer import ultragen_attention
from ultragen_core.grid import TokenGrid
from ultragen_core.host.attention.fp8_kernel import Fp8Kernel
from ultragen_core.host.attention.int8_kernel import Int8Kernel
from ultragen_core.ops import dispatch
from ultragen_core.rules.choice import Settings, choose_rule, untrained_summary
from ultragen_core.rules.ultragen import block_spec
from ultragen_core.sizes import VideoSize
from ultragen_core.wan import WAN_1_3B, WanShape


@pytest.mark.parametrize("block", [2, 3])
@torch.no_grad()
def test_the_published_arithmetic_agrees_with_the_packs(block):
    grid, shape = TokenGrid(2, 13, 21), ExtrasShape(24, rank=4, refined=True)
    extras = BlockExtras(shape)
    extras.load_state_dict({k: v + 0.1 * seeded(*v.shape, seed=len(k)) for k, v in initial_block(shape).items()})
    gates = Gates(seeded(1, 1, 24).sigmoid(), seeded(1, 1, 24, seed=1).sigmoid())
    attn, x = ToyAttention(24), seeded(1, grid.tokens, 24)
    spec = block_spec(block, LocalConfig(), GlobalConfig(), trained=True)
    ours = ultragen_attention(attn, x, grid, spec, extras, gates, Engine(dense_attention))
    assert relative_error(published_attention(attn, x, grid, block, extras, gates), ours) < 1e-5


def test_an_operation_that_depends_on_the_batch_is_found():
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    with bits.FirstHalfAlone() as seen:
        torch.mm(x.round(), torch.eye(8))  # whole numbers: the same bits in any order
        torch.softmax(x, 1)
        torch.softmax(x, 0)  # over the batch
    assert sorted(seen.calls.values()) == [1, 2] and sorted(seen.differing.values()) == [0, 1]
    assert max(seen.differing, key=seen.differing.get).startswith("_softmax (4, 8)")


def test_operations_of_an_evaluation_are_listed(tiny, capsys):
    bits.report("here", tiny, VideoSize(96, 64, 5), "cpu")
    found, all_ = map(int, re.findall("here: (.*) of (.*) operations", capsys.readouterr().out)[0])
    assert 0 <= found < all_ > 10


@pytest.fixture
def sampled(tiny):
    """`sampled(method)`: two steps of `bench model --sample`."""

    def run(method: str) -> torch.Tensor:
        prompts = [seeded(1, 16, 4096, seed=seed) for seed in (1, 2)]
        chosen = methods.prepared(tiny, method)
        return sample(chosen, method, torch.zeros(1, 16, 2, 12, 20), prompts, 2, 5.0, lambda: None)

    return run


def test_sampled_methods_are_the_ones_asked_for(sampled, monkeypatch):
    """The published arithmetic, plain PyTorch and Triton agree; dense attention and other rules do not."""
    monkeypatch.setattr(methods, "PUBLISHED_DENSE", frozenset({0, 3}))
    ours = sampled("ours")
    for method, same in {"published": True, "plain": True, "all": True, "comfyui": False, "t3": False}.items():
        assert (relative_error(sampled(method), ours) < 1e-4) == same, method


def test_sampling_with_cudnn_asks_for_it(sampled, monkeypatch):
    from ultragen_core.host.attention import backend

    plain, asked = sampled("comfyui"), []

    def cudnn(func, *args, **kwargs):
        asked.append(func)
        return func(*args, **kwargs)

    monkeypatch.setattr(backend, "cudnn_attention", cudnn)
    assert torch.equal(sampled("cudnn"), plain) and asked


@pytest.fixture
def evaluated_on_the_cpu(monkeypatch):
    """`bench model` runs without a GPU, on the tiny model's inputs."""
    import ultragen_core.host.speed.evaluation as measured

    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda: 0)
    monkeypatch.setattr(methods, "PUBLISHED_DENSE", frozenset({0, 3}))
    given = seeded(1, 16, 2, 12, 20), seeded(1, 16, 4096, seed=1)
    monkeypatch.setattr(measured, "inputs", lambda latent, device: given)


def test_every_repeat_of_an_evaluation_has_a_timestep_of_its_own(tiny, evaluated_on_the_cpu, monkeypatch):
    """And all of them together one pass over the gates' weights, as in a run."""
    passes, seen, of_embeddings, at = [], [], Gate.of_embeddings, GateTable.at
    monkeypatch.setattr(Gate, "of_embeddings", lambda gate, x: passes.append(len(x)) or of_embeddings(gate, x))
    monkeypatch.setattr(GateTable, "at", lambda table, t, *rest: seen.append(t.item()) or at(table, t, *rest))
    row = evaluation.evaluation(tiny, "tiny", TokenGrid(2, 6, 10), "ours", repeats=3)
    assert seen[:3] == [1000.0, pytest.approx(2000 / 3), pytest.approx(1000 / 3)] and set(seen[3:]) == {1000.0}
    assert set(passes) == {4} and row.seconds > 0 and row.host_ms > 0


@torch.inference_mode()
def test_fp8_products_has_fp8_layers_and_fp8_attention(
    tiny_path, fp8_layers, evaluated_on_the_cpu, monkeypatch, capsys
):
    monkeypatch.setitem(GRIDS, "tiny", TokenGrid(2, 6, 10))
    options = argparse.Namespace(
        model="1.3b", sizes=["tiny"], methods=["fp8", "fp8 products", "ours"], repeats=1,
        sample=None, one_block=[], layers=model.LAYERS, csv=None,
    )  # fmt: skip
    calls, inner = {}, model.evaluation
    with cudnn_frontend.installed(monkeypatch) as package:

        def counted(patcher, size, grid, method, repeats):
            before = len(fp8_layers.calls), len(package.calls)
            row = inner(patcher, size, grid, method, repeats)
            calls[method] = len(fp8_layers.calls) - before[0], len(package.calls) - before[1]
            return row

        monkeypatch.setattr(model, "evaluation", counted)
        model.measure(options, tiny_path)
    products, attentions = calls["fp8 products"]
    assert calls == {"fp8": (0, attentions), "fp8 products": (products, attentions), "ours": (0, 0)}
    first, _, second, row, *rest = capsys.readouterr().out.splitlines()
    assert "fp8 in" not in first and "in torch.float8_e4m3fn, computed in torch.float32" in second and products
    assert row.startswith("tiny         fp8 products") and f"fp8 in {products} of {products} products" in row
    assert len(rest) == 2 and not any("fp8" in line for line in rest), "in bf16 again"


def test_plain_runs_without_triton(interpreted_kernels):
    x = torch.zeros(1)
    with torch.no_grad():
        for method in methods.METHODS:
            with methods.running(method):
                assert dispatch.triton_for(x, dispatch.ATTENTION_KERNEL_MODULES) == (method != "plain"), method


NAMES, CPU = ["comfyui", "int8"], torch.device("cpu")
VARIANTS = kernels.variants_of(["int8"], ["default"])
FAST = kernels.Variant("comfyui", "fp8_e4m3fn_fast")


def errors(printed: str) -> dict[str, float]:
    """The error of each line of `bench kernels`, by its name."""
    return {line.split("  ")[0]: float(line.split("error ")[1]) for line in printed.splitlines() if "error " in line}


@torch.no_grad()
def test_kernels_compares_attention_in_windows_with_float64(kitchen, capsys):
    kernel_layers.attention(NAMES, [(2, 100), (1, 200)], 2, 1, CPU)
    found = errors(capsys.readouterr().out)
    for windows in ("2 x 100", "1 x 200"):
        assert 0 < found[f"{windows}, comfyui"] < found[f"{windows}, int8"] < 0.1, found
    assert len(found) == 4 and len(kitchen.calls) == 4  # each twice: for the error, for the time


@torch.no_grad()
def test_kernels_compares_layers_and_evaluations_with_float32(kitchen, capsys):
    shape = ExtrasShape(256, rank=4, refined=True)
    kernel_layers.layers(NAMES, TokenGrid(2, 8, 12), ["ultragen", "t3", "dense"], 1, shape, CPU)
    found = errors(capsys.readouterr().out)
    layers = {name.rpartition(", int8")[0] for name in found if name.endswith(", int8")}
    assert layers == {"dense", *(f"ultragen, block {i}" for i in (2, 3)), *(f"t3, block {i}" for i in range(5))}
    for layer in layers:
        assert 0 < found[f"{layer}, comfyui"] < found[f"{layer}, int8"] < 0.1, found
        assert layer == "dense" or found[f"{layer}, int8, kept"] == found[f"{layer}, int8"]
    assert kitchen.freed.count(True) == kitchen.freed.count(False) > 0  # those of "kept"

    model = WanShape(blocks=2, channels=256, heads=2, ffn_channels=256)
    with kernels.random_checkpoint(model, CPU) as path:
        kernels.evaluations("random", path, VARIANTS, TokenGrid(2, 4, 6), 1, CPU)
    kernels.evaluations("miniature", kernels.MINIATURE, VARIANTS, TokenGrid(2, 4, 6), 1, CPU)
    found = errors(capsys.readouterr().out)
    for title in ("random", "miniature"):  # ComfyUI computes in float32 on the CPU
        assert found[f"{title}, comfyui"] < found[f"{title}, int8"] < 0.1, found


@torch.no_grad()
@pytest.mark.parametrize("rule", ["ultragen", "t3", "dense"])
def test_layers_are_timed_without_the_rotations_that_a_run_computes_once(rule, monkeypatch):
    computed = []
    for module, name in ((rope, "rope_table"), (kernel_layers, "wan_freqs")):
        inner = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, inner=inner: computed.append(given) or inner(*given))
    counts = []
    for repeats in (1, 3):
        computed.clear()
        kernel_layers.layers(
            ["comfyui"], TokenGrid(2, 8, 12), [rule], repeats, ExtrasShape(256, rank=4, refined=True), CPU
        )
        counts.append(len(computed))
    assert counts[0] == counts[1] > 0


def test_kernels_scores_the_miniature(kitchen, capsys):
    toy = {"videos": 1, "sampling_steps": 1, "held_out": 1, "levels": 1, "size": VideoSize(144, 48, 17)}
    kernels.miniature(VARIANTS, CPU, seeds=(0, 1), **toy)
    heading, columns, _, *rows = capsys.readouterr().out.splitlines()
    assert "2 seeds of 1 videos" in heading and columns == "| | comfyui | int8 | int8 - comfyui |"
    cells = {row.split(" | ")[0]: row.strip(" |").split(" | ")[1:] for row in rows}
    assert list(cells) == ["| held-out loss", *(f"| caption: {name}" for name in CHECKED), "| seam ratio"]
    assert kitchen.calls and all(cell.count(" ± ") == 1 for each in cells.values() for cell in each)
    assert float(cells["| held-out loss"][0].split()[0]) > 0 and cells["| held-out loss"][2] != "0.0000 ± 0.0000"


def test_kernels_compares_every_kernel_with_all_weights():
    chosen = kernels.variants_of(["fp8"], ["fp8_e4m3fn_fast"])
    assert [str(one) for one in chosen] == ["comfyui", "fp8", "comfyui, fp8_e4m3fn_fast", "fp8, fp8_e4m3fn_fast"]
    assert kernels.variants_of(["fp8"], ["default"]) == chosen[:2]


def test_kernels_act_on_the_miniatures_few_keys_and_only_there(monkeypatch):
    monkeypatch.setattr(Int8Kernel, "fewest_keys", 4096)
    with contextlib.suppress(KeyboardInterrupt), kernels.on_few_keys():
        assert Int8Kernel.fewest_keys == Fp8Kernel.fewest_keys == 1
        raise KeyboardInterrupt
    assert Int8Kernel.fewest_keys == 4096 and Fp8Kernel.fewest_keys > 1


@torch.no_grad()
def test_kernels_says_which_products_comfyui_computed_in_fp8(fp8_layers, capsys):
    kernels.evaluations("miniature", kernels.MINIATURE, [FAST], TokenGrid(2, 4, 6), 1, CPU)
    printed = capsys.readouterr().out
    products = len(fp8_layers.calls)
    assert f"computed in torch.float32; fp8 in {products} of {products} products of fp8 layers" in printed and products
    assert 1e-2 < errors(printed)["miniature, comfyui, fp8_e4m3fn_fast"] < 0.1
    fp8_layers.fails = True
    kernels.evaluations("miniature", kernels.MINIATURE, [FAST], TokenGrid(2, 4, 6), 1, CPU)
    assert f"fp8 in 0 of {products} products" in capsys.readouterr().out


def test_kernels_measures_the_drift_of_a_trajectory(kitchen, capsys):
    toy = {"videos": 1, "steps": 2, "seeds": (0, 1), "size": VideoSize(144, 48, 17)}
    kernels.drift([*VARIANTS, kernels.Variant("comfyui", "fp8_e4m3fn")], CPU, **toy)
    heading, *lines = capsys.readouterr().out.splitlines()
    assert "after 2 steps next to those of comfyui in bf16" in heading and "2 seeds of 1 videos" in heading
    found = {line.rsplit("  ", 1)[0].strip(): float(line.rsplit("  ", 1)[1].split(" ± ")[0]) for line in lines}
    assert list(found) == ["another seed", "comfyui, float32", "int8", "comfyui, fp8_e4m3fn"]
    # The CPU computes bf16 weights in float32.
    assert found["comfyui, float32"] < found["int8"] < found["comfyui, fp8_e4m3fn"] < found["another seed"]


@pytest.mark.parametrize(("rule", "size"), [("ultragen", size) for size in GRIDS] + [("t3", "4K x 81")])
def test_the_hosts_time_is_measured_on_the_same_layers(rule, size):
    """Of as many blocks, branches and windows that are computed once; and on few tokens."""
    trained = replace(untrained_summary(WAN_1_3B, 4), gates={0: None}) if rule == "ultragen" else None
    chosen, few = choose_rule(WAN_1_3B, Settings(rule=rule), trained), few_tokens(GRIDS[size])

    def layers(grid):
        return [(group.blocks, [branch.name for branch in group.branches]) for group in chosen.groups(grid)]

    assert few.tokens <= FEW_TOKENS and layers(few) == layers(GRIDS[size])
