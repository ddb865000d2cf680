"""Run prompts of all templates while things go wrong.

Files are replaced, removed and damaged, disks fill up, runs are interrupted, and a second server on the same folders is
killed. The server must survive, memory and open files must not grow, and every prompt must end in a video or in an
error with an explanation.
"""

from __future__ import annotations

import contextlib
import copy
import random
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tools.console import Trouble
from tools.endurance.folder import open_files, resident_bytes
from tools.endurance.graphs import model_files, templates
from tools.server import Failed, Refused, Server
from tools.workflow import KEPT_LATENT

# Errors that show a case nobody handled.
RAW = ("KeyError", "IndexError", "AttributeError", "TypeError", "AssertionError", "UnboundLocalError", "struct.error")
SMALL_DISK = "full"  # below the output folder
GROWTH = 100 * 2**20
KILL_EVERY = 50  # prompts; each takes a second server


@dataclass
class Report:
    """How prompts ended, and what the server held after some of them: {number of prompts: (bytes, open files)}."""

    ends: Counter = field(default_factory=Counter)
    held: dict[int, tuple[int, int]] = field(default_factory=dict)


class Mischief:
    """Faults during one prompt. Afterwards the files are restored."""

    def __init__(self, server: Server, chance: random.Random):
        self.server, self.chance = server, chance
        self.faults = [self.nothing, self.replaced, self.removed, self.garbage, self.latent_replaced, self.interrupted]
        if (server.base / "output" / SMALL_DISK).is_mount():
            self.faults.append(self.disk_full)

    @contextmanager
    def nothing(self, graph: dict) -> Iterator[None]:
        yield

    @contextmanager
    def replaced(self, graph: dict) -> Iterator[None]:
        """Truncate and rewrite a model file during the prompt, as a download over it does."""
        path = self.chance.choice(model_files(self.server.base))
        with self._meanwhile(self._rewrite, path):
            yield

    @contextmanager
    def latent_replaced(self, graph: dict) -> Iterator[None]:
        with self._meanwhile(self._rewrite, self.server.base / "input" / KEPT_LATENT):
            yield

    @contextmanager
    def removed(self, graph: dict) -> Iterator[None]:
        path = self.chance.choice(model_files(self.server.base))
        away = path.with_name(path.name + ".away")
        path.rename(away)
        try:
            yield
        finally:
            away.rename(path)

    @contextmanager
    def garbage(self, graph: dict) -> Iterator[None]:
        path = self.chance.choice(model_files(self.server.base))
        whole = path.read_bytes()
        path.write_bytes(
            self.chance.choice([b"", b"<html>Not Found</html>", whole[: len(whole) // 2], whole + b"more"])
        )
        try:
            yield
        finally:
            path.write_bytes(whole)

    @contextmanager
    def interrupted(self, graph: dict) -> Iterator[None]:
        def interrupt() -> None:
            time.sleep(self.chance.uniform(0, 3))
            self.server.post("/interrupt", {})

        with self._meanwhile(interrupt):
            yield

    @contextmanager
    def disk_full(self, graph: dict) -> Iterator[None]:
        for node in graph.values():
            if "filename_prefix" in node["inputs"]:
                node["inputs"]["filename_prefix"] = f"{SMALL_DISK}/video"
        yield
        for path in (self.server.base / "output" / SMALL_DISK).iterdir():
            path.unlink()

    @contextmanager
    def _meanwhile(self, act: Callable, *args) -> Iterator[None]:
        thread = threading.Thread(target=act, args=args)
        thread.start()
        try:
            yield
        finally:
            thread.join()

    def _rewrite(self, path: Path) -> None:
        whole = path.read_bytes()
        time.sleep(self.chance.uniform(0, 2))
        with path.open("wb") as file:
            for start in range(0, len(whole), len(whole) // 8 + 1):
                file.write(whole[start : start + len(whole) // 8 + 1])
                file.flush()
                time.sleep(0.05)


def run(
    new_server: Callable[..., Server], prompts: int, seed: int, say: Callable[[str], None], measured: tuple[int, ...]
) -> Report:
    """Queue `prompts` prompts. Raises AssertionError.

    new_server: makes servers on one base folder. measured: numbers of prompts after which to read the server's memory
        and open files.
    """
    chance, report = random.Random(seed), Report()
    with new_server() as server, _small_disk(server.base / "output" / SMALL_DISK):
        graphs, mischief = templates(server), Mischief(server, chance)
        for number in range(1, prompts + 1):
            name = chance.choice(sorted(graphs))
            graph = copy.deepcopy(graphs[name])
            for node in graph.values():
                if node["class_type"] == "RandomNoise":
                    node["inputs"]["noise_seed"] = chance.randrange(5)
            if number % KILL_EVERY == 0:
                _kill_another(new_server("other"), graph, chance)
            fault = chance.choice(mischief.faults)
            with fault(graph):
                end = _end_of(server, graph)
            assert server.process.poll() is None, f"the server died in {name}, {fault.__name__}: {server.last_words()}"
            report.ends[end] += 1
            if number in measured:
                report.held[number] = resident_bytes(server.process.pid), len(open_files(server.process.pid))
                say(f"{number} prompts: {report.held[number][0] >> 20} MiB, {report.held[number][1]} files open, "
                    f"{dict(report.ends)}")  # fmt: skip
    _check_growth(report)
    return report


def _end_of(server: Server, graph: dict) -> str:
    try:
        outputs = server.run(graph)
    except Refused:
        return "refused when queued"
    except Failed as failed:
        if "exception_type" not in failed.error:
            return "interrupted"
        kind = failed.error["exception_type"]
        ours = failed.error["node_type"].startswith("UltraGen")
        assert not (ours and kind in RAW), f"no sentence: {failed}\n{failed.error.get('traceback')}"
        return "a sentence" if ours else "an error of ComfyUI's own nodes"
    assert outputs, "neither a video nor a sentence"
    return "a video"


def _kill_another(other: Server, graph: dict, chance: random.Random) -> None:
    with contextlib.suppress(Trouble), other:
        with contextlib.suppress(Refused):
            other.queue(graph)
        time.sleep(chance.uniform(0, 4))
        other.process.kill()


@contextmanager
def _small_disk(folder: Path) -> Iterator[None]:
    """Mount a disk of 1 MB on `folder`, if this system permits it."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = shutil.which("mount")
    made = mount and subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=False)
    try:
        yield
    finally:
        if made and made.returncode == 0:
            subprocess.run(["umount", str(folder)], check=True)


def _check_growth(report: Report) -> None:
    if len(report.held) < 2:
        return
    first, last = (report.held[number] for number in (min(report.held), max(report.held)))
    assert last[0] - first[0] < GROWTH, f"memory has grown by {(last[0] - first[0]) >> 20} MiB"
    assert last[1] <= first[1], f"{last[1] - first[1]} more files are open"
