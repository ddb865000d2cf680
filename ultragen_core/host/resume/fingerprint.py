"""Fingerprints of sampling runs: equal where two runs compute the same, by their graphs and by the values they get."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import comfy.cli_args
import comfyui_version
import folder_paths
import torch

from ...storage.states import GRAPH_FAMILY, NODE
from ...version import VERSION
from ...weights.errors import WeightsError
from ...weights.shards import shards_of
from ..server import Graph, RunningNode
from .digest import digest
from .graph_digest import GraphDigest

STATE, RESULT = "state", "result"
# Words in the names of ComfyUI's options that change what a model computes.
NUMERIC_OPTIONS = (
    "fp8", "fp16", "fp32", "fp64", "bf16", "attention", "xformers", "upcast", "fast", "deterministic", "triton",
)  # fmt: skip
# Words in such names of options for other models, and for where weights are kept.
OTHER_OPTIONS = ("vae", "text_enc", "disk")
# Environment variables of this pack that do so.
SWITCHES = ("ULTRAGEN_ATTENTION", "ULTRAGEN_TRITON")
# Attributes of a guider that belong to one run or are compared in other entries.
RUN_ATTRIBUTES = {"model_patcher", "model_options", "original_conds", "conds", "inner_model", "loaded_models"}

FindFiles = Callable[[str], "list[Path]"]
FileFacts = tuple[int, int]

# Size and time of each model file when this process first named it: ComfyUI may still hold replaced contents.
_FIRST_FACTS: dict[Path, FileFacts] = {}


def fingerprint(
    kind: str, node: RunningNode, device: torch.device, values: Mapping[str, object], find_files: FindFiles
) -> dict[str, str]:
    """Return one entry for each thing that a run depends on.

    kind: STATE or RESULT. values: compared by content; their names appear in the log. find_files: returns the model
    files that a text in the graph names.
    """
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        NODE: f"{kind} {node.node_id} {node.list_index}",
        GRAPH_FAMILY: GraphDigest(node.graph, None).of(node.node_id),
        "graph": GraphDigest(node.graph, node.list_index).of(node.node_id),
        "model files": digest(sorted(file_facts(node.upstream, find_files))),
        **{name: digest(value) for name, value in values.items()},
        "device": f"{device_name}, torch {torch.__version__}",
        "options": digest(numeric_options()),
        "version": f"ComfyUI {comfyui_version.__version__}, UltraGen {VERSION}",
    }


def guider_values(guider, seed: int | None) -> dict[str, object]:
    """Return what a run depends on besides sampler, noise and latent. guider: ComfyUI's CFGGuider."""
    patcher = getattr(guider, "model_patcher", None)
    strengths = {str(key): [each[:3:2] for each in patches] for key, patches in getattr(patcher, "patches", {}).items()}
    return {
        "seed": seed,
        "conditioning": getattr(guider, "conds", None),
        "guider": [type(guider).__name__, {k: v for k, v in vars(guider).items() if k not in RUN_ATTRIBUTES}],
        "model": [strengths, sorted(getattr(patcher, "object_patches", {}))],
    }


def model_files(name: str) -> list[Path]:
    """Return the files of this name in ComfyUI's model folders, with all shards of a sharded one."""
    path = Path(name)
    if path.anchor or path.suffix.lower() not in folder_paths.supported_pt_extensions | {".gguf"}:
        return []
    named = (folder_paths.get_full_path(folder, name) for folder in folder_paths.folder_names_and_paths)
    found = []
    for file in filter(None, named):
        try:
            found += shards_of(Path(file))
        except WeightsError:  # an incomplete set of shards: its loader has refused it or reads it otherwise
            found.append(Path(file))
    return found


def file_facts(
    nodes: Graph, find_files: FindFiles, first_facts: dict[Path, FileFacts] = _FIRST_FACTS
) -> Iterator[list]:
    """Yield the name of each model file, with its size and time as in `first_facts` and now.

    A file replaced while this process runs equals neither the old nor the new one: ComfyUI may have loaded either.
    """
    for node in nodes.values():
        for text in _texts(node["inputs"]):
            for path in find_files(text):
                with suppress(FileNotFoundError):  # removed after ComfyUI has read it
                    status = path.stat()
                    facts = status.st_size, status.st_mtime_ns
                    yield [path.name, *first_facts.setdefault(path, facts), *facts]


def _texts(value: object) -> Iterator[str]:
    """Yield all texts in nested inputs: some loaders take their files as lists or tables."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _texts(each)


def numeric_options() -> dict[str, object]:
    options = vars(comfy.cli_args.args).items()
    counts = {name: value for name, value in options if any(word in name for word in NUMERIC_OPTIONS)}
    counts = {name: value for name, value in counts.items() if not any(word in name for word in OTHER_OPTIONS)}
    return counts | {name: os.environ.get(name) for name in SWITCHES}
