"""comfy.model_patcher.ModelPatcher: clones, wrappers, callbacks, additional models, patches."""

from __future__ import annotations

import comfy.model_patcher
import pytest
import torch
from comfy.patcher_extension import CallbacksMP, WrappersMP
from helpers.signatures import lacking, parameters

KEY = "contract"


def test_names_of_a_patchers_parts(wan):
    assert not lacking(wan, "model", "load_device", "offload_device", "model_options", "patches", "object_patches")
    assert parameters(type(wan).__init__)[:3] == ["model", "load_device", "offload_device"]
    assert wan.model_size() > 0


@pytest.mark.parametrize("kind", [WrappersMP.OUTER_SAMPLE, WrappersMP.APPLY_MODEL])
def test_wrappers_have_keys_and_follow_clones(wan, kind):
    model = wan.clone()
    model.add_wrapper_with_key(kind, KEY, print)
    assert model.clone().get_wrappers(kind, KEY) == [print] and not wan.get_wrappers(kind, KEY)
    model.remove_wrappers_with_key(kind, KEY)
    assert not model.get_wrappers(kind, KEY)


def test_wrappers_run_in_the_order_in_which_their_keys_were_added(wan):
    model = wan.clone()
    for key in ("first", "second"):
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, key, key)
    assert list(model.wrappers[WrappersMP.OUTER_SAMPLE]) == ["first", "second"]


def test_a_callback_of_clones_gets_the_patcher_and_its_clone(wan):
    model, seen = wan.clone(), []
    model.add_callback_with_key(CallbacksMP.ON_CLONE, KEY, lambda *given: seen.append(given))
    clone = model.clone()
    assert seen == [(model, clone)]
    model.remove_callbacks_with_key(CallbacksMP.ON_CLONE, KEY)
    model.clone()
    assert len(seen) == 1


def test_additional_models_are_cloned_with_the_model_and_share_its_weights(wan):
    model, module = wan.clone(), torch.nn.Linear(2, 2)
    extra = comfy.model_patcher.ModelPatcher(module, load_device=wan.load_device, offload_device=wan.offload_device)
    model.set_additional_models(KEY, [extra])
    (cloned,) = model.clone().get_additional_models_with_key(KEY)
    assert cloned is not extra and cloned.model is module
    assert [each.model for each in model.get_nested_additional_models()] == [module]
    model.set_additional_models(KEY, [])
    assert not model.get_additional_models_with_key(KEY)


def test_object_patches_have_names_and_are_seen_before_loading(wan):
    model = wan.clone()
    model.add_object_patch("model_sampling", KEY)
    assert model.get_model_object("model_sampling") == KEY and "model_sampling" in model.object_patches


def test_patches_of_weights_are_strength_value_and_strength_of_the_model(wan):
    """The fingerprint of a run has the first and the third."""
    model, key = wan.clone(), "diffusion_model.blocks.0.self_attn.q.weight"
    model.add_patches({key: ("diff", (torch.zeros(1),))}, strength_patch=0.25, strength_model=0.75)
    ((strength, value, strength_model, *_),) = model.patches[key]
    assert (strength, strength_model) == (0.25, 0.75) and not isinstance(value, float)
