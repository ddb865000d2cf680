"""Help pages, Chinese texts and troubleshooting: complete, and in the words that the nodes use."""

from __future__ import annotations

import ast
import json
import re

import pytest
from conftest import ROOT

ZH = json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def schemas(pack):
    return {schema.node_id: schema for schema in (node.define_schema() for node in pack.nodes.NODES)}


def page(node_id: str, language: str) -> str:
    return (ROOT / "web" / "docs" / node_id / f"{language}.md").read_text(encoding="utf-8")


def test_there_are_pages_for_every_node_and_for_nothing_else(schemas):
    found = {path.relative_to(ROOT / "web" / "docs").as_posix() for path in (ROOT / "web" / "docs").rglob("*.*")}
    assert found == {f"{node_id}/{language}.md" for node_id in schemas for language in ("en", "zh")}


def test_english_pages_name_the_node_and_every_input(schemas):
    for node_id, schema in schemas.items():
        text = page(node_id, "en")
        assert text.startswith(f"# {schema.display_name}\n") and "\n## Example\n" in text
        assert [each.id for each in schema.inputs if f"`{each.id}`" not in text] == [], node_id


def test_chinese_covers_every_node_and_slot_and_nothing_else(schemas):
    assert ZH.keys() == schemas.keys()
    for node_id, schema in schemas.items():
        words = ZH[node_id]
        assert words.keys() == {"display_name", "description", "inputs", "outputs"}
        assert words["inputs"].keys() == {each.id for each in schema.inputs}, node_id
        assert words["outputs"].keys() == {str(number) for number in range(len(schema.outputs))}, node_id
        for slot in [*words["inputs"].values(), *words["outputs"].values()]:
            assert slot.keys() == {"name", "tooltip"} and all(slot.values())


def test_chinese_pages_use_the_words_that_the_node_shows(schemas):
    for node_id, words in ZH.items():
        text = page(node_id, "zh")
        assert text.startswith(f"# {words['display_name']}\n") and "\n## 示例\n" in text
        assert [slot["name"] for slot in words["inputs"].values() if f"`{slot['name']}`" not in text] == [], node_id


def test_settings_have_chinese_names_and_help_pages_quote_both():
    chinese = json.loads((ROOT / "locales" / "zh" / "settings.json").read_text(encoding="utf-8"))
    scripts = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "web").glob("*.js"))
    keys = [key.replace(".", "_") for key in re.findall(r'^const SETTING = "(.+)";$', scripts, re.MULTILINE)]
    assert len(keys) == scripts.count("settings: [") and sorted(keys) == sorted(chinese)
    named = {
        "en": re.findall(r'name: "(UltraGen: .+)"', scripts),
        "zh": [words["name"] for words in chinese.values()],
    }
    for language, quote in (("en", r"\*(UltraGen: .+?)\*"), ("zh", "“(UltraGen：.+?)”")):
        pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "web" / "docs").glob(f"*/{language}.md"))
        quoted = set(re.findall(quote, pages))
        assert quoted and quoted <= set(named[language])


def test_quoted_messages_are_what_the_pack_says():
    trees = [
        ast.parse(path.read_text()) for floor in ("nodes", "ultragen_core") for path in (ROOT / floor).rglob("*.py")
    ]
    constants = (node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant))
    texts = [text for text in constants if isinstance(text, str)]
    help_pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "web" / "docs").rglob("*.md"))
    symptoms = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    table = symptoms.split("## Messages")[1]
    first_cells = "".join(re.findall(r"^\| (`.+?`) \|", table, re.MULTILINE))
    quoted = re.findall(r'\*"(.+?)"\*', help_pages) + re.findall("`(.+?)`", first_cells)
    assert len(quoted) > 30
    parts = {part.strip(" :,") for message in quoted for part in message.split("...")} - {""}
    assert [part for part in parts if not any(part in text for text in texts)] == []
