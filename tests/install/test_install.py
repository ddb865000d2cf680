"""The pack as a package: what ComfyUI's own tools install and publish, and what an install leaves behind."""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import sys
import threading
import zipfile
from pathlib import Path, PureWindowsPath

import pytest
from helpers.repository import command, tracked

from tools import package_tools
from tools.server import ROOT, Server

FOLDER = "Any-Name"  # not the one that the other tests use
# What a start of ComfyUI and an install by its Manager write, without any pack.
COMFYUIS_OWN = ("custom_nodes/", "user/", "temp/", "input/", "output/", "models/", "server.log", "pip_overrides")
IMPORTED = """
import importlib.util, json, sys, threading, time
tree, root = sys.argv[1:]
sys.argv = sys.argv[:1]
sys.path.insert(0, tree)
began = time.perf_counter()
import comfy.options
comfy.options.enable_args_parsing(False)
import comfy.cli_args
comfy.cli_args.args.cpu = True
import nodes, server, comfy_api.latest
comfyui = time.perf_counter() - began
before, threads, events = set(sys.modules), set(threading.enumerate()), []
watched = ("socket.", "subprocess.", "os.system", "os.exec", "os.fork")
sys.addaudithook(lambda event, args: event.startswith(watched) and events.append(event))
print("here the pack begins", flush=True)
began = time.perf_counter()
spec = importlib.util.spec_from_file_location("pack", root + "/__init__.py", submodule_search_locations=[root])
sys.modules["pack"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
took = time.perf_counter() - began
print("here the pack ends", flush=True)
def packages(modules):
    return {name.split(".")[0] for name in modules}
print(json.dumps({
    "modules": sorted(packages(sys.modules) - packages(before) - {"pack"}),
    "threads": [str(thread) for thread in set(threading.enumerate()) - threads],
    "events": events, "comfyui": comfyui, "pack": took,
}))
"""


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments) -> None:
        pass


def tool(name: str) -> Path:
    return package_tools.tool(name) or pytest.skip(f"{name} is missing. `python3 tools/dev.py test` fetches it.")


@pytest.fixture(scope="module")
def address(repository, tmp_path_factory):
    """Where git finds the repository: Manager takes addresses of servers only."""
    folder = tmp_path_factory.mktemp("served")
    command("git", "clone", "--quiet", "--bare", repository, folder / f"{FOLDER}.git")
    command("git", "update-server-info", cwd=folder / f"{FOLDER}.git")
    handler = functools.partial(QuietHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}/{FOLDER}.git"
        served.shutdown()


@pytest.fixture(scope="module")
def clean_tree(tmp_path_factory) -> Path:
    """A ComfyUI of one's own, without any pack."""
    source = Path(os.environ["COMFYUI_PATH"])
    tree = tmp_path_factory.mktemp("install") / "ComfyUI"
    shutil.copytree(source, tree, ignore=shutil.ignore_patterns("__pycache__", "user", "output", "temp"))
    shutil.rmtree(tree / "custom_nodes")
    (tree / "custom_nodes").mkdir()
    (tree / "user").mkdir()
    return tree


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_manager_installs_it_and_comfyui_runs_it_from_its_folder_alone(address, clean_tree, pack, tmp_path):
    before = files(clean_tree)
    home = {"HOME": str(tmp_path), "USERPROFILE": str(tmp_path)}
    install = [tool("cm-cli"), "install", address, "--mode", "local", "--exit-on-fail"]
    command(*install, COMFYUI_PATH=str(clean_tree), **home)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in home.items():
            patch.setenv(name, value)
        with Server(Path(sys.executable), clean_tree, clean_tree) as server:
            listed = server.get("/object_info")
            words = server.get("/i18n")["zh"]["nodeDefs"]

    ours = {kind for kind, schema in listed.items() if schema["python_module"] == f"custom_nodes.{FOLDER}"}
    assert ours == {node.define_schema().node_id for node in pack.nodes.NODES} == words.keys()
    written = {name for name in files(clean_tree) - before if "__pycache__" not in name}
    assert {name for name in written if not name.startswith(COMFYUIS_OWN)} == set()
    left = {name for name in written if not name.startswith(f"custom_nodes/{FOLDER}/")} | files(tmp_path)
    assert [name for name in left if "ultragen" in name.lower()] == []


def test_comfy_cli_finds_it_fit_to_publish(repository, tmp_path):
    comfy = [tool("comfy"), "--skip-prompt", "--no-enable-telemetry", "node"]
    assert "passed" in command(*comfy, "validate", cwd=repository, HOME=str(tmp_path))
    command(*comfy, "pack", cwd=repository, HOME=str(tmp_path))

    with zipfile.ZipFile(repository / "node.zip") as published:
        names = {name for name in published.namelist() if not name.endswith("/")}
    (repository / "node.zip").unlink()
    wanted = {"__init__.py", "CHANGELOG.md", "LICENSE", "README.md", "measure.py", "pyproject.toml", "requirements.txt"}
    folders = ("nodes/", "ultragen_core/", "web/", "locales/", "subgraphs/", "workflows/")
    shipped = {name for name in tracked() if name in wanted or name.startswith(folders)}
    assert names - {".comfyignore", ".gitignore"} == shipped


def test_paths_can_be_on_windows():
    names = tracked()
    assert [name for name in names if PureWindowsPath(name).is_reserved() or set(name) & set('<>:"\\|?*')] == []
    assert [name for name in names if any(part.endswith((".", " ")) for part in name.split("/"))] == []
    folded = [name.casefold() for name in names]
    assert len(set(folded)) == len(folded)
    # Windows allows 260 characters, and ComfyUI/custom_nodes lies deep in a user's folder.
    assert [name for name in names if len(name) > 120] == []


def test_import_brings_no_thread_no_connection_and_no_other_package(tmp_path):
    said = command(sys.executable, "-c", IMPORTED, os.environ["COMFYUI_PATH"], ROOT, cwd=tmp_path)
    own = said.split("here the pack begins\n")[1].split("here the pack ends\n")
    assert len(own[0].splitlines()) <= 1
    found = json.loads(own[1].splitlines()[0])
    print(f"ComfyUI {found.pop('comfyui'):.2f} s, the pack {found.pop('pack'):.2f} s")
    assert found == {"modules": [], "threads": [], "events": []}
