"""The library: `pip install .` brings ultragen_core alone."""

from __future__ import annotations

import shutil
import sys
import zipfile
from pathlib import Path

import pytest
from helpers.repository import command, tracked


@pytest.fixture(scope="module")
def wheel(repository, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # A copy, because setuptools writes build/ and ultragen.egg-info/ into its source.
    source = shutil.copytree(repository, folder / "source", ignore=shutil.ignore_patterns(".git"))
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index", "--no-build-isolation"]
    command(*pip, "--wheel-dir", folder, source)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_library_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    library = {name for name in names if ".dist-info/" not in name}
    assert library == {name for name in tracked() if name.startswith("ultragen_core/")}
    assert "ultragen_core/host/attention/patch.py" in library
