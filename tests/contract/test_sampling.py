"""comfy.samplers and comfy.k_diffusion: whole sampling runs, and single steps of a sampler."""

from __future__ import annotations

import comfy.samplers
import pytest
import torch
from comfy.k_diffusion import sampling
from comfy.patcher_extension import WrappersMP
from helpers.comfy_run import sample
from helpers.signatures import lacking, parameters
from helpers.support import seeded

RUN = ["noise", "latent_image", "sampler", "sigmas", "denoise_mask", "callback", "disable_pbar", "seed"]


@pytest.fixture(scope="module")
def run(wan):
    """What one run gives to wrappers of outer_sample, to the sampler function and to the callback."""
    model, seen = wan.clone(), {}

    def outer(executor, *args, **kwargs):
        seen["outer"] = executor.class_obj, args, kwargs
        return executor(*args, **kwargs)

    def sampler(function, *args, **kwargs):
        seen["sampler"], seen["conds"] = (args, kwargs), dict(args[0].inner_model.conds)
        return function(*args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "contract", outer)
    with pytest.MonkeyPatch.context() as patch:
        euler = sampling.sample_euler
        patch.setattr(sampling, "sample_euler", lambda *args, **kwargs: sampler(euler, *args, **kwargs))
        context = seeded(1, 3, wan.model.diffusion_model.text_embedding[0].in_features)
        steps = []
        sample(model, (1, 16, 2, 4, 4), context, steps=2, callback=lambda *given: steps.append(given))
    return seen | {"callback": steps}


def test_parameters_of_outer_sample():
    assert parameters(comfy.samplers.CFGGuider.outer_sample) == [*RUN, "latent_shapes"]


def test_wrappers_of_outer_sample_get_a_guider_and_its_arguments_by_position(run):
    guider, args, kwargs = run["outer"]
    assert isinstance(guider, comfy.samplers.CFGGuider) and not lacking(guider, "model_patcher", "original_conds")
    assert len(args) == len(RUN) and kwargs.keys() <= {"latent_shapes"}
    noise, latent, sampler, sigmas = args[:4]
    assert noise.shape == latent.shape == (1, 16, 2, 4, 4) and len(sigmas) == 3
    assert type(sampler) is comfy.samplers.KSAMPLER


def test_names_of_a_samplers_parts():
    sampler = comfy.samplers.ksampler("euler", {"s_noise": 1.0}, {"random": False})
    assert sampler.sampler_function is sampling.sample_euler
    assert (sampler.extra_options, sampler.inpaint_options) == ({"s_noise": 1.0}, {"random": False})
    assert parameters(comfy.samplers.KSAMPLER.__init__) == ["sampler_function", "extra_options", "inpaint_options"]


def test_how_a_sampler_function_is_called(run):
    (model, x, sigmas), named = run["sampler"]
    assert x.shape == (1, 16, 2, 4, 4) and len(sigmas) == 3
    assert named.keys() == {"extra_args", "callback", "disable"} and "seed" in named["extra_args"]
    assert not lacking(model, "latent_image", "inner_model")
    assert isinstance(model.inner_model, comfy.samplers.CFGGuider) and {"positive", "negative"} <= run["conds"].keys()


def test_callbacks_get_step_denoised_x_and_the_number_of_steps(run):
    assert [(step, total) for step, _, _, total in run["callback"]] == [(0, 2), (1, 2)]
    assert all(denoised.shape == x.shape == (1, 16, 2, 4, 4) for _, denoised, x, _ in run["callback"])


def test_a_sampler_functions_own_callback_gets_a_dict():
    seen = []
    sampling.sample_euler(lambda x, sigma: x / 2, torch.ones(1, 1), torch.tensor([1.0, 0.5, 0.0]), callback=seen.append)
    assert [each["i"] for each in seen] == [0, 1] and all({"x", "denoised"} <= each.keys() for each in seen)


def test_default_noise_comes_from_one_generator_in_the_order_of_its_draws():
    assert parameters(sampling.default_noise_sampler) == ["x", "seed"]
    x = torch.zeros(2, 3)
    first, again = (sampling.default_noise_sampler(x, seed=5) for _ in range(2))
    draws = [first(None, None) for _ in range(2)]
    assert torch.equal(draws[1], [again(1.0, 0.5), again(0.5, 0.0)][1]) and not torch.equal(*draws)


def test_the_bar_of_a_sampler_starts_anywhere():
    assert list(sampling.trange(1, 3, initial=1, total=3, disable=True)) == [1, 2]
