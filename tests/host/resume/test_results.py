"""A finished sampling is not sampled again until its prompt has succeeded."""

from __future__ import annotations

import threading
import time

import comfy.model_management
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from helpers.support import seeded

import ultragen_core.host.resume.results as results_module
from ultragen_core.host.attention.load import load_model
from ultragen_core.host.resume.graph_digest import GraphDigest
from ultragen_core.host.resume.prompt_files import PromptFiles
from ultragen_core.host.resume.results import SavedResults, save_results_
from ultragen_core.host.resume.run_file import RESULTS_KEY, RunFile
from ultragen_core.host.resume.stepwise import MINUTES, ResumeOptions, resumable
from ultragen_core.host.server import RunningNode
from ultragen_core.sampling import flow_sigmas
from ultragen_core.storage.states import GRAPH_FAMILY, State, StateFolder

SHAPE = (1, 16, 2, 8, 8)
STEPS = 3
GRAPH = {
    "1": {"class_type": "UltraGenLoadModel", "inputs": {"checkpoint": "wan.safetensors"}},
    "5": {"class_type": "KSampler", "inputs": {"model": ["1", 0]}},
}
LIMIT = 10**9


class Sampling:
    """A patched model with results kept in a folder of the test; counts its evaluations."""

    def __init__(self, path, folder, limit=LIMIT):
        self.path, self.folder = folder, StateFolder(folder)
        self.node, self.evaluations = RunningNode("5", 0, GRAPH), 0
        self.model = load_model(path, "auto", {"dtype": torch.float32})
        results = SavedResults(limit, lambda: self.folder, lambda name: [], lambda: self.node)
        self.model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, RESULTS_KEY, results.outer_sample)
        self.model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "counted", self.counted)

    def counted(self, executor, *args, **kwargs):
        self.evaluations += 1
        return executor(*args, **kwargs)

    def run(self, name="euler", seed=3, cfg=1.0, word=1, sigmas=None, heard=None):
        """(samples, x0 of the last step, whether anything was evaluated), through ComfyUI's custom sampling."""
        self.evaluations, shown = 0, {}

        def callback(step, x0, x, total_steps):
            shown["x0"] = x0
            (heard if heard is not None else []).append((step, total_steps))

        latent, context = torch.zeros(SHAPE), seeded(1, 12, 4096, seed=word)
        conds = [[context, {}]], [[torch.zeros_like(context), {}]]
        sigmas = flow_sigmas(STEPS, 5.0) if sigmas is None else sigmas
        sampler = comfy.samplers.sampler_object(name) if isinstance(name, str) else name
        noise = comfy.sample.prepare_noise(latent, seed)
        made = comfy.sample.sample_custom(
            self.model, noise, cfg, sampler, sigmas, *conds, latent, None, callback, disable_pbar=True, seed=seed
        )
        return made, shown.get("x0"), self.evaluations > 0


@pytest.fixture
def sampling(tiny_path, tmp_path):
    return Sampling(tiny_path, tmp_path / "kept")


@pytest.mark.filterwarnings("ignore:Should have")
@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "uni_pc", "res_multistep", "dpmpp_sde", "ddim"])
def test_an_equal_run_takes_the_result_bit_for_bit(sampling, name):
    """Multistep and stochastic samplers too. The callback, which makes nodes' second output, hears of the last step."""
    made, x0, _ = sampling.run(name)
    heard = []
    again, x0_again, evaluated = sampling.run(name, heard=heard)
    assert not evaluated and torch.equal(again, made) and torch.equal(x0_again, x0)
    assert heard == [(STEPS - 1, STEPS)]


@pytest.mark.parametrize(
    "change",
    [{"seed": 4}, {"cfg": 2.0}, {"word": 2}, {"name": "heun"}, {"sigmas": flow_sigmas(STEPS, 3.0)}],
    ids=["seed", "cfg", "prompt", "sampler", "sigmas"],
)
def test_another_run_is_sampled(sampling, change):
    sampling.run()
    assert sampling.run(**change)[2]
    assert not sampling.run()[2]


def test_the_graph_counts_and_the_place_does_not(sampling):
    sampling.run()
    sampling.node = RunningNode("9", 0, {"1": GRAPH["1"], "9": GRAPH["5"]})
    assert not sampling.run()[2]
    sampling.node = RunningNode("5", 0, GRAPH | {"1": {"class_type": "UltraGenLoadModel", "inputs": {}}})
    assert sampling.run()[2]


def test_the_strength_of_a_lora_counts_whatever_the_graph_says(sampling):
    """Another pack's node may draw it anew in each run."""
    plain, key = sampling.model, "diffusion_model.blocks.0.self_attn.q.weight"
    for strength in (0.5, 1.0, 0.5):
        sampling.model = plain.clone()
        sampling.model.add_patches({key: ("diff", (torch.ones(256, 256),))}, strength)
        evaluated = sampling.run()[2]
    assert not evaluated
    sampling.model = plain
    assert sampling.run()[2]


def test_resume_changes_no_identity(sampling):
    states = StateFolder(sampling.path / "states")
    made, _, _ = sampling.run()
    for every in (1, 5):
        options = ResumeOptions(states, every, "steps", lambda name: [])
        stepwise = resumable(comfy.samplers.sampler_object("euler"), options, lambda: sampling.node)
        again, _, evaluated = sampling.run(stepwise)
        assert not evaluated and torch.equal(again, made)


@pytest.mark.parametrize(
    ("limit", "written"), [(LIMIT, []), (0, [STEPS - 1])], ids=["result saved", "result not saved"]
)
def test_the_last_state_is_not_written_where_the_result_is(tiny_path, tmp_path, monkeypatch, limit, written):
    """Both are as large as the latent, and the result removes the state."""
    sampling, states = Sampling(tiny_path, tmp_path / "results", limit), StateFolder(tmp_path / "states")
    steps = []
    monkeypatch.setattr(states, "save", lambda fingerprint, state: steps.append(state.step))
    options = ResumeOptions(states, 60, MINUTES, lambda name: [])
    sampling.run(resumable(comfy.samplers.sampler_object("euler"), options, lambda: sampling.node))
    assert steps == written


def test_what_cannot_be_compared_is_sampled_all_the_same(sampling, monkeypatch, caplog):
    def broken(*_):
        raise RecursionError("maximum recursion depth exceeded")

    monkeypatch.setattr(results_module, "guider_values", broken)
    assert sampling.run()[2] and "this sampling will not be kept (RecursionError" in caplog.text


def test_a_result_that_cannot_be_written_leaves_the_states(sampling, monkeypatch, caplog):
    removed = []
    monkeypatch.setattr(RunFile, "remove_states", lambda file: removed.append(file))
    monkeypatch.setattr(StateFolder, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    sampling.run()
    assert not removed and "could not be written" in caplog.text


def test_what_was_cut_off_is_not_a_result(sampling):
    def interrupt(step, x0, x, total_steps):
        raise comfy.model_management.InterruptProcessingException()

    class Interrupting(list):
        def append(self, _):
            interrupt(0, 0, 0, 0)

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sampling.run(heard=Interrupting())
    assert sampling.run()[2]


def test_without_a_queue_or_a_limit_nothing_is_kept(tiny_path, tmp_path):
    unqueued = Sampling(tiny_path, tmp_path / "kept")
    unqueued.node = None
    unqueued.run()
    Sampling(tiny_path, tmp_path / "kept", limit=0).run()
    assert not (tmp_path / "kept").exists()


def test_the_last_node_sets_the_limit(tiny_path):
    """keep_gb of UltraGen Apply replaces that of the loader."""
    model = save_results_(save_results_(load_model(tiny_path), 3).clone(), 5)
    (wrapper,) = model.get_wrappers(WrappersMP.OUTER_SAMPLE, RESULTS_KEY)
    assert wrapper.__self__.limit == 5 * 10**9


def test_values_that_are_not_finite_are_not_kept(tmp_path, caplog):
    file = RunFile(StateFolder(tmp_path), {"node": "5 0", GRAPH_FAMILY: "f", "graph": "a"}, None, LIMIT)
    file.save(State(torch.zeros(2), 3))
    file.save(State(torch.tensor([0.0, float("nan")]), 4))
    assert file.load(torch.zeros(2), range(9)).step == 3
    assert "after step 4 is not finite" in caplog.text


@pytest.mark.parametrize(
    "state",
    [State(torch.zeros(3), 3), State(torch.zeros(2).half(), 3), State(torch.zeros(2), 9), State(torch.zeros(2), -1)],
    ids=["shape", "dtype", "beyond the last step", "before the first"],
)
def test_what_another_run_has_left_is_not_taken(tmp_path, state, caplog):
    folder, run = StateFolder(tmp_path), {"node": "5 0", GRAPH_FAMILY: "f", "graph": "a"}
    folder.save(run, state)
    assert RunFile(folder, run, None, LIMIT).load(torch.zeros(2), range(9)) is None
    assert "does not belong to this run" in caplog.text


class Process:
    """A process that has written nothing yet, with a queue and prompts that end when the test says so."""

    def __init__(self, folder):
        self.folder, self.graphs, self.endings = StateFolder(folder), {}, {}
        self.restart()

    def restart(self):
        self._prompts = PromptFiles(lambda: self.graphs, lambda prompt_id, act: self.endings.update({prompt_id: act}))

    def file(self, fingerprint, prompt, limit=LIMIT):
        return RunFile(self.folder, fingerprint, prompt, limit, self._prompts)


@pytest.fixture
def process(tmp_path):
    return Process(tmp_path)


def run_of(number, family="f"):
    return {"node": "result 5 0", GRAPH_FAMILY: family, "graph": str(number)}


def saved(folder, number):
    return folder.load(run_of(number)) is not None


def test_a_prompt_that_succeeds_takes_its_files_along_and_one_that_fails_leaves_them(process):
    folder, endings = process.folder, process.endings
    for number, prompt in enumerate(("good", "good", "bad")):
        process.file(run_of(number), prompt).save(State(torch.zeros(2), 3))
    # Taken from an earlier prompt: it belongs to this one now.
    folder.save(run_of(3), State(torch.zeros(2), 3))
    assert process.file(run_of(3), "good").load(torch.zeros(2), range(9))
    endings["bad"](False)
    endings["good"](True)
    assert [saved(folder, number) for number in range(4)] == [False, False, True, False]


def test_what_another_prompt_has_or_waits_for_stays(process):
    folder, graphs, endings = process.folder, process.graphs, process.endings
    family = GraphDigest(GRAPH, None).of("5")
    process.file(run_of(0), "first").save(State(torch.zeros(2), 3))
    process.file(run_of(0), "second").load(torch.zeros(2), range(9))
    process.file(run_of(1, family), "first").save(State(torch.zeros(2), 3))
    graphs["waits"] = GRAPH
    endings["first"](True)
    assert saved(folder, 0) and folder.load(run_of(1, family))
    graphs.clear()
    endings["second"](True)
    endings["waits"](True)
    assert not saved(folder, 0) and folder.load(run_of(1, family)) is None


def test_a_result_takes_the_place_of_the_states_that_led_to_it(process):
    folder = process.folder
    for number, place in enumerate(("state 5 0", "state 5 1", "result 5 0")):
        process.file(run_of(number) | {"node": place}, "prompt").save(State(torch.zeros(2), 3))
    process.file(run_of(2), "prompt").remove_states()
    assert [saved(folder, number) for number in range(3)] == [False, True, True]


def test_a_prompt_ends_while_another_writes_a_state(process):
    """ComfyUI ends prompts in the thread of its server, and samples in another."""

    class Graphs(dict):
        def __iter__(self):
            process.graphs = {}
            server.start()
            server.join(timeout=0.2)
            return super().__iter__()

    def save(number, prompt):
        process.file(run_of(number), prompt, limit=0).save(State(torch.zeros(2), 3))

    save(0, "failed")
    process.endings["failed"](False)
    process.graphs = {"first": GRAPH}
    save(1, "first")
    save(2, "failed")
    process.endings["failed"](False)
    process.graphs = Graphs()
    server = threading.Thread(target=process.endings["first"], args=(True,))
    save(3, "second")
    server.join()
    assert [saved(process.folder, number) for number in range(4)] == [False, False, False, True]


def test_the_limit_spares_what_runs_waits_or_may_belong_to_another_server(process, monkeypatch):
    folder, graphs, endings = process.folder, process.graphs, process.endings
    day = 24 * 3600
    now = time.time()

    def save_at(seconds_ago, number, prompt=None, family="f"):
        monkeypatch.setattr(time, "time", lambda: now - seconds_ago)
        file = process.file(run_of(number, family), prompt)
        file.save(State(torch.zeros(2), 3))

    save_at(900, 0, "failed")
    endings["failed"](False)
    process.restart()
    save_at(800, 1, "runs")
    graphs["waits"] = GRAPH
    save_at(700, 2, "failed", GraphDigest(GRAPH, None).of("5"))
    endings["failed"](False)
    save_at(600, 3, "failed")
    endings["failed"](False)
    monkeypatch.setattr(time, "time", lambda: now - 2 * day)
    folder.save(run_of(4), State(torch.zeros(2), 3))  # of another process, old
    monkeypatch.setattr(time, "time", lambda: now)
    folder.save(run_of(5), State(torch.zeros(2), 3))  # of another process, fresh
    process.file(run_of(6), "runs", limit=0).save(State(torch.zeros(2), 3))
    assert [saved(folder, number) for number in range(7)] == [True, True, True, False, False, True, True]
