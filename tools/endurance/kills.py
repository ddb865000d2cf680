"""Kill a server at random moments of a list of prompts with two sampler stages: nothing finished may be lost.

The list is queued again after each kill. In the end its frames must be those of an undisturbed run, every finished
video must be unchanged, and no finished sampling may have run again.
"""

from __future__ import annotations

import copy
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tools.console import Trouble
from tools.endurance.folder import digests, frames_digest
from tools.endurance.graphs import two_stages
from tools.server import Server
from tools.workflow import only

PROMPTS = ["a lake at dusk", "two hills in the morning", "snow on a plain", "a cloudy sea", "dunes at noon"]
KEPT, TAKEN = "UltraGen: this sampling is kept until its prompt has succeeded", "UltraGen: already sampled"
STAGES = 2


@dataclass
class Report:
    """moments: of the kills, in seconds after queueing. lists: how many were completed."""

    moments: list[float] = field(default_factory=list)
    lists: int = 0


def run(
    new_server: Callable[[], Server], kills: int, seed: int, say: Callable[[str], None], prompts: int = 5
) -> Report:
    """Kill servers `kills` times. Raises AssertionError. new_server: makes servers on one base folder."""
    chance, report, names = random.Random(seed), Report(), PROMPTS[:prompts]
    while len(report.moments) < kills:
        with new_server() as server:
            graph = two_stages(server, names, seed + report.lists, f"killed/list{report.lists}")
            expected, seconds = _undisturbed(server, graph)
        say(f"undisturbed: {len(expected)} videos in {seconds:.1f} s")
        moments = (chance.uniform(0, seconds) for _ in range(kills - len(report.moments)))
        report.moments += _kill_until_done(new_server, graph, moments, expected, say)
        report.lists += 1
    return report


def _kill_until_done(
    new_server: Callable[[], Server],
    graph: dict,
    moments: Iterator[float],
    expected: list[str],
    say: Callable[[str], None],
) -> list[float]:
    """Queue one list, killing the server at each of `moments`, until a run completes. Returns the kills' moments."""
    samplings, kills = 0, []
    while True:
        moment = next(moments, None)
        with new_server() as server:
            output = server.base / "output"
            before = digests(output / "killed")
            killed = _killed(server, graph, moment)
            after = digests(output / "killed")
            if not killed:
                _wait_until_empty(output / "ultragen_resume")
        log = server.log.read_text(errors="replace")
        samplings += log.count(KEPT)
        changed = [path.name for path, sha in before.items() if after.get(path) != sha and _is_finished(path)]
        assert not changed, f"finished files were changed or lost: {changed}"
        if not killed:
            break
        kills.append(moment)
        say(f"killed after {moment:.1f} s: {log.count(KEPT)} samplings kept, {log.count(TAKEN)} taken")
    most = STAGES * len(expected)
    assert samplings <= most, f"{samplings} samplings were made, the list has {most}"
    made = sorted(path for path in after if path not in before and path.suffix == ".mkv")
    assert [frames_digest(path) for path in made] == expected, f"other frames than undisturbed: {made}"
    say(f"completed after {len(kills)} kills: {len(made)} correct videos, {samplings} samplings in all")
    return kills


def _wait_until_empty(folder: Path) -> None:
    """Wait until the states of a successful prompt are removed. Parts of killed processes may stay."""
    end = time.monotonic() + 10
    while kept := [path for path in folder.glob("*") if _is_finished(path)]:
        assert time.monotonic() < end, f"files of a prompt that has succeeded are still there: {kept}"
        time.sleep(0.1)


def _is_finished(path: Path) -> bool:
    return not path.name.endswith(".part")


def _undisturbed(server: Server, graph: dict) -> tuple[list[str], float]:
    """Run the list without kills and without keeping states. Returns each video's digest, and the seconds it took."""
    plain = copy.deepcopy(graph)
    plain[only(plain, "UltraGenLoadModel")]["inputs"]["keep_gb"] = 0
    save = plain[only(plain, "UltraGenSaveVideo")]["inputs"]
    save["filename_prefix"] = prefix = save["filename_prefix"].replace("killed", "undisturbed")
    started = time.monotonic()
    server.run(plain)
    seconds = time.monotonic() - started
    return [frames_digest(path) for path in sorted((server.base / "output").glob(f"{prefix}_*.mkv"))], seconds


def _killed(server: Server, graph: dict, moment: float | None) -> bool:
    """Run the graph, killing the server after `moment` seconds. Returns whether it was killed before the end."""
    timer = threading.Timer(moment or 0, server.process.kill)
    try:
        if moment is not None:
            timer.start()
        server.run(graph)
        return False
    except (Trouble, OSError):
        server.process.wait()
        return True
    finally:
        timer.cancel()
