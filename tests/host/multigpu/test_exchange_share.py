"""The warning where GPUs exchange for longer than they compute."""

from __future__ import annotations

import time
from functools import partial

import pytest
from helpers.comfy_run import patched, sample
from helpers.signatures import needs
from helpers.support import seeded

from ultragen_core.host.compat import gpu_pool_class
from ultragen_core.host.multigpu.copies import Copies
from ultragen_core.host.multigpu.evaluation import Part
from ultragen_core.host.multigpu.patch import use_gpus

pytestmark = needs(gpu_pool_class() is not None, "a thread pool for GPUs")
run = partial(sample, shape=(1, 16, 2, 16, 20), context=seeded(1, 8, 4096, seed=1))
WARNING = "of their time on exchanging tokens, more than on computing"


def slower(monkeypatch, owner, name: str, seconds: float) -> None:
    before = getattr(owner, name)

    def slow(*args, **kwargs):
        time.sleep(seconds)
        return before(*args, **kwargs)

    monkeypatch.setattr(owner, name, slow)


@pytest.mark.parametrize(("count", "cfg", "groups"), [(2, 1.0, 1), (4, 5.0, 2)])
def test_slow_links_are_told_once_with_the_share(dense, count, cfg, groups, cpus, monkeypatch, caplog):
    cpus(count)
    slower(monkeypatch, Copies, "fetch", 0.1)
    devices, compute = set(), Part.compute
    monkeypatch.setattr(Part, "compute", lambda part: devices.add(part.device) or compute(part))
    run(use_gpus(patched(dense, "t3"), 0, "auto"), cfg=cfg, steps=3)
    assert len(devices) == 2 * groups
    (warning,) = (line for line in caplog.messages if WARNING in line)
    share = int(warning.partition("spend ")[2].partition("%")[0])
    assert 50 < share < 100 and warning.endswith("set split to prompts, or use fewer GPUs.")


def test_slow_work_is_no_reason(dense, cpus, monkeypatch, caplog):
    cpus(2)
    model = use_gpus(patched(dense, "t3"), 0, "video")
    for patcher in (model, *model.get_additional_models_with_key("multigpu")):
        for block in patcher.model.diffusion_model.blocks:
            slower(monkeypatch, block.ffn, "forward", 0.2)
    run(model, cfg=1.0, steps=2)
    assert WARNING not in caplog.text


def test_the_first_evaluation_alone_tells_nothing(dense, cpus, monkeypatch, caplog):
    """Its members also wait for what they build."""
    cpus(2)
    slower(monkeypatch, Copies, "fetch", 0.05)
    run(use_gpus(patched(dense, "t3"), 0, "video"), cfg=1.0, steps=1)
    assert WARNING not in caplog.text
