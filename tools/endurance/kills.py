"""SIGKILL at random moments of a list of prompts with two sampler stages: nothing that was finished is lost.

Queued again after each kill, a list must end with the frames of an undisturbed run, every video that was finished
before must still be there, untouched, and no finished sampling may be sampled again.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tools.console import Trouble
from tools.endurance.folder import digests, frames_digest
from tools.endurance.graphs import copied, only, two_stages
from tools.server import Server

PROMPTS = ["a lake at dusk", "two hills in the morning", "snow on a plain", "a cloudy sea", "dunes at noon"]
KEPT, TAKEN = "UltraGen: this sampling is kept until its prompt has succeeded", "UltraGen: this was sampled before"
STAGES = 2


@dataclass
class Report:
    """What the runs showed: when each kill fell, in seconds after queueing, and how many lists came to their end."""

    moments: list[float] = field(default_factory=list)
    lists: int = 0


def run(
    new_server: Callable[[], Server], kills: int, seed: int, say: Callable[[str], None], prompts: int = 5
) -> Report:
    """Kill `kills` times. new_server: makes a server on one and the same base folder. Raises AssertionError."""
    chance, report, names = random.Random(seed), Report(), PROMPTS[:prompts]
    with new_server() as server:
        graph = two_stages(server, names, seed, "killed/list")
        expected, seconds = _undisturbed(server, graph)
    say(f"undisturbed: {len(expected)} videos in {seconds:.1f} s")
    while len(report.moments) < kills:
        sampled, last = 0, False
        while not last:
            # Later runs take what is kept, and are shorter.
            moment = chance.uniform(0, seconds) if len(report.moments) < kills else None
            with new_server() as server:
                before = digests(server.base / "output" / "killed")
                last = not _killed(server, graph, moment)
                log = server.log.read_text(errors="replace")
            sampled += log.count(KEPT)
            after = digests(server.base / "output" / "killed")
            changed = [path.name for path, sha in before.items() if after.get(path) != sha and _is_finished(path)]
            assert not changed, f"finished files were changed or lost: {changed}"
            if not last:
                report.moments.append(moment)
                say(f"kill {len(report.moments)} after {moment:.1f} s: {log.count(KEPT)} samplings kept, "
                    f"{log.count(TAKEN)} taken")  # fmt: skip
        report.lists += 1
        assert sampled <= STAGES * len(names), f"{sampled} samplings were made, the list has {STAGES * len(names)}"
        made = sorted(path for path in after if path not in before and path.suffix == ".mkv")
        assert [frames_digest(path) for path in made] == expected, f"other frames than undisturbed: {made}"
        say(f"list {report.lists} ended: {len(made)} videos as undisturbed, {sampled} samplings in all")
    return report


def _is_finished(path: Path) -> bool:
    return not path.name.endswith(".part")


def _undisturbed(server: Server, graph: dict) -> tuple[list[str], float]:
    """The frames of each video, nothing kept, and the seconds that the list takes."""
    plain = copied(graph)
    plain[only(plain, "UltraGenLoadModel")]["inputs"]["keep_gb"] = 0
    plain[only(plain, "UltraGenSaveVideo")]["inputs"]["filename_prefix"] = "undisturbed/list"
    started = time.monotonic()
    server.run(plain)
    seconds = time.monotonic() - started
    return [frames_digest(path) for path in sorted((server.base / "output/undisturbed").glob("*.mkv"))], seconds


def _killed(server: Server, graph: dict, moment: float | None) -> bool:
    """Run the graph and kill the server after `moment` seconds; whether it was killed before the end."""
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
