"""A page with a thumbnail of every finished video, for a browser: contact_sheet.html among the results."""

from __future__ import annotations

import contextlib
import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from tools.cluster.jobs import Job
from tools.cluster.ledger import DoneJob
from tools.cluster.pack import finished_file
from tools.cluster.results import path_within
from tools.console import say

NAME, THUMBNAILS = "contact_sheet.html", ".thumbnails"
MARK = '<meta name="generator" content="UltraGen tools.cluster">'  # a page without it is not ours to replace
VIDEO = (".mp4", ".mkv", ".mov", ".webm")
WIDTH = 480
STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em; background: #111; color: #ddd }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 1.2em }
figure { margin: 0 } img { width: 100%; border-radius: 4px; background: #222 } a { color: #9cf }
small { color: #999; display: block }
"""


def write(folder: Path, jobs: Sequence[Job], done: Mapping[str, DoneJob], failed: Iterable[tuple[Job, str]]) -> Path:
    """Write the page of a folder of results and return it; its own earlier page is replaced, no other file."""
    page = folder / NAME
    if page.exists() and MARK not in page.read_text(encoding="utf-8", errors="replace"):
        say(f"{page} is not a page of this tool and was left as it is. Rename it to get the contact sheet.")
        return page
    cards = [_card(folder, job, done[job.id]) for job in jobs if job.id in done]
    problems = [f"<li>{html.escape(job.name)}: {html.escape(reason)}</li>" for job, reason in failed]
    text = f'<!doctype html><html><head><meta charset="utf-8">{MARK}<title>{html.escape(folder.name)}</title>'
    text += f"<style>{STYLE}</style></head><body><h1>{html.escape(folder.name)}</h1>"
    text += f"<p>{len(cards)} of {len(jobs)} done</p><main>{''.join(cards)}</main>"
    text += f"<h2>Failed</h2><ul>{''.join(problems)}</ul>" if problems else ""
    with finished_file(page) as part:
        part.write_text(text + "</body></html>\n", encoding="utf-8", errors="backslashreplace")
    return page


def _card(folder: Path, job: Job, done: DoneJob) -> str:
    names = sorted((file.name for file in done.files), key=lambda name: not name.lower().endswith(VIDEO))
    picture = next(filter(None, (_thumbnail(folder, job, name) for name in names[:1])), "")
    image = f'<img src="{quote(picture)}" loading="lazy" alt="">' if picture else ""
    links = [f'<a href="{quote(name)}">{html.escape(name)}</a>' for name in names]
    first = f'<a href="{quote(names[0])}">{image}</a>' if names else image
    facts = f"{job.number}, seed {job.seed}, {html.escape(done.host)}, {done.seconds:.0f} s"
    return (
        f"<figure>{first}<figcaption>{html.escape(job.prompt)}<small>{facts}<br>{' '.join(links)}</small>"
        "</figcaption></figure>\n"
    )


def _thumbnail(folder: Path, job: Job, name: str) -> str | None:
    """Return the name of a picture of a video, drawn once. None where the file cannot be decoded."""
    picture = f"{THUMBNAILS}/{job.id}.jpg"
    if not (folder / picture).is_file():
        with contextlib.suppress(OSError, ValueError, LookupError, StopIteration):  # also PyAV's errors, and no video
            frame = _middle_frame(path_within(folder, name))
            frame.thumbnail((WIDTH, WIDTH))
            (folder / THUMBNAILS).mkdir(exist_ok=True)
            with finished_file(folder / picture) as part:
                frame.convert("RGB").save(part, "JPEG")
    return picture if (folder / picture).is_file() else None


def _middle_frame(video: Path):
    import av

    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        if container.duration:  # to the keyframe before it: decoding all of a 4K video takes a minute
            container.seek(container.duration // 2)
        return next(container.decode(stream)).to_image()
