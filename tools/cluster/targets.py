"""Finds the inputs of a graph that receive a job's values, by following the sampler's links.

A graph is in API format: {node id: {"class_type", "inputs"}}; a link is [node id, output].
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tools.console import Trouble
from tools.workflow import ancestors, is_link

PROMPT, NEGATIVE, SEED, IMAGE, DETAILS = COLUMNS = ("prompt", "negative", "seed", "image", "details")
PROMPT_LIST = "UltraGenPrompts"
TEXTS, SEEDS = ("text", "prompt"), ("noise_seed", "seed")
POSITIVES, NEGATIVES = ("positive", "conditioning", "cond1", "cond2"), ("negative",)


@dataclass(frozen=True, order=True)
class Target:
    """One input of one node."""

    node: str
    input: str

    def __str__(self) -> str:
        return f"{self.node}.{self.input}"


def find_targets(graph: dict, chosen: Mapping[str, Sequence[Target]], wanted: Iterable[str]) -> dict[str, list[Target]]:
    """Return the inputs that receive each column: {column: inputs}.

    chosen: from --set; counts instead of what would be found. wanted: columns that the list uses. Raises Trouble for a
    wanted column without an input, or with several that differ.
    """
    finders = {PROMPT: positive_texts, NEGATIVE: negative_texts, SEED: seeds, IMAGE: images}
    targets = {column: list(inputs) for column, inputs in chosen.items()}
    for column in wanted:
        if column not in targets:
            targets[column] = [_only(graph, column, sorted(set(finders[column](graph))))]
    if NEGATIVE in wanted and set(targets[NEGATIVE]) & set(targets[PROMPT]):
        raise Trouble(
            f"The list has negative prompts, but the workflow's negative prompt comes from its prompt,"
            f" {targets[PROMPT][0]}. Give it a text of its own, or remove the column."
        )
    return targets


def _only(graph: dict, column: str, found: list[Target]) -> Target:
    if len(found) == 1:
        return found[0]
    if found:
        candidates = "".join(f"\n    --set {each}={column}    ({_title(graph, each)})" for each in found)
        raise Trouble(f"The workflow has {len(found)} inputs for the column {column}. Name one or more:{candidates}")
    raise Trouble(
        f"No input for the column {column} was found by following the sampler's links. Name it:"
        f" --set NODE.INPUT={column}, such as --set 5.text={column}."
    )


def _title(graph: dict, target: Target) -> str:
    node = graph[target.node]
    return f"{node.get('_meta', {}).get('title', '')}, {node['class_type']}".removeprefix(", ")


def positive_texts(graph: dict) -> Iterator[Target]:
    return _texts(graph, POSITIVES)


def negative_texts(graph: dict) -> Iterator[Target]:
    return _texts(graph, NEGATIVES)


def samplers(graph: dict) -> Iterator[str]:
    """Yield the nodes that take conditioning and noise, or a guider which has the conditioning."""
    for key, node in graph.items():
        inputs = node["inputs"]
        if "guider" in inputs or ("positive" in inputs and any(name in inputs for name in SEEDS)):
            yield key


def leads_on(graph: dict, value) -> bool:
    """Whether an input is a link to a node that the graph has."""
    return is_link(value) and value[0] in graph


def _texts(graph: dict, names: Sequence[str]) -> Iterator[Target]:
    for sampler in samplers(graph):
        inputs = graph[sampler]["inputs"]
        if leads_on(graph, inputs.get("guider")):
            inputs = graph[inputs["guider"][0]]["inputs"]
        for name in names:
            if is_link(inputs.get(name)):
                yield from _texts_above(graph, inputs[name], set())


def _texts_above(graph: dict, link: list, seen: set) -> Iterator[Target]:
    """Follow conditioning up to the nodes that encode text."""
    key, output = link
    if key not in graph or (key, output) in seen:
        return
    seen.add((key, output))
    inputs = graph[key]["inputs"]
    own = [name for name in TEXTS if isinstance(inputs.get(name), str) or is_link(inputs.get(name))]
    if own:
        yield Target(key, own[0])
    elif "positive" in inputs and "negative" in inputs:  # such nodes return both, in this order
        side = inputs["negative" if output == 1 else "positive"]
        yield from _texts_above(graph, side, seen) if is_link(side) else ()
    else:
        for name, value in inputs.items():
            if is_link(value) and name.startswith(("conditioning", *POSITIVES)):
                yield from _texts_above(graph, value, seen)


def seeds(graph: dict) -> Iterator[Target]:
    """Yield the seed of each sampler that adds noise."""
    for sampler in samplers(graph):
        key, inputs = sampler, graph[sampler]["inputs"]
        if leads_on(graph, inputs.get("noise")):
            key, inputs = inputs["noise"][0], graph[inputs["noise"][0]]["inputs"]
        if "disable" not in (inputs.get("add_noise"), graph[sampler]["inputs"].get("add_noise")):
            yield from (Target(key, name) for name in SEEDS if name in inputs)


def images(graph: dict) -> Iterator[Target]:
    """Yield every loaded image that a sampler depends on."""
    for key, node in ancestors(graph, samplers(graph)).items():
        if node["class_type"] == "LoadImage":
            yield Target(key, "image")


def without_prompt_list(graph: dict) -> tuple[dict, dict[str, list[Target]]]:
    """Copy a graph without its UltraGenPrompts node. Returns it with the inputs that read the node: {column: inputs}.

    These inputs get the node's own negative prompt and seed; where it gave an image, a LoadImage node without a file
    takes its place. Raises Trouble for more than one such node.
    """
    graph = copy.deepcopy(graph)
    lists = [key for key, node in graph.items() if node["class_type"] == PROMPT_LIST]
    if not lists:
        return graph, {}
    if len(lists) > 1:
        raise Trouble(f"The workflow has {len(lists)} {PROMPT_LIST} nodes ({', '.join(lists)}). Keep one.")
    (key,), read = lists, {}
    own = {NEGATIVE: "", SEED: 0} | graph.pop(key)["inputs"]
    for reader, node in graph.items():
        for name, value in node["inputs"].items():
            if is_link(value) and value[0] == key:
                column = COLUMNS[value[1]]
                read.setdefault(column, []).append(Target(reader, name))
                node["inputs"][name] = own.get(column, "")
    for target in read.pop(IMAGE, ()):
        loader = f"{key}-image"
        graph[loader] = {"class_type": "LoadImage", "inputs": {"image": ""}}
        graph[target.node]["inputs"][target.input] = [loader, 0]
        read[IMAGE] = [Target(loader, "image")]
    return graph, read


def parse_settings(settings: Sequence[str], graph: dict) -> dict[str, list[Target]]:
    """Read --set NODE.INPUT=COLUMN. Raises Trouble for a node, an input or a column that does not exist."""
    chosen: dict[str, list[Target]] = {}
    for setting in settings:
        target, _, column = setting.rpartition("=")
        key, _, name = target.partition(".")
        if not name or column not in COLUMNS or key not in graph:
            raise Trouble(
                f"--set must be NODE.INPUT=COLUMN, with a node of the workflow ({', '.join(graph)}) and one of the"
                f" columns {', '.join(COLUMNS)}, got {setting!r}."
            )
        if name not in graph[key]["inputs"]:  # ComfyUI would ignore it, and all videos get the workflow's own value
            raise Trouble(
                f"Node {key} ({graph[key]['class_type']}) has no input {name} in the workflow, got --set {setting}. It"
                f" has {', '.join(graph[key]['inputs']) or 'none'}."
            )
        chosen.setdefault(column, []).append(Target(key, name))
    return chosen
