"""The model that learns is the model that ComfyUI samples with, and the right parts of it learn."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.comfy_run import velocity
from helpers.support import DATA, relative_error, seeded
from safetensors.torch import load_file

from tools.console import Trouble
from training.cache import Cache
from training.checkpoint import publish
from training.extras import initial_extras
from training.model import build, random_base
from ultragen_core.attention.config import GlobalConfig
from ultragen_core.host.attention.load import load_extras_file, load_model
from ultragen_core.host.attention.patch import Settings, apply
from ultragen_core.weights.files import read_state_dict
from ultragen_core.weights.published import published_items

X, TEXT = seeded(2, 16, 2, 8, 10), 0.1 * seeded(2, 512, 4096, seed=1)
T = torch.tensor([900.0, 20.0])
T3_BUT_LAST = Settings(rule="t3", global_=GlobalConfig(dense_blocks=frozenset({3})))
BRANCHES = {"global": "global_branch|global_gate", "hierarchical": "hierarchical_branch|hierarchical_gate"}


@pytest.fixture
def model(base, recipe):
    def make(recomputed=False, **changes):
        return build(read_state_dict(base), base.name, recipe(**changes), recomputed)

    return make


def gradients(model) -> dict[str, torch.Tensor | None]:
    model(X, T, TEXT).square().mean().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_velocities_of_the_published_model(tiny_path, recipe):
    """Numbers of the published code; with the checkpoint's own extras, whatever the recipe says of new ones."""
    golden, plain = load_file(DATA / "model_io.safetensors"), load_file(DATA / "no_antialias.safetensors")
    model = build(read_state_dict(tiny_path), tiny_path.name, recipe())
    for case in (0, 1):
        key = f"case{case}.t431.velocity"
        x, text = golden[f"case{case}.latent"], golden[f"case{case}.context"].float()
        with torch.no_grad():
            assert relative_error(model(x, torch.tensor([431.0]), text), plain.get(key, golden[key])) < 5e-6


@pytest.mark.parametrize("trains", ["full", "extras", "lora", "extras with ffn_deltas"])
def test_what_is_published_paints_the_same_in_comfyui(training, base, trains, tmp_path):
    trains, ffn_deltas = trains.removesuffix(" with ffn_deltas"), "ffn" in trains
    run = training(tmp_path, trains=trains, ffn_deltas=ffn_deltas)
    run.run()
    path = tmp_path / f"{trains}-000003.safetensors"
    if trains == "full":
        loaded = load_model(path, model_options={"dtype": torch.float32})
    elif trains == "extras":
        plain = load_model(base, "dense", {"dtype": torch.float32})
        loaded = apply(plain, Settings(), load_extras_file(path))
    else:
        loaded = _with_lora(base, path, run)
    with run.averages.applied(), torch.no_grad():
        trained = run.bare(X[:1], T[:1], TEXT[:1])
    assert relative_error(velocity(loaded, X[:1], TEXT[:1], 0.9), trained) < (1e-6 if ffn_deltas else 5e-6)
    untrained = build(read_state_dict(base), base.name, run.recipe)
    with torch.no_grad():
        assert relative_error(trained, untrained(X[:1], T[:1], TEXT[:1])) > 1e-3, "nothing was learnt"


def _with_lora(base, path, run):
    """ComfyUI's LoRA loader on the base with the extras that the LoRA was trained on."""
    import comfy.sd

    from ultragen_core.weights.extras_file import save_extras

    save_extras(initial_extras(run.recipe, 128, 4), path.with_name("initial.safetensors"))
    plain = load_model(base, "dense", {"dtype": torch.float32})
    patched = apply(plain, Settings(), load_extras_file(path.with_name("initial.safetensors")))
    return comfy.sd.load_lora_for_models(patched, None, load_file(path), 1.0, 0.0)[0]


def test_t3_is_published_as_a_plain_model_which_comfyui_samples_with_the_same_windows(training, tmp_path):
    x = seeded(1, 16, 2, 22, 20)  # smaller windows in blocks 1 and 2, next to each other and strided
    run = training(tmp_path, rule="t3", dense_blocks="3")
    run.run()
    with run.averages.applied(), torch.no_grad():
        trained = run.bare(x, T[:1], TEXT[:1])
    path = tmp_path / "full-000003.safetensors"
    loaded = apply(load_model(path, "dense", {"dtype": torch.float32}), T3_BUT_LAST)
    assert relative_error(velocity(loaded, x, TEXT[:1], 0.9), trained) < 5e-6
    dense = build(read_state_dict(path), path.name, replace(run.recipe, rule="dense"))
    with torch.no_grad():
        assert relative_error(dense(x, T[:1], TEXT[:1]), trained) > 1e-3, "windows without effect"


def test_t3_refuses_to_train_at_a_size_that_has_no_windows(training, cache, monkeypatch, tmp_path):
    monkeypatch.setattr(cache, "latent_shape", lambda: (16, 2, 46, 82))
    with pytest.raises(Trouble, match="needs equal windows, but 656x368, 5 frames .* The nearest size that does: "):
        training(tmp_path, rule="t3")


@pytest.mark.parametrize("changes", [
    {}, {"rule": "dense"}, {"rule": "t3"}, {"trains": "extras"}, {"trains": "lora"}, {"without": ("global",)},
    {"without": ("delta", "hierarchical")}, {"trains": "extras", "without": ("delta",)}, {"ffn_deltas": True},
    {"ffn_deltas": True, "trains": "extras"}, {"ffn_deltas": True, "trains": "lora"},
    {"ffn_deltas": True, "without": ("delta",)},
])  # fmt: skip
def test_all_that_learns_gets_gradients_and_nothing_else_does(model, changes):
    """Processes that share a run wait for every gradient: a weight without one would stop them."""
    model = model(**changes)
    got = gradients(model)
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning == {name for name, gradient in got.items() if gradient is not None}
    kinds = {"extras": ".extras." in str(learning), "lora": "lora_A.default" in str(learning)}
    trains = changes.get("trains", "full")
    assert kinds == {"extras": trains != "lora" and "rule" not in changes, "lora": trains == "lora"}
    assert (trains == "full") == ("wan.head.head.weight" in learning)
    if changes.get("ffn_deltas") and trains != "lora" and "without" not in changes:
        assert sum(".ffn.extras." in name for name in learning) == 2 * 2 * 4
        start = {name: gradient.any() for name, gradient in got.items() if ".ffn.extras." in name}
        assert {name for name, moved in start.items() if moved} == {name for name in start if ".lora_B." in name}
    for name in changes.get("without", ()):
        parts = BRANCHES.get(name, "lora_").split("|")
        assert not [key for key in learning for part in parts if part in key]


def test_extras_start_as_the_paper_says(model):
    attn = model().wan.blocks[1].self_attn
    x = seeded(3, 128)
    for branch, ratio in ((attn.extras.global_branch, 4), (attn.extras.hierarchical_branch, 2)):
        assert torch.all(branch.compress.weight == ratio**-2) and torch.all(branch.refine.weight == 1 / 27)
        assert not any(adapter(x).any() for adapter in (branch.q, branch.k, branch.v))
    assert torch.all(attn.gates.global_gate(T) == 0.5) and torch.all(attn.gates.hierarchical_gate(T) == 0.5)
    near_local = model(gate=0.9).wan.blocks[1].self_attn.gates
    assert torch.allclose(near_local.global_gate(T), torch.tensor(0.9))


def test_deltas_on_the_feed_forward_part(training, base, recipe, tmp_path):
    """They begin as nothing, lower the loss on their own, and a checkpoint that has them keeps them."""
    plain, begun = (build(read_state_dict(base), "x", recipe(ffn_deltas=ffn)) for ffn in (False, True))
    with torch.no_grad():
        assert torch.equal(begun(X, T, TEXT), plain(X, T, TEXT))
    learning = [p for name, p in begun.requires_grad_(False).named_parameters() if ".ffn.extras." in name]
    optimizer, losses = torch.optim.AdamW([p.requires_grad_() for p in learning], 1e-2), []
    for _ in range(8):
        losses.append((begun(X, T, TEXT) - X).square().mean())
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.99 * losses[0]


def test_a_checkpoints_extras_get_them_and_keep_them(base, recipe, tmp_path):
    """Of UltraGen's checkpoint they are the only new weights; one that has them needs no option."""
    state = dict(read_state_dict(base))
    state |= published_items(initial_extras(recipe(rank=2), 128, 4))
    plain, extended = (build(state, "x", recipe(ffn_deltas=ffn)) for ffn in (False, True))
    assert extended.shape == replace(plain.shape, ffn_channels=64) and plain.shape.rank == 2
    with torch.no_grad():
        assert torch.equal(extended(X, T, TEXT), plain(X, T, TEXT))
    for name, parameter in extended.named_parameters():
        parameter.data.add_(0.1 if ".ffn.extras." in name else 0)
    publish(tmp_path, 1, extended, extended, recipe(trains="full"), True)
    again = build(read_state_dict(tmp_path / "full-000001.safetensors"), "x", recipe())
    assert again.shape == extended.shape
    with torch.no_grad():
        assert torch.equal(again(X, T, TEXT), extended(X, T, TEXT))


def test_recomputed_activations_give_the_same_gradients(model):
    kept, recomputed = (gradients(model(recomputed)) for recomputed in (False, True))
    assert all(torch.equal(kept[name], recomputed[name]) for name in kept)


def test_mixed_precision_stays_near_float32(model):
    model = model()
    with torch.no_grad():
        exact = model(X, T, TEXT)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(X, T, TEXT)
    assert 0 < relative_error(mixed, exact) < 2e-2


def test_a_cache_without_clips_is_refused(model, tmp_path):
    with pytest.raises(Trouble, match="All latents of a cache must have one shape; .* has none"):
        model().check(Cache(tmp_path / "nowhere"))


def test_other_models_are_refused(base, recipe):
    image_to_video = read_state_dict(base) | {"img_emb.proj.0.bias": torch.zeros(1)}
    with pytest.raises(Trouble, match="x is of the kind i2v"):
        build(image_to_video, "x", recipe())
    with pytest.raises(Trouble, match="x holds no Wan model"):
        build({"decoder.conv1.weight": torch.zeros(1)}, "x", recipe())
    with pytest.raises(Trouble, match="a multiple of that, got 100"):
        random_base(100, 1, 1, 0)
