"""The parts that start from the dense model: T3-Video's windows, and image-to-video as ComfyUI runs it."""

from __future__ import annotations

import dataclasses

import comfy.model_base
import comfy.sd
import pytest
import torch
from helpers.comfy_run import velocity
from helpers.support import relative_error, seeded
from safetensors.torch import load_file, save_file

from tools.console import Trouble
from training.miniature.painter import paint
from ultragen_core.host.attention.load import load_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def more(made):
    """The toy with both of these models."""
    assert made.run(("t3", "i2v"))
    return made


def test_files_of_latents_are_shared_out(made, toy, tmp_path):
    from training.miniature.latents import Latents
    from training.miniature.make import Making

    (tmp_path / "vae.safetensors").write_bytes(made.vae_file.read_bytes())
    (tmp_path / "vae-finished.safetensors").write_bytes(made.finished_vae_file.read_bytes())
    assert Making(toy, tmp_path, CPU, 60, files=[1]).run(["latents"])
    (second,) = tmp_path.glob("latents-*")
    assert Latents([second]).names == ["2"]  # of three clips, two to a file
    written = second.stat().st_mtime_ns
    assert Making(toy, tmp_path, CPU, 60).run(["latents"]) and second.stat().st_mtime_ns == written
    whole, own = made.latents(toy.high), Making(toy, tmp_path, CPU, 60).latents(toy.high)
    assert whole.names == own.names == ["0", "1", "2"] and whole.fingerprint() == own.fingerprint()
    assert all(torch.equal(whole.clip(index).latent, own.clip(index).latent) for index in range(3))


def test_t3_starts_from_the_dense_model_and_has_no_weights_of_its_own(more):
    dense, t3 = (load_file(more.model_file(name)) for name in ("dense", "t3"))
    assert {key: x.shape for key, x in t3.items()} == {key: x.shape for key, x in dense.items()}
    assert any(not torch.equal(t3[key], dense[key]) for key in t3)


def test_the_finished_t3_model_is_scored_with_its_own_windows(more, toy):
    from training.miniature.ablation import Ablation
    from training.miniature.study import T3_FINISHED, Study

    scoring = {"seeds": (5,), "videos": 1, "sampling_steps": 1, "held_out": 1, "levels": 1, "metrics": ()}
    ablation = Ablation(Study(**scoring, variants=(T3_FINISHED,)), more)
    assert ablation.run()
    (result,) = [row for row in ablation.results() if row["variant"] == T3_FINISHED]
    assert result["steps"] == toy.t3.steps and result["seed"] == 5 and result["loss"] > 0
    assert ablation._borders(T3_FINISHED) == set() != ablation._borders("full")  # at this size one window per frame


def test_models_are_kept_packed_with_little_error(more):
    from training.miniature.packed import packed, unpacked

    for name in ("t3", "i2v"):
        state, kept = load_file(more.model_file(name)), more.folder / f"{name}.safetensors"
        assert kept.stat().st_size < 0.52 * more.model_file(name).stat().st_size
        back = unpacked(load_file(kept))
        assert all(back[key].dtype == torch.float16 and back[key].shape == state[key].shape for key in state)
        matrices = [key for key in state if state[key].ndim == 2 and state[key].numel() >= 4096]
        assert all(relative_error(back[key].float(), state[key].float()) < 0.02 for key in matrices)
        assert all(torch.equal(back[key], state[key]) for key in state.keys() - set(matrices))
    zeros = {"a": torch.zeros(64, 64)}
    assert torch.equal(unpacked(packed(zeros))["a"], zeros["a"])


@pytest.mark.parametrize("place", ["folder", "run"])
def test_kept_models_are_finished_ones(more, toy, tmp_path, place):
    """Packed, from the repository's folder: put next to the VAE, or where training would have left them."""
    from training.miniature.ablation import Ablation
    from training.miniature.make import Making
    from training.miniature.packed import packed, unpacked
    from training.miniature.scoring import Scoring
    from training.miniature.search import Search
    from training.miniature.search_variants import NEAR, Variant
    from training.miniature.study import FINISHED, T3_FINISHED, Study

    making = Making(toy, tmp_path, CPU, 60)
    states = {name: packed(load_file(more.model_file(name))) for name in ("ultragen", "t3", "i2v")}
    for name, state in states.items():
        file = tmp_path / f"{name}.safetensors" if place == "folder" else making.model_file(name)
        file.parent.mkdir(exist_ok=True)
        save_file(state, file)
    (tmp_path / "vae.safetensors").write_bytes(made_vae := more.finished_vae_file.read_bytes())
    (tmp_path / "vae-finished.safetensors").write_bytes(made_vae)
    scoring = {"seeds": (5,), "videos": 1, "sampling_steps": 1, "held_out": 1, "levels": 1, "metrics": ()}
    ablation = Ablation(Study(**scoring, variants=(FINISHED, T3_FINISHED)), making)
    assert ablation.run() and {row["variant"] for row in ablation.results()} == {FINISHED, T3_FINISHED}
    search = Search(making, Scoring(**scoring), {"windows": Variant(NEAR)}, start_images=True)
    assert search.run() and [row["variant"] for row in search.results()] == ["windows"]
    for name, state in states.items():
        used, expected = load_file(making.finished(name)), unpacked(state)
        assert used.keys() == expected.keys() and all(torch.equal(used[key], expected[key]) for key in used)
    assert making.run(("t3", "i2v"))  # nothing is trained again: there are neither clips nor a dense model


def test_the_start_image_is_given_as_comfyuis_node_gives_it(made, more, toy):
    from comfy_extras.nodes_wan import WanImageToVideo

    from training.miniature.latents import start_condition

    image = paint(7, *toy.low._replace(frames=1))
    vae = comfy.sd.VAE(sd=load_file(made.finished_vae_file), dtype=torch.float32)
    given = WanImageToVideo.execute([[None, {}]], [[None, {}]], vae, *toy.low, 1, start_image=image)[0][0][1]
    model = load_model(more.model_file("i2v"), "dense", {"dtype": torch.float32}).model
    assert type(model) is comfy.model_base.WAN21
    noise = torch.zeros(1, 16, 5, 4, 4)
    expected = model.concat_cond(noise=noise, device=CPU, **given)
    with torch.no_grad():
        assert relative_error(start_condition(made.vae(), image, toy.low.frames), expected) < 1e-5


def test_the_image_to_video_model_uses_the_start_image_in_comfyui_as_in_training(more, toy):
    from training.model import build

    file = more.model_file("i2v")
    state = load_file(file)
    assert state["patch_embedding.weight"].shape[1] == 36
    x, condition, text = seeded(1, 16, 5, 4, 4), seeded(1, 20, 5, 4, 4), 0.1 * seeded(1, 512, 4096)
    trained = build(state, "i2v", toy.i2v)
    with torch.no_grad():
        expected = trained(x, torch.tensor([900.0]), text, condition)
        assert relative_error(trained(x, torch.tensor([900.0]), text, 0 * condition), expected) > 1e-5
    loaded = load_model(file, "dense", {"dtype": torch.float32})
    assert relative_error(velocity(loaded, x, text, 0.9, c_concat=condition), expected) < 5e-6


def test_new_input_channels_change_nothing_before_training(made, toy):
    from training.miniature.states import image_to_video
    from training.model import build

    state = load_file(made.model_file("dense"))
    x, text, t = seeded(1, 16, 5, 4, 4), 0.1 * seeded(1, 512, 4096), torch.tensor([900.0])
    before, after = build(state, "", toy.dense), build(image_to_video(state), "", toy.i2v)
    with torch.no_grad():
        assert relative_error(after(x, t, text, seeded(1, 20, 5, 4, 4)), before(x, t, text)) < 1e-6


def test_models_and_clips_that_do_not_fit_are_refused(more, toy, tmp_path):
    from training.loop import Keeping, Training
    from training.model import build

    model = build(load_file(more.model_file("i2v")), "i2v", toy.i2v)
    with pytest.raises(Trouble, match="The model takes 36 channels, the clips of .* have 16"):
        Training(toy.i2v, Keeping(tmp_path), model, more.latents(toy.low), 2)


def test_parts_say_what_they_start_from(toy, tmp_path):
    from training.miniature.make import Making

    making = Making(dataclasses.replace(toy), tmp_path, CPU, 60)
    for part in ("ultragen", "t3", "i2v"):
        with pytest.raises(Trouble, match="part dense is needed, .* is missing. Make it with .* --parts dense"):
            making.run([part])
