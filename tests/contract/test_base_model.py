"""comfy.model_base.BaseModel: the evaluation that the pack wraps, and the estimate of memory that it replaces."""

from __future__ import annotations

import inspect

import torch
from comfy.model_base import BaseModel
from comfy.patcher_extension import WrappersMP
from helpers.comfy_run import sample
from helpers.signatures import lacking, parameters
from helpers.support import seeded

from ultragen_core.host.attention.runtime import Runtime

EVALUATION = ["x", "t", "c_concat", "c_crossattn", "control", "transformer_options", "**kwargs"]


def test_parameters_of_apply_model():
    assert parameters(BaseModel.apply_model) == EVALUATION
    assert parameters(BaseModel._apply_model) == EVALUATION


def test_wrappers_of_apply_model_get_its_arguments_by_position(wan):
    model, seen = wan.clone(), []

    def wrapper(executor, *args, **kwargs):
        seen.append((executor.class_obj, args, kwargs))
        return executor(*args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "contract", wrapper)
    sample(model, (1, 16, 2, 4, 4), context(wan), steps=1)
    base, (x, t, *_, options), kwargs = seen[0]
    assert base is model.model and x.ndim == 5 and t.shape == x.shape[:1] and isinstance(options, dict)
    assert len(seen[0][1]) == len(EVALUATION) - 1 and "transformer_options" not in kwargs


def test_an_evaluation_knows_the_sigmas_of_its_run_and_gets_one_of_them(wan):
    model, seen = wan.clone(), []

    def wrapper(executor, x, t, *args, **kwargs):
        seen.append((t, args[-1]["sample_sigmas"]))
        return executor(x, t, *args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "contract", wrapper)
    sample(model, (1, 16, 2, 4, 4), context(wan), steps=2)
    for step, (t, sigmas) in enumerate(seen):
        assert sigmas.shape == (3,) and (t == sigmas[step]).all()


def test_parameters_of_memory_required():
    """The pack's estimate takes any others too, and does not follow them."""
    names = parameters(BaseModel.memory_required)
    assert names[:2] == ["input_shape", "cond_shapes"]
    for more in ([], ["memory_efficient_attention"]):
        inspect.signature(Runtime.memory_required).bind(None, None, **dict.fromkeys([*names, *more]))


def test_memory_required_is_asked_of_the_instance(wan):
    base, shapes = wan.model, []
    base.memory_required = lambda input_shape, cond_shapes=None, **_: shapes.append(input_shape) or 1
    try:
        sample(wan, (1, 16, 2, 4, 4), context(wan), steps=1)
    finally:
        del base.memory_required
    assert shapes and all(len(shape) == 5 and shape[1:] == (16, 2, 4, 4) for shape in map(tuple, shapes))


def test_what_a_base_model_tells_of_itself(wan):
    base = wan.model
    assert not lacking(base, "diffusion_model", "current_patcher", "manual_cast_dtype", "model_config")
    assert base.get_dtype() == torch.float32
    assert not lacking(base.model_sampling, "timestep", "percent_to_sigma")
    assert base.model_sampling.percent_to_sigma(0.0) >= 1 > base.model_sampling.percent_to_sigma(0.5) > 0
    assert base.model_sampling.timestep(torch.tensor(0.5)).item() == 500


def test_current_patcher_is_the_one_that_samples(wan):
    model, seen = wan.clone(), []

    def wrapper(executor, *args, **kwargs):
        seen.append(executor.class_obj.current_patcher)
        return executor(*args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "contract", wrapper)
    sample(model, (1, 16, 2, 4, 4), context(wan), steps=1)
    assert seen[0] is model


def context(wan) -> torch.Tensor:
    return seeded(1, 3, wan.model.diffusion_model.text_embedding[0].in_features)
