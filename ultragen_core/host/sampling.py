"""Giving a model its flow shift."""

from __future__ import annotations

import comfy.model_sampling


def with_shift(model, shift: float):
    """A clone of `model` that samples flow matching with this shift, at t = 1000 * sigma (what core's ModelSamplingSD3
    does).
    """

    class FlowSampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        pass

    sampling = FlowSampling(model.model.model_config)
    sampling.set_parameters(shift=shift, multiplier=1000)
    patched = model.clone()
    patched.add_object_patch("model_sampling", sampling)
    return patched
