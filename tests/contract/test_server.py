"""ComfyUI's server: its queue, the node that runs, routes, and the queued graph."""

from __future__ import annotations

import inspect
import re
from types import SimpleNamespace

import execution
import pytest
import server as comfyui
from comfy_execution.graph_utils import is_link
from comfy_execution.utils import CurrentNodeContext, get_executing_context
from helpers.signatures import parameters

PROMPT = (0, "an id", {"1": {"class_type": "A", "inputs": {}}}, {}, ["1"], {})


@pytest.fixture
def queue():
    return execution.PromptQueue(SimpleNamespace(queue_updated=lambda: None))


def test_what_the_queue_is_given():
    """The pack reads id, prompt and outputs."""
    put = re.search(r"prompt_queue\.put\(\((.*?)\)\)", inspect.getsource(comfyui))
    assert put[1].split(", ") == ["number", "prompt_id", "prompt", "extra_data", "outputs_to_execute", "sensitive"]


def test_the_queue_tells_what_runs_and_what_waits(queue):
    queue.put(PROMPT)
    assert queue.get_current_queue_volatile() == ([], [PROMPT])
    queue.get()
    assert queue.get_current_queue_volatile() == ([PROMPT], [])


def test_the_history_tells_whether_a_prompt_has_succeeded(queue):
    queue.put(PROMPT)
    _, number = queue.get()
    queue.task_done(number, {}, execution.PromptQueue.ExecutionStatus("success", True, []))
    ended = queue.get_history("an id", map_function=lambda prompt: prompt["status"])
    assert ended["an id"]["status_str"] == "success"
    assert queue.get_history("another id", map_function=lambda prompt: prompt["status"]) == {}


def test_the_node_that_runs_is_known_by_prompt_node_and_list_index():
    assert get_executing_context() is None
    with CurrentNodeContext("an id", "7", 2):
        context = get_executing_context()
    assert (context.prompt_id, context.node_id, context.list_index) == ("an id", "7", 2)


def test_a_link_is_a_node_id_and_an_output():
    assert is_link(["7", 0]) and not is_link("7") and not is_link(["7", "0", 1]) and not is_link([7, 0])


def test_names_of_the_servers_parts():
    source = inspect.getsource(comfyui.PromptServer.__init__)
    missing = [
        name
        for name in ("instance", "prompt_queue", "loop", "routes")
        if f"PromptServer.{name} = " not in source and f"self.{name} = " not in source
    ]
    assert not missing
    assert parameters(comfyui.PromptServer.send_progress_text)[:2] == ["text", "node_id"]
