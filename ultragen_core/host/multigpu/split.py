"""Several GPUs for the sampling runs of a model: which prompts and which rectangles each of them computes."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...attention.split.rectangles import fitting, largest
from ...grid import TokenGrid
from ...plan.split import By, sharing
from ...rules.dense import DenseRule
from ...wan import PATCH
from ..attention.runtime import GROUPS, Runtime
from ..memory_estimate import estimated_memory
from ..wan_model import activation_dtype, diffusion_model, token_grid
from .devices import Workers, check_answers
from .evaluation import gathered_bytes
from .group import Group
from .refusals import FORWARD_INPUTS, why_not_split, why_one_gpu

KEY = "ultragen_multigpu"  # of our wrappers on a ModelPatcher
CLONES, POOL = "multigpu_clones", "multigpu_thread_pool"  # ComfyUI's, in model_options
OTHERS = "multigpu"  # ComfyUI's key of the clones on other GPUs among a model's additional models

log = logging.getLogger(__name__)


@dataclass
class Run:
    """What belongs to one sampling run. groups: by their devices. noted: messages that were logged."""

    runtime: Runtime = field(default_factory=lambda: Runtime(DenseRule(), None, (0.0, 1.0), bounded=True))
    groups: dict[tuple[torch.device, ...], Group] = field(default_factory=dict)
    noted: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Groups:
    """The groups of an evaluation, by the device that leads each. No dict, which ComfyUI would copy."""

    by_leader: dict[torch.device, Group]

    def leading(self, options: dict) -> Group:
        """The group whose leader's thread calls; ComfyUI names its device where it uses threads."""
        if len(self.by_leader) == 1:
            return next(iter(self.by_leader.values()))
        return self.by_leader[options["multigpu_thread_device"]]


@dataclass
class Split:
    """The wrappers of a model that several GPUs sample.

    With `by` prompts, each GPU computes whole prompts, as ComfyUI's MultiGPU CFG Split does.
    """

    by: By
    run: Run = field(default_factory=Run)

    def wrappers(self) -> dict[str, object]:
        return {
            WrappersMP.OUTER_SAMPLE: self.outer_sample,
            WrappersMP.PREPARE_SAMPLING: self.prepare_sampling,
            WrappersMP.CALC_COND_BATCH: self.calc_cond_batch,
            WrappersMP.DIFFUSION_MODEL: self.diffusion_model,
        }

    def outer_sample(self, executor, *args, **kwargs):
        """Wraps a whole sampling run. A sampler's callback may itself sample, with a clone that shares this object."""
        outer, self.run = self.run, Run()
        try:
            video = executor(*args, **kwargs)
            # With --gpu-only nothing else waits, and a fast GPU's buffers would be freed while a slow one reads them.
            for group in self.run.groups.values():
                group.exchange.copies.synchronize()
            return video
        finally:
            self.run = outer

    def prepare_sampling(self, executor, model, noise_shape, conds, *args, **kwargs):
        """Wraps the loading of the models: every GPU needs memory for its part alone, and for what it gathers."""
        base, grid = model.model, token_grid(noise_shape)
        others = model.get_additional_models_with_key(OTHERS)
        check_answers(other.load_device for other in others)
        count = 1 + len(others)
        size = self._size(count, sum(map(len, conds.values())), grid)
        if size == 1 or why_one_gpu(model) or why_not_split(base, [], model.model_options, model.load_device):
            return executor(model, noise_shape, conds, *args, **kwargs)
        before, (rows, columns) = base.memory_required, largest(grid, size).size

        def estimate(shape, *args, **kwargs) -> int:
            part = [*shape[:3], PATCH[1] * rows, PATCH[2] * columns]
            gathered = gathered_bytes(diffusion_model(base), grid, shape[0], activation_dtype(base))
            return before(part, *args, **kwargs) + gathered

        with estimated_memory(base, estimate):
            return executor(model, noise_shape, conds, *args, **kwargs)

    def calc_cond_batch(self, executor, model, conds, x_in: Tensor, timestep: Tensor, model_options: dict):
        """Wraps the evaluation of all prompts: forms the groups, and shows ComfyUI their leaders alone."""
        clones = model_options.get(CLONES, {})
        if clones and (reason := why_one_gpu(model.current_patcher)):
            self.note(f"MultiGPU uses one GPU, because {reason}")
            alone = {name: value for name, value in model_options.items() if name != CLONES}
            return executor(model, conds, x_in, timestep, alone)
        prompts = sum(len(some) for some in conds if some)
        size = self._size(len(clones), prompts, token_grid(x_in.shape))
        if size > 1 and (reason := why_not_split(model, conds, model_options, next(iter(clones)))):
            self.note(f"each prompt stays on one GPU, because {reason}")
            size = 1
        if size == 1:
            return executor(model, conds, x_in, timestep, model_options)
        self._prepare_hooks(model, conds, timestep, model_options)
        groups, devices = {}, list(clones)
        for first in range(0, size * (len(clones) // sharing(len(clones), prompts, self.by)), size):
            groups[devices[first]] = self._group(devices[first : first + size], clones, model_options)
        hidden = [patcher for device, patcher in clones.items() if device not in groups]
        for patcher in hidden:
            patcher.prepare_state(timestep, {**model_options, "ignore_multigpu": True})
        return executor(model, conds, x_in, timestep, _with_leaders(model_options, Groups(groups)))

    def _size(self, count: int, prompts: int, grid: TokenGrid) -> int:
        """How many GPUs share a prompt; the log says so once a run."""
        if count < 2 or not prompts or self.by == "prompts":
            return 1
        wanted = sharing(count, prompts, self.by)
        size, groups = fitting(grid, wanted), count // wanted
        if size < wanted:
            self.note(f"{size} of {wanted} GPUs share a prompt, because a frame has only {grid.h}x{grid.w} tokens")
        own = f"{groups} prompts x " if groups > 1 else ""
        part = grid.part(largest(grid, size))
        self.note(f"{count} GPUs compute {own}{size} rectangles of {part} tokens", logging.INFO)
        return size

    def _group(self, devices: list[torch.device], clones: dict, model_options: dict) -> Group:
        key = tuple(devices)
        if key not in self.run.groups:
            workers = Workers(list(clones), model_options[POOL])
            patchers = [clones[device] for device in devices]
            self.run.groups[key] = Group(devices, patchers, self.run.runtime, workers, self.warn_of_exchange)
        return self.run.groups[key]

    def _prepare_hooks(self, model, conds, timestep: Tensor, model_options: dict) -> None:
        """Let ComfyUI tell all clones of a changed hook: it tells those alone that it sees."""
        for hooks in (cond.get("hooks") for some in conds for cond in some or ()):
            if hooks is not None:
                model.current_patcher.prepare_hook_patches_current_keyframe(timestep, hooks, model_options)

    def diffusion_model(
        self, executor, x, timestep, context, clip_fea=None, time_dim_concat=None, transformer_options=None, **kwargs
    ):
        """Wraps the model's forward, inside of all other packs' wrappers."""
        options = dict(transformer_options or {})
        groups: Groups | None = options.pop(GROUPS, None)
        others = {name: value for name, value in kwargs.items() if name in FORWARD_INPUTS}
        unknown = [name for name, value in kwargs.items() if name not in others and value is not None]
        if groups is None:
            return executor(x, timestep, context, clip_fea, time_dim_concat, transformer_options, **kwargs)
        if unknown:
            raise ValueError(
                f"UltraGen MultiGPU cannot split the model's inputs {', '.join(unknown)}. Set split to prompts."
            )
        group = groups.leading(options)
        return group.evaluate(x, timestep, context, clip_fea, time_dim_concat, options, others)

    def note(self, message: str, level: int = logging.WARNING, subject: str = "") -> None:
        """Log a message once a run, and one message on a subject."""
        if (key := subject or message) not in self.run.noted:
            self.run.noted.add(key)
            log.log(level, "UltraGen: %s.", message)

    def warn_of_exchange(self, share: float) -> None:
        """share: of an evaluation that a group's exchange takes, from 0 to 1."""
        what = f"GPUs that share a prompt spend {share:.0%} of their time on exchanging tokens, more than on computing"
        self.note(f"{what}; set split to prompts, or use fewer GPUs", subject="exchange")


def _with_leaders(model_options: dict, groups: Groups) -> dict:
    """Copies of ComfyUI's options that show the groups' leaders alone, with our wrapper of the forward innermost."""
    options = dict(model_options)
    clones = options.pop(CLONES)
    if len(groups.by_leader) > 1:
        options[CLONES] = {device: clones[device] for device in groups.by_leader}
    transformer_options = dict(options["transformer_options"])
    wrappers = {kind: dict(by_key) for kind, by_key in transformer_options["wrappers"].items()}
    forward = wrappers[WrappersMP.DIFFUSION_MODEL]
    forward[KEY] = forward.pop(KEY)
    options["transformer_options"] = {**transformer_options, "wrappers": wrappers, GROUPS: groups}
    return options
