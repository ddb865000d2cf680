"""What makes two sampling runs the same: the graph that leads to them, as queued, and what has come out of it."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import torch
from comfy_execution.graph_utils import is_link
from comfy_execution.utils import get_executing_context
from torch import Tensor

RESUME_NODE = "UltraGenResume"
PLACE = "node"


@dataclass(frozen=True)
class RunningNode:
    """The node that samples: its id, its place in a list that ComfyUI runs it over, and the queued graph around it.

    graph: API format, {node id: {"class_type", "inputs"}}.
    """

    node_id: str
    list_index: int | None
    graph: Mapping[str, Mapping]

    @property
    def upstream(self) -> dict[str, Mapping]:
        """The part of the graph that it hangs on, itself included; for a node made while running, the whole graph."""
        if self.node_id not in self.graph:
            return dict(self.graph)
        found, open_ids = {}, [self.node_id]
        while open_ids:
            node_id = open_ids.pop()
            if node_id not in found:
                found[node_id] = self.graph[node_id]
                open_ids += [value[0] for value in found[node_id]["inputs"].values() if is_link(value)]
        return found


def running_node() -> RunningNode | None:
    """What ComfyUI's server is at, asked now: a SAMPLER that ComfyUI has cached may serve many prompts."""
    context = get_executing_context()
    server = getattr(sys.modules.get("server"), "PromptServer", None)
    if context is None or not hasattr(server, "instance"):
        return None
    running, _ = server.instance.prompt_queue.get_current_queue_volatile()
    graphs = [graph for _, prompt_id, graph, *_ in running if prompt_id == context.prompt_id]
    return RunningNode(context.node_id, context.list_index, graphs[0]) if graphs else None


def fingerprint(
    node: RunningNode, model, x: Tensor, sigmas: Tensor, extra_args: Mapping, find_files: Callable[[str], list[Path]]
) -> dict[str, str]:
    """One entry for each thing that a run depends on; the arguments are those of a sampler function of ComfyUI.

    x: the noisy latent that sampling starts from. find_files: the model files that a text in the graph names.
    """
    upstream = node.upstream
    return {
        PLACE: f"{node.node_id} {node.list_index}",
        "graph": digest({node_id: _queued(each) for node_id, each in upstream.items()}),
        "model files": digest(sorted(_model_files(upstream, find_files))),
        "size": f"{tuple(x.shape)} {x.dtype}",
        "seed": str(extra_args.get("seed")),
        "noise": digest(x),
        "noise levels": digest(sigmas),
        "latent": digest([model.latent_image, extra_args.get("denoise_mask")]),
        "conditioning": digest(getattr(model.inner_model, "conds", None)),
        "device": f"{comfy.model_management.get_torch_device_name(x.device)}, torch {torch.__version__}",
    }


def digest(value) -> str:
    """sha256 of nested lists and dicts of tensors, texts and numbers, by content. ComfyUI's COND objects count by what
    they hold, all others (ControlNets, and the random ids of conditionings) by their kind alone.
    """
    sha = hashlib.sha256()
    for piece in _pieces(value):
        sha.update(piece)
    return sha.hexdigest()


def _pieces(value) -> Iterator[bytes]:
    yield type(value).__name__.encode() + b"\0"
    if isinstance(value, Tensor):
        yield f"{value.dtype} {tuple(value.shape)}\0".encode()
        yield value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    elif isinstance(value, Mapping):
        yield from _pieces([[key, value[key]] for key in sorted(value, key=str)])
    elif isinstance(value, (list, tuple)):
        yield f"{len(value)}\0".encode()
        for each in value:
            yield from _pieces(each)
    elif isinstance(value, (str, int, float)):
        yield repr(value).encode() + b"\0"
    elif hasattr(value, "cond"):
        yield from _pieces(value.cond)


def _queued(node: Mapping) -> list:
    """How often a state is written changes nothing in the video."""
    inputs = node["inputs"].items()
    if node["class_type"] == RESUME_NODE:
        inputs = [(name, value) for name, value in inputs if is_link(value)]
    return [node["class_type"], dict(inputs)]


def _model_files(nodes: Mapping[str, Mapping], find_files: Callable[[str], list[Path]]) -> Iterator[list]:
    """A file that was replaced under its old name is another one."""
    for node in nodes.values():
        for value in node["inputs"].values():
            for path in find_files(value) if isinstance(value, str) else ():
                facts = path.stat()
                yield [value, facts.st_size, facts.st_mtime_ns]
