"""What a step sees: noise levels, order, captions; and what is kept of a run."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.support import seeded
from torch import nn

from tools.console import Trouble
from training.curve import Curve, Row, smoothed
from training.ema import AveragedWeights, decay_at
from training.objective import Sample, Samples, loss_of, padded, shifted
from training.preview import sample
from training.recipe import Recipe
from ultragen_core.sampling import flow_sigmas


def test_noise_levels_are_those_of_sampling():
    assert torch.allclose(shifted(torch.linspace(1, 0, 11), 5.0), flow_sigmas(10, 5.0), atol=1e-6)


def test_the_model_is_asked_for_the_velocity_at_its_noise_level():
    """One that answers with what it is given shows both: x = latent + sigma * (noise - latent)."""
    seen, latents = [], seeded(3, 16, 2, 8, 10)

    def model(x, t, texts):
        seen.append((x, t / 1000))
        return torch.zeros_like(x)

    loss = loss_of(model, (7, 8, 9), latents, seeded(3, 512, 8), Recipe(shift=3.0))
    ((x, sigma),) = seen
    velocity = (x - latents) / sigma[:, None, None, None, None]
    assert loss.item() == pytest.approx(velocity.square().mean().item(), rel=1e-4)
    assert 0 < sigma.min() and sigma.max() < 1 and len(set(sigma.tolist())) == 3
    noise = velocity + latents
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05


def test_a_true_velocity_costs_nothing_and_leads_to_the_clip():
    clip = seeded(1, 16, 2, 8, 10)

    def model(x, t, texts):
        return (x - clip) / (t / 1000)[:, None, None, None, None]

    assert loss_of(model, (0,), clip, seeded(1, 512, 8), Recipe()).item() < 1e-9
    noise, text = seeded(*clip.shape, seed=1), seeded(1, 3, 8)
    assert torch.allclose(sample(model, noise, text, text, 7, 5.0, 5.0), clip, atol=1e-4)


def test_guidance_goes_from_the_empty_caption_to_the_prompt_and_beyond():
    def model(x, t, texts):
        return texts.mean((1, 2))[:, None, None, None, None].expand_as(x)

    x = sample(model, torch.zeros(2, 1, 1, 2, 2), torch.full((2, 2, 4), 3.0), torch.full((2, 2, 4), 1.0), 4, 5.0, 2.0)
    assert x.shape[0] == 2 and torch.allclose(x, torch.tensor(-(1.0 + 2 * (3.0 - 1.0))))


def test_every_clip_comes_once_an_epoch_and_some_captions_are_dropped(cache):
    recipe = Recipe(caption_dropout=0.25)
    samples = Samples(cache, recipe)
    drawn = [samples[number] for number in range(200)]
    for start in range(0, 200, 5):
        epoch = torch.stack([item.latent for item in drawn[start : start + 5]])
        assert len(epoch.flatten(1).unique(dim=0)) == 5
    orders = {tuple(item.latent.flatten()[0].item() for item in drawn[start : start + 5]) for start in (0, 5, 10, 15)}
    assert len(orders) > 1
    dropped = sum(not item.text.any() for item in drawn)
    assert 30 < dropped < 70
    again = samples[17]
    assert torch.equal(again.latent, drawn[17].latent) and torch.equal(again.text, drawn[17].text)


def test_texts_of_a_batch_are_as_long_as_its_longest():
    texts = seeded(1, 8), seeded(0, 8), seeded(3, 8)
    batch = [Sample(number, seeded(16, 2, 4, 4, seed=number), text) for number, text in enumerate(texts)]
    numbers, latents, together = Samples.together(batch)
    assert numbers.tolist() == [0, 1, 2] and latents.shape == (3, 16, 2, 4, 4) and together.shape == (3, 3, 8)
    assert padded(together).shape == (3, 512, 8)
    for text, whole in zip(texts, padded(together), strict=True):
        assert torch.equal(whole[: len(text)], text) and not whole[len(text) :].any()


def test_averages_follow_the_weights():
    layer = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(layer.weight)
    averages = AveragedWeights(list(layer.parameters()))
    for expected in (0.5, 0.75):
        nn.init.ones_(layer.weight)
        averages.update(0.5)
        with averages.applied():
            assert layer.weight.item() == expected
        assert layer.weight.item() == 1
    averages.take_over()
    with averages.applied():
        assert layer.weight.item() == 1


def test_rates_rise_and_fall():
    recipe = Recipe(steps=110, warmup=10, learning_rate=1.0, decay="cosine")
    assert [recipe.rate(step) for step in (0, 9, 10, 60)] == pytest.approx([0.1, 1, 1, 0.5])
    assert recipe.rate(109) < 1e-3
    assert Recipe(learning_rate=0.3).rate(999) == 0.3
    assert decay_at(0, recipe.ema) == 0.1 and decay_at(10**6, recipe.ema) == 0.999


@pytest.mark.parametrize(("changes", "message"), [
    ({"trains": "extras", "rule": "dense"}, "Only the rule ultragen has extras, .* with --rule dense"),
    ({"trains": "extras", "rule": "t3"}, "Only the rule ultragen has extras, .* with --rule t3"),
    ({"ffn_deltas": True, "rule": "dense"}, "Only the rule ultragen has extras, got --ffn-deltas with --rule dense"),
    ({"batch": 0}, "batch must be at least 1, got 0"),
    ({"weight_decay": -1.0}, "weight_decay must be at least 0, got -1.0"),
    ({"shift": 0.0}, "shift must be greater than 0, got 0.0"),
    ({"clip": 0.0}, "clip must be greater than 0, got 0.0"),
    ({"learning_rate": float("nan")}, "learning_rate must be greater than 0, got nan"),
    ({"caption_dropout": 10.0}, "caption_dropout must be from 0 to 1, got 10.0"),
    ({"ema": -0.5}, "ema must be from 0 to 1, got -0.5"),
    ({"dense_blocks": "3-1"}, "from the lower to the higher index"),
    ({"gate": 1.0}, "gate must be between 0 and 1, got 1.0"),
])  # fmt: skip
def test_recipes_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(Trouble, match=message):
        Recipe(**changes)


def test_the_published_model_keeps_its_outer_blocks_dense():
    assert Recipe().hierarchical_blocks(30) == list(range(3, 27))


def test_the_curve_forgets_what_comes_again_and_draws_the_rest(tmp_path):
    curve = Curve(tmp_path)
    curve.begin(0)
    for step in range(1, 6):
        curve.add(Row(step, 1 / step, 1e-4, 0.5, 0.1))
    curve.begin(3)
    assert [row.step for row in curve.rows()] == [1, 2, 3]
    assert (tmp_path / "loss.csv").read_text().splitlines()[0] == "step,loss,learning_rate,gradient,seconds"
    curve.draw()
    picture = (tmp_path / "loss.svg").read_text()
    average = smoothed([1, 1 / 2, 1 / 3])[-1]
    assert f"{average:.4f} at step 3" in picture and picture.count("L") == 4
    assert math.isclose(average, (1 / 3 + 0.95 / 2 + 0.95**2) / (1 + 0.95 + 0.95**2))
