"""Plans against what models really do, and plans from files against those of the models loaded from them."""

from __future__ import annotations

import html
import math
import re
import shutil
from dataclasses import replace

import comfy.cli_args
import comfy.model_management
import pytest
import torch
from helpers.comfy_run import spied, velocity
from helpers.deltas import with_deltas
from helpers.support import seeded
from helpers.wan_models import KINDS, load
from safetensors.torch import load_file, save_file

import ultragen_core.host.plan_preview as preview_module
import ultragen_core.host.speed.records as records
from ultragen_core.attention.config import GlobalConfig, LocalConfig
from ultragen_core.attention.gate import GateLine
from ultragen_core.host.attention.load import load_extras_file, load_model
from ultragen_core.host.attention.patch import Settings, apply, runtime_of
from ultragen_core.host.plan import plan, plan_of
from ultragen_core.host.plan_preview import AS_TRAINED, Patch, Source, preview, shapes_of
from ultragen_core.host.speed.records import write_speed
from ultragen_core.host.speed.setup import setup_of
from ultragen_core.host.wan_model import shape_of
from ultragen_core.plan.flops import feed_forward_delta_flops
from ultragen_core.plan.picture import LETTERS, WIDTH, picture
from ultragen_core.plan.report import GIB
from ultragen_core.plan.speed import DecodeTime, EvaluationTime, Speed
from ultragen_core.plan.split import GPUs
from ultragen_core.rules.choice import choose_rule
from ultragen_core.rules.t3 import t3_rule
from ultragen_core.rules.ultragen import UNTRAINED_WARNING, WHOLE_FRAME_WARNING
from ultragen_core.sizes import VideoSize
from ultragen_core.wan import WAN_1_3B, WAN_5B

SHAPE = (1, 16, 3, 16, 24)
SIZE = VideoSize(192, 128, 9)
CONTEXT = seeded(1, 512, 4096, seed=1)


@pytest.mark.parametrize("rule", ["ultragen", "t3", "dense"])
def test_operations_are_those_that_the_model_does(tiny, dense, rule):
    model = dense if rule == "dense" else apply(tiny, Settings(rule=rule))
    assert plan_of(model, SHAPE).flops.attention == attended(model)


def test_vace_blocks_count():
    model = apply(load(KINDS["Wan2.1 VACE"]), Settings(LocalConfig(windows=(2, 3)), rule="ultragen"))
    conditions = {"vace_context": seeded(1, 1, 96, 3, 16, 24), "vace_strength": [1.0]}
    assert plan_of(model, SHAPE).flops.attention == attended(model, **conditions)


def attended(model, **conditions) -> float:
    """FLOPs of attention of one evaluation, by the sizes that it is called with."""
    model, calls = spied(model)
    velocity(model, seeded(*SHAPE), CONTEXT, 0.5, **conditions)
    return sum(4 * q[0] * q[1] * k[1] * q[2] for q, k in calls)


def test_published_layout_in_words():
    made = preview(VideoSize(1920, 1080, 81), Source("ultragen_1080p.ckpt", None, "auto"))
    assert [warning.split(".")[:2] for warning in made.warnings] == [["ultragen_1080p", "ckpt is missing"]]
    assert made.text()[:3] == [
        "1920x1088, 81 frames: 21x68x120 = 171,360 tokens; rule ultragen in 24 of 30 blocks, dense 0-2, 27-29 (no"
        " extras)",
        "12 even blocks: local 4x4 of 10,710 tokens + hierarchical 2x2 of 10,710 tokens (at 1/2 of the resolution) +"
        " global of 10,710 tokens (at 1/4 of the resolution)",
        "12 odd blocks: local 5x5 of 7,056 tokens + hierarchical 3x3 of 4,620 tokens (at 1/2 of the resolution) +"
        " global of 10,710 tokens (at 1/4 of the resolution)",
    ]


@pytest.mark.parametrize(("model", "fewer"), [(WAN_1_3B, 27.6), (WAN_5B, 6.3)])
def test_t3_at_4k(model, fewer):
    made = plan(t3_rule(model), model, VideoSize(3840, 2176, 81))
    assert made.against_dense() == f"{fewer}x fewer" and not made.warnings
    assert [len(group.blocks) for group in made.groups] == [6] * 5


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [(None, "the same as"), ("t3", "6.3x fewer than"), ("one window", "4% more than"), ("one block", "2% fewer than")],
)
def test_what_a_rule_saves_is_said_and_drawn_also_where_it_costs_more(rule, sentence):
    size = VideoSize(3840, 2176, 81) if rule == "t3" else VideoSize(832, 480, 81)
    only = GlobalConfig(dense_blocks=frozenset(range(1, 30)))
    rules = {
        "t3": t3_rule(WAN_5B),
        "one window": choose_rule(WAN_1_3B, Settings(rule="ultragen")),
        "one block": choose_rule(WAN_1_3B, Settings(LocalConfig(windows=(4, 4)), only, rule="ultragen")),
    }
    made = plan(rules.get(rule), WAN_5B if rule == "t3" else WAN_1_3B, size)
    text, drawn = "\n".join(made.text()), picture(made)
    assert f"PFLOPs, {sentence} with dense attention" in text
    if rule == "one block":
        assert "\n1 even block: local 4x4 of" in text and ">1 even block<" in drawn
    assert f"({sentence.removesuffix(' than').removesuffix(' as')})<" in drawn
    whole, part = re.findall(r'<rect [^>]*width="([\d.]+)" height="5"', drawn)[:2]
    assert float(part) <= float(whole)


def test_a_file_gives_the_plan_of_the_model_that_is_loaded_from_it(tiny, dense, tiny_path):
    locals_ = {"auto": LocalConfig(windows=(2, 3)), "t3": LocalConfig()}
    global_ = GlobalConfig(dense_blocks=frozenset({2}))
    source = Source(tiny_path.name, tiny_path, AS_TRAINED)
    for rule in ("auto", "t3"):
        settings = Settings(locals_[rule], global_, 0.25, 0.75, rule=rule)
        loaded = plan_of(apply(tiny, settings), SHAPE)
        for extras in (None, tiny_path) if rule == "auto" else (None,):
            assert facts(preview(SIZE, source, [Patch(settings, extras)])) == facts(loaded)
    assert facts(preview(SIZE, source._replace(rule="dense"))) == facts(plan_of(dense, SHAPE))


def test_deltas_on_the_feed_forward_part_are_planned(tiny, tiny_path, tmp_path):
    """As in the model that is loaded; their FLOPs are those that the layers count."""
    path = tmp_path / "deltas.safetensors"
    save_file(with_deltas(load_file(tiny_path)), path)
    model, source = load_model(path, model_options={"dtype": torch.float32}), Source(path.name, path, "auto")
    for strength, rank in ((1.0, 8), (0.0, 0)):
        settings = Settings(global_=GlobalConfig(ffn_lora_strength=strength))
        planned = plan_of(apply(model, settings), SHAPE)
        assert facts(preview(SIZE, source, [Patch(settings)])) == facts(planned)
        shape = shape_of(model.model.diffusion_model)
        more = planned.flops.products - plan_of(tiny, SHAPE).flops.products
        assert more == 2 * feed_forward_delta_flops(planned.grid.tokens, shape, rank).products
        assert ("; deltas of rank 8 on the feed-forward part" in " ".join(planned.text())) == bool(rank)
        described = runtime_of(apply(model, settings)).rule.describe(planned.grid, 4)
        assert ("deltas on the feed-forward part of these blocks" in described) == bool(rank)


def facts(made):
    return made.groups, made.flops, made.dense, made.warnings


def test_a_chain_of_patches_gives_the_plan_of_the_last(tiny, dense, tiny_path):
    """Trained weights that a rule does not use are there for the next one."""
    for rules, expected in (
        (["t3", "ultragen"], "ultragen"),
        (["t3", "auto"], "t3"),
        (["ultragen", "auto"], "ultragen"),
    ):
        model, patches = tiny, []
        for rule in rules:
            patches.append(Patch(Settings(rule=rule)))
            model = apply(model, patches[-1].settings)
        made = preview(SIZE, Source(tiny_path.name, tiny_path, "auto"), patches)
        assert made.rule.startswith(f"rule {expected}") and facts(made) == facts(plan_of(model, SHAPE))
        assert UNTRAINED_WARNING not in made.warnings


@pytest.mark.parametrize(
    ("file", "rule", "settings", "sentence"),
    [
        ("trained", "auto", Settings(global_=GlobalConfig(compress_ratio=8)), "a compress ratio of 4"),
        ("trained", "auto", Settings(LocalConfig(windows=(2, 3)), rule="t3"), "the local config asks for others"),
        ("trained", None, Settings(), "The model has no extras, so its attention rule is unknown"),
        ("trained", "dense", Settings(), "The model has no extras, so its attention rule is unknown"),
        ("wan", "auto", None, "wan.safetensors is a Wan model without UltraGen's extras"),
        ("wan", "t3", Settings(), None),
        ("flux", "ultragen", None, "flux.safetensors is an unknown file"),
        ("flux", None, Settings(rule="t3"), "UltraGen patches Wan models, but flux.safetensors"),
        ("extras", "auto", None, "holds only UltraGen's extras"),
        ("gone", "t3", None, "gone.safetensors is missing"),
    ],
)
def test_what_the_run_refuses_the_plan_refuses(tmp_path, tiny_path, file, rule, settings, sentence):
    state = load_file(tiny_path)
    added = {key for key in state if any(part in key for part in ("lora", "alpha_time", "sample_conv"))}
    states = {
        "trained": state,
        "wan": {key: value for key, value in state.items() if key not in added},
        "extras": {key: state[key] for key in added},
        "flux": {"double_blocks.0.img_attn.proj.weight": torch.zeros(4, 4)},
    }
    path = tmp_path / f"{file}.safetensors"
    if file in states:
        save_file(states[file], path)
    source = Source(path.name, path if file in states else None, rule)
    patches = [Patch(settings)] if settings else []
    if sentence is None:
        assert preview(SIZE, source, patches).groups
    else:
        with pytest.raises(ValueError, match=sentence):
            preview(SIZE, source, patches)
        if rule and path.exists() and file != "flux":
            with pytest.raises(ValueError, match=sentence):
                model = load_model(path, rule, {"dtype": torch.float32})
                apply(model, settings)


def test_a_compress_ratio_without_weights_is_drawn(tmp_path, tiny_path):
    source = Source(tiny_path.name, tiny_path)
    made = [
        preview(SIZE, source, [Patch(Settings(global_=GlobalConfig(compress_ratio=ratio), rule="ultragen"))])
        for ratio in (4, 8)
    ]
    assert made[0].flops.total > made[1].flops.total


def test_shapes_are_read_again_only_when_the_file_changed(tmp_path, tiny_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    shutil.copy(tiny_path, path)
    read = []
    monkeypatch.setattr(preview_module, "read_shapes", lambda path: read.append(path) or load_file(path))
    for _ in range(3):
        assert shapes_of(path)
    save_file({"head.modulation": torch.zeros(4)}, path)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"a Wan model has head.modulation, with 3 axes"):
            preview(SIZE, Source(path.name, path))
    assert len(read) == 2


def test_a_plan_of_the_largest_size_takes_no_longer(monkeypatch):
    """Memory of a decode is counted on its layers, whose attention over 1M pixels was counted block by block."""
    counted = []
    monkeypatch.setattr("ultragen_core.vae.functional.torch.softmax", lambda x, **_: counted.append(x.shape) or x)
    size = VideoSize(16384, 16384, 4093)  # of no other test, whose result would be remembered
    made = preview(size, Source("ultragen_1080p.ckpt", None, "auto"))
    assert made.decode[0] > 10 * 2**30 and 0 < len(counted) <= 8


def test_an_images_latent_is_one_frame(tiny):
    text = plan_of(tiny, (1, 16, 8, 12)).text()
    assert text == plan_of(tiny, (1, 16, 1, 8, 12)).text() and text[0].startswith("96x64, 1 frame: ")


def test_gates_over_the_run(tiny, dense, tiny_path):
    line = Settings(LocalConfig(gate=GateLine(0.2, 0.8)), GlobalConfig(gate=GateLine(0.0, 1.0)))
    points = plan_of(apply(tiny, line), SHAPE).gates
    assert [tuple(round(value, 4) for value in point) for point in (points[0], points[5], points[-1])] == [
        (1.0, 0.2, 0.0),
        (0.5, 0.5, 0.5),
        (0.0, 0.8, 1.0),
    ]
    trained = load_extras_file(tiny_path).summary.gates.values()
    t = torch.tensor([500.0])
    means = [
        torch.stack([getattr(gates, name)(t) for gates in trained]).mean().item()
        for name in ("hierarchical_gate", "global_gate")
    ]
    assert plan_of(tiny, SHAPE).gates[5][1:] == pytest.approx(means, abs=1e-6)
    assert plan_of(dense, SHAPE).gates == ()


OF_LOCAL, OF_FINER = "of the local branch against hierarchical", "of the finer branches against global"


@pytest.mark.parametrize(
    ("local", "global_", "title"),
    [
        (LocalConfig(), GlobalConfig(), f"{OF_LOCAL}, and {OF_FINER}"),
        (LocalConfig(), GlobalConfig(enabled=False), OF_LOCAL),
        (LocalConfig(hierarchical=False), GlobalConfig(), OF_FINER),
        (LocalConfig(hierarchical=False), GlobalConfig(enabled=False), None),
    ],
)
def test_gates_are_drawn_for_the_branches_that_run(tiny, local, global_, title):
    drawn = picture(plan_of(apply(tiny, Settings(local, global_)), SHAPE))
    assert ("gates over the run" in drawn) == (title is not None)
    if title:
        plot = drawn.partition(f"<title>share {title}, from noise to the end</title>")[2].partition("</g>")[0]
        assert plot.count("<path") == 1 + title.count(", and")


def test_what_speaks_against_it(tiny, dense):
    cut, part = plan_of(apply(tiny, Settings(start_percent=0.3)), SHAPE).warnings
    assert cut.startswith("Frames of 192x128 divide badly into windows")
    assert part == "Attention is dense, at full cost, outside 30% to 100% of the run."
    untrained = plan_of(apply(dense, Settings(rule="ultragen")), SHAPE)
    assert untrained.warnings == (UNTRAINED_WARNING, WHOLE_FRAME_WARNING)
    assert f"Warning: {UNTRAINED_WARNING}" in untrained.text()
    assert html.escape(UNTRAINED_WARNING[:40]) in picture(untrained)
    with pytest.raises(ValueError, match="The latent has 48 channels, but the model needs 16. Connect the model's VAE"):
        plan_of(tiny, (1, 48, 3, 16, 24))


def test_every_line_of_the_picture_ends_within_it(tiny, dense):
    """With plot and without: lines beside the plot are shorter."""
    for model in (tiny, apply(dense, Settings(rule="ultragen"))):
        made = plan_of(model, (1, 16, 21, 136, 240))
        drawn = picture(made) + picture(replace(made, weights=0))
        assert ">sampling: " in drawn and ">activations: " in drawn  # with weights and, from a file, without
        lines = re.findall(r'<text x="([\d.]+)"[^>]*>(.*?)</text>', drawn)
        assert len(lines) > 5
        assert [line for x, line in lines if float(x) + len(html.unescape(line)) * WIDTH / LETTERS > WIDTH] == []


def test_the_picture_says_the_tokens_of_the_text(tiny):
    made = plan_of(apply(tiny, Settings(LocalConfig(windows=(2, 3)))), SHAPE)
    drawn = picture(made)
    for kind in made.groups:
        for branch in kind.branches:
            assert f"{branch} of {branch.windows[0]:,} tokens" in drawn
    assert drawn.count("stroke-dasharray") == 3  # the hierarchical borders of even and of odd blocks, and the legend


UHD_LATENT = (1, 16, 21, 272, 480)


@pytest.fixture
def gpu(monkeypatch):
    """`gpu(gib)` makes ComfyUI believe in a GPU with this much memory."""
    return lambda gib: monkeypatch.setattr("ultragen_core.host.plan.gpu_memory", lambda: round(gib * GIB))


def test_the_plan_says_whether_the_run_fits_the_gpu(tiny, gpu):
    made = plan_of(tiny, UHD_LATENT)
    least = max(made.activations[0], made.decode[0])
    assert not names_the_gpu(made)  # on a CPU
    free = math.ceil(100 * least / GIB) / 100
    gpu(free * 8 / 7)
    made = plan_of(tiny, UHD_LATENT)
    sentence = f"fits this GPU: needs at least {least / GIB:.1f} of its {free * 8 / 7:.1f} GiB"
    assert sentence in made.text() and sentence in words_of(picture(made)) and not made.misfits
    gpu((free - 0.01) * 8 / 7)
    made = plan_of(tiny, UHD_LATENT)
    (misfit,) = made.misfits
    assert not made.fits and f"Warning: {misfit}" in made.text() and misfit in words_of(picture(made))


@pytest.mark.parametrize(
    ("card", "size", "lacks"),
    [
        (8, VideoSize(1920, 1088, 81), []),  # the cards of docs/benchmarks.md, Small cards
        (12, VideoSize(2560, 1440, 81), []),
        (16, VideoSize(3840, 2176, 81), []),
        (12, VideoSize(3840, 2176, 81), ["Sampling"]),
        (8, VideoSize(3840, 2176, 81), ["Sampling"]),
        (1, VideoSize(1920, 1088, 1), ["The decode"]),
        (1, VideoSize(1920, 1088, 81), ["Sampling", "The decode"]),
    ],
)
def test_what_does_not_fit_is_named(gpu, card, size, lacks):
    gpu(card)
    made = preview(size, Source("ultragen_1080p.ckpt", None, "auto"))
    assert [misfit.partition(" needs at least ")[0] for misfit in made.misfits] == lacks
    assert all(
        f"of this GPU's {card}.0 GiB usually only {card * 7 / 8:.1f} are free" in misfit for misfit in made.misfits
    )
    assert bool(made.fits) == (not lacks)


def test_options_and_gpus_that_take_float32_need_more_memory(gpu, monkeypatch):
    """ComfyUI knows nothing of this GPU, and computes in float32 there, as everywhere with --force-fp32."""
    source, size = Source("ultragen_1080p.ckpt", None, "auto"), VideoSize(3840, 2176, 81)
    gpu(16)
    halves = preview(size, source)
    monkeypatch.setattr(comfy.model_management, "get_torch_device", lambda: torch.device("meta"))
    monkeypatch.setattr(preview_module, "current_speed", lambda: None)
    made = preview(size, source)
    for few, many in zip(halves.activations + halves.decode, made.activations + made.decode, strict=True):
        assert 1.3 * few < many < 2 * few
    assert halves.fits and made.misfits[0].startswith("Sampling needs at least")
    monkeypatch.setattr(comfy.cli_args.args, "bf16_vae", True)
    assert preview(size, source).decode == halves.decode


def test_the_dtype_that_a_loaded_model_computes_in_counts(tiny, monkeypatch):
    """ComfyUI would choose float32 on this GPU; ModelComputeDtype chooses what it likes, for any model."""
    monkeypatch.setattr(comfy.model_management, "get_torch_device", lambda: torch.device("meta"))
    monkeypatch.setattr("ultragen_core.host.plan.gpu_memory", lambda: None)
    monkeypatch.setattr("ultragen_core.host.plan.current_speed", lambda: None)
    halves = tiny.clone()
    halves.set_model_compute_dtype(torch.bfloat16)
    few, many = (plan_of(model, UHD_LATENT).activations for model in (halves, tiny))
    assert all(1.3 * half < whole < 2 * half for half, whole in zip(few, many, strict=True))
    halves.set_model_compute_dtype(torch.float32)
    assert plan_of(halves, UHD_LATENT).activations == many


def test_a_decode_on_the_host_takes_nothing_of_the_gpu(gpu, measured_card, tiny, tiny_path, monkeypatch):
    """With --cpu-vae, in float32, as ComfyUI's VAE on a CPU."""
    measured_card(tiny)
    gpu(1)
    size = VideoSize(1920, 1088, 1)
    source = Source(tiny_path.name, tiny_path, "auto")
    on_gpu = preview(size, source)
    assert on_gpu.misfits and "for the exact decode" in str(on_gpu.estimate)
    monkeypatch.setattr(comfy.cli_args.args, "cpu_vae", True)
    # Of a GPU that ComfyUI has; `meta` is the nearest to one.
    monkeypatch.setattr(comfy.model_management, "get_torch_device", lambda: torch.device("meta"))
    made = preview(size, source)
    assert not made.misfits and f"needs at least {made.activations[0] / GIB:.1f} of its 1.0 GiB" in made.fits[0]
    assert any(line.startswith("host memory to decode exactly: ") for line in made.text())
    assert all(1.3 * few < many < 2 * few for few, many in zip(on_gpu.decode, made.decode, strict=True))
    assert "exact decode" not in str(made.estimate)
    assert ">RAM with tiles of" in picture(made) and ">GPU memory with tiles of" in picture(on_gpu)


def test_nothing_is_said_of_gpus_that_share_a_prompt_and_of_dense_attention(dense, gpu):
    gpu(8)
    assert not names_the_gpu(plan_of(dense, UHD_LATENT))
    source, size = Source("ultragen_1080p.ckpt", None, "auto"), VideoSize(3840, 2176, 81)
    made = preview(size, source, gpus=GPUs(4, "video"))
    assert made.shares and not names_the_gpu(made)


def test_without_bounded_memory_the_least_is_everything_at_once(tiny, dense, tiny_path):
    for settings in (Settings(bounded_memory=False), Settings(start_percent=0.2)):
        least, most = plan_of(apply(tiny, settings), SHAPE).activations
        assert least == most
        assert preview(SIZE, Source(tiny_path.name, tiny_path, "auto"), [Patch(settings)]).activations == (least, most)
    for model in (dense, apply(tiny, Settings(start_percent=0.0))):
        least, most = plan_of(model, SHAPE).activations
        assert (least == most) == (model is dense)


def names_the_gpu(made) -> bool:
    return "this GPU" in " ".join(made.text())


def words_of(drawn: str) -> str:
    """The lines of a picture, joined."""
    return " ".join(html.unescape(line) for line in re.findall(r"<text[^>]*>(.*?)</text>", drawn))


MEASURED = VideoSize(64, 64, 81)
SECONDS = {"ultragen": 3.0, "t3": 6.0}


@pytest.fixture
def measured_card(tmp_path, monkeypatch):
    """This computer's card was measured: whole evaluations of SHAPE by the tiny model's two rules, and a decode."""
    import folder_paths

    def write(tiny) -> None:
        flops = {rule: plan_of(apply(tiny, Settings(rule=rule)), SHAPE).flops for rule in SECONDS}
        times = tuple(EvaluationTime(SIZE, flops[rule], seconds) for rule, seconds in SECONDS.items())
        speed = Speed("2026-11-27", times, (DecodeTime(MEASURED, 8.1),))
        monkeypatch.setattr(records, "current_setup", lambda: setup_of(torch.device("cpu")))
        write_speed(records.records_file(), setup_of(torch.device("cpu")), speed)

    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path))
    return write


def test_a_measured_card_gets_times(tiny, tiny_path, measured_card):
    assert plan_of(tiny, SHAPE).estimate is None
    measured_card(tiny)
    for rule, seconds in SECONDS.items():
        made = plan_of(apply(tiny, Settings(rule=rule)), SHAPE)
        sentence = (
            f"about {seconds:.0f} s for one evaluation and 5.4 s for the exact decode, estimated from the measurement"
            " of 2026-11-27"
        )
        assert f"time: {sentence}" in made.text()
        assert "from the measurement of" in picture(made) and f"about {seconds:.0f} s for one" in picture(made)
        source = Source(tiny_path.name, tiny_path, AS_TRAINED)
        assert preview(SIZE, source, [Patch(Settings(rule=rule))]).estimate == made.estimate
    larger = plan_of(tiny, (1, 16, 6, 16, 24))
    assert larger.estimate.evaluation > 1.9 * SECONDS["ultragen"] and larger.estimate.decode == 8.1 * 6 * 21 / 81


def test_no_times_where_another_attention_runs(tiny, dense, measured_card, kitchen):
    """Than the one that was measured: an override's, a kernel's, or ComfyUI's in an unpatched model."""
    measured_card(tiny)
    overridden = tiny.clone()
    overridden.model_options["transformer_options"]["optimized_attention_override"] = print
    int8 = apply(load(KINDS["Wan2.1 T2V"]), Settings(rule="ultragen", attention_kernel="int8"))
    for model in (overridden, dense, int8):
        made = plan_of(model, SHAPE)
        assert made.estimate is None and "measurement" not in picture(made) + "".join(made.text())


def test_only_the_measured_vaes_decode_gets_a_time(tiny, measured_card):
    measured_card(tiny)
    model = apply(load(KINDS["Wan2.2 TI2V 5B"]), Settings(rule="ultragen"))
    assert plan_of(model, (1, 48, 3, 16, 24)).estimate.decode is None
