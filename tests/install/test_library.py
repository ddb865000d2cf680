"""The library: `pip install .` brings ultragen_core alone, which works where no ComfyUI is."""

from __future__ import annotations

import re
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
from helpers.repository import command, tracked

from tools.server import ROOT

# Everything but `host`, the one package that needs ComfyUI. Triton's kernels need Triton.
IMPORT_ALL = """
import importlib, pkgutil, sys
sys.path.insert(0, sys.argv[1])
import ultragen_core
assert ultragen_core.__file__.startswith(sys.argv[1]), ultragen_core.__file__
names = [module.name for module in pkgutil.walk_packages(ultragen_core.__path__, "ultragen_core.", lambda name: None)]
for name in names:
    if not name.startswith("ultragen_core.host") and not name.endswith("_kernels"):
        importlib.import_module(name)
assert not {"comfy", "comfy_api", "folder_paths", "nodes", "server"} & set(sys.modules)
print(len(names))
"""


@pytest.fixture(scope="module")
def wheel(repository, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # A copy, because setuptools writes build/ and ultragen.egg-info/ into its source.
    source = shutil.copytree(repository, folder / "source", ignore=shutil.ignore_patterns(".git"))
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index", "--no-build-isolation"]
    command(*pip, "--wheel-dir", folder, source)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """What pip puts into site-packages: the wheel, unpacked."""
    folder = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_wheel_holds_the_library_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    library = {name for name in names if ".dist-info/" not in name}
    assert library == {name for name in tracked() if name.startswith("ultragen_core/")}
    assert "ultragen_core/host/attention/patch.py" in library


def test_it_imports_where_no_comfyui_is(installed, tmp_path):
    clean = {"PYTHONPATH": "", "COMFYUI_PATH": ""}
    count = command(sys.executable, "-c", IMPORT_ALL, installed, cwd=tmp_path, **clean)
    assert int(count) > 60


def test_the_documented_example_runs(installed, tmp_path):
    """As a user runs it: the wheel, torch, and no ComfyUI."""
    text = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert examples
    for number, example in enumerate(examples):
        script = tmp_path / f"example{number}.py"
        script.write_text(example, encoding="utf-8")
        command(sys.executable, script, cwd=tmp_path, PYTHONPATH=str(installed), COMFYUI_PATH="")


def test_exported_names_exist():
    import ultragen_core

    assert all(hasattr(ultragen_core, name) for name in ultragen_core.__all__)
