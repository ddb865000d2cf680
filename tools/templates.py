"""The `templates` command: workflows/*.json anew, each with a thumbnail from a small run of that very graph."""

from __future__ import annotations

import json

from tools.server import ROOT
from tools.template_graphs import TEMPLATES
from tools.template_layout import Layout
from tools.template_parts import FILES

FOLDER = ROOT / "workflows"


def make(name: str, object_info: dict) -> dict:
    """The content of workflows/`name`.json. object_info: of a ComfyUI with the pack."""
    layout = Layout(name, object_info, FILES)
    return layout.workflow(TEMPLATES[name](layout))


def write(object_info: dict) -> None:
    for name in TEMPLATES:
        text = json.dumps(make(name, object_info), indent=2, ensure_ascii=False)
        (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")
