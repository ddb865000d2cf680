"""Links between the Markdown files, and from the notes of the templates; names of nodes in help pages."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers.repository import tracked

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(tracked("*.md"))
NOTES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "workflows").glob("*.json"))
LINK = re.compile(r"\]\(([^)\s]+)\)")
HERE = "https://github.com/ultragen-comfyui/ultragen/blob/main/"  # for pages that are read elsewhere
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    headings = HEADING.findall(page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES + NOTES)
def test_links_lead_to_files_and_headings(page):
    path = ROOT / page
    broken = []
    for link in LINK.findall(path.read_text(encoding="utf-8")):
        name, _, anchor = link.removeprefix(HERE).partition("#")
        folder = ROOT if link.startswith(HERE) else path.parent
        target = (folder / name).resolve() if name else path
        if "://" in name or link.startswith("mailto:"):
            continue
        if not target.exists() or anchor and anchor not in anchors(target):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("language", ["en", "zh"])
def test_help_pages_name_nodes_as_the_canvas_does_and_in_bold(language):
    folders = sorted((ROOT / "web/docs").iterdir())
    english = [(folder / "en.md").read_text(encoding="utf-8").splitlines()[0].removeprefix("# ") for folder in folders]
    translated = json.loads((ROOT / "locales/zh/nodeDefs.json").read_text(encoding="utf-8"))
    chinese = [translated[folder.name]["display_name"] for folder in folders]
    any_name = "|".join(map(re.escape, sorted({*english, *chinese}, key=len, reverse=True)))
    wanted = {f"**{name}**" for name in (english if language == "en" else chinese)}
    for folder in folders:
        text = (folder / f"{language}.md").read_text(encoding="utf-8").partition("\n")[2]  # without the title
        assert set(re.findall(rf"\**(?:{any_name})\**", text)) <= wanted, folder.name
