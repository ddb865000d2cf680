"""Digests of queued graphs by what their nodes compute."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import folder_paths
from comfy_execution.graph_utils import is_link

from ...prompts.items import item_of
from ...storage.files import file_within
from ..server import Graph
from .digest import digest

RESUME_NODE, PROMPTS_NODE = "UltraGenResume", "UltraGenPrompts"
# Inputs of this pack's nodes that do not change the video.
STORAGE_INPUTS = {"every", "unit", "keep_gb"}
# The fields of an item that each output of UltraGen Prompts returns; other outputs return all.
ITEM_FIELDS = {0: ("prompt",), 1: ("negative",), 2: ("seed", "repeat"), 3: ("image",)}


class _Key(NamedTuple):
    """A node to digest.

    whole_lists: a later node takes its lists as a whole, so the position does not select one of their items. output:
    the linked output of UltraGen Prompts.
    """

    node_id: str
    whole_lists: bool
    output: int | None = None


class _NodeDigest(NamedTuple):
    text: str
    has_list: bool


_UNFINISHED = _NodeDigest("a loop", False)  # ComfyUI refuses to run loops


class GraphDigest:
    """Digests of nodes with everything upstream of them, independent of node ids.

    position: index in the lists that ComfyUI runs the node over. A list of UltraGen Prompts counts by the item at that
    position and by the linked outputs; lists of other nodes count as a whole, with the position. None leaves out the
    contents of lists.
    """

    def __init__(self, graph: Graph, position: int | None):
        self._graph, self._position = graph, position
        self._known: dict[_Key, _NodeDigest] = {}

    def of(self, node_id: str) -> str:
        """Return the digest of one node. A node made while running is not in the graph and depends on all of it."""
        if node_id not in self._graph:
            everything = {each: self._find(_Key(each, whole_lists=True)).text for each in self._graph}
            return digest(everything if self._position is None else [node_id, self._position, everything])
        found = self._find(_Key(node_id, whole_lists=False))
        # Nodes may return lists without declaring them: the position still tells runs apart.
        return found.text if found.has_list else digest([found.text, self._position])

    def _find(self, wanted: _Key) -> _NodeDigest:
        """Digest depth first, without recursion: graphs may be long."""
        open_keys = [wanted]
        while open_keys:
            key = open_keys[-1]
            if self._known.get(key, _UNFINISHED) is not _UNFINISHED:
                open_keys.pop()
                continue
            is_list, content, links = self._parts(key)
            new = [link for link, _ in links.values() if link not in self._known]
            self._known[key] = _UNFINISHED
            if new:
                open_keys += new
                continue
            found = {name: (self._known[link], output) for name, (link, output) in links.items()}
            text = digest([content, {name: [source.text, output] for name, (source, output) in found.items()}])
            self._known[key] = _NodeDigest(text, is_list or any(source.has_list for source, _ in found.values()))
        return self._known[wanted]

    def _parts(self, key: _Key) -> tuple[bool, object, dict[str, tuple[_Key, int]]]:
        """Return whether the position selects from this node's lists, its own inputs, and its links."""
        node = self._graph.get(key.node_id)
        if node is None:
            return False, "missing", {}
        kind, inputs = node["class_type"], dict(node["inputs"])
        if kind.startswith("UltraGen"):
            inputs = {name: value for name, value in inputs.items() if name not in STORAGE_INPUTS}
        of_class = getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", {}).get(kind)
        whole_lists = key.whole_lists or bool(getattr(of_class, "INPUT_IS_LIST", False))
        is_list = not key.whole_lists and any(getattr(of_class, "OUTPUT_IS_LIST", None) or ())
        if is_list:
            item = self._item(kind, inputs, key.output)
            if item is None and self._position is None:
                return True, kind, {}
            kind, inputs = ([kind, self._position], inputs) if item is None else (kind, item)
            whole_lists = item is None
        own = {name: value for name, value in inputs.items() if not is_link(value)}
        return is_list, [kind, own], {n: self._link(v, whole_lists) for n, v in inputs.items() if is_link(v)}

    def _item(self, kind: str, inputs: Mapping, output: int | None) -> dict | None:
        """Return the item of UltraGen Prompts at this position; without a position, the one that `index` names."""
        if kind != PROMPTS_NODE or (self._position is None and not _is_index(inputs.get("index"))):
            return None
        item = item_of(inputs, self._position, _input_file)
        if item is None:
            return None
        if isinstance(item["seed"], list):  # a link, and how often the same prompt came before
            item |= {"seed": item["seed"][:2], "repeat": item["seed"][2:]}
        return {name: item[name] for name in ITEM_FIELDS.get(output, item) if name in item}

    def _link(self, link: list, whole_lists: bool) -> tuple[_Key, int]:
        # UltraGen Resume computes what its sampler computes.
        while (node := self._graph.get(link[0], {})).get("class_type") == RESUME_NODE:
            if not is_link(node["inputs"].get("sampler")):
                break
            link = node["inputs"]["sampler"]
        output = link[1] if node.get("class_type") == PROMPTS_NODE and not whole_lists else None
        return _Key(link[0], whole_lists, output), link[1]


def _is_index(value: object) -> bool:
    return isinstance(value, int) and value >= 0


def _input_file(name: str) -> bytes:
    return file_within(Path(folder_paths.get_input_directory()), name).read_bytes()
