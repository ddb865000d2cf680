"""What makes two sampling runs the same: the graph that leads to them, and the values that have come out of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import comfy.cli_args
import comfyui_version
import folder_paths
import torch

from ... import VERSION
from ...storage.states import FAMILY, PLACE
from ...weights.errors import WeightsError
from ...weights.shards import shards_of
from ..server import Graph, RunningNode
from .digest import digest
from .graph_digest import GraphDigest

STATE, RESULT = "state", "result"
# Words in the names of ComfyUI's options that change what a model computes; those of other models do not count.
NUMERIC_OPTIONS = ("fp8", "fp16", "fp32", "fp64", "bf16", "attention", "xformers", "upcast", "fast", "deterministic")
OTHER_MODELS = ("vae", "text_enc")
# Of a guider, what it is given for a run or compared otherwise.
OF_THE_RUN = {"model_patcher", "model_options", "original_conds", "conds", "inner_model", "loaded_models"}

FindFiles = Callable[[str], "list[Path]"]
FileFacts = tuple[int, int]

# As each model file was when this process first named it: ComfyUI may still hold what has been replaced since.
_first_facts: dict[Path, FileFacts] = {}


def fingerprint(
    kind: str, node: RunningNode, device: torch.device, values: Mapping[str, object], find_files: FindFiles
) -> dict[str, str]:
    """One entry for each thing that a run depends on.

    kind: STATE or RESULT. values: compared by content, by a name for the log. find_files: the model files that a text
    in the graph names.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        PLACE: f"{kind} {node.node_id} {node.list_index}",
        FAMILY: GraphDigest(node.graph, None).of(node.node_id),
        "graph": GraphDigest(node.graph, node.list_index).of(node.node_id),
        "model files": digest(sorted(_model_files(node.upstream, find_files))),
        **{name: digest(value) for name, value in values.items()},
        "device": f"{name}, torch {torch.__version__}",
        "options": digest(_numeric_options()),
        "version": f"ComfyUI {comfyui_version.__version__}, UltraGen {VERSION}",
    }


def of_guider(guider, seed: int | None) -> dict[str, object]:
    """What a run depends on beside its sampler, its noise and its latent. guider: a CFGGuider of ComfyUI."""
    patcher = getattr(guider, "model_patcher", None)
    strengths = {str(key): [each[:3:2] for each in patches] for key, patches in getattr(patcher, "patches", {}).items()}
    return {
        "seed": seed,
        "conditioning": getattr(guider, "conds", None),
        "guider": [type(guider).__name__, {k: v for k, v in vars(guider).items() if k not in OF_THE_RUN}],
        "model": [strengths, sorted(getattr(patcher, "object_patches", {}))],
    }


def model_files(name: str) -> list[Path]:
    """The files of this name in ComfyUI's model folders, all pieces of those that come in several."""
    path = Path(name)
    if path.anchor or path.suffix.lower() not in folder_paths.supported_pt_extensions | {".gguf"}:
        return []
    named = (folder_paths.get_full_path(folder, name) for folder in folder_paths.folder_names_and_paths)
    found = []
    for file in filter(None, named):
        try:
            found += shards_of(Path(file))
        except WeightsError:  # an incomplete set, which its loader has refused or does not read so
            found.append(Path(file))
    return found


def _model_files(nodes: Graph, find_files: FindFiles) -> Iterator[list]:
    """A file that was replaced under its old name is another one, and one replaced while this process runs is neither:
    ComfyUI may have loaded it before or after.
    """
    for node in nodes.values():
        for text in _texts(node["inputs"]):
            for path in find_files(text):
                with suppress(FileNotFoundError):  # removed since ComfyUI has read it
                    status = path.stat()
                    facts = status.st_size, status.st_mtime_ns
                    yield [path.name, *_first_facts.setdefault(path, facts), *facts]


def _texts(value: object) -> Iterator[str]:
    """All texts in nested inputs: some loaders take their files as lists or tables."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _texts(each)


def _numeric_options() -> dict[str, object]:
    options = vars(comfy.cli_args.args).items()
    counts = {name: value for name, value in options if any(word in name for word in NUMERIC_OPTIONS)}
    return {name: value for name, value in counts.items() if not any(word in name for word in OTHER_MODELS)}
