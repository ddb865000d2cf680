"""File name prefixes: validation, and the %placeholders% that ComfyUI's frontend fills in for its own nodes."""

from __future__ import annotations

import os
import posixpath
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime

from ..storage.files import WINDOWS_DEVICE

DEFAULT_NAME = "ultragen"  # for an empty prefix; ComfyUI's own default begins with a dot, which hides the file

# Control characters, and what Windows forbids.
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"|?*]')
_ABSOLUTE = re.compile(r"[/\\]|[A-Za-z]:[/\\]")
# The longest ending that is appended to a name.
_ENDING = "_00001_.latent.part"
_LONGEST = 255  # bytes, or on Windows UTF-16 units, of one part of a path

_PLACEHOLDER = re.compile(r"%([^%]+)%")
_DATE_FIELD = re.compile(r"d{1,2}|M{1,2}|h{1,2}|m{1,2}|s{1,2}|y{2,4}")
_DATE_FIELDS = {"d": "day", "M": "month", "h": "hour", "m": "minute", "s": "second"}
# A placeholder may stand for a whole prompt. web/prefix.js shortens values in the same way.
_LONGEST_VALUE = 60  # characters
_LONGEST_VALUE_BYTES = 120


def safe_prefix(prefix: str, folder: str) -> str:
    """Return `prefix` as a relative path that every file system can store.

    Both / and \\ separate folders. Forbidden characters become "_", an absolute path inside `folder` becomes relative,
    and an empty name becomes "ultragen". Raises ValueError for a path outside `folder`.
    """
    if _ABSOLUTE.match(prefix):
        same_root = os.path.splitdrive(prefix)[0].lower() == os.path.splitdrive(folder)[0].lower()
        inside = os.path.relpath(prefix, folder) if os.path.isabs(prefix) and same_root else ".."
    else:
        inside = prefix
    path = posixpath.normpath(_FORBIDDEN.sub("_", _encodable(inside)).replace("\\", "/"))
    *folders, name = path.split("/")
    if ".." in (*folders, name):
        raise ValueError(
            f"filename_prefix must stay inside the output folder {folder}, got {prefix!r}. Write a folder and a name,"
            " such as video/lake. To save elsewhere, start ComfyUI with --output-directory."
        )
    folders = [_storable(each.rstrip(" .")) for each in folders]
    return "/".join([*folders, DEFAULT_NAME if name.strip(" .") == "" else _storable(name)])


def _encodable(text: str) -> str:
    """Replace by ? what this system's file names cannot hold: lone surrogates, and without UTF-8 many letters."""
    encoding = sys.getfilesystemencoding()
    return text.encode(encoding, "replace").decode(encoding)


def _storable(name: str) -> str:
    name = name.lstrip(" ") or "_"
    return f"_{name}" if WINDOWS_DEVICE.match(name) else name


def check_prefix(prefix: str, folder: str) -> None:
    """Raise ValueError for a prefix that is unusable whatever its placeholders become."""
    check_length(safe_prefix(_PLACEHOLDER.sub("0", prefix), folder))


def check_length(prefix: str) -> None:
    """Raise ValueError if a part of the path is too long for common file systems."""
    *folders, name = prefix.split("/")
    for each in (*folders, name + _ENDING):
        length = len(each.encode("utf-16-le")) // 2 if os.name == "nt" else len(each.encode())
        if length > _LONGEST:
            raise ValueError(
                f"filename_prefix must fit into {_LONGEST} bytes together with its number and extension, got"
                f" {each[:40]}... with {length}. Choose a shorter name."
            )


def fill_placeholders(prefix: str, prompt: Mapping | None, workflow: Mapping | None, now: datetime) -> str:
    """Replace %date:FORMAT% and %Node.widget% as ComfyUI's frontend does. Unknown placeholders are left unchanged.

    prompt: the graph in API format. workflow: the canvas's graph, which holds the titles. A node is found by its "Node
    name for S&R", its title or its class, in this order. Linked widgets have no value here.
    """

    def value(match: re.Match) -> str:
        text = match[1]
        if text.startswith("date:"):
            return _date(text.removeprefix("date:"), now)
        node, _, widget = text.partition(".")
        for inputs in _nodes_named(node, _mapping(prompt), _mapping(workflow)):
            found = inputs.get(widget)
            if isinstance(found, (str, int, float)):
                return _shortened(re.sub(r"[/\\]", "_", str(found)))
        return match[0]

    return _PLACEHOLDER.sub(value, prefix)


def _shortened(value: str) -> str:
    return value[:_LONGEST_VALUE].encode(errors="replace")[:_LONGEST_VALUE_BYTES].decode(errors="ignore")


def _date(text: str, now: datetime) -> str:
    def field(match: re.Match) -> str:
        token = match[0]
        if token[0] == "y":
            return token if len(token) == 3 else f"{now.year:04}"[-len(token) :]
        return f"{getattr(now, _DATE_FIELDS[token[0]]):0{len(token)}}"

    return _DATE_FIELD.sub(field, text)


def _nodes_named(name: str, prompt: Mapping, workflow: Mapping) -> Iterator[Mapping]:
    """Yield the inputs of nodes with this name, in the frontend's order of preference."""
    subgraphs = _mappings(_mapping(workflow.get("definitions")).get("subgraphs"))
    queued = {key: node for key, node in prompt.items() if isinstance(node, Mapping)}
    drawn = dict(_drawn(_mappings(workflow.get("nodes")), subgraphs, queued))
    names = (
        lambda key, node: _mapping(drawn.get(key, {}).get("properties")).get("Node name for S&R"),
        lambda key, node: drawn.get(key, {}).get("title") or _mapping(node.get("_meta")).get("title"),
        lambda key, node: node.get("class_type"),
    )
    for name_of in names:
        yield from (_mapping(node.get("inputs")) for key, node in queued.items() if name_of(key, node) == name)


def _mapping(value: object) -> Mapping:
    """Return `value`, or an empty mapping for anything else: an API client's workflow is unchecked."""
    return value if isinstance(value, Mapping) else {}


def _mappings(value: object) -> list[Mapping]:
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []


def _drawn(nodes: list, subgraphs: list, queued: Collection[str], outer: str = "") -> Iterator[tuple[str, Mapping]]:
    """Yield (id in the prompt, node of the canvas), including nodes inside subgraphs.

    queued: ids in the prompt. Subgraphs without any of them are not looked into: they may hold each other for ever.
    """
    for node in nodes:
        key = f"{outer}{node.get('id')}"
        yield key, node
        inner = next((each for each in subgraphs if each.get("id") == node.get("type")), None)
        if inner is not None and any(each.startswith(f"{key}:") for each in queued):
            yield from _drawn(_mappings(inner.get("nodes")), subgraphs, queued, f"{key}:")
