"""Tensors in 8 bits: what a scale and a mean keep of them."""

from __future__ import annotations

import pytest
import torch
from helpers.support import relative_error, seeded

from ultragen_core.ops.quantize import FP8, LARGEST, dequantize, quantize

SHAPE = 2, 50, 16


def there_and_back(x: torch.Tensor, centred: bool) -> torch.Tensor:
    return dequantize(quantize(x, centred, False), x.dtype, False)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("factor", [1e-20, 1e-3, 1.0, 1e6])
def test_the_largest_value_fills_the_range_whatever_the_unit(centred, factor):
    x = factor * seeded(*SHAPE)
    quantised = quantize(x, centred, False)
    assert quantised.values.dtype == FP8 and quantised.values.float().abs().max() == LARGEST
    assert 1e-2 < relative_error(there_and_back(x, centred), x) < 4e-2  # 3 bits of mantissa


def test_the_mean_over_the_tokens_costs_no_bits():
    x, mean = seeded(*SHAPE), 100 * seeded(2, 1, 16, seed=1)
    quantised = quantize(x + mean, True, False)
    assert quantised.mean.dtype == torch.float32
    assert relative_error(quantised.mean, (x + mean).mean(1, keepdim=True)) < 1e-6
    error = (there_and_back(x + mean, True) - mean - x).norm() / x.norm()
    worse = (there_and_back(x + mean, False) - mean - x).norm() / x.norm()
    assert error < 5e-2 < 0.5 < worse


def test_one_scale_serves_all_items():
    x = seeded(*SHAPE)
    x[1] *= 100
    assert torch.equal(quantize(x, False, False).scale, x.abs().max().reshape(1) / LARGEST)


@pytest.mark.parametrize("value", [0.0, 7.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equal_values_have_no_range_and_stay(value, dtype):
    x = torch.full(SHAPE, value, dtype=dtype)
    assert torch.equal(there_and_back(x, True), x) and torch.isfinite(there_and_back(x, False)).all()
