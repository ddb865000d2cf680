"""A real ComfyUI server with the pack: create its folder, start and stop it, queue graphs, receive its messages."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tools.console import Trouble

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 300


class Refused(Exception):
    """ComfyUI refused a graph. `error` is its answer: {"error": {...}, "node_errors": {node id: {...}}}."""

    def __init__(self, error: dict):
        super().__init__(json.dumps(error, indent=1))
        self.error = error


class Failed(Exception):
    """A node raised while the graph ran. `error`: the server's node_id, node_type, exception_message, traceback."""

    def __init__(self, error: dict):
        what = error.get("exception_message", "").strip() or error.get("exception_type", "interrupted")
        super().__init__(f"{error.get('node_type')}: {what}")
        self.error = error


def make_base(folder: Path, extra_nodes: Path | None = None) -> Path:
    """Create a ComfyUI base directory with links to the pack and `extra_nodes`, so that no other ComfyUI is touched."""
    custom_nodes = folder / "custom_nodes"
    custom_nodes.mkdir(parents=True, exist_ok=True)
    for name, target in [("ultragen", ROOT), ("ultragen_demo", extra_nodes)]:
        link = custom_nodes / name
        if target and (not link.is_symlink() or link.resolve() != target):
            link.unlink(missing_ok=True)
            link.symlink_to(target, target_is_directory=True)
    for name in ("models", "input", "output", "temp", "user"):
        (folder / name).mkdir(exist_ok=True)
    return folder


def hold_port(wanted: int | None = None) -> socket.socket:
    """Return a socket that keeps a port from other programs while it is open. wanted: None is any free one."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        held.bind(("127.0.0.1", wanted or 0))
    except (OSError, OverflowError) as error:  # OverflowError: not in 0 to 65535
        held.close()
        reason = error.strerror if isinstance(error, OSError) else error
        raise Trouble(
            f"Port {wanted} cannot be used ({reason}). Name another with --port, or none to get a free one."
        ) from None
    return held


class Server:
    """`with Server(python, tree, base) as server:` starts ComfyUI and waits until it answers; leaving ends it."""

    def __init__(
        self,
        python: Path,
        tree: Path,
        base: Path,
        port: int | None = None,
        gpu: bool = False,
        frontend: Path | None = None,
        name: str = "server",
        folder: Path | None = None,
        through: Sequence[str] = (),
        options: Sequence[str] = (),
    ):
        """frontend: a folder to serve to browsers instead of the installed frontend. name: of the log and the
        database; servers that share a base need different ones. folder: where these are, if not in the base.
        through: a command that becomes the one that follows it. options: further ones of ComfyUI.
        """
        folder = folder or base
        self.tree, self.base = tree, base
        self._held = hold_port(port)  # or another program may get it in the seconds until ComfyUI listens
        self.port = self._held.getsockname()[1]
        if sys.platform != "linux":  # where ComfyUI could not bind it, too
            self._held.close()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / f"{name}.log"
        self.database = folder / "user" / f"{name}.db"
        self.command = [
            *through, str(python), str(tree / "main.py"), "--base-directory", str(base), "--port", str(self.port),
            "--disable-api-nodes", "--database-url", f"sqlite:///{self.database}",
        ]  # fmt: skip
        self.command += ["--front-end-root", str(frontend)] if frontend else []
        # ComfyUI's own choice for CPUs takes twice as long.
        self.command += [] if gpu else ["--cpu", "--use-pytorch-cross-attention"]
        self.command += options

    def __enter__(self) -> Server:
        # A database of another ComfyUI version may be unreadable for this one.
        self.database.unlink(missing_ok=True)
        with self.log.open("w") as log:
            # A process group of its own: Ctrl-C reaches only us, and we stop the server.
            self.process = subprocess.Popen(
                self.command, cwd=self.tree, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            self._wait_until_up()
        except BaseException:
            self.__exit__()
            raise
        finally:
            self._held.close()
        return self

    def __exit__(self, *_) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _wait_until_up(self) -> None:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise Trouble(
                    f"ComfyUI ended while starting (exit code {self.process.returncode}). {self.last_words()}"
                )
            with contextlib.suppress(OSError):
                self.get("/system_stats")
                return
            time.sleep(0.25)
        raise Trouble(f"ComfyUI did not answer within {START_SECONDS} s. {self.last_words()}")

    def last_words(self, lines: int = 20) -> str:
        tail = self.log.read_text(errors="replace").splitlines()[-lines:]
        return f"The end of its log, {self.log}:\n" + "\n".join("    " + line for line in tail)

    def get(self, path: str):
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.load(answer)

    def post(self, path: str, body: dict):
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
            return json.loads(text) if text else None

    def queue(self, graph: dict, client_id: str = "") -> str:
        """Queue a graph in API format and return its prompt id. Raises Refused with the server's validation errors."""
        try:
            return self.post("/prompt", {"prompt": graph, "client_id": client_id})["prompt_id"]
        except urllib.error.HTTPError as error:
            if error.code != 400:
                raise
            raise Refused(json.load(error)) from None

    def run(self, graph: dict, on_event: Callable[[str, dict], None] = lambda kind, data: None) -> dict:
        """Queue a graph, wait for its end, and return what the output nodes reported: {node id: ui dict}.

        on_event: gets (kind, data) of each websocket message about the graph. Raises Refused or Failed.
        """
        client_id = uuid.uuid4().hex
        with self._events(client_id) as events:
            prompt_id = self.queue(graph, client_id)
            for kind, data in events:
                if data.get("prompt_id", prompt_id) != prompt_id:
                    continue
                on_event(kind, data)
                if kind in ("execution_error", "execution_interrupted"):
                    raise Failed(data)
                # The last message, sent when the history is written.
                if kind == "executing" and data["node"] is None:
                    break
        return self.get(f"/history/{prompt_id}")[prompt_id]["outputs"]

    @contextlib.contextmanager
    def _events(self, client_id: str) -> Iterator[Iterator[tuple[str, dict]]]:
        import websocket  # setting up has only the standard library

        connection = websocket.create_connection(f"ws://127.0.0.1:{self.port}/ws?clientId={client_id}", timeout=60)
        try:
            yield self._messages(connection)
        finally:
            connection.close()

    def _messages(self, connection) -> Iterator[tuple[str, dict]]:
        import websocket

        while True:
            try:
                message = connection.recv()
            except (OSError, websocket.WebSocketException) as error:
                # A long step sends nothing for minutes. Give up only if the server has ended.
                if isinstance(error, websocket.WebSocketTimeoutException) and self.process.poll() is None:
                    continue
                raise Trouble(f"ComfyUI closed the connection ({error}). {self.last_words()}") from None
            if isinstance(message, str) and message:  # previews are binary
                decoded = json.loads(message)
                yield decoded["type"], decoded["data"]
