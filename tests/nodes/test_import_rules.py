"""Import rules that Ruff cannot check: what nodes/ may import, and what nobody may do."""

from __future__ import annotations

import ast

import pytest
from conftest import ROOT

SHIPPED = sorted(path for folder in ("nodes", "ultragen_core") for path in (ROOT / folder).rglob("*.py"))
FORBIDDEN = {"socket", "urllib", "requests", "http", "aiohttp", "subprocess", "threading", "multiprocessing"}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


def attributes(path):
    return {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}


def test_every_input_and_output_has_a_tooltip(pack):
    for node in pack.nodes.NODES:
        schema = node.define_schema()
        for each in schema.inputs:
            assert each.tooltip and len(each.tooltip) > 15, f"{node.__name__}.{each.id}"
        assert all(each.tooltip for each in schema.outputs), node.__name__


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_file_imports_and_calls(path):
    names = set(imports(path))
    if path.parent.name == "nodes" and path.stem == "questions":  # answers the canvas through ComfyUI's server
        names.discard("aiohttp")
    # They wait for ComfyUI's threads, or keep something for each, and start none.
    if path.parent.name == "multigpu" or path.stem in ("built_once", "fp8_kernel", "prompt_files"):
        names.discard("threading")
        assert not {"Thread", "Timer"} & attributes(path)
    assert not names & FORBIDDEN, "the pack opens no connection, starts no thread of its own and runs no program"
    if path.parent.name == "nodes":
        assert "comfy" not in names, "nodes are forms; ComfyUI's inner parts belong to ultragen_core/host"
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not {func.id for func in calls if isinstance(func, ast.Name)} & {"eval", "exec", "compile"}
