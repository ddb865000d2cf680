"""Matrix products in fp8: ComfyUI's own layers compute them, as many tokens as without the pack, whole or in pieces."""

from __future__ import annotations

from collections import defaultdict

import comfy.ops
import pytest
import torch
import torch.nn.functional as F
from helpers.comfy_run import RULES, TINY, patched, velocity
from helpers.scaled_fp8 import LAYOUTS, NAMES, scaled
from helpers.support import relative_error, seeded
from safetensors.torch import load_file, save_file

from ultragen_core.host.attention.load import WEIGHT_DTYPES, load_model

LATENT, CONTEXT = seeded(1, 16, 3, 8, 12), seeded(1, 7, 4096, seed=1)
TOKENS = 3 * 4 * 6
FP8 = torch.float8_e4m3fn


class Products:
    """What happens to the layers with fp8 weights in a model's blocks, by their names.

    tokens: of each product in fp8. cast: how often the weight was cast to another dtype instead, by the layer itself or
    by somebody who reads it.
    """

    def __init__(self, model, monkeypatch):
        modules = model.model.diffusion_model.blocks.named_modules()
        self.names = {module: name for name, module in modules if _in_fp8(getattr(module, "weight", None))}
        self.clear()
        self._computing, self._cast_alone, linear = [], None, F.linear

        def watched(x, weight, bias=None):
            name = self._computing[-1] if self._computing else self._cast_alone
            if name and type(x).__name__ == type(weight).__name__ == "QuantizedTensor":
                self.tokens[name].append(x.numel() // x.shape[-1])
            return linear(x, weight, bias)

        monkeypatch.setattr(F, "linear", watched)
        for layers in {type(layer) for layer in self.names}:
            monkeypatch.setattr(layers, "forward", self._named(layers.forward))
        monkeypatch.setattr(comfy.ops, "cast_bias_weight", self._seen(comfy.ops.cast_bias_weight))

    def clear(self) -> None:
        self.tokens, self.cast = defaultdict(list), defaultdict(int)

    def totals(self) -> dict[str, int]:
        return {name: sum(tokens) for name, tokens in self.tokens.items()}

    def _named(self, forward):
        def named(layer, *args, **kwargs):
            if layer not in self.names:
                return forward(layer, *args, **kwargs)
            self._computing.append(self.names[layer])
            try:
                return forward(layer, *args, **kwargs)
            finally:
                self._computing.pop()

        return named

    def _seen(self, cast_bias_weight):
        def seen(layer, *args, **kwargs):
            result = cast_bias_weight(layer, *args, **kwargs)
            self._cast_alone = None if self._computing else self.names.get(layer)
            if layer in self.names and not _in_fp8(result[0]):
                self.cast[self.names[layer]] += 1
            return result

        return seen


def _in_fp8(weight) -> bool:
    quantised = weight is not None and (weight.dtype == FP8 or type(weight).__name__ == "QuantizedTensor")
    return quantised and weight.ndim == 2


@pytest.fixture(params=["fast", *LAYOUTS])
def model(request, fp8_layers, tmp_path):
    """Three ways to fp8 products: ComfyUI's option, and both layouts of scaled checkpoints."""
    if request.param == "fast":
        return load_model(TINY, "dense", WEIGHT_DTYPES["fp8_e4m3fn_fast"])
    state, metadata = scaled(load_file(TINY), request.param)
    if request.param == "metadata":  # 0.3.75 multiplies in fp8 only where the file has scales of the inputs
        layers = [f"blocks.{block}.{name}" for block in range(4) for name in NAMES]
        state |= {f"{layer}.input_scale": torch.tensor(1.0) for layer in layers}
    else:
        state["scaled_fp8"] = torch.zeros(0, dtype=FP8)  # two elements would ask for products in full precision
    save_file(state, tmp_path / "scaled.safetensors", metadata)
    return load_model(tmp_path / "scaled.safetensors", "dense", {"fp8_optimizations": True})


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("how", ["all at once", "bounded", "fused"])
def test_all_products_of_fp8_layers_are_in_fp8(model, rule, how, monkeypatch, request):
    products = Products(model, monkeypatch)
    expected = velocity(model, LATENT, CONTEXT, 0.5)
    comfyui = products.totals()
    assert set(comfyui) == set(products.names.values()) and not products.cast, "ComfyUI itself"
    products.clear()
    if how == "bounded":
        request.getfixturevalue("bounded")()
    elif how == "fused":
        request.getfixturevalue("fused_blocks")
    result = velocity(patched(model, rule), LATENT, CONTEXT, 0.5)
    ours = products.totals()
    assert set(ours) == set(comfyui) and not products.cast
    pieces = 3 if how == "bounded" else 1
    assert products.tokens["1.ffn.0"] == [TOKENS // pieces] * pieces
    for name in ours:
        times = pieces if name.endswith(("cross_attn.k", "cross_attn.v")) else 1  # the text's, again in every piece
        assert "self_attn" in name or ours[name] == times * comfyui[name], name
    assert 1e-3 < relative_error(result, expected), "our attention is lost"
