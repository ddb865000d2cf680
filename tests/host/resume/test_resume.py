"""Interrupted sampling: stopped anywhere and resumed, it gives the result of an uninterrupted run, bit for bit."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import comfy.model_management
import comfy.sample
import comfy.samplers
import execution
import pytest
import server as comfyui
import torch
from comfy.patcher_extension import WrappersMP
from helpers.support import seeded

from ultragen_core.host.attention.load import load_model
from ultragen_core.host.attention.patch import Settings, apply
from ultragen_core.host.resume.stepwise import MINUTES, STEPS, ResumeOptions, Stepwise, resumable
from ultragen_core.host.server import RunningNode, graphs_in_progress
from ultragen_core.sampling import flow_sigmas
from ultragen_core.storage.states import StateFolder

STEP_COUNT = 5
SHAPE = (1, 16, 2, 8, 8)
SIGMAS = flow_sigmas(STEP_COUNT, 5.0)
NAMES = comfy.samplers.SAMPLER_NAMES
GRAPH = {
    "1": {"class_type": "UltraGenLoadModel", "inputs": {"model": "wan.safetensors"}},
    "2": {"class_type": "RandomNoise", "inputs": {"noise_seed": 7}},
    "3": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
    "4": {"class_type": "UltraGenResume", "inputs": {"sampler": ["3", 0], "every": 1, "unit": "steps"}},
    "5": {"class_type": "SamplerCustomAdvanced", "inputs": {"noise": ["2", 0], "sampler": ["4", 0], "model": ["1", 0]}},
    "6": {"class_type": "UltraGenSaveVideo", "inputs": {"samples": ["5", 0], "fps": 15.0}},
}
NODE = RunningNode("5", 0, GRAPH)


@pytest.fixture(scope="module")
def model(tiny_path):
    return load_model(tiny_path, "auto", {"dtype": torch.float32})


@pytest.fixture(scope="module")
def short(tiny_path):
    """One dense block: for what samplers alone decide."""
    short = load_model(tiny_path, "dense", {"dtype": torch.float32})
    del short.model.diffusion_model.blocks[1:]
    return short


@pytest.fixture
def states(tmp_path):
    return StateFolder(tmp_path / "states")


@pytest.fixture
def kept(tmp_path):
    """The names of the files of states."""
    return lambda: sorted(path.name for path in (tmp_path / "states").glob("*"))


def resume_options(states, every=1, unit=STEPS, find_files=lambda name: []):
    return ResumeOptions(states, every, unit, find_files)


def resuming(states, name="euler", node=NODE, **more):
    sampler = comfy.samplers.sampler_object(name) if isinstance(name, str) else name
    return resumable(sampler, resume_options(states, **more), lambda: node)


def run(model, sampler, callback=None, seed=3, sigmas=SIGMAS, shape=SHAPE, latent=None, mask=None, noise=None, word=1):
    """ComfyUI's custom sampling with cfg 3."""
    latent = torch.zeros(shape) if latent is None else latent
    noise = comfy.sample.prepare_noise(latent, seed) if noise is None else noise
    context = seeded(1, 12, 4096, seed=word)
    conds = [[context, {}]], [[torch.zeros_like(context), {}]]
    return comfy.sample.sample_custom(
        model, noise, 3.0, sampler, sigmas, *conds, latent, mask, callback, disable_pbar=True, seed=seed
    )


class Interruption:
    """A callback that notes the steps it hears of, and interrupts as ComfyUI's progress hook does, after `steps`."""

    def __init__(self, steps=STEP_COUNT):
        self.steps, self.heard = steps, []

    def __call__(self, step, x0, x, total_steps):
        self.heard.append((step + 1, total_steps))
        if step + 1 == self.steps < total_steps:
            raise comfy.model_management.InterruptProcessingException()


def cut_off(model, sampler, steps, **more):
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(model, sampler, Interruption(steps), **more)


def accepted(name):
    try:
        resumable(comfy.samplers.sampler_object(name), None)
    except ValueError:
        return False
    return True


@pytest.mark.filterwarnings("ignore:Should have")  # of Brownian trees, which are refused
@pytest.mark.parametrize("name", NAMES)
def test_the_samplers_accepted_are_those_that_can_be_stepped(short, states, name):
    """Step by step is the same as in one go, or the sampler is refused: there is no third kind."""
    sampler = comfy.samplers.sampler_object(name)
    if accepted(name):
        stepped = resuming(states, name)
    else:
        stepwise = Stepwise(sampler.sampler_function, False, resume_options(states), lambda: NODE)
        stepped = comfy.samplers.KSAMPLER(stepwise, sampler.extra_options, sampler.inpaint_options)
    try:
        same = torch.equal(run(short, stepped), run(short, sampler))
    except (AttributeError, IndexError, TypeError, ValueError):  # it cannot even be called so
        same = False
    assert same == accepted(name)


@pytest.mark.parametrize("name", [name for name in NAMES if accepted(name)])
def test_cut_off_twice_it_ends_bit_identical(model, states, kept, name):
    undisturbed = run(model, comfy.samplers.sampler_object(name))
    sampler = resuming(states, name)
    cut_off(model, sampler, 1)
    cut_off(model, sampler, 3)
    assert len(kept()) == 1
    rest = Interruption()
    assert torch.equal(run(model, sampler, rest), undisturbed)
    assert rest.heard == [(4, 5), (5, 5)]
    assert len(kept()) == 1


@pytest.mark.parametrize(
    "case",
    [
        {"latent": seeded(*SHAPE, seed=5), "sigmas": SIGMAS[2:]},
        {"latent": seeded(*SHAPE, seed=5), "mask": (seeded(1, 1, 2, 8, 8, seed=6) > 0).float()},
        {"latent": seeded(*SHAPE, seed=5), "noise": torch.zeros(SHAPE)},
        {"shape": (2, *SHAPE[1:])},
    ],
    ids=["denoise", "inpaint", "no noise", "batch"],
)
@pytest.mark.parametrize("name", ["euler", "ddim", "euler_ancestral"])
def test_other_ways_to_sample(model, states, name, case):
    undisturbed = run(model, comfy.samplers.sampler_object(name), **case)
    sampler = resuming(states, name)
    cut_off(model, sampler, 2, **case)
    rest = Interruption()
    assert torch.equal(run(model, sampler, rest, **case), undisturbed)
    assert rest.heard[0][0] == 3


def test_sampling_back_to_noise(model, states):
    case = {"latent": seeded(*SHAPE, seed=5), "noise": torch.zeros(SHAPE), "sigmas": SIGMAS.flip(0).clamp(min=1e-4)}
    sampler = resuming(states)
    cut_off(model, sampler, 2, **case)
    assert torch.equal(run(model, sampler, **case), run(model, comfy.samplers.sampler_object("euler"), **case))


def test_out_of_memory_inside_a_step_loses_that_step_alone(model, states):
    """A state is due in an hour; the steps that were done are kept all the same."""
    evaluated = []

    def failing(executor, x, t, *args, **kwargs):
        evaluated.append(t.max().item())
        if len(evaluated) == 4:
            raise comfy.model_management.OOM_EXCEPTION("out of memory")
        return executor(x, t, *args, **kwargs)

    # Bounded memory would try the evaluation again, with fewer tokens at a time.
    patched = apply(model, Settings(bounded_memory=False))
    patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "failing", failing)
    sampler = resuming(states, every=60, unit=MINUTES)
    with pytest.raises(comfy.model_management.OOM_EXCEPTION):
        run(patched, sampler)
    assert torch.equal(run(patched, sampler), run(model, comfy.samplers.sampler_object("euler")))
    assert evaluated == pytest.approx([*SIGMAS[:4].tolist(), *SIGMAS[3:5].tolist()])


def test_once_more_it_takes_the_last_step_alone(model, states):
    """A finished run is kept until its prompt has succeeded; the last step makes what its callback hands out."""
    sampler = resuming(states, every=60, unit=MINUTES)
    first, again = run(model, sampler), Interruption()
    assert torch.equal(run(model, sampler, again), first) and again.heard == [(5, 5)]


def test_interrupted_in_its_last_step_it_takes_that_step_again(model, states):
    """The callback of the last step makes the sampling node's second output."""

    def interrupt(step, x0, x, total_steps):
        if step + 1 == total_steps:
            raise comfy.model_management.InterruptProcessingException()

    sampler = resuming(states)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(model, sampler, interrupt)
    rest = Interruption()
    assert torch.equal(run(model, sampler, rest), run(model, comfy.samplers.sampler_object("euler")))
    assert rest.heard == [(5, 5)]


@pytest.mark.parametrize(("every", "unit", "written"), [(1, STEPS, 4), (3, STEPS, 2), (1, MINUTES, 1)])
def test_states_are_written_when_they_are_due_and_at_the_end(model, states, monkeypatch, every, unit, written):
    saved = []
    monkeypatch.setattr(states, "save", lambda run, state: saved.append(state.step))
    run(model, resuming(states, every=every, unit=unit))
    assert len(saved) == written and saved[-1] == STEP_COUNT - 1 and saved[0] == (every if unit == STEPS else 4)


def changed(node_id, **inputs):
    return {**GRAPH, node_id: {**GRAPH[node_id], "inputs": GRAPH[node_id]["inputs"] | inputs}}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 4}, "seed, noise"),
        ({"sigmas": flow_sigmas(STEP_COUNT, 3.0)}, "noise levels"),
        ({"shape": (1, 16, 2, 8, 10)}, "size, noise, latent"),
        ({"latent": seeded(*SHAPE, seed=5)}, "latent"),
        ({"word": 2}, "conditioning"),
        ({"node": RunningNode("5", 0, changed("1", model="other.safetensors"))}, "graph"),
        ({"find_files": lambda name: [Path(__file__)] if name == "wan.safetensors" else []}, "model files"),
        ({"node": RunningNode("5", 1, GRAPH)}, None),
    ],
    ids=["seed", "sigmas", "size", "latent", "prompt", "graph", "model file", "place in a list"],
)
def test_another_run_starts_anew_and_says_what_changed(model, states, kept, caplog, change, named):
    caplog.set_level("INFO")
    cut_off(model, resuming(states), 2)
    settings = {key: value for key, value in change.items() if key in ("node", "find_files")}
    inputs = {key: value for key, value in change.items() if key not in settings}
    first = Interruption(1)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(model, resuming(states, **settings), first, **inputs)
    assert first.heard == [(1, STEP_COUNT)] and len(kept()) == 2
    message = f"starting over, because this changed since the state after step 2: {named}."
    assert (message in caplog.text) == (named is not None)


@pytest.mark.parametrize(
    "graph",
    [changed("6", fps=24.0), changed("4", every=9, unit="minutes"), GRAPH | {"9": GRAPH["3"]}],
    ids=["downstream", "how often", "a node apart"],
)
def test_what_the_video_does_not_depend_on_may_change(model, states, caplog, graph):
    caplog.set_level("INFO")
    cut_off(model, resuming(states), 2)
    run(model, resuming(states, node=RunningNode("5", 0, graph)))
    assert "continuing after step 2 of 5" in caplog.text


def test_a_node_made_while_running_hangs_on_the_whole_graph():
    assert set(NODE.upstream) == {"1", "2", "3", "4", "5"}
    assert RunningNode("5.0.0.1", 0, GRAPH).upstream == GRAPH


def test_a_loop_in_the_graph_and_a_link_to_nothing_end():
    """Newer versions of ComfyUI have nodes that loop."""
    graph = GRAPH | {"1": {"class_type": "Loop", "inputs": {"last": ["5", 0], "gone": ["99", 0]}}}
    assert set(RunningNode("5", 0, graph).upstream) == {"1", "2", "3", "4", "5"}


def test_only_what_is_executed_of_a_queued_graph_counts(monkeypatch):
    """ComfyUI checks no other nodes: links may go in a circle, which digests of them would follow for ever."""
    loose = {
        "a": {"class_type": "UltraGenResume", "inputs": {"sampler": ["b", 0]}},
        "b": {"class_type": "UltraGenResume", "inputs": {"sampler": ["a", 0]}},
        "c": {"class_type": "UltraGenPrompts", "inputs": {}},
        "d": {"class_type": "UltraGenPrompts"},
    }
    queue = execution.PromptQueue(SimpleNamespace(queue_updated=lambda: None))
    queue.put((0, "an id", GRAPH | loose, {}, ["6"], {}))
    monkeypatch.setattr(comfyui.PromptServer, "instance", SimpleNamespace(prompt_queue=queue), raising=False)
    assert graphs_in_progress() == {"an id": GRAPH}


def test_nodes_that_carry_more_than_the_latent_are_named(model, states, caplog):
    graph = changed("5", model=["7", 0]) | {"7": {"class_type": "EasyCache", "inputs": {"model": ["1", 0]}}}
    sampler = resuming(states, node=RunningNode("5", 0, graph))
    cut_off(model, sampler, 2)
    assert "EasyCache" not in caplog.text
    run(model, sampler)
    assert "EasyCache starts empty at step 3" in caplog.text


def test_a_run_that_was_not_queued_is_sampled_without_a_state(model, states, kept, caplog):
    sampler = resumable(comfy.samplers.sampler_object("euler"), resume_options(states))
    assert torch.equal(run(model, sampler), run(model, comfy.samplers.sampler_object("euler")))
    assert kept() == [] and "no state is kept" in caplog.text


def test_a_disk_that_fails_costs_the_state_and_not_the_run(model, tmp_path, caplog):
    (tmp_path / "states").write_text("a file where the folder should be")
    sampler = resuming(StateFolder(tmp_path / "states"))
    assert torch.equal(run(model, sampler), run(model, comfy.samplers.sampler_object("euler")))
    assert caplog.text.count("could not be written") == STEP_COUNT - 1


@pytest.mark.parametrize("name", ["dpmpp_2m", "uni_pc", "dpmpp_sde", "heunpp2", "dpm_adaptive"])
def test_other_samplers_are_refused_by_name(states, name):
    sampler = comfy.samplers.sampler_object(name)
    with pytest.raises(ValueError, match=r"needs a single-step sampler, .* latent, got .*\. Choose euler, "):
        resuming(states, sampler)


def test_what_is_no_sampler_function_of_comfyui_is_refused(states):
    class Own(comfy.samplers.Sampler):
        pass

    for sampler, name in [(Own(), "Own"), (resuming(states), "Stepwise")]:
        with pytest.raises(ValueError, match=f"got {name}. Choose"):
            resuming(states, sampler)


@pytest.mark.parametrize(
    ("name", "options", "fits"),
    [
        ("euler", {"s_churn": 0.5}, False),
        ("euler", {"s_churn": 0.0}, True),
        ("lcm", {"s_noise": 0.9, "s_noise_end": 0.5}, False),
        ("lcm", {"s_noise": 0.9, "s_noise_end": 0.9}, True),
        ("euler_ancestral", {"noise_sampler": lambda sigma, sigma_next: 0.0}, False),
        ("euler_ancestral", {"eta": 0.5, "s_noise": 0.9}, True),
    ],
)
def test_options_that_bind_a_step_to_the_whole_run_are_refused(states, name, options, fits):
    sampler = comfy.samplers.ksampler(name, options)
    if fits:
        assert resuming(states, sampler).extra_options == options
    else:
        with pytest.raises(ValueError, match="each step would depend on the whole run"):
            resuming(states, sampler)
