"""UltraGen Resume in a real server that is killed, interrupted, or given another seed."""

from __future__ import annotations

import copy
import os
import random
import re
import signal
import time
import uuid

import pytest
import torch
from helpers.save_run import rgb
from helpers.waiting import wait_until

from tools import workflow
from tools.console import Trouble
from tools.server import Failed
from tools.workflow import only
from ultragen_core.video.latents import load_latent

# More kills take half a minute each, and tools/endurance has many. Another seed kills after other steps.
KILLS = int(os.environ.get("ULTRAGEN_KILLS", "1"))
SEED = int(os.environ.get("ULTRAGEN_KILL_SEED", "7"))
STEP_COUNT, KILLED_STEP_COUNT = 10, 20  # a kill needs steps to choose from, and takes a moment
GOING_ON = re.compile(rf"UltraGen: continuing after step (\d+) of (?:{STEP_COUNT}|{KILLED_STEP_COUNT})\b")


def graph(server, seed, steps=STEP_COUNT):
    """The shipped workflow, small, with a state after every step; its output is the latent."""
    made = workflow.to_api(workflow.SHIPPED, server.get("/object_info"))
    made = workflow.make_small(made, width=160, height=96, frames=9, steps=steps, seed=seed)
    made = workflow.with_stand_ins(made)
    made[only(made, "UltraGenResume")]["inputs"]["unit"] = "steps"
    save = made[only(made, "UltraGenSaveVideo")]
    save["class_type"], save["inputs"] = "SaveLatent", {"samples": save["inputs"]["samples"]}
    return to_files(made, f"resumed/{seed}")


def video_graph(server, seed):
    """The same with a video, in a format that shows every bit of the frames."""
    made = workflow.to_api(workflow.SHIPPED, server.get("/object_info"))
    save = made[only(made, "UltraGenSaveVideo")]
    small = graph(server, seed, KILLED_STEP_COUNT)
    small[only(small, "SaveLatent")] = save
    save["inputs"] |= {"codec": "FFV1 lossless RGB", "filename_prefix": f"resumed/{seed}"}
    return small


def to_files(nodes, prefix):
    for node in nodes.values():
        if "filename_prefix" in node["inputs"] or node["class_type"] == "SaveLatent":
            node["inputs"]["filename_prefix"] = prefix
    return nodes


def undisturbed(server, nodes):
    """What the same graph makes without the node, nothing kept of earlier runs."""
    plain = to_files(copy.deepcopy(nodes), "plain/" + uuid.uuid4().hex)
    plain[only(plain, "UltraGenLoadModel")]["inputs"]["keep_gb"] = 0
    resume = plain.pop(only(plain, "UltraGenResume"))
    plain[only(plain, "SamplerCustomAdvanced")]["inputs"]["sampler"] = resume["inputs"]["sampler"]
    server.run(plain)
    return result(server, plain)


def result(server, nodes):
    """The latents and the frames of the files that a graph has made."""
    (prefix,) = (node["inputs"]["filename_prefix"] for node in nodes.values() if "filename_prefix" in node["inputs"])
    files = sorted((server.base / "output").rglob(f"{prefix}_*"))
    return [load_latent(file) if file.suffix == ".latent" else torch.from_numpy(rgb(file)) for file in files]


def assert_identical(ours, reference, count):
    assert len(ours) == len(reference) == count
    assert all(torch.equal(a, b) for a, b in zip(ours, reference, strict=True))


def went_on_after(server):
    """The steps that runs of this server have gone on from."""
    return [int(step) for step in GOING_ON.findall(server.log.read_text(errors="replace"))]


def states(server):
    return list((server.base / "output" / "ultragen_resume").glob("*"))


def left(server, count):
    """The files that are left soon after a prompt has ended."""
    wait_until(lambda: len(states(server)) == count)
    return states(server)


def results_taken(server):
    return server.log.read_text(errors="replace").count("already sampled")


def forget_outputs(server):
    """Let ComfyUI drop the outputs of nodes, which it does between two prompts only."""
    server.post("/free", {"unload_models": False, "free_memory": True})
    image = {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 0}}
    server.run({"1": image, "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}})


def after_step(nodes, step, act):
    """An on_event that calls `act` once, when sampling has reported `step` or, as reports are rare, a later one."""
    sampling, done = only(nodes, "SamplerCustomAdvanced"), []

    def on_event(kind, data):
        if kind == "progress" and data["node"] == sampling and data["value"] >= step and not done:
            done.append(act())

    return on_event


def test_killed_at_random_steps_it_resumes_to_the_identical_video(server, new_server):
    chance = random.Random(SEED)
    seeds = [1000 + SEED + number for number in range(KILLS)]
    steps = [chance.randrange(1, KILLED_STEP_COUNT - 9) for _ in seeds]
    print(f"ULTRAGEN_KILL_SEED={SEED}: killed after steps {steps}")

    def kill(running, number):
        def act():
            time.sleep(chance.uniform(0, 0.1))  # anywhere in a step, or in a write
            running.process.kill()

        nodes = video_graph(running, seeds[number])
        with pytest.raises(Trouble, match="closed the connection"):
            running.run(nodes, after_step(nodes, steps[number], act))
        assert running.process.wait() == -signal.SIGKILL

    with new_server() as running:
        kill(running, 0)
    for number, seed in enumerate(seeds):
        assert len(states(running)) in (1, 2)  # a part, when it was killed in a write
        with new_server(running.base) as running:
            nodes = video_graph(running, seed)
            running.run(nodes)
            (went_on,) = went_on_after(running)
            assert went_on >= steps[number]
            assert_identical(result(running, nodes), undisturbed(server, nodes), count=2)
            left(running, 0)
            if number + 1 < KILLS:
                kill(running, number + 1)


def test_interrupted_it_goes_on_and_with_another_seed_it_starts_anew(server):
    """ComfyUI has cached the SAMPLER by then: it must know the seed of the prompt that runs now."""
    first, second = (graph(server, number * 1000 + SEED) for number in (5, 6))
    before = len(went_on_after(server))
    with pytest.raises(Failed, match="interrupted"):
        server.run(first, after_step(first, 2, lambda: server.post("/interrupt", {})))
    kept = left(server, 1)
    server.run(second)
    assert "UltraGen: starting over, because this changed since the state after step" in server.log.read_text()
    assert len(went_on_after(server)) == before
    assert left(server, 1) == kept
    server.run(first)
    assert len(went_on_after(server)) == before + 1 and left(server, 0) == []
    for nodes in (first, second):
        assert_identical(result(server, nodes), undisturbed(server, nodes), count=1)


def test_done_once_it_is_not_sampled_again(server):
    """Another file name is no reason to sample again, with the node as without it."""
    nodes, sampled = graph(server, 7000 + SEED), []
    for prefix in ("resumed/first", "resumed/second"):
        server.run(to_files(nodes, prefix), after_step(nodes, 1, lambda prefix=prefix: sampled.append(prefix)))
    assert sampled == ["resumed/first"]


def test_other_samplers_are_refused_before_sampling(server):
    nodes, begun = graph(server, 8000 + SEED), []
    nodes[only(nodes, "KSamplerSelect")]["inputs"]["sampler_name"] = "dpmpp_2m"
    with pytest.raises(Failed, match="UltraGenResume: .*got dpmpp_2m. Choose euler"):
        server.run(nodes, after_step(nodes, 1, lambda: begun.append(True)))
    assert not begun


def test_each_prompt_of_a_list_has_a_state_of_its_own(server):
    """Cut off in the second run of a list, the first is not sampled again and the second continues, although another
    line of the list has changed.
    """
    nodes, reports = graph(server, 9000 + SEED), []
    nodes["prompts"] = {"class_type": "UltraGenPrompts", "inputs": {"text": "one lake\ntwo hills", "file": "none"}}
    nodes[nodes[only(nodes, "CFGGuider")]["inputs"]["positive"][0]]["inputs"]["text"] = ["prompts", 0]

    def in_the_second(kind, data):
        if kind == "progress" and data["node"] == only(nodes, "SamplerCustomAdvanced"):
            reports.append(data["value"])
            if reports[-2:] != sorted(reports[-2:]):
                server.post("/interrupt", {})

    before, taken = len(went_on_after(server)), results_taken(server)
    with pytest.raises(Failed, match="interrupted"):
        server.run(nodes, in_the_second)
    assert len(states(server)) == 2  # of the first the result, of the second a state
    nodes["prompts"]["inputs"]["text"] = "three seas\none lake\ntwo hills"
    server.run(nodes)
    assert len(went_on_after(server)) == before + 1 and results_taken(server) == taken + 1
    left(server, 0)
    assert_identical(result(server, nodes), undisturbed(server, nodes), count=3)


def test_two_stages_of_one_graph_with_any_sampler(server):
    """Stage 1 has finished when stage 2 is interrupted: it is not sampled again, without UltraGen Resume as well."""
    nodes = graph(server, 10000 + SEED)
    sampling, guider = only(nodes, "SamplerCustomAdvanced"), only(nodes, "CFGGuider")
    nodes[sampling]["inputs"]["sampler"] = nodes.pop(only(nodes, "UltraGenResume"))["inputs"]["sampler"]
    nodes[only(nodes, "KSamplerSelect")]["inputs"]["sampler_name"] = "dpmpp_2m"
    stages = {name: nodes[guider]["inputs"][name] for name in ("model", "positive", "negative")}
    nodes["second"] = {
        "class_type": "KSampler",
        "inputs": stages
        | {"latent_image": [sampling, 0], "seed": 5, "steps": 4, "cfg": 1.0, "denoise": 0.5}
        | {"sampler_name": "uni_pc", "scheduler": "simple"},
    }
    nodes[only(nodes, "SaveLatent")]["inputs"]["samples"] = ["second", 0]
    sampled = []

    def note(kind, data):
        if kind == "progress" and (data["node"], data["value"]) not in sampled:
            sampled.append((data["node"], data["value"]))
            if data["node"] == "second" and interrupting:
                server.post("/interrupt", {})

    interrupting = True
    with pytest.raises(Failed, match="interrupted"):
        server.run(nodes, note)
    interrupting, taken = False, results_taken(server)
    forget_outputs(server)
    server.run(nodes, note)
    assert results_taken(server) == taken + 1
    left(server, 0)


def test_nodes_that_no_output_needs_harm_no_other_prompt(server):
    """ComfyUI does not check them. This prompt ends while one with such nodes runs, and asks whose states are whose."""
    first, second = graph(server, 11000 + SEED, steps=2), graph(server, 12000 + SEED)
    loose = {"a": {"sampler": ["b", 0]}, "b": {"sampler": ["a", 0]}}
    second |= {name: {"class_type": "UltraGenResume", "inputs": inputs} for name, inputs in loose.items()}
    second["c"] = {"class_type": "UltraGenPrompts", "inputs": {}}
    server.run(first, after_step(first, 1, lambda: server.post("/prompt", {"prompt": second})))
    server.run(second)
    left(server, 0)
    assert len(result(server, second)) == 1 and "Exception in callback" not in server.log.read_text()
