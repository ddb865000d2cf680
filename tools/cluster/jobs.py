"""Jobs: a workflow with the values of one line of a prompt list."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tools.cluster.pack import Item, chosen_items, decode, file_within, parse
from tools.cluster.targets import (
    DETAILS,
    IMAGE,
    NEGATIVE,
    PROMPT,
    SEED,
    Target,
    find_targets,
    parse_settings,
    without_prompt_list,
)
from tools.console import Trouble

SLUG = 40  # characters of a prompt in a file name
PREFIX = "filename_prefix"


@dataclass(frozen=True)
class Job:
    """One video. number: its position in the list, from 1. negative: None keeps the workflow's own.

    id: equal in two runs if the workflow and the line's values are, and for repeated lines the repeat's number.
    """

    number: int
    id: str
    prompt: str
    negative: str | None
    seed: int
    image: Path | None

    @property
    def name(self) -> str:
        """The beginning of the names of the job's files: letters, digits and hyphens."""
        slug = re.sub(r"[^a-z0-9]+", "-", self.prompt.lower())[:SLUG].strip("-")
        return "-".join(filter(None, (f"{self.number:05}", slug, self.id[:8])))


class Workflow:
    """A graph in API format, and the inputs that receive each column of a list."""

    def __init__(self, graph: dict, settings: Sequence[str] = (), wanted: Sequence[str] = (PROMPT, SEED)):
        """settings: --set NODE.INPUT=COLUMN. wanted: columns that the list uses. Raises Trouble."""
        self.graph, read = without_prompt_list(graph)
        chosen = read | parse_settings(settings, self.graph)
        self.targets = find_targets(self.graph, chosen, wanted)
        self.savers = [key for key, node in self.graph.items() if PREFIX in node["inputs"]]
        if not self.savers:
            raise Trouble(f"The workflow saves nothing: no node has the input {PREFIX}. Add UltraGen Save Video.")

    @cached_property
    def digest(self) -> str:
        """Hash what all jobs share: the graph without the values of jobs and the names of files."""
        graph = copy.deepcopy(self.graph)
        names = [Target(key, PREFIX) for key in self.savers]
        for target in [*names, *(each for targets in self.targets.values() for each in targets)]:
            graph[target.node]["inputs"][target.input] = None
        bare = {key: {"class_type": node["class_type"], "inputs": node["inputs"]} for key, node in graph.items()}
        return _hash([bare, {column: list(map(str, targets)) for column, targets in self.targets.items()}])

    @property
    def negative(self) -> str | None:
        """The negative prompt of lines that have none, if the list may change it."""
        value = self._value(NEGATIVE)
        return value if isinstance(value, str) else None

    @property
    def seed(self) -> int:
        value = self._value(SEED)
        return value if isinstance(value, int) else 0

    @property
    def image(self) -> str | None:
        value = self._value(IMAGE)
        return value if isinstance(value, str) else None

    def _value(self, column: str):
        targets = self.targets.get(column)
        return self.graph[targets[0].node]["inputs"].get(targets[0].input) if targets else None

    def fill(self, job: Job, prefix: str, image: str | None = None) -> dict:
        """Return the graph of a job. prefix: of its files. image: its name in the server's input folder."""
        graph = copy.deepcopy(self.graph)
        item = Item(job.prompt, job.negative or "", job.seed, image, job.number - 1)
        values = {PROMPT: job.prompt, NEGATIVE: job.negative, SEED: job.seed, IMAGE: image, DETAILS: item.details()}
        for column, targets in self.targets.items():
            for target in targets:
                if values[column] is not None:
                    graph[target.node]["inputs"][target.input] = values[column]
        for key in self.savers:
            graph[key]["inputs"][PREFIX] = prefix if len(self.savers) == 1 else f"{prefix}-{key}"
        return graph


def read_graph(file: Path) -> dict:
    """Read a workflow in API format. Raises Trouble for anything else."""
    try:
        graph = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Trouble(f"The workflow {file} cannot be read: {error}.") from None
    nodes = graph.values() if isinstance(graph, dict) else [None]
    if not all(isinstance(node, dict) and "class_type" in node and "inputs" in node for node in nodes):
        raise Trouble(f"{file} is not in ComfyUI's API format. Export it with Workflow > Export (API).")
    return graph


def make_jobs(
    graph: dict, prompts: Path, settings: Sequence[str] = (), say: Callable[[str], None] = lambda text: None
) -> tuple[Workflow, list[Job]]:
    """Return the workflow and one job per line of a list. Images are files in the list's folder.

    say: gets a line about the list, which names ignored columns. Raises Trouble.
    """
    try:
        found = parse(decode(prompts.read_bytes(), prompts.name), name=prompts.name)
        say(f"{prompts.name}: {found.summary()}")
        entries = found.entries
        wanted = [PROMPT, SEED]
        wanted += [name for name in (NEGATIVE, IMAGE) if any(getattr(entry, name) is not None for entry in entries)]
        workflow = Workflow(graph, settings, wanted)
        items = chosen_items(found, negative=workflow.negative or "", seed=workflow.seed)
        _check_images(workflow, items)
        digests = {name: _file(prompts.parent, name) for name in {item.image for item in items if item.image}}
    except (OSError, ValueError) as error:
        raise Trouble(f"The list cannot be used. {error}") from None
    repeats: Counter[tuple] = Counter()
    jobs = []
    for item in items:
        image, digest = digests.get(item.image, (None, None))
        values = (item.prompt, item.negative or None, item.seed, digest)
        job_id = _hash([workflow.digest, *values, repeats[values]])
        repeats[values] += 1
        jobs.append(Job(item.index + 1, job_id, item.prompt, values[1], item.seed, image))
    return workflow, jobs


def _check_images(workflow: Workflow, items: Sequence[Item]) -> None:
    bare = next((item for item in items if not item.image), None)
    if bare and workflow.image is not None:
        raise ValueError(f"Prompt {bare.index + 1} has no image, which the workflow needs. Name one in a column image.")
    filled = {target.node for target in workflow.targets.get(IMAGE, ())}
    for key, node in workflow.graph.items():
        if node["class_type"] == "LoadImage" and key not in filled and isinstance(node["inputs"].get("image"), str):
            raise ValueError(
                f"Node {key} loads {node['inputs']['image']}, which hosts do not have: only the list's images are sent."
                f" Name it in a column image of every line, with --set {key}.image=image."
            )


def _file(folder: Path, name: str) -> tuple[Path, str]:
    path = file_within(folder, name)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def _hash(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
