"""A host: one ComfyUI server on a machine of the cluster, with that machine's GPUs. It runs one job at a time."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from tools import environment, server
from tools.cluster import orphans, tied
from tools.cluster.drive import Done, Failed, Outcome, Refused
from tools.cluster.ledger import ResultFile
from tools.cluster.pack import VERSION
from tools.cluster.results import OUTPUTS, STATES, folders_of, path_within, reported_files, written_files
from tools.console import Trouble

FOLDERS = ("input", "output", "temp", "user")
MODEL_STATES = "ultragen_resume"  # UltraGen Resume's folder inside ComfyUI's output folder
MODEL_FILE = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf")


@dataclass(frozen=True)
class Setup:
    """How a host starts ComfyUI. All paths are those of the host's machine.

    base: the base directory with models and custom nodes, if not ComfyUI's own. cpu: use no GPU. shared: the folder of
    results, if the machine sees it. threads: OMP_NUM_THREADS of the server, which Ray sets to 1 for its own processes.
    """

    comfyui: str
    python: str
    base: str | None = None
    cpu: bool = False
    shared: str | None = None
    threads: str | None = None


@dataclass(frozen=True)
class Request:
    """What a host needs for a job. token: names the job's folder among the server's outputs.

    images: {name in the input folder: content}.
    """

    job: str
    token: str
    graph: dict
    images: dict[str, bytes]


class Host:
    """Made and run by Ray, in a process of its own; the server ends with this process, however that ends."""

    def __init__(self, setup: Setup):
        """Start the server and wait for it: minutes. Call it in the main thread, to whose end the server is tied.

        Raises Trouble.
        """
        self.setup = setup
        self.folder = orphans.new_folder(environment.cache_folder() / "cluster" / "hosts" / socket.gethostname())
        for name in FOLDERS:
            (self.folder / name).mkdir()
        if setup.shared:
            self.output = Path(setup.shared) / OUTPUTS / self.folder.name
            self.output.mkdir(parents=True)
        else:
            self.output = self.folder / "output"
        self.step = ("", 0.0, 0.0)
        clean_environment(setup.threads)
        through = [sys.executable, "-S", "-E", tied.__file__, str(os.getpid()), str(self.folder / orphans.PID_FILE)]
        options = [f"--{name}-directory={self.folder / name}" for name in FOLDERS if name != "output"]
        self.server = server.Server(
            Path(setup.python),
            Path(setup.comfyui),
            Path(setup.base or setup.comfyui),
            gpu=not setup.cpu,
            folder=self.folder,
            through=through,
            options=[*options, f"--output-directory={self.output}"],
        )
        self.server.__enter__()
        if str(self.server.database) not in str(self.server.get("/system_stats")):
            self.stop()
            raise Trouble(f"Another ComfyUI answers at {self.server.url}.")

    def facts(self) -> dict:
        """Describe the host: its folder, process ids, devices, version of the pack."""
        devices = [device["name"] for device in self.server.get("/system_stats")["devices"]]
        return {
            "folder": self.folder.name,
            "pid": os.getpid(),
            "server": self.server.process.pid,
            "devices": devices,
            "version": VERSION,
        }

    def lacking(self, graph: dict) -> list[str]:
        """Name the nodes and the model files of a graph that this server does not have."""
        return lacking(graph, self.server.get("/object_info"))

    def run(self, request: Request) -> Outcome:
        """Run a job. An exception means that the server is lost."""
        for name, content in request.images.items():
            path = self.folder / "input" / name
            if not path.is_file():
                path.with_suffix(".part").write_bytes(content)
                path.with_suffix(".part").rename(path)
        self._use_states_of(request.job)
        self.step = ("", 0.0, 0.0)
        try:
            outputs = self.server.run(request.graph, lambda event, data: self._on_event(request.graph, event, data))
        except server.Refused as error:
            return Refused(refusal(error.error))
        except server.Failed as error:
            return self._failed(str(error), request.token)
        try:
            files = tuple(reported_files(outputs, self.output))
            kept = tuple(file for file in written_files(self.output, request.token) if file not in files)
        except (OSError, ValueError) as error:
            return self._failed(f"What the workflow wrote cannot be read: {error}", request.token)
        return Done(files, kept) if files else Failed("The workflow reported no file.", kept)

    def _failed(self, reason: str, token: str) -> Failed:
        """Return the failure with what the job wrote, which the reason names relative to the output folder."""
        kept = ()
        with contextlib.suppress(OSError, ValueError):
            kept = tuple(written_files(self.output, token))
        for file in kept:
            reason = reason.replace(str(self.output / file.name), file.name)
        return Failed(reason, kept)

    def _use_states_of(self, job: str) -> None:
        """Let UltraGen Resume keep a job's states in a folder of its own that every machine sees."""
        if self.setup.shared:
            states, link = Path(self.setup.shared) / STATES / job, self.output / MODEL_STATES
            states.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                link.unlink()
            link.symlink_to(states, target_is_directory=True)

    def _on_event(self, graph: dict, event: str, data: dict) -> None:
        node = data.get("node")
        if event in ("executing", "progress") and node in graph:
            title = graph[node].get("_meta", {}).get("title") or graph[node]["class_type"]
            self.step = (title, data.get("value", 0.0), data.get("max", 0.0))

    def status(self) -> tuple[str, float, float]:
        """Return the node that runs, and its progress: (title, done, of)."""
        return self.step

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Return a piece of a result."""
        with open(path_within(self.output, name), "rb") as file:
            file.seek(offset)
            return file.read(size)

    def forget(self, token: str) -> None:
        """Remove what a job has written, when the driver has its files."""
        for folder in folders_of(self.output, token):
            shutil.rmtree(folder, ignore_errors=True)

    def stop(self) -> None:
        self.server.__exit__()
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.setup.shared:
            shutil.rmtree(self.output, ignore_errors=True)


def clean_environment(threads: str | None) -> None:
    """Undo what Ray and tools.cluster have set for their own processes: ComfyUI would inherit it."""
    os.environ.pop("OMP_NUM_THREADS", None)
    if threads:
        os.environ["OMP_NUM_THREADS"] = threads
    paths = os.environ.pop("PYTHONPATH", "").split(os.pathsep)
    if paths := [path for path in paths if path and Path(path) != server.ROOT]:
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)


def lacking(graph: dict, object_info: dict) -> list[str]:
    """Name the nodes and files of a graph that are not in a server's /object_info.

    A graph's input that chooses from a list of files must be in that list. Links and choices among words are not
    checked: the server does that for each job.
    """
    missing = {}
    for node in graph.values():
        known = object_info.get(node["class_type"])
        if known is None:
            missing[f"the node {node['class_type']}"] = None
            continue
        inputs = known["input"].get("required", {}) | known["input"].get("optional", {})
        for name, value in node["inputs"].items():
            choices = choices_of(inputs.get(name))
            if isinstance(value, str) and choices is not None and value not in choices:
                if value.lower().endswith(MODEL_FILE):
                    missing[f"the file {value} ({node['class_type']}.{name})"] = None
    return list(missing)


def choices_of(schema) -> list | None:
    """Return the choices of an input that has a list of them, in either of ComfyUI's two forms."""
    if not schema:
        return None
    if isinstance(schema[0], list):
        return schema[0]
    return schema[1].get("options") if schema[0] == "COMBO" and len(schema) > 1 else None


def refusal(answer: dict) -> str:
    """Return what ComfyUI says of a graph that it refuses, in one sentence."""
    sentences = [answer.get("error", {}).get("message", "")]
    for key, node in (answer.get("node_errors") or {}).items():
        for error in node.get("errors", ()):
            sentences.append(f"node {key} ({node.get('class_type')}): {error.get('message')}: {error.get('details')}")
    return "; ".join(filter(None, sentences)) or json.dumps(answer)


def without_token(file: ResultFile, token: str) -> ResultFile:
    """Return a result under its name without the job's folder."""
    return replace(file, name="/".join(part for part in file.name.split("/") if part != token))
