"""The whole miniature and its ablation at toy size: parts that continue, files that ComfyUI loads, measures."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch
from helpers.comfy_run import velocity
from helpers.support import relative_error, seeded
from PIL import Image
from safetensors.torch import load_file

from tools.console import Trouble
from ultragen_core.sizes import VideoSize

CPU = torch.device("cpu")
HIGH = VideoSize(144, 48, 17)  # 9 columns of tokens


def test_parts_that_are_cut_off_go_on_to_the_same_weights(toy, made, tmp_path):
    from training.miniature.make import Making

    calls = 0
    while not Making(toy, tmp_path, CPU, 0).run():
        calls += 1
        assert calls < 10
    assert calls == 4  # a step each: the VAE has three, the others two
    for file in (made.finished_vae_file.name, *(f"{rule}/full-000002.safetensors" for rule in ("dense", "ultragen"))):
        once, in_parts = load_file(made.folder / file), load_file(tmp_path / file)
        assert once.keys() == in_parts.keys() and all(torch.equal(once[key], in_parts[key]) for key in once)


def test_the_last_part_changes_the_decoder_alone(made):
    """So that latents stay what the models were trained on."""
    first, finished = load_file(made.vae_file), load_file(made.finished_vae_file)
    changed = {key.split(".")[0] for key in first if not torch.equal(first[key], finished[key])}
    assert first.keys() == finished.keys() and changed and changed <= {"decoder", "conv2"}


def test_squares_are_judged_up_to_the_edges_of_the_frame():
    from training.miniature.decoder_training import DecoderRecipe, _span
    from training.objective import generator

    recipe = DecoderRecipe(side=4, margin=1)
    cuts = [_span(6, recipe, generator(CPU, step)) for step in range(40)]
    judged = {cut.latents.start: cut.judged.unflatten(0, (4, 8)).all(1).tolist() for cut in cuts}
    assert judged == {0: [True, True, True, False], 1: [False, True, True, False], 2: [False, True, True, True]}
    assert all(cut.pixels == slice(8 * cut.latents.start, 8 * cut.latents.stop) for cut in cuts)


def test_what_is_made_runs_in_comfyui(made, toy):
    from training.encoders import load_vae
    from training.miniature.clip_vae import decode
    from training.model import build
    from ultragen_core.host.attention.load import load_model

    file = made.model_file("ultragen")
    assert all(tensor.dtype == torch.float16 for tensor in load_file(file).values())
    x, text = seeded(1, 16, 5, 8, 10), 0.1 * seeded(1, 512, 4096)
    trained = build(load_file(file), file.name, toy.ultragen)
    with torch.no_grad():
        expected = trained(x, torch.tensor([900.0]), text)
    assert (
        relative_error(velocity(load_model(file, model_options={"dtype": torch.float32}), x, text, 0.9), expected)
        < 5e-6
    )
    latent = seeded(1, 16, 2, 4, 6)
    with torch.no_grad():
        pictures = (decode(made.vae(), latent) / 2 + 0.5).clamp(0, 1).movedim(1, -1)
    assert torch.allclose(load_vae(made.finished_vae_file).decode(latent), pictures, atol=2e-2)


def test_the_ablation_trains_and_judges_variants(made):
    """Three of those that are trained: what the switches of a recipe do is tested with the trainer."""
    from training.miniature import ablation as module
    from training.miniature import study as names
    from training.miniature.table import table
    from ultragen_core.metrics.scores import HD_LPIPS, HD_MSE

    metrics = HD_MSE, HD_LPIPS  # HD-FVD needs larger frames
    given, trained = names.VARIANTS[:3], names.VARIANTS[3:6]
    scoring = {"seeds": (3,), "videos": 2, "sampling_steps": 2, "held_out": 1, "levels": 2, "metrics": metrics}
    study = names.Study(**scoring, variants=(*given, *trained), steps=2)
    with pytest.raises(Trouble, match="time that 'full' takes: train its first 1 steps of seed 3 before"):
        module.Ablation(dataclasses.replace(study, variants=("Swin",)), made).run()
    for variants in (given, study.variants):  # processes may share them
        ablation = module.Ablation(dataclasses.replace(study, variants=variants), made)
        assert ablation.run()
        assert {result["variant"] for result in ablation.results()} == set(variants)
    results = ablation.results()
    assert {result["variant"] for result in results if result["equal_steps"]} == set(trained)
    given_or_equal = [result for result in results if result["equal_steps"] or not result["equal_time"]]
    losses = {result["variant"]: result["loss"] for result in given_or_equal}
    assert len({losses[name] for name in study.variants}) == 6, "variants that compute the same"
    for result in results:
        assert result["seed"] == 3 and result["loss"] > 0 and result["seam_ratio"] > 0
        assert result["seams_to_painted"] > 0
        assert all(0 <= result[name] <= 1 for name in ("time", "ground", "weather", "side"))
        assert all(result[name] >= 0 for name in metrics)

    ablation.draw(made.folder / "sheet.jpg")
    (strip,) = {Image.open(file).size for file in ablation.folder.glob("*.png")}
    assert strip == (2 * HIGH.width, HIGH.height)
    assert Image.open(made.folder / "sheet.jpg").height > 6 * 1280 * HIGH.height / strip[0]

    lines = table(results, ["not there", *trained, names.DENSE], names.FULL).splitlines()
    named = [line.split(" | ")[:3] for line in lines]
    assert named.count([f"| {names.FULL}", "2", f"{losses[names.FULL]:.4f}"]) == 2  # it is its own comparison
    assert named.count([f"| {names.DENSE}", "0", f"{losses[names.DENSE]:.4f}"]) == 1

    file = next(ablation.folder.glob("*.json"))  # what is there stays
    file.write_text(json.dumps(json.loads(file.read_text()) | {"loss": -1}))
    assert ablation.run() and json.loads(file.read_text())["loss"] == -1


def test_the_ablation_of_an_unfinished_miniature_is_refused(toy, tmp_path):
    from training.miniature.ablation import Ablation
    from training.miniature.make import Making
    from training.miniature.study import Study

    with pytest.raises(Trouble, match="starts from a finished miniature, .* holds none. Make it with"):
        Ablation(Study(), Making(toy, tmp_path, CPU, 1))


def test_borders_are_those_of_a_models_own_windows(made, toy):
    from training.miniature import ablation as module
    from training.miniature import study as names

    making = copy.copy(made)
    making.recipe = dataclasses.replace(toy, blocks=3)  # of which the first is dense
    ablation = module.Ablation(names.Study(), making)
    even, odd, shifted = {3, 5, 7}, {2, 4, 6, 8}, {1, 4, 6, 8}
    own = {"without cross-window": even, "Swin": even | shifted, names.UNTRAINED: {5} | {3, 6}, "t3": set()}
    assert {name: ablation._borders(name) for name in names.VARIANTS} == dict.fromkeys(names.VARIANTS, even | odd) | own
    making.recipe = dataclasses.replace(making.recipe, blocks=5, high=VideoSize(640, 352, 17))
    assert module.Ablation(names.Study(), making)._borders("t3") == set(range(5, 40, 5))  # 8, 8 and 2 windows


def test_seams_are_found_where_windows_meet():
    from training.miniature.judge import seam_ratio

    smooth = torch.linspace(0, 1, 320).expand(2, 96, 320)[..., None].expand(2, 96, 320, 3).clone()
    borders = {5, 10, 15}
    assert seam_ratio(smooth, borders) == pytest.approx(1, abs=0.05)
    stepped = smooth.clone()
    stepped[:, :, 160:] += 0.1  # between the second and the third of four windows
    assert seam_ratio(stepped, borders) > 2
    elsewhere = smooth.clone()
    elsewhere[:, :, 16:] += 0.1
    assert seam_ratio(elsewhere, borders) < 1
    horizon = smooth.clone()
    horizon[:, 48:] += 0.5
    assert seam_ratio(horizon, borders) == pytest.approx(1, abs=0.05)


def test_painted_clips_are_the_measure_of_seams():
    from training.miniature.judge import held_out, painted_seam_ratio, seam_ratio
    from training.miniature.painter import paint

    numbers, borders = held_out(2), frozenset({3, 6})
    clips = [paint(number, *HIGH) for number in numbers]
    ratio = painted_seam_ratio(numbers, HIGH, borders, CPU)
    assert ratio == pytest.approx(sum(seam_ratio(clip, borders) for clip in clips) / 2)
    assert ratio != pytest.approx(painted_seam_ratio(numbers, HIGH, frozenset({2, 5}), CPU))


def test_stand_ins_see_differences():
    from training.miniature.judge import stand_ins

    networks, frame = stand_ins(CPU), torch.rand(3, 64, 64)
    assert networks.distance(frame[None], frame[None]) == 0
    assert networks.distance(frame[None], frame[None].flip(-1)) > 0
    assert networks.features(torch.rand(2, 3, 16, 224, 224)).shape == (2, 32)


def test_originals_have_features_for_hd_fvd():
    from training.miniature.judge import held_out, originals

    size = VideoSize(448, 224, 17)  # two patches
    (one,) = originals(held_out(1), size, CPU)
    assert one.features.shape == (2, 32) and not torch.equal(*one.features)
    assert originals(held_out(1), size, CPU)[0] is one


def test_agreement_counts_attributes():
    from training.miniature.judge import agreement
    from training.miniature.scenes import CHECKED, scene

    numbers = range(10, 14)
    said = [dataclasses.asdict(scene(number)) for number in numbers]
    assert agreement(said, numbers) == dict.fromkeys(CHECKED, 1.0)
    said[0] = said[0] | {"time": "never"}
    assert agreement(said, numbers) == dict.fromkeys(CHECKED, 1.0) | {"time": 0.75}


def test_the_table_of_an_unfinished_search_counts_seeds():
    from training.miniature.scenes import CHECKED
    from training.miniature.table import table

    seen = dict.fromkeys(CHECKED, 0.5)
    rows = [seen | {"variant": name, "seed": seed, "loss": 0.1} for name, seed in (("a", 0), ("a", 1), ("b", 0))]
    assert "| a | 2 | 0.1000 ± 0.0000 |" in table(rows, ["a", "b"], "a")
    assert "| b | 1 | 0.1000 |" in table(rows, ["a", "b"], "a")
    assert "| a | 0.1000 ± 0.0000 |" in table(rows, ["a"], "a")


def test_the_table_tells_mean_and_spread_and_what_differs():
    from training.miniature.scenes import CHECKED
    from training.miniature.table import table

    seen = dict.fromkeys(CHECKED, 0.5) | {"equal_steps": True, "equal_time": False, "steps": 8}
    full, same, worse = (0.1, 0.2, 0.3), (0.2, 0.1, 0.3), (0.11, 0.21, 0.32)
    rows = [
        seen | {"variant": variant, "seed": seed, "loss": loss}
        for variant, losses in (("full", full), ("same", same), ("worse", worse))
        for seed, loss in enumerate(losses)
    ]
    made = table(rows, ["full", "same", "worse"], "full")
    assert "| full | 8 | 0.2000 ± 0.1000 | 0.500 ± 0.000 | 0.50 ± 0.00 |" in made
    assert "| same | 8 | 0.2000 ± 0.1000 | 0.500 ± 0.000 | 0.50 ± 0.00 |" in made
    # On every seed, though the spread over seeds is far larger.
    assert "| worse | 8 | **0.2133 ± 0.1050** | 0.500 ± 0.000 | 0.50 ± 0.00 |" in made
    assert "at equal time" not in made
