"""The files in workflows/ and subgraphs/ are what `tools/dev.py templates` writes."""

from __future__ import annotations

import json

import pytest
from helpers.signatures import skip_without_nodes

from tools.templates import blueprint
from tools.templates import write as templates
from tools.templates.graphs import TEMPLATES
from tools.templates.thumbnail import BAND, HEIGHT, WIDTH


def without_output_names(content: dict) -> dict:
    """ComfyUI 0.3.75 names the outputs of newer nodes by their type."""
    for node in content["nodes"]:
        node["outputs"] = [{**output, "name": ""} for output in node["outputs"]]
    return content


@pytest.mark.parametrize("name", TEMPLATES)
def test_file_is_as_written(name, server):
    content = json.loads((templates.FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    object_info = server.get("/object_info")
    skip_without_nodes([node["type"] for node in content["nodes"] if node["type"] != "MarkdownNote"], object_info)
    made = templates.make(name, object_info)
    assert without_output_names(content) == without_output_names(made)


def test_blueprint_is_made_of_its_template():
    source = json.loads((templates.FOLDER / f"{blueprint.SOURCE}.json").read_text(encoding="utf-8"))
    assert json.loads(templates.BLUEPRINT.read_text(encoding="utf-8")) == blueprint.make(source)


def test_each_template_has_a_thumbnail_and_nothing_else_lies_there():
    assert {file.name for file in templates.FOLDER.iterdir()} == {
        f"{name}.{end}" for name in TEMPLATES for end in ("json", "jpg")
    }


@pytest.mark.parametrize("name", TEMPLATES)
def test_thumbnail_is_small(name):
    from PIL import Image

    file = templates.FOLDER / f"{name}.jpg"
    assert file.stat().st_size <= 60_000
    with Image.open(file) as picture:
        assert picture.size == (WIDTH, HEIGHT + BAND)
