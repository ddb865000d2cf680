"""The training run: its steps, and what it saves. accelerate distributes it over devices and processes."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import broadcast
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from tools.console import ProgressLine, Trouble

from .cache import Cache
from .checkpoint import States, publish, weights_file
from .cuda_graph import GraphedLoss
from .curve import Curve, Row
from .ema import AveragedWeights, decay_at
from .model import Velocity
from .objective import Samples, generator, loss_of, noisy_inputs, padded, velocity_loss
from .preview import sample, write_video
from .recipe import Recipe, at_least, option
from .settings_file import agree

BETAS = 0.9, 0.95


@dataclass(frozen=True)
class Keeping:
    """What a run saves, and when. None of this changes the weights."""

    out: Path = option(Path("training"), "folder of the run; a run that is there continues")
    minutes: float = option(0.0, "stop after so many minutes, to be continued; 0: run to the last step")
    state_every: int = option(100, "steps between states to continue from")
    publish_every: int = option(0, "steps between weights files; 0: only at the end")
    preview_every: int = option(0, "steps between preview videos; 0: none")
    preview_clips: int = option(1, "how many captions to preview, the first of the cache")
    preview_steps: int = option(30, "sampling steps of a preview")
    preview_cfg: float = option(5.0, "classifier-free guidance of a preview")
    fps: float = option(15.0, "frames a second of a preview")

    def __post_init__(self):
        at_least(self, state_every=1, preview_clips=1, preview_steps=1, publish_every=0, preview_every=0, minutes=0)


class Training:
    """One run, continued from its newest state.

    micro_batch: clips that a process computes at once. vae: a comfy.sd.VAE for previews.
    cuda_graph: compile the model and record a step's passes as one CUDA graph, which takes a minute or two at the
    start. Ignored unless one process on a GPU computes a whole batch at once. The model must keep its activations.
    """

    def __init__(
        self,
        recipe: Recipe,
        keeping: Keeping,
        model: Velocity,
        cache: Cache,
        micro_batch: int = 1,
        vae=None,
        cuda_graph: bool = False,
    ):
        model.check(cache)
        self.recipe, self.keeping, self.bare, self.cache, self.vae = recipe, keeping, model, cache, vae
        self.micro_batch, self.accelerator = micro_batch, _accelerator()
        self.accelerator.gradient_accumulation_steps = self._accumulated(self.accelerator.num_processes)
        keeping.out.mkdir(parents=True, exist_ok=True)
        if self.accelerator.is_main_process:
            # More steps than before are fine, although a rate that falls to the end then falls to another one.
            wanted, defaults = dataclasses.asdict(recipe), {"ffn_deltas": False}  # older runs have no such setting
            agree(keeping.out / "recipe.json", wanted, may_change=("steps",), defaults=defaults)
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(learning, recipe.learning_rate, BETAS, weight_decay=recipe.weight_decay)
        self.graphed_loss = None
        if cuda_graph and self._can_be_graphed():
            self.graphed_loss = GraphedLoss(self._velocity_loss, learning)
            torch._dynamo.reset()
            torch._dynamo.config.recompile_limit = 64  # branches of a layer differ in shapes and precision
            model.compile(dynamic=False)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.averages = AveragedWeights([p for p in self.model.parameters() if p.requires_grad])
        self.states = States(keeping.out, self.model, self.optimizer.optimizer, self.averages)
        self.curve = Curve(keeping.out)
        self.step = self._resume()

    def _can_be_graphed(self) -> bool:
        accelerator = self.accelerator
        one_process = accelerator.distributed_type == DistributedType.NO
        return one_process and accelerator.gradient_accumulation_steps == 1 and accelerator.device.type == "cuda"

    def _accumulated(self, processes: int) -> int:
        if self.micro_batch < 1:
            raise Trouble(f"micro-batch must be at least 1, got {self.micro_batch}.")
        together = processes * self.micro_batch
        if self.recipe.batch % together:
            raise Trouble(
                f"The batch must be a multiple of processes times micro-batch, got {self.recipe.batch} clips on"
                f" {processes} processes with {self.micro_batch} at once. Set --batch to a multiple of {together}, or"
                " change --micro-batch."
            )
        return self.recipe.batch // together

    def _resume(self) -> int:
        state = self.states.newest()
        if state is None:
            return 0
        if state["data"] != self.cache.fingerprint():
            raise Trouble(
                f"A run must continue with the clips that it began with, but {self.cache.folder} has changed. Restore"
                " its clips, or name another folder in --out."
            )
        self.states.restore(state)
        return state["step"]

    def run(self) -> bool:
        """Run the remaining steps, or as many as the time allows. Returns whether the run is complete."""
        main, keeping, line = self.accelerator.is_main_process, self.keeping, ProgressLine()
        if main:
            self.curve.begin(self.step)
        if self.step:  # a run that ended between a state and its weights
            self._publish(replace=False)
        batches, ends = self._batches(), time.monotonic() + 60 * (keeping.minutes or math.inf)
        last = ended = self.step >= self.recipe.steps
        while not ended:
            row = self._one_step(batches)
            self.step = row.step
            if main:
                self.curve.add(row)
                line.show(self._progress(row))
            last = self.step == self.recipe.steps
            ended = last or self._is_up(ends)
            if ended or self.step % keeping.state_every == 0:
                self.states.save(self.step, main, self.cache.fingerprint())
                if main:
                    self.curve.draw()
            if keeping.preview_every and self.step % keeping.preview_every == 0:
                self._preview()
            self._publish()
        line.end()
        self.accelerator.wait_for_everyone()
        return last

    def _publish(self, replace: bool = True) -> None:
        """Write the weights if they are due after this step. replace: also where they have been written."""
        out, every, main = self.keeping.out, self.keeping.publish_every, self.accelerator.is_main_process
        if self.step >= self.recipe.steps or (every and self.step % every == 0):
            writes = main and (replace or not weights_file(out, self.step, self.recipe).is_file())
            with self.averages.applied():
                publish(out, self.step, self.model, self.bare, self.recipe, writes)

    def _is_up(self, ends: float) -> bool:
        """Whether the time is up, by the first process's clock, so that all processes stop after the same step."""
        if not self.keeping.minutes:
            return False
        up = torch.tensor(time.monotonic() >= ends, device=self.accelerator.device)
        return bool(broadcast(up))

    def _batches(self) -> Iterator[tuple[Tensor, ...]]:
        """Iterate over this process's micro-batches of all remaining steps, read ahead by a worker."""
        batch, rank, processes = self.recipe.batch, self.accelerator.process_index, self.accelerator.num_processes
        steps = range(self.step, self.recipe.steps)
        numbers = [step * batch + place for step in steps for place in range(rank, batch, processes)]
        samples, pinned = Samples(self.cache, self.recipe), self.accelerator.device.type == "cuda"
        loader = DataLoader(
            samples, self.micro_batch, sampler=numbers, num_workers=1, pin_memory=pinned, collate_fn=samples.together
        )
        return iter(loader)

    def _one_step(self, batches: Iterator[tuple[Tensor, ...]]) -> Row:
        started, rate, losses = time.perf_counter(), self.recipe.rate(self.step), []
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        for _ in range(self.accelerator.gradient_accumulation_steps):
            numbers, latents, texts, *condition = (part.to(self.accelerator.device) for part in next(batches))
            with self.accelerator.accumulate(self.model):
                losses.append(self._backward(numbers, latents, padded(texts), *condition))
                if self.accelerator.sync_gradients:
                    # All parameters: accelerate recognises a sharded model by its complete list.
                    norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
                self.optimizer.step()
                if self.graphed_loss is None:
                    self.optimizer.zero_grad()
        self.averages.update(decay_at(self.step, self.recipe.ema))
        loss = self.accelerator.reduce(torch.stack(losses).mean(), "mean").item()
        return Row(self.step + 1, loss, rate, float(norm), time.perf_counter() - started)

    def _backward(self, numbers: Tensor, latents: Tensor, texts: Tensor, *condition: Tensor) -> Tensor:
        """Return the detached loss; the parameters hold its gradients."""
        if self.graphed_loss:
            return self.graphed_loss(*noisy_inputs(numbers, latents, self.recipe), texts, *condition)
        with self.accelerator.autocast():
            loss = loss_of(self.model, numbers, latents, texts, self.recipe, *condition)
        self.accelerator.backward(loss)
        return loss.detach()

    def _velocity_loss(self, *inputs: Tensor) -> Tensor:
        with self.accelerator.autocast():
            return velocity_loss(self.model, *inputs)

    def _progress(self, row: Row) -> str:
        steps = self.recipe.steps
        left = f"{(steps - self.step) * row.seconds / 60:.0f} min left"
        return f"step {self.step}/{steps}, loss {row.loss:.4f}, {row.seconds:.2f} s a step, {left}"

    def _preview(self) -> None:
        """Write a preview video. All processes sample, as a sharded model requires; one writes."""
        device, shape = self.accelerator.device, (1, *self.cache.latent_shape())
        choice, latents = (self.keeping.preview_steps, self.recipe.shift, self.keeping.preview_cfg), []
        with self.averages.applied(), self.accelerator.autocast():
            for index in range(min(self.keeping.preview_clips, len(self.cache.names))):
                random = generator(device, self.recipe.seed, "preview", index)
                noise = torch.randn(shape, generator=random, device=device)
                texts = pad_sequence([self.cache.clip(index).text, self.cache.empty_text()], batch_first=True)
                latents.append(sample(self.model, noise, *padded(texts.to(device)).split(1), *choice))
        if self.accelerator.is_main_process:
            write_video(self.vae, latents, self.keeping.out / f"preview-{self.step:06}.mp4", self.keeping.fps)


def _accelerator() -> Accelerator:
    """Create the Accelerator, so that sharded models compute in the precision of unsharded ones.

    With FSDP2 accelerate replaces autocast by a policy of its own, which rounds all weights; but gates, norms and time
    embeddings need float32. Without that policy, models run inside `Accelerator.autocast` as usual.
    """
    accelerator = Accelerator()
    if accelerator.distributed_type == DistributedType.FSDP:
        accelerator.state.fsdp_plugin.mixed_precision_policy = None
    return accelerator
