"""Plans a graph before it runs, from the headers of its model files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from ..attention.extras import ExtrasShape, ExtrasSummary
from ..plan.report import Plan
from ..plan.split import GPUs
from ..printable import printable
from ..rules.choice import COMFYUI, Settings, choose_rule
from ..rules.rule import Rule
from ..sizes import SPATIAL_RATIO, VideoSize, round_up
from ..wan import WAN_1_3B, WanShape
from ..weights.complete import check_complete
from ..weights.files import StateDict, read_shapes
from ..weights.published import Extras, describe, has_extras, split
from ..weights.shards import shards_of
from .attention.kernels import load_kernel
from .attention.load import T3_NAME, check_kernel, rule_for, split_whole, trained_rule
from .plan import ONE_GPU, plan
from .speed.records import current_speed

PUBLISHED = ExtrasSummary(
    ExtrasShape(1536, rank=64, refined=True), frozenset(range(3, 27)), dict.fromkeys(range(3, 27))
)


AS_TRAINED = "as trained"


class Source(NamedTuple):
    """The model file and its loader.

    path: None if there is no such file. rule: attention_rule of UltraGen Load Model. AS_TRAINED: the rule that the
    weights were trained with, dense for a plain Wan model. None: another loader, which ignores UltraGen's extras.
    attention_kernel: of UltraGen Load Model.
    """

    name: str
    path: Path | None
    rule: str | None = None
    attention_kernel: str = COMFYUI


class Patch(NamedTuple):
    """An UltraGen Apply: its settings and its file of extras, if any."""

    settings: Settings
    extras: Path | None = None


def preview(wanted: VideoSize, source: Source, patches: Sequence[Patch] = (), gpus: GPUs = ONE_GPU) -> Plan:
    """Plan a video of the wanted size with the model of `source`, patched by `patches` in turn, on these GPUs.

    A missing file is planned as UltraGen's published weights on Wan 2.1 1.3B, with a warning. Raises ValueError for
    whatever the run itself would refuse.
    """
    check_kernel(source.rule or "", source.attention_kernel)
    if source.path is None:
        shape, rule, warning = _missing(source)
    else:
        shape, rule = _loaded(source.path.name, shapes_of(source.path), source)
        warning = ()
    percent, bounded, present = (0.0, 1.0), True, rule.extras if rule else None
    kernel = load_kernel(source.attention_kernel, shape)
    for settings, file in patches:
        given = _summary(_extras(printable(file.name), shapes_of(file))) if file else None
        rule = choose_rule(shape, settings, given, present, rule)
        present = rule.extras or present
        percent, bounded = (settings.start_percent, settings.end_percent), settings.bounded_memory
        kernel = load_kernel(settings.attention_kernel, shape)
    size = round_up(wanted, SPATIAL_RATIO[shape.out_channels])
    made = plan(
        rule,
        shape,
        size,
        percent=percent,
        gates_known=_gates_known(rule),
        kernel=kernel,
        speed=current_speed(),
        gpus=gpus,
        bounded=bounded,
    )
    return replace(made, warnings=(*warning, *made.warnings))


def _missing(source: Source) -> tuple[WanShape, Rule, tuple[str, ...]]:
    if source.rule in ("t3", "dense") or T3_NAME.search(Path(source.name).name):
        raise ValueError(
            f"{printable(source.name)} is missing, so its size is unknown. Put the file into its folder and press R."
        )
    warning = f"{printable(source.name)} is missing. The plan shows UltraGen's published weights on Wan 2.1 1.3B."
    rule = choose_rule(WAN_1_3B, Settings(), PUBLISHED)
    return WAN_1_3B, rule, (warning,)


def _loaded(name: str, state: StateDict, source: Source) -> tuple[WanShape, Rule | None]:
    """Return shape and rule of a model as its loader outputs it. Raises ValueError."""
    name = printable(name)
    if source.rule is not None:
        check_complete(state, name)
    if source.rule in (AS_TRAINED, None):
        rule = trained_rule(name, state) if source.rule else "dense"
    else:
        rule = rule_for(name, state, source.rule)
    extras = _extras(name, state, whole=True) if has_extras(state) and source.rule else None
    try:
        shape = WanShape.of_keys(state)
    except ValueError as error:
        raise ValueError(
            f"UltraGen patches Wan models, but {name} {describe(state)}: {error}. Choose a Wan model."
        ) from None
    if rule == "dense":
        return shape, None
    given = _summary(extras) if extras and rule == "ultragen" else None
    return shape, choose_rule(shape, Settings(rule=rule), given)


def _extras(name: str, state: StateDict, whole: bool = False) -> Extras:
    # `split` compares values of norms to recognise a base model; headers have no values.
    without_norms = {key: tensor for key, tensor in state.items() if not key.endswith("norm_q.weight")}
    return (split_whole if whole else split)(without_norms, name)[1]


def _summary(extras: Extras) -> ExtrasSummary:
    """Extras without their gates' weights, which a header does not have."""
    return ExtrasSummary(extras.shape, frozenset(extras.blocks), dict.fromkeys(extras.gates))


def _gates_known(rule: Rule | None) -> bool:
    """Whether the rule's gates are known without loading weights."""
    trained = rule is not None and rule.extras is not None and rule.extras.trained
    return not trained or None not in (rule.local.gate, rule.global_.gate)


def shapes_of(path: Path) -> StateDict:
    """Read names and shapes of a file's tensors; cached until the file changes. Raises WeightsError."""
    shards = ((shard, shard.stat()) for shard in shards_of(path))
    return _shapes(path, tuple((shard, facts.st_size, facts.st_mtime_ns) for shard, facts in shards))


@lru_cache(maxsize=16)
def _shapes(path: Path, facts: tuple) -> StateDict:
    return read_shapes(path)
