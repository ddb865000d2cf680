"""Jobs: where a list's values go in a graph, and which jobs are the same."""

from __future__ import annotations

import copy
import json

import pytest
from conftest import ROOT

from tools.cluster.jobs import Workflow, make_jobs, read_graph
from tools.cluster.targets import Target
from tools.console import Trouble

SHIPPED = ROOT / "docs" / "headless" / "ultragen_t2v_1080p.json"


@pytest.fixture
def graph():
    return read_graph(SHIPPED)


@pytest.fixture
def make(tmp_path, graph):
    """`make(text, graph, name, settings)`: the workflow and the jobs of a list."""

    def made(text, graph=graph, name="prompts.csv", settings=()):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return make_jobs(graph, tmp_path / name, settings)

    return made


def test_values_go_where_the_samplers_links_lead(make, graph):
    workflow, (job,) = make("prompt,negative,seed\na lake,no rain,7\n")
    filled = workflow.fill(job, "folder/name")
    changed = {key: node["inputs"] for key, node in filled.items() if node != graph[key]}
    assert changed.keys() == {"5", "6", "9", "13"}
    assert (changed["5"]["text"], changed["6"]["text"], changed["9"]["noise_seed"]) == ("a lake", "no rain", 7)
    assert changed["13"]["filename_prefix"] == "folder/name"
    assert graph == read_graph(SHIPPED)


def test_lines_without_values_keep_the_workflows_own(make, graph):
    workflow, jobs = make("a lake\na hill\n", name="prompts.txt")
    for job in jobs:
        filled = workflow.fill(job, "x")
        assert filled["6"] == graph["6"] and filled["9"] == graph["9"]


def test_repeated_lines_are_different_jobs_with_the_next_seed(make):
    _, jobs = make("a lake\na lake\na hill\n", name="prompts.txt")
    assert [job.seed for job in jobs] == [0, 1, 0] and len({job.id for job in jobs}) == 3
    _, jobs = make("prompt,seed\na lake,4\na lake,4\n")
    assert [job.seed for job in jobs] == [4, 4] and len({job.id for job in jobs}) == 2


def test_an_id_depends_on_what_the_video_depends_on_alone(make, graph):
    _, (first, second) = make("a lake\na hill\n", name="prompts.txt")
    _, (moved, _) = make("a hill\na lake\n", name="prompts.txt")
    assert moved.id == second.id and first.id != second.id
    named = copy.deepcopy(graph)
    named["13"]["inputs"]["filename_prefix"], named["5"]["_meta"]["title"] = "elsewhere", "Other"
    named["5"]["inputs"]["text"] = "another example"
    assert make("a lake\n", named, "prompts.txt")[1][0].id == first.id
    named["7"]["inputs"]["steps"] = 20
    assert make("a lake\n", named, "prompts.txt")[1][0].id != first.id


@pytest.mark.parametrize("prompt", ["../../etc/passwd", "雪の湖", "%date% a\\b", "a lake " * 50, "CON"])
def test_names_of_files_are_letters_digits_and_hyphens(make, prompt):
    _, (job,) = make(json.dumps([prompt]), name="prompts.json")
    assert set(job.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") and len(job.name) < 64
    assert job.name.startswith("00001-") and job.name.endswith(job.id[:8])


def test_two_samplers_with_seeds_of_their_own_need_a_choice(make, graph):
    graph["20"] = {"class_type": "RandomNoise", "inputs": {"noise_seed": 3}}
    graph["21"] = copy.deepcopy(graph["12"])
    graph["21"]["inputs"] |= {"noise": ["20", 0], "latent_image": ["12", 0]}
    with pytest.raises(Trouble, match=r"2 inputs for the column seed") as raised:
        make("a lake\n", graph, "prompts.txt")
    assert "--set 20.noise_seed=seed    (RandomNoise)" in str(raised.value)
    assert "--set 9.noise_seed=seed    (Seed, RandomNoise)" in str(raised.value)
    settings = ["20.noise_seed=seed", "9.noise_seed=seed"]
    workflow, (job,) = make("prompt,seed\na lake,8\n", graph, settings=settings)
    filled = workflow.fill(job, "x")
    assert filled["9"]["inputs"]["noise_seed"] == filled["20"]["inputs"]["noise_seed"] == 8


def test_an_image_goes_to_the_only_loader_and_counts_by_content(make, graph, tmp_path):
    (tmp_path / "start.png").write_bytes(b"one")
    graph["30"] = {"class_type": "LoadImage", "inputs": {"image": "example.png"}}
    graph["31"] = {
        "class_type": "WanImageToVideo",
        "inputs": {"positive": ["5", 0], "negative": ["6", 0], "vae": ["3", 0], "start_image": ["30", 0]},
    }
    graph["8"]["inputs"] |= {"positive": ["31", 0], "negative": ["31", 1]}
    graph["12"]["inputs"]["latent_image"] = ["31", 2]
    text = "prompt,negative,image\na lake,no rain,start.png\n"
    workflow, (job,) = make(text, graph)
    assert workflow.targets["prompt"] == [Target("5", "text")] and workflow.targets["negative"] == [Target("6", "text")]
    assert job.image == tmp_path / "start.png"
    assert workflow.fill(job, "x", "hash.png")["30"]["inputs"]["image"] == "hash.png"
    (tmp_path / "start.png").write_bytes(b"two")
    assert make(text, graph)[1][0].id != job.id
    with pytest.raises(Trouble, match="must be a file in"):
        make("prompt,image\na lake,../secret.png\n", graph)


def test_a_prompt_list_node_is_replaced_by_the_list(make, graph, tmp_path):
    graph["40"] = {
        "class_type": "UltraGenPrompts",
        "inputs": {"text": "x", "file": "none", "negative": "no fog", "seed": 5},
    }
    graph["5"]["inputs"]["text"], graph["6"]["inputs"]["text"] = ["40", 0], ["40", 1]
    graph["9"]["inputs"]["noise_seed"] = ["40", 2]
    graph["13"]["inputs"]["details"] = ["40", 4]
    workflow, (first, second) = make("prompt,negative,seed\na lake,,\na hill,no rain,9\n", graph)
    filled = workflow.fill(first, "x")
    assert "40" not in filled
    assert (filled["5"]["inputs"]["text"], filled["6"]["inputs"]["text"]) == ("a lake", "no fog")
    assert filled["9"]["inputs"]["noise_seed"] == 5
    assert json.loads(filled["13"]["inputs"]["details"])["prompt"] == "a lake"
    assert workflow.fill(second, "x")["6"]["inputs"]["text"] == "no rain"
    graph["31"] = {"class_type": "WanImageToVideo", "inputs": {"start_image": ["40", 3]}}
    with pytest.raises(Trouble, match="Prompt 1 has no image"):
        make("a lake\n", graph, "prompts.txt")
    (tmp_path / "a.png").write_bytes(b"")
    workflow, (job,) = make("prompt,image\na lake,a.png\n", graph)
    filled = workflow.fill(job, "x", "b.png")
    assert filled[filled["31"]["inputs"]["start_image"][0]]["inputs"]["image"] == "b.png"


def test_a_workflows_own_image_is_refused_before_a_server_starts(make, graph, tmp_path):
    graph["30"] = {"class_type": "LoadImage", "inputs": {"image": "example.png"}}
    with pytest.raises(Trouble, match=r"Node 30 loads example.png, .* with --set 30.image=image"):
        make("a lake\n", graph, "prompts.txt")
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(Trouble, match="Prompt 2 has no image"):
        make("prompt,image\na lake,a.png\na hill,\n", graph, settings=["30.image=image"])


@pytest.mark.parametrize("setting", ["5.text", "5=prompt", "77.text=prompt", "5.text=colour"])
def test_a_wrong_set_is_explained(make, setting):
    with pytest.raises(Trouble, match="--set must be NODE.INPUT=COLUMN"):
        make("a lake\n", settings=[setting])


def test_a_set_that_names_no_input_is_refused(make):
    """ComfyUI ignores inputs that a node does not have: every video would get the workflow's own prompt."""
    with pytest.raises(Trouble, match=r"Node 5 \(CLIPTextEncode\) has no input txt .* It has text, clip\."):
        make("a lake\n", settings=["5.txt=prompt"])


@pytest.mark.parametrize(("node", "name"), [("12", "guider"), ("12", "noise")])
def test_a_link_to_a_missing_node_is_no_crash(make, graph, node, name):
    graph[node]["inputs"][name] = ["999", 0]
    with pytest.raises(Trouble, match="No input for the column"):
        make("a lake\n", graph, "prompts.txt")


def test_what_cannot_be_found_is_named(make, graph):
    del graph["12"]
    with pytest.raises(Trouble, match="No input for the column prompt"):
        make("a lake\n", graph, "prompts.txt")


def test_a_negative_that_is_the_prompt_is_no_place_for_another(make, graph):
    graph["8"]["inputs"]["negative"] = ["5", 0]
    with pytest.raises(Trouble, match="negative prompt comes from its prompt"):
        make("prompt,negative\na lake,no rain\n", graph)
    make("a lake\n", graph, "prompts.txt")


def test_files_that_are_no_workflow_or_list_are_explained(tmp_path, graph):
    (tmp_path / "ui.json").write_text('{"nodes": []}')
    with pytest.raises(Trouble, match=r"Export it with Workflow > Export \(API\)"):
        read_graph(tmp_path / "ui.json")
    with pytest.raises(Trouble, match="cannot be read"):
        read_graph(tmp_path / "none.json")
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(Trouble, match="at least one prompt"):
        make_jobs(graph, tmp_path / "empty.txt")


@pytest.mark.parametrize("file", sorted((ROOT / "docs" / "headless").glob("*.json")), ids=lambda file: file.stem)
def test_the_shipped_workflows_need_no_settings(file):
    workflow = Workflow(read_graph(file), wanted=("prompt", "negative", "seed"))
    assert {column: list(map(str, inputs)) for column, inputs in workflow.targets.items()} == {
        "prompt": ["5.text"], "negative": ["6.text"], "seed": ["9.noise_seed"],
    }  # fmt: skip
