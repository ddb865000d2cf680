"""A hundred runs in random order, many of them broken off: afterwards everything is as it was before them."""

from __future__ import annotations

import gc
import random
from contextlib import contextmanager

import comfy.model_management
import comfy.sd
import psutil
import pytest
import torch
from helpers.comfy_run import sample, velocity
from helpers.support import seeded

from ultragen_core.attention.config import GlobalConfig, LocalConfig
from ultragen_core.attention.gate import GateLine
from ultragen_core.host.attention import runtime
from ultragen_core.host.attention.load import load_extras_file, load_model
from ultragen_core.host.attention.patch import Settings, apply
from ultragen_core.ops.resample import interpolation_matrix

RUNS, WARM_UP = 100, 30
# Growth of the process over the runs after the warm-up, in bytes: 3 MB was seen, a copy of the model that stays is 16.
MOST_GROWTH = 14 * 2**20  # ComfyUI itself leaves up to 40 KB a run behind, and the allocator some MiB
SHAPE = (1, 16, 2, 10, 12)
LATENT, CONTEXT = seeded(*SHAPE), seeded(1, 16, 4096, seed=1)
SETTINGS = [
    Settings(),
    Settings(LocalConfig((2, 3), "swin", "balanced"), GlobalConfig(enabled=False)),
    Settings(LocalConfig(hierarchical=False, antialias=True), GlobalConfig(gate=GateLine(0.2, 0.8))),
    Settings(global_=GlobalConfig(lora_strength=0.5, dense_blocks=frozenset({1})), end_percent=0.6),
    Settings(bounded_memory=False),
    Settings(rule="ultragen"),
    Settings(rule="t3"),
    Settings(rule="t3", start_percent=0.3),
]
# Where a ModelPatcher keeps what is done to its model.
PATCHER_PARTS = (
    "patches backup object_patches object_patches_backup model_options wrappers callbacks attachments additional_models"
    " injections hook_patches"
).split()


class Stop(Exception):
    """Raised in the middle of a model."""


def with_lora(model, rng):
    key = f"diffusion_model.blocks.{rng.randrange(4)}.self_attn.{rng.choice('qkvo')}"
    state = {f"{key}.lora_down.weight": 0.1 * seeded(4, 256), f"{key}.lora_up.weight": 0.1 * seeded(256, 4)}
    return comfy.sd.load_lora_for_models(model, None, state, 1.0, 0.0)[0]


def patched(model, rng, extras_path):
    settings = rng.choice(SETTINGS)
    return apply(model, settings, load_extras_file(extras_path) if settings.rule == "auto" else None)


@contextmanager
def trouble(base, rng):
    """What goes wrong in the middle of a run: nothing, an error, an interrupt by the user, too little memory."""

    def fail(module, args):
        if kind == "error":
            raise Stop
        if kind == "interrupt":
            comfy.model_management.interrupt_current_processing()
        if kind == "memory" and args[0].shape[1] > limit:
            raise torch.OutOfMemoryError("too much")

    kind, limit = rng.choice(["none", "none", "error", "interrupt", "memory"]), rng.choice([0, 10])
    free = rng.choice([0, 2**40])
    # The first layer inside, because a hook on the part that works on some tokens at a time sees them all.
    hook = rng.choice(base.model.diffusion_model.blocks).ffn[0].register_forward_pre_hook(fail)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runtime, "free_memory", lambda base, device: free)
            yield
    except (Stop, comfy.model_management.InterruptProcessingException, torch.OutOfMemoryError):
        assert kind != "none"
    finally:
        hook.remove()


def one_run(base, pool, rng, extras_path):
    """Takes a model of the pool some steps further, runs it, and puts it back."""
    model = rng.choice([base, *pool])
    for _ in range(rng.randint(0, 3)):
        change = rng.choice(["patch", "patch", "clone", "lora"])
        model = {
            "patch": lambda m: patched(m, rng, extras_path),
            "clone": lambda m: m.clone(),
            "lora": lambda m: with_lora(m, rng),
        }[change](model)
    with trouble(base, rng):
        if rng.random() < 0.25:
            sample(model, SHAPE, CONTEXT, cfg=rng.choice([1.0, 5.0]))
        else:
            velocity(model, LATENT, CONTEXT, rng.random())
    if rng.random() < 0.2:
        comfy.model_management.unload_all_models()
    pool.append(model)
    del pool[:-3]


def settle():
    """Lets go of what may be held: loaded models, the pack's one bounded cache of tensors, garbage."""
    comfy.model_management.unload_all_models()
    interpolation_matrix.__wrapped__.cache_clear()
    gc.collect()


def state_of(base) -> dict:
    """Everything that a run could leave on a model's modules and on its patcher."""

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple | set):
            return [plain(item) for item in value]
        if isinstance(value, torch.Tensor):
            return tuple(value.shape), value.dtype, value.device
        return value if isinstance(value, int | float | str | bool | None) else type(value)

    modules = {name: plain(module.__dict__) for name, module in base.model.named_modules()}
    return {"modules": modules, **{part: plain(getattr(base, part)) for part in PATCHER_PARTS}}


def alive() -> dict:
    """Live tensors and their bytes, and live objects of the pack and of ComfyUI's patcher, by type."""
    found = {"tensors": 0, "bytes": 0}
    for thing in gc.get_objects():
        kind = type(thing)
        if issubclass(kind, torch.Tensor):
            found["tensors"] += 1
            found["bytes"] += thing.numel() * thing.element_size()
        elif str(kind.__module__).startswith(("ultragen_core.host", "comfy.model_patcher")):
            found[kind.__name__] = found.get(kind.__name__, 0) + 1
    return found


def test_nothing_is_left_behind(tiny_path):
    base = load_model(tiny_path, "dense", {"dtype": torch.float32})
    sample(base, SHAPE, CONTEXT)  # what ComfyUI itself leaves behind, it leaves here already
    output = velocity(base, LATENT, CONTEXT, 0.5)
    settle()
    state, before = state_of(base), alive()
    rng, pool, process = random.Random(0), [], psutil.Process()
    for run in range(RUNS):
        if run == WARM_UP:
            pool.clear()
            settle()
            resident = process.memory_info().rss
        one_run(base, pool, rng, tiny_path)
    pool.clear()
    settle()
    assert process.memory_info().rss - resident < MOST_GROWTH
    assert state_of(base) == state
    assert alive() == before
    assert torch.equal(velocity(base, LATENT, CONTEXT, 0.5), output)
