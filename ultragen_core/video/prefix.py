"""A file name prefix: what it may hold, and the %placeholders% that ComfyUI's page fills in for its own nodes."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from datetime import datetime

from ..storage.files import WINDOWS_DEVICE

NAMELESS = "ultragen"  # ComfyUI's own name for nothing begins with a dot, which hides the file

# Control characters, what Windows forbids, and halves of surrogate pairs, which no file system can store.
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"|?*\ud800-\udfff]')
_ABSOLUTE = re.compile(r"[/\\]|[A-Za-z]:[/\\]")
# What is appended to a name: its number and the longest extension while it is written.
_ENDING = "_00001_.latent.part"
_LONGEST = 255  # bytes, or on Windows UTF-16 units, of one part of a path

_PLACEHOLDER = re.compile(r"%([^%]+)%")
_DATE_FIELD = re.compile(r"d{1,2}|M{1,2}|h{1,2}|m{1,2}|s{1,2}|y{2,4}")
_DATE_FIELDS = {"d": "day", "M": "month", "h": "hour", "m": "minute", "s": "second"}
# A prompt is longer than a file name may be. web/prefix.js cuts the same.
_LONGEST_VALUE = 60  # letters
_LONGEST_VALUE_BYTES = 120


def safe_prefix(prefix: str, folder: str) -> str:
    """Make a prefix a relative path that every system can store; "" becomes "ultragen".

    Both slashes separate folders, also at the end, which adds nothing. Forbidden characters become "_". An absolute
    path inside `folder` becomes relative. Raises ValueError for one that leads outside.
    """
    if _ABSOLUTE.match(prefix):
        same_root = os.path.splitdrive(prefix)[0].lower() == os.path.splitdrive(folder)[0].lower()
        inside = os.path.relpath(prefix, folder) if os.path.isabs(prefix) and same_root else ".."
    else:
        inside = prefix
    path = posixpath.normpath(_FORBIDDEN.sub("_", inside).replace("\\", "/"))
    *folders, name = path.split("/")
    if ".." in (*folders, name):
        raise ValueError(
            f"filename_prefix must not lead outside the output folder {folder}, got {prefix!r}. Write a folder and a"
            " name, such as video/lake. To save elsewhere, start ComfyUI with --output-directory."
        )
    folders = [_storable(each.rstrip(" .")) for each in folders]
    return "/".join([*folders, NAMELESS if name.strip(" .") == "" else _storable(name)])


def _storable(name: str) -> str:
    name = name.lstrip(" ") or "_"
    return f"_{name}" if WINDOWS_DEVICE.match(name) else name


def check_prefix(prefix: str, folder: str) -> None:
    """Raise ValueError for a prefix that cannot be used, whatever its placeholders will be."""
    check_length(safe_prefix(_PLACEHOLDER.sub("0", prefix), folder))


def check_length(prefix: str) -> None:
    """Raise ValueError where a part of the path is longer than file systems allow."""
    *folders, name = prefix.split("/")
    for each in (*folders, name + _ENDING):
        length = len(each.encode("utf-16-le")) // 2 if os.name == "nt" else len(each.encode())
        if length > _LONGEST:
            raise ValueError(
                f"filename_prefix must leave room for a number and an extension in {_LONGEST} bytes, got {each[:40]}..."
                f" with {length}. Choose a shorter name."
            )


def fill_placeholders(prefix: str, prompt: Mapping | None, workflow: Mapping | None, now: datetime) -> str:
    """Fill in %date:FORMAT% and %Node.widget% as ComfyUI's page does; others stay as they are.

    prompt: the graph in API format. workflow: the canvas's, which knows titles. A node is named by its "Node name for
    S&R", its title or its class; a value that comes through a link is not known.
    """

    def value(match: re.Match) -> str:
        text = match[1]
        if text.startswith("date:"):
            return _date(text.removeprefix("date:"), now)
        node, _, widget = text.partition(".")
        for inputs in _nodes_named(node, _mapping(prompt), _mapping(workflow)):
            found = inputs.get(widget)
            if isinstance(found, (str, int, float)):
                return _cut(re.sub(r"[/\\]", "_", str(found)))
        return match[0]

    return _PLACEHOLDER.sub(value, prefix)


def _cut(value: str) -> str:
    return value[:_LONGEST_VALUE].encode(errors="replace")[:_LONGEST_VALUE_BYTES].decode(errors="ignore")


def _date(text: str, now: datetime) -> str:
    def field(match: re.Match) -> str:
        token = match[0]
        if token[0] == "y":
            return token if len(token) == 3 else f"{now.year:04}"[-len(token) :]
        return f"{getattr(now, _DATE_FIELDS[token[0]]):0{len(token)}}"

    return _DATE_FIELD.sub(field, text)


def _nodes_named(name: str, prompt: Mapping, workflow: Mapping) -> Iterator[Mapping]:
    """The inputs of nodes with this name, in the order of preference of ComfyUI's page."""
    subgraphs = _mappings(_mapping(workflow.get("definitions")).get("subgraphs"))
    drawn = dict(_drawn(_mappings(workflow.get("nodes")), subgraphs))
    queued = {key: node for key, node in prompt.items() if isinstance(node, Mapping)}
    names = (
        lambda key, node: _mapping(drawn.get(key, {}).get("properties")).get("Node name for S&R"),
        lambda key, node: drawn.get(key, {}).get("title") or _mapping(node.get("_meta")).get("title"),
        lambda key, node: node.get("class_type"),
    )
    for name_of in names:
        yield from (_mapping(node.get("inputs")) for key, node in queued.items() if name_of(key, node) == name)


def _mapping(value: object) -> Mapping:
    """The value, empty where it is something else: nobody checks the workflow of an API client."""
    return value if isinstance(value, Mapping) else {}


def _mappings(value: object) -> list[Mapping]:
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []


def _drawn(nodes: list, subgraphs: list, outer: str = "") -> Iterator[tuple[str, Mapping]]:
    """(id in the prompt, node of the canvas), nodes within subgraphs included."""
    for node in nodes:
        key = f"{outer}{node.get('id')}"
        yield key, node
        inner = next((each for each in subgraphs if each.get("id") == node.get("type")), None)
        if inner is not None:
            yield from _drawn(_mappings(inner.get("nodes")), subgraphs, f"{key}:")
