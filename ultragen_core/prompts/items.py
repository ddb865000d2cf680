"""One item per video: an entry of the list, completed with the node's negative prompt and seed."""

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
    """One video of a list. index: position in the list, from 0. image: a file name, or None.

    negative and seed are links, [node id, output], if the node's widgets are linked.
    """

    prompt: str
    negative: str | list
    seed: int | list
    image: str | None
    index: int

    def details(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)


def read_list(inputs: Mapping, read_file: Callable[[str], bytes]) -> PromptList:
    """Parse `text`, or `file` unless it is NO_FILE, in the given `format`.

    inputs: the node's widgets by name. read_file: returns the content of a file in the input folder. Raises ValueError
    for an invalid list, and whatever read_file raises.
    """
    file, format = inputs.get("file", NO_FILE), inputs.get("format", AUTO)
    if file != NO_FILE:
        return parse(decode(read_file(file), file), format, file)
    if not isinstance(inputs["text"], str):
        raise ValueError(f"text must be a string, got {shown(inputs['text'])}. Link a string.")
    if len(inputs["text"]) > MAX_BYTES:
        raise ValueError(f"text must have at most {MAX_BYTES >> 20} MiB, got more. Split the list.")
    return parse(inputs["text"], format)


def chosen_items(found: PromptList, index: int = WHOLE_LIST, negative: str = "", seed: int = 0) -> list[Item]:
    """Return all items, or only the one at `index`. Raises ValueError for an index beyond the list or a wrong seed.

    Entries without a negative or a seed get those given here. A repeated entry without a seed gets the next seed each
    time, so that a line written four times makes four videos. Seeds do not depend on other entries.
    """
    if not isinstance(index, int) or not WHOLE_LIST <= index < len(found.entries):
        raise ValueError(
            f"index must be at most {len(found.entries) - 1}, the last of {len(found.entries)} prompts, got {index}."
            f" Set it to 0 to start over, or to {WHOLE_LIST} for the whole list."
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
    """Return the values of one item, independent of the rest of the list: {"prompt", "negative", "seed", "image"}.

    inputs: of an UltraGenPrompts node in the queued graph (API format), links included; a linked negative or seed is
    returned as that link. position: ComfyUI's position in the list, capped at the last item; None is the first.
    read_file: as in `read_list`. Returns None if the graph does not determine the list: text, file or index is linked,
    or the file is missing or invalid.
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
