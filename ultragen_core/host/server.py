"""ComfyUI's server and its queue: the node that runs, the prompts that run or wait, and how a prompt ended."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from comfy_execution.graph_utils import is_link
from comfy_execution.utils import get_executing_context

POLL_SECONDS = 0.5

Graph = Mapping[str, Mapping]


@dataclass(frozen=True)
class RunningNode:
    """The node that runs.

    list_index: position in the list that ComfyUI runs the node over. graph: what is executed of the queued graph, in
    API format, {node id: {"class_type", "inputs"}}.
    """

    node_id: str
    list_index: int | None
    graph: Graph
    prompt_id: str | None = None

    @property
    def upstream(self) -> dict[str, Mapping]:
        """The part of the graph that the node depends on, itself included; all of it for a node made while running."""
        return _upstream(self.graph, [self.node_id]) if self.node_id in self.graph else dict(self.graph)


def running_node() -> RunningNode | None:
    """Ask ComfyUI which node runs now; None outside its queue. A cached SAMPLER may serve many prompts."""
    context = get_executing_context()
    graph = None if context is None else _running().get(context.prompt_id)
    return None if graph is None else RunningNode(context.node_id, context.list_index, graph, context.prompt_id)


def graphs_in_progress() -> dict[str, Graph]:
    """Return what is executed of the graphs of all prompts that run or wait, by prompt id."""
    server = prompt_server()
    return {} if server is None else _by_id(*server.prompt_queue.get_current_queue_volatile())


def when_ended(prompt_id: str, act: Callable[[bool], None]) -> None:
    """Call act(succeeded) on the server's event loop soon after a prompt has ended. It must run or wait now."""
    server = prompt_server()

    def poll() -> None:
        queues = server.prompt_queue.get_current_queue_volatile()
        if any(prompt_id == each for queue in queues for _, each, *_ in queue):
            server.loop.call_later(POLL_SECONDS, poll)
            return
        ended = server.prompt_queue.get_history(prompt_id, map_function=lambda prompt: prompt["status"])
        act((ended.get(prompt_id) or {}).get("status_str") == "success")

    server.loop.call_soon_threadsafe(poll)


def prompt_server():
    """Return ComfyUI's server; None in a program that uses ComfyUI as a library.

    Looked up, not imported: importing it would load half of the server.
    """
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def _running() -> dict[str, Graph]:
    server = prompt_server()
    return {} if server is None else _by_id(server.prompt_queue.get_current_queue_volatile()[0])


def _by_id(*queues) -> dict[str, Graph]:
    # The rest of a graph is not checked by ComfyUI: inputs may be missing, links may go in a circle.
    return {prompt_id: _upstream(graph, outputs) for queue in queues for _, prompt_id, graph, _, outputs, *_ in queue}


def _upstream(graph: Graph, node_ids: Iterable[str]) -> dict[str, Mapping]:
    """Return the part of a graph that nodes depend on, themselves included."""
    found, open_ids = {}, list(node_ids)
    while open_ids:
        node_id = open_ids.pop()
        if node_id not in found and node_id in graph:
            found[node_id] = graph[node_id]
            open_ids += [value[0] for value in found[node_id]["inputs"].values() if is_link(value)]
    return found
