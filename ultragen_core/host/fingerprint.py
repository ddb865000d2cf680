"""What makes two sampling runs the same: the graph that leads to them, and the values that have come out of it."""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from enum import Enum
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfyui_version
import folder_paths
import torch
from comfy_execution.graph_utils import is_link
from torch import Tensor, nn

from .. import VERSION
from ..files import file_within
from ..prompts import item_of
from ..states import FAMILY, PLACE
from .queue import Graph, RunningNode

RESUME_NODE, PROMPTS_NODE = "UltraGenResume", "UltraGenPrompts"
STATE, RESULT = "state", "result"
# Inputs of this pack's nodes that change nothing in the video.
KEEPING_INPUTS = {"every", "unit", "keep_gb"}
# A value of more objects than this is never the same twice.
MOST_OBJECTS = 100_000

FindFiles = Callable[[str], "list[Path]"]


def fingerprint(
    kind: str, node: RunningNode, device: torch.device, values: Mapping[str, object], find_files: FindFiles
) -> dict[str, str]:
    """One entry for each thing that a run depends on.

    kind: STATE or RESULT. values: compared by content, by a name for the log. find_files: the model files that a text
    in the graph names.
    """
    return {
        PLACE: f"{kind} {node.node_id} {node.list_index}",
        FAMILY: GraphDigest(node.graph, None).of(node.node_id),
        "graph": GraphDigest(node.graph, node.list_index).of(node.node_id),
        "model files": digest(sorted(_model_files(node.upstream, find_files))),
        **{name: digest(value) for name, value in values.items()},
        "device": f"{comfy.model_management.get_torch_device_name(device)}, torch {torch.__version__}",
        "version": f"ComfyUI {comfyui_version.__version__}, UltraGen {VERSION}",
    }


def model_files(name: str) -> list[Path]:
    """The files of this name in ComfyUI's model folders."""
    path = Path(name)
    if path.anchor or path.suffix.lower() not in folder_paths.supported_pt_extensions | {".gguf"}:
        return []
    found = (folder_paths.get_full_path(folder, name) for folder in folder_paths.folder_names_and_paths)
    return [Path(file) for file in found if file]


def _model_files(nodes: Graph, find_files: FindFiles) -> Iterator[list]:
    """A file that was replaced under its old name is another one."""
    for node in nodes.values():
        for value in node["inputs"].values():
            for path in find_files(value) if isinstance(value, str) else ():
                with suppress(FileNotFoundError):  # removed since ComfyUI has read it
                    facts = path.stat()
                    yield [value, facts.st_size, facts.st_mtime_ns]


class GraphDigest:
    """Digests of nodes with all that leads to them, whatever their ids.

    position: in the lists that ComfyUI runs the node over. A list of UltraGen Prompts counts by the item there alone,
    so that other items may change; other nodes' lists count as a whole, with the position. None leaves out what lists
    hold.
    """

    def __init__(self, graph: Graph, position: int | None):
        self._graph, self._position = graph, position
        self._known: dict[tuple[str, bool], str] = {}
        self._lists_found = False

    def of(self, node_id: str) -> str:
        """For a node made while running, which the graph does not have, of the whole graph."""
        if node_id not in self._graph:
            return digest([node_id, self._position, {each: self._node(each, whole_lists=True) for each in self._graph}])
        found = self._node(node_id, whole_lists=False)
        # A position in lists that nobody has declared still tells one run from another.
        return found if self._lists_found else digest([found, self._position])

    def _node(self, node_id: str, whole_lists: bool) -> str:
        """whole_lists: a node further down takes its lists as a whole, so that the position is not one in them."""
        key = node_id, whole_lists
        if key not in self._known:
            self._known[key] = "a loop"  # which ComfyUI refuses to run
            self._known[key] = digest(self._content(self._graph.get(node_id), whole_lists))
        return self._known[key]

    def _content(self, node: Mapping | None, whole_lists: bool) -> object:
        if node is None:
            return "missing"
        kind, inputs = node["class_type"], dict(node["inputs"])
        if kind.startswith("UltraGen"):
            inputs = {name: value for name, value in inputs.items() if name not in KEEPING_INPUTS}
        of_class = getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", {}).get(kind)
        if not whole_lists and any(getattr(of_class, "OUTPUT_IS_LIST", None) or ()):
            self._lists_found = True
            return [kind, self._listed(kind, inputs)]
        whole_lists = whole_lists or bool(getattr(of_class, "INPUT_IS_LIST", False))
        return [kind, self._linked(inputs, whole_lists)]

    def _listed(self, kind: str, inputs: Mapping) -> object:
        if self._position is None:
            return {}
        item = item_of(inputs, self._position, _input_file) if kind == PROMPTS_NODE else None
        if item is None:
            return [self._linked(inputs, whole_lists=True), self._position]
        if isinstance(item["seed"], list):  # a link, and how often the same prompt came before
            item |= {"seed": item["seed"][:2], "repeat": item["seed"][2:]}
        return self._linked(item, whole_lists=False)

    def _linked(self, inputs: Mapping, whole_lists: bool) -> dict:
        links = {name: self._origin(value) for name, value in inputs.items() if is_link(value)}
        return {**inputs, **{name: [self._node(link[0], whole_lists), link[1]] for name, link in links.items()}}

    def _origin(self, link: list) -> list:
        """The sampler that UltraGen Resume samples with computes the same without it."""
        while (node := self._graph.get(link[0], {})).get("class_type") == RESUME_NODE:
            link = node["inputs"].get("sampler")
            if not is_link(link):
                return [RESUME_NODE, 0]
        return link


def _input_file(name: str) -> bytes:
    return file_within(Path(folder_paths.get_input_directory()), name).read_bytes()


def digest(value) -> str:
    """sha256 of nested values by content: tensors, texts, numbers, lists, dicts, and what other objects hold.

    Models, functions, random ids and objects that hold nothing readable count by their type or name alone.
    """
    sha = hashlib.sha256()
    for piece in _Pieces().of(value):
        sha.update(piece)
    return sha.hexdigest()


class _Pieces:
    """The bytes of a value, with each object in it once."""

    def __init__(self):
        self._seen: dict[int, int] = {}

    def of(self, value) -> Iterator[bytes]:
        yield type(value).__qualname__.encode() + b"\0"
        if isinstance(value, Tensor):
            yield f"{value.dtype} {tuple(value.shape)}\0".encode()
            yield value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        elif isinstance(value, Mapping):
            yield from self.of([[key, value[key]] for key in sorted(value, key=str)])
        elif isinstance(value, (list, tuple)):
            yield f"{len(value)}\0".encode()
            for each in value:
                yield from self.of(each)
        elif isinstance(value, (set, frozenset)):
            yield from self.of(sorted(map(digest, value)))
        elif isinstance(value, (str, bytes, int, float, complex, torch.dtype)):
            yield repr(value).encode() + b"\0"
        elif isinstance(value, Enum):
            yield value.name.encode() + b"\0"
        elif isinstance(value, (nn.Module, comfy.model_patcher.ModelPatcher, torch.device, uuid.UUID)):
            return
        elif isinstance(value, functools.partial):
            yield from self.of([value.func, value.args, value.keywords])
        elif inspect.isroutine(value) or isinstance(value, type):
            yield value.__qualname__.encode() + b"\0"
        else:
            yield from self._object(value)

    def _object(self, value) -> Iterator[bytes]:
        """ControlNets, hooks and the like: what they hold."""
        if id(value) in self._seen:
            yield f"object {self._seen[id(value)]}\0".encode()
            return
        self._seen[id(value)] = len(self._seen)
        if len(self._seen) > MOST_OBJECTS:
            yield uuid.uuid4().bytes
            return
        if hasattr(value, "tobytes"):  # arrays and images
            yield f"{getattr(value, 'shape', '')} {getattr(value, 'size', '')}\0".encode() + value.tobytes()
            return
        held = getattr(value, "__dict__", None) or {
            name: getattr(value, name) for name in getattr(type(value), "__slots__", ()) if hasattr(value, name)
        }
        yield from self.of(held)
