"""The warning where GPUs exchange for longer than they compute."""

from __future__ import annotations

import threading
from functools import partial

import pytest
from helpers.comfy_run import patched, sample
from helpers.signatures import needs
from helpers.support import seeded

from ultragen_core.host.compat import gpu_pool_class
from ultragen_core.host.multigpu.copies import Copies
from ultragen_core.host.multigpu.patch import use_gpus

pytestmark = needs(gpu_pool_class() is not None, "a thread pool for GPUs")
run = partial(sample, shape=(1, 16, 2, 16, 20), context=seeded(1, 8, 4096, seed=1))
WARNING = "of their time on exchanging tokens, more than on computing"
BLOCKS, MEETINGS = 4, 2  # T3's results travel back: it meets twice in a block


@pytest.fixture
def seconds(monkeypatch):
    """`seconds(model, fetch=, ffn=)`: how long a copy of tokens and a feed-forward part take. Nothing else takes time:
    each GPU has a clock of its own, which these alone advance.
    """
    clock = threading.local()

    def timed(owner, name: str, taken: float) -> None:
        before = getattr(owner, name)

        def slow(*args, **kwargs):
            clock.now = moment() + taken
            return before(*args, **kwargs)

        monkeypatch.setattr(owner, name, slow)

    def moment(*_) -> float:
        return getattr(clock, "now", 0.0)

    def take(model, fetch: float, ffn: float) -> None:
        monkeypatch.setattr(Copies, "moment", moment)
        timed(Copies, "fetch", fetch)
        for patcher in (model, *model.get_additional_models_with_key("multigpu")):
            for block in patcher.model.diffusion_model.blocks:
                timed(block.ffn, "forward", ffn)

    return take


@pytest.mark.parametrize(("count", "cfg"), [(2, 1.0), (4, 5.0)])
def test_slow_links_are_told_once_with_the_share(dense, count, cfg, cpus, seconds, caplog):
    """Four GPUs and two prompts are two groups."""
    cpus(count)
    model = use_gpus(patched(dense, "t3"), 0, "auto")
    seconds(model, fetch=2.0, ffn=1.0)
    run(model, cfg=cfg, steps=3)
    (warning,) = (line for line in caplog.messages if WARNING in line)
    share = 2 * MEETINGS * BLOCKS / (2 * MEETINGS * BLOCKS + BLOCKS)
    assert f"spend {100 * share:.0f}% " in warning and warning.endswith("set split to prompts, or use fewer GPUs.")


def test_slow_work_is_no_reason(dense, cpus, seconds, caplog):
    cpus(2)
    model = use_gpus(patched(dense, "t3"), 0, "video")
    seconds(model, fetch=0.49, ffn=1.0)
    run(model, cfg=1.0, steps=2)
    assert WARNING not in caplog.text


def test_the_first_evaluation_alone_tells_nothing(dense, cpus, seconds, caplog):
    """Its members also wait for what they build."""
    cpus(2)
    model = use_gpus(patched(dense, "t3"), 0, "video")
    seconds(model, fetch=2.0, ffn=1.0)
    run(model, cfg=1.0, steps=1)
    assert WARNING not in caplog.text
