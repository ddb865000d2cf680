"""What UltraGen Prompts gives for each video: an entry of the list, and the node's own values where it says nothing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

from .entries import MAX_SEED, Entry, PromptList, seed_of, shown
from .formats import AUTO, MAX_BYTES, decode, parse

NO_FILE = "none"
WHOLE_LIST = -1


@dataclass(frozen=True)
class Item:
    """One video of a list. index: its place in the list, from 0. image: a file name, or None.

    negative and seed are links of the graph, [node id, output], where the node's own are links.
    """

    prompt: str
    negative: str | list
    seed: int | list
    image: str | None
    index: int

    def details(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)


def read_list(inputs: Mapping, read_file: Callable[[str], bytes]) -> PromptList:
    """The list that the node's inputs name: `text`, or `file` unless it is NO_FILE, read as `format` says.

    read_file: the content of a file of the input folder. Raises ValueError in a sentence, and what read_file raises.
    """
    file, format = inputs.get("file", NO_FILE), inputs.get("format", AUTO)
    if file != NO_FILE:
        return parse(decode(read_file(file), file), format, file)
    if not isinstance(inputs["text"], str):
        raise ValueError(f"text must be text, got {shown(inputs['text'])}. Link a string.")
    if len(inputs["text"]) > MAX_BYTES:
        raise ValueError(f"text must have at most {MAX_BYTES >> 20} MiB, got more. Split it.")
    return parse(inputs["text"], format)


def chosen_items(found: PromptList, index: int = WHOLE_LIST, negative: str = "", seed: int = 0) -> list[Item]:
    """All items, or the one at `index`. Raises ValueError where the list ends before it, or the seed is none.

    An entry without a negative or seed takes those given. The same entry once more without a seed takes the next seed,
    so that writing a line four times makes four videos. No seed hangs on the other entries of the list.
    """
    if not isinstance(index, int) or not WHOLE_LIST <= index < len(found.entries):
        raise ValueError(
            f"index must be at most {len(found.entries) - 1}, the last of {len(found.entries)} prompts, got {index}."
            f" Set it to 0 to begin anew, or to {WHOLE_LIST} for the whole list."
        )
    seed = seed if isinstance(seed, list) else seed_of(seed)
    repeats: Counter[Entry] = Counter()
    items = []
    for number, entry in enumerate(found.entries):
        own_seed = entry.seed if entry.seed is not None else _later(seed, repeats[entry])
        repeats[entry] += 1
        items.append(Item(entry.prompt, entry.negative or negative, own_seed, entry.image, number))
    return items if index == WHOLE_LIST else [items[index]]


def _later(seed: int | list, number: int) -> int | list:
    if isinstance(seed, int):
        return (seed + number) % (MAX_SEED + 1)
    return [*seed, number] if number else seed


def item_of(inputs: Mapping, position: int | None, read_file: Callable[[str], bytes]) -> dict | None:
    """What one item of the node's lists is computed from, whatever else the list holds.

    inputs: of an UltraGenPrompts node in the queued graph (API format), links included. position: ComfyUI's place in
    the list, which stays at the last item of a shorter list; None is the first. read_file: as in `read_list`.
    Returns {"prompt", "negative", "seed", "image"}; a negative or seed that comes through a link is that link. None
    where the list cannot be known from the graph: its text, file or index is a link, or the file is gone or changed.
    """
    names = ("text", "file", "format", "index")
    if any(isinstance(inputs.get(name), list) for name in names):
        return None
    own = {name: inputs[name] for name in ("index", "negative", "seed") if name in inputs}
    try:
        items = chosen_items(read_list(inputs, read_file), **own)
    except (ValueError, OSError):
        return None
    item = asdict(items[min(position or 0, len(items) - 1)])
    del item["index"]
    return item
