"""File name prefixes: confined to the folder, storable everywhere, with ComfyUI's placeholders."""

from __future__ import annotations

from datetime import datetime

import pytest

from ultragen_core.video.prefix import check_prefix, fill_placeholders, safe_prefix

NOW = datetime(2026, 3, 7, 15, 4, 9)
PROMPT = {
    "3": {"class_type": "KSampler", "inputs": {"seed": 42, "cfg": 5.5, "model": ["1", 0]}},
    "4": {"class_type": "KSampler", "inputs": {"seed": 43}},
    "5": {"class_type": "CLIPTextEncode", "inputs": {"text": 'a/b\\c: "lake"?'}, "_meta": {"title": "Positive"}},
    "8:2": {"class_type": "KSampler", "inputs": {"seed": 44}},
}
WORKFLOW = {
    "nodes": [
        {"id": 3, "title": "First"},
        {"id": 4, "title": "Second", "properties": {"Node name for S&R": "Main"}},
        {"id": 5},
        {"id": 8, "type": "abc"},
    ],
    "definitions": {"subgraphs": [{"id": "abc", "nodes": [{"id": 2, "title": "Inner"}]}]},
}


def fill(prefix: str, prompt=PROMPT, workflow=WORKFLOW) -> str:
    return fill_placeholders(prefix, prompt, workflow, NOW)


@pytest.mark.parametrize(
    ("prefix", "safe"),
    [
        ("video/lake", "video/lake"),
        ("video/lake/", "video/lake"),
        ("video//lake/.", "video/lake"),
        ("video\\lake", "video/lake"),
        ("video/../lake", "lake"),
        ("", "ultragen"),
        (".", "ultragen"),
        ("...", "ultragen"),
        ("video/..", "ultragen"),
        ("/out/video/lake", "video/lake"),
        ("lake.mp4\0x", "lake.mp4_x"),
        ("a\nb\x7f\x85", "a_b__"),
        ('12:30 "a"|<b>*?', "12_30 _a___b___"),
        ("x\ud800", "x_"),
        ("CON/lake", "_CON/lake"),
        ("a/nul.x/b", "a/_nul.x/b"),
        ("lpt1", "_lpt1"),
        ("console/communication", "console/communication"),
        ("video. /lake.", "video/lake."),
        ("v1.2 take_7_", "v1.2 take_7_"),
        ("湖/早晨", "湖/早晨"),
    ],
)
def test_what_a_prefix_becomes(prefix, safe):
    assert safe_prefix(prefix, "/out") == safe


@pytest.mark.parametrize(("encoding", "safe"), [("ascii", "caf_/_"), ("latin-1", "café/_"), ("utf-8", "café/湖")])
def test_letters_that_file_names_of_this_system_cannot_hold_are_replaced(monkeypatch, encoding, safe):
    """ComfyUI would say that such a name leads out of its folder."""
    monkeypatch.setattr("sys.getfilesystemencoding", lambda: encoding)
    assert safe_prefix("café/湖", "/out") == safe


@pytest.mark.parametrize("prefix", ["..", "../a", "a/../../b", "..\\a", "/a", "/out/../a", "/output", "C:\\a", "\\\\s"])
def test_nothing_leads_outside(prefix):
    with pytest.raises(ValueError, match="inside the output folder /out, got .*--output-directory"):
        safe_prefix(prefix, "/out")


@pytest.mark.parametrize("prefix", ["y" * 240, "湖" * 80, "y" * 256 + "/lake", "y" * 240 + "%date:yyyy%"])
def test_names_leave_room_for_the_number_and_the_ending(prefix):
    with pytest.raises(ValueError, match=r"must fit into 255 bytes.*Choose a shorter name"):
        check_prefix(prefix, "/out")


def test_what_fits_is_no_error():
    for prefix in ("y" * 200, "湖" * 70, "%Prompt.text%" * 30):
        check_prefix(prefix, "/out")


@pytest.mark.parametrize(
    ("prefix", "filled"),
    [
        ("%date:yyyy-MM-dd%/x", "2026-03-07/x"),
        ("%date:yy-M-d h.m.s%", "26-3-7 15.4.9"),
        ("%date:hh:mm:ss%", "15:04:09"),
        ("%date:yyy%", "yyy"),
        ("%KSampler.seed%", "42"),
        ("%KSampler.cfg%-%First.seed%-%Main.seed%-%Second.seed%-%Inner.seed%", "5.5-42-43-43-44"),
        ("%Positive.text%", 'a_b_c: "lake"?'),
        ("%KSampler.model%", "%KSampler.model%"),
        ("%Nobody.seed%-%width%x%height%-%year%", "%Nobody.seed%-%width%x%height%-%year%"),
        ("100%", "100%"),
    ],
)
def test_placeholders(prefix, filled):
    assert fill(prefix) == filled


def test_without_a_workflow_and_without_a_prompt():
    assert fill("%KSampler.seed%", workflow=None) == "42"
    assert fill("%KSampler.seed% %date:yyyy%", prompt=None, workflow=None) == "%KSampler.seed% 2026"


@pytest.mark.parametrize("letter", ["a", "é", "湖", "🦊", "\ud800"])
def test_a_long_value_is_cut(letter):
    prompt = {"1": {"class_type": "Text", "inputs": {"text": "x" + letter * 500}}}
    filled = fill("video/%Text.text%", prompt)
    assert len(filled.removeprefix("video/").encode()) <= 120 and "\ufffd" not in filled
    check_prefix(filled + "_" * 100, "/out")


@pytest.mark.parametrize("wrong", [None, "text", 5, [None], ["text"]])
def test_a_workflow_of_another_shape_is_ignored(wrong):
    named = {"id": 3, "title": "First", "properties": wrong}
    for workflow in (
        wrong,
        {"nodes": wrong, "definitions": wrong},
        {"nodes": [named, wrong], "definitions": {"subgraphs": wrong}},
        {"nodes": [{"id": 8, "type": "abc"}], "definitions": {"subgraphs": [{"id": "abc", "nodes": wrong}, wrong]}},
    ):
        assert fill("%KSampler.seed%", workflow=workflow) == "42"
    assert fill("%First.seed%", workflow={"nodes": [named]}) == "42"
    prompt = {"1": wrong, "2": {"class_type": "A", "inputs": wrong, "_meta": wrong}, **PROMPT}
    assert fill("%A.seed%-%KSampler.seed%", prompt) == "%A.seed%-42"


def test_subgraphs_within_subgraphs_are_drawn_as_far_as_they_are_queued():
    """Ten in each of ten in each of ten ...: more nodes than any memory holds."""
    levels = [[{"id": each, "type": f"level {level + 1}"} for each in range(10)] for level in range(30)]
    subgraphs = [{"id": f"level {level}", "nodes": nodes} for level, nodes in enumerate(levels)]
    subgraphs[2]["nodes"][5] = {"id": 5, "title": "Inner", "type": "level 0"}  # which also holds itself
    workflow = {"nodes": levels[0], "definitions": {"subgraphs": subgraphs}}
    assert fill("%Inner.seed%", {"3:4:5": {"inputs": {"seed": 7}}}, workflow) == "7"
