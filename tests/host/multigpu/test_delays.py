"""Members that run at random speeds: no order of their work changes a bit or stops an evaluation."""

from __future__ import annotations

import os
import random
import time
from functools import partial

import pytest
import torch
from helpers.comfy_run import sample
from helpers.signatures import needs
from helpers.support import relative_error, seeded
from helpers.wan_models import KINDS, H, T, W, load
from torch.utils._python_dispatch import TorchDispatchMode

from ultragen_core.host.attention.patch import Settings, apply
from ultragen_core.host.compat import gpu_pool_class
from ultragen_core.host.multigpu.evaluation import Part
from ultragen_core.host.multigpu.patch import use_gpus

pytestmark = needs(gpu_pool_class() is not None, "a thread pool for GPUs")
SEEDS = range(int(os.environ.get("ULTRAGEN_DELAY_SEEDS", 1)))
SHARE, LONGEST = 0.02, 0.004  # of the operations that are delayed, seconds


class Delays(TorchDispatchMode):
    """Sleeps before some operations, inside of exchanges too."""

    def __init__(self, seed: int):
        super().__init__()
        self.numbers = random.Random(seed)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if self.numbers.random() < SHARE:
            time.sleep(self.numbers.random() * LONGEST)
        return function(*args, **kwargs or {})


@pytest.fixture
def delayed(monkeypatch):
    """`delayed(seed)`: from now on all members are delayed, each in its own way and anew in every evaluation."""
    compute, seeds = Part.compute, random.Random()

    def slowly(part):
        with Delays(seeds.randrange(2**32)):
            return compute(part)

    def start(seed: int) -> None:
        seeds.seed(seed)
        monkeypatch.setattr(Part, "compute", slowly)

    return start


@pytest.mark.parametrize(
    ("count", "name", "rule", "cfg", "by"),
    [
        (4, "Wan2.1 T2V", "t3", 1.0, "video"),
        (8, "Wan2.1 I2V", "t3", 5.0, "auto"),
        (4, "Wan2.1 T2V", "t3", 5.0, "auto"),
        (8, "Wan2.1 T2V", "ultragen", 5.0, "video"),
    ],
)
def test_delays_change_no_bit(count, name, rule, cfg, by, cpus, delayed):
    cpus(count)
    kind = KINDS[name]
    model = load(kind)
    model.cached_patcher_init = load, (kind,)
    model = apply(model, Settings(rule=rule))
    run = partial(
        sample, shape=(1, 16, T, H, W), context=seeded(1, 8, 4096, seed=1), cfg=cfg, steps=2, **kind.conditions()
    )
    one, split = run(model), use_gpus(model, 0, by)
    expected = run(split)
    assert relative_error(expected, one) < 1e-5
    for seed in SEEDS:
        delayed(seed)
        assert torch.equal(run(split), expected)
