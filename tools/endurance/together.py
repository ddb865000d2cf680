"""Let two servers write into one folder at once: every video must get its own name."""

from __future__ import annotations

import threading
from collections.abc import Callable

from tools.endurance.folder import frames, frames_digest
from tools.endurance.graphs import decode_only
from tools.server import Server
from tools.workflow import only

FOLDER = "together"


def run(servers: tuple[Server, Server], videos: int, say: Callable[[str], None]) -> int:
    """Save `videos` videos with each of two servers on one base folder. Returns the number of files.

    Raises AssertionError.
    """
    failures: list[BaseException] = []

    def save(server: Server) -> None:
        try:
            for number in range(videos):
                graph = decode_only(server, f"{FOLDER}/video")
                # A different rate each time, or ComfyUI would return cached outputs.
                graph[only(graph, "UltraGenSaveVideo")]["inputs"] |= {
                    "fps": 10.0 + number,
                    "codec": "FFV1 lossless RGB",
                }
                server.run(graph)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=save, args=(server,)) for server in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, f"a server failed: {failures[0]}"
    made = sorted((servers[0].base / "output" / FOLDER).glob("*.mkv"))
    counts = {sum(1 for _ in frames(path)) for path in made}
    assert len(made) == 2 * videos, f"{len(made)} videos of {2 * videos}"
    assert len(counts) == 1 and len({frames_digest(path) for path in made}) == 1, "videos of one latent differ"
    say(f"two servers, {videos} videos each: {len(made)} files")
    return len(made)
