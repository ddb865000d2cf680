"""Runs a patched model: installs UltraGen's layers on the chosen modules for one evaluation, then removes them.

ComfyUI calls APPLY_MODEL wrappers around every evaluation of the model. Setting `forward` there and removing it in
`finally` never changes the incoming model: nothing outlives a run, clones do not affect each other, and a bypassed step
touches nothing.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

import comfy.model_management
import torch
from torch import Tensor, nn

from ...attention.gate import Gates, GateTable
from ...attention.rope import RopeTables
from ...attention.split.member import Member
from ...grid import TokenGrid
from ...ops import dispatch
from ...plan.memory import ActivationMemory, MemoryBudget
from ...rules.choice import COMFYUI
from ...rules.rule import Rule
from ..compat import free_memory
from ..memory import is_out_of_memory
from ..memory_estimate import estimated_memory
from ..wan_model import activation_dtype, blocks_at, diffusion_model, has_wans_rotations, shape_of, token_grid
from .backend import AttentionChoice, choose_attention
from .block import has_own_forward
from .extras import LoadedExtras, extras_on
from .kernels import OVERRIDE, Kernel
from .layers import RuleLayer, bounded_layers, delta_layers, dense_layers, fused_layers, installed, rope_scale

# Keys of transformer_options: the groups of GPUs of a run, and the Evaluation that a patched model hands to them.
GROUPS, EVALUATION = "ultragen_groups", "ultragen_evaluation"

log = logging.getLogger(__name__)


@dataclass
class Run:
    """What is decided or computed once per sampling run.

    noted: messages that were logged. budgets: by evaluation size and device. choices: by override and device; the
    override is kept so that its id stays taken.
    """

    noted: set[str] = field(default_factory=set)
    budgets: dict[tuple[ActivationMemory, torch.device], MemoryBudget] = field(default_factory=dict)
    rope_tables: RopeTables = field(default_factory=RopeTables)
    gates: GateTable = field(default_factory=GateTable)
    choices: dict[tuple[int, torch.device], tuple[object, AttentionChoice]] = field(default_factory=dict)


@dataclass
class Runtime:
    """The wrappers of one patched model.

    extras: those of the model, also where the rule does not use them. percent: start and end of the part of a sampling
    run, from 0 to 1, in which the rule acts. bounded: compute in chunks of tokens where the card asks for it. kernel:
    computes every self-attention, also where the rule does not act; None leaves the choice to others.
    """

    rule: Rule
    extras: LoadedExtras | None
    percent: tuple[float, float]
    bounded: bool
    kernel: Kernel | None = None
    run: Run = field(default_factory=Run)

    def outer_sample(self, executor, noise: Tensor, *args, **kwargs):
        """Wraps a whole sampling run: logs once what will run, with warnings about its size, and corrects ComfyUI's
        memory estimate.
        """
        base = executor.class_obj.model_patcher.model
        dm = diffusion_model(base)
        grid = token_grid(noise.shape)
        parts = [f"grid {grid}", *self.rule.describe(grid, len(dm.blocks))]
        if hasattr(dm, "vace_blocks"):
            parts.append("VACE blocks use the attention of the blocks that they feed (experimental)")
        log.info("UltraGen: %s", ", ".join(parts))
        if self.kernel:
            self.kernel.require_device(executor.class_obj.model_patcher.load_device)
        if self.rule.blocks:
            estimate = estimated_memory(base, functools.partial(self.memory_required, base))
            warnings = self.rule.advice(grid)
        else:
            estimate = nullcontext()  # ComfyUI's own is right
            only = f"only {self.kernel.name} acts" if self.kernel else "there is nothing to do"
            warnings = [f"{only}: all blocks of this model stay dense."]
        for sentence in warnings:
            log.warning("UltraGen: %s", sentence)
        # A sampler's callback may itself sample, with a clone that shares this object.
        outer, self.run = self.run, Run()
        try:
            with estimate:
                return executor(noise, *args, **kwargs)
        finally:
            self.run = outer

    def memory_required(self, base, input_shape: tuple[int, ...], cond_shapes: Mapping | None = None, **_) -> int:
        """Replaces BaseModel.memory_required, whose estimate is for dense attention over all tokens at once.

        Other parameters, which newer versions of ComfyUI add, describe its own attention.
        """
        activations = self.activations(base, token_grid(input_shape), input_shape[0])
        # Steps outside `percent` run in ComfyUI's own code, with all tokens at once.
        return activations.planned(self.bounded and self.percent == (0.0, 1.0))

    def note(self, message: str) -> None:
        """Log a correction of the run's first line, once a run."""
        if message not in self.run.noted:
            self.run.noted.add(message)
            log.warning("UltraGen: in this run %s.", message)

    def apply_model(
        self, executor, x: Tensor, t: Tensor, c_concat=None, c_crossattn=None, control=None, options=None, **kwargs
    ):
        """Wraps one evaluation: x (b, c, t, h, w) latent, t (b,) sigmas; the rest as BaseModel.apply_model has it."""
        options = kwargs.pop("transformer_options", options) or {}
        if GROUPS in options:  # every GPU installs layers of its own, for its part of the video
            options = {**options, EVALUATION: Evaluation(self, t)}
            return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
        base = executor.class_obj
        appended = kwargs.get("time_dim_concat")
        grid = token_grid(x.shape, 0 if appended is None else token_grid(appended.shape).t)
        attentions = self.attentions(base, grid, t, options)
        if (attentions or self.kernel) and (changes := self.attention_choice(base, options, x.device).options):
            options = {**options, **changes}
        if not attentions:
            return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
        budget = self.budget(base, grid, x)
        while True:
            layers = self.layers(base, attentions, grid, options, budget.tokens_at_a_time, x.device)
            try:
                with installed(layers):
                    return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
            except Exception as error:
                # The retry is outside this block, because the traceback holds the tensors that filled the memory.
                if not is_out_of_memory(error) or not budget.shrink():
                    raise
            log.warning("UltraGen: out of memory, retrying with %d tokens at a time.", budget.tokens_at_a_time)
            comfy.model_management.soft_empty_cache()

    def attentions(self, base, grid: TokenGrid, t: Tensor, options: dict, member: Member | None = None):
        """The rule's attention of each block in this evaluation; none outside of start and end percent.

        member: the one whose part of the video is computed; None: all of it.
        """
        if not self.active(base.model_sampling, t):
            return {}
        return self.rule.attentions(extras_on(base), self.gates(base.model_sampling, t, options), grid, member)

    def gates(self, model_sampling, t: Tensor, options: dict) -> dict[int, Gates]:
        """The gates of each block at t (b,) sigmas, computed for all sigmas of the run at its first evaluation."""
        steps, schedule = (model_sampling.timestep(sigmas).float() for sigmas in (t, options.get("sample_sigmas", t)))
        return self.run.gates.at(steps, self.rule.gate_sources, schedule)

    def attention_choice(self, base, options: dict, device: torch.device) -> AttentionChoice:
        """The attention function, chosen and logged once a run for every override and device."""
        override = options.get(OVERRIDE)
        key, choices = (id(override), device), self.run.choices
        if key not in choices:
            choice = choose_attention(diffusion_model(base), options, device, self.kernel)
            choices[key] = override, choice
            log.info("UltraGen: %s", choice)
            if choice.sparse:
                self.note(f"{choice.name} skips tokens inside UltraGen's windows, which adds a second approximation")
            if choice.set_aside:
                self.note(
                    f"{choice.set_aside}, set by a node or another pack, gets only the calls that {choice.name} leaves,"
                    f" such as cross-attention; set attention_kernel to {COMFYUI} to give it all"
                )
        return choices[key][1]

    def layers(
        self,
        base,
        attentions: dict[int, Callable],
        grid: TokenGrid,
        options: dict,
        at_a_time: int | None,
        device: torch.device,
    ) -> dict[nn.Module, object]:
        """The layers of one evaluation, by the module that they replace."""
        dm, dtype, layers = diffusion_model(base), activation_dtype(base), {}
        rope_tables = self.run.rope_tables if has_wans_rotations(dm) else None
        fused = dispatch.triton_for(torch.empty(0, dtype=dtype, device=device), dispatch.BLOCK_KERNEL_MODULES)
        if at_a_time is not None:
            layers |= bounded_layers(dm, dtype, at_a_time)
        if fused:
            layers |= fused_layers(dm, at_a_time)
        # Patches of other packs read what ComfyUI's own dense attention computes.
        if (fused or at_a_time is not None) and not options.get("patches", {}).get("attn1_patch"):
            layers |= dense_layers(dm, at_a_time)
        if attentions:
            deltas = self.rule.feed_forwards(extras_on(base))
            layers |= delta_layers(dm, deltas, layers, grid.tokens, at_a_time, self.note)
        for index, attention in attentions.items():
            for attn in (block.self_attn for block in blocks_at(dm, index)):
                if not has_own_forward(attn):
                    self.note("what another pack has put in place of self-attention acts on dense blocks only")
                dense = layers.get(attn)
                full = functools.partial(dense.forward, attn) if dense else attn.forward
                layers[attn] = RuleLayer(
                    full, attention, grid, rope_scale(options), at_a_time, rope_tables, self.note
                )  # fmt: skip
        return layers

    def budget(self, base, grid: TokenGrid, x: Tensor, device: torch.device | None = None, reserved: int = 0):
        """The MemoryBudget of x's evaluation. Decided once a run for every size, so that compiled graphs stay valid and
        results keep their last bits.

        device: where the model is, if x may not tell. reserved: bytes that other things will take there.
        """
        activations, device = self.activations(base, grid, x.shape[0]), device or x.device
        key, budgets = (activations, device), self.run.budgets
        if key not in budgets:
            unbounded = MemoryBudget(activations.tokens, pieces=1, bounded=False)
            free = free_memory(base.current_patcher, device) - reserved
            budgets[key] = activations.budget(free) if self.bounded else unbounded
        return budgets[key]

    def activations(self, base, grid: TokenGrid, batch: int) -> ActivationMemory:
        shape, itemsize = shape_of(diffusion_model(base)), activation_dtype(base).itemsize
        return ActivationMemory.of(shape, grid, batch, itemsize, self.kernel.held_maps if self.kernel else 0)

    def active(self, model_sampling, t: Tensor) -> bool:
        """Whether this step is between start and end percent, by the current sampling settings."""
        first, last = self.percent
        if (first, last) == (0.0, 1.0):
            return True  # without waiting for the device, which t is on
        # Schedules may start a rounding error above sigma 1, and samplers that add noise far above it.
        start = model_sampling.percent_to_sigma(first) if first > 0 else math.inf
        return model_sampling.percent_to_sigma(last) <= t.max().item() <= start


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of a patched model by several GPUs. t: (b,) sigmas."""

    runtime: Runtime
    t: Tensor
