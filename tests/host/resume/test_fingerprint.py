"""Two runs are the same when they compute the same, whatever else their graphs hold."""

from __future__ import annotations

import functools
import uuid
from types import SimpleNamespace

import comfy.cli_args
import comfy.controlnet
import comfy.hooks
import folder_paths
import numpy
import pytest
import torch
from PIL import Image

import nodes
from ultragen_core.host.resume.digest import digest
from ultragen_core.host.resume.fingerprint import STATE, file_facts, fingerprint, model_files, numeric_options
from ultragen_core.host.resume.graph_digest import GraphDigest
from ultragen_core.host.server import RunningNode
from ultragen_core.storage.states import identity


class PlainList:
    OUTPUT_IS_LIST = (True,)


class TakesLists:
    INPUT_IS_LIST = True


@pytest.fixture(autouse=True)
def other_nodes(monkeypatch):
    kinds = {"PlainList": PlainList, "TakesLists": TakesLists, "UltraGenPrompts": PlainList}
    for name, each in kinds.items():
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, name, each)


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


GRAPH = {
    "1": node("UltraGenLoadModel", checkpoint="a.ckpt", attention_kernel="comfyui", keep_gb=20),
    "2": node("CLIPTextEncode", text="a lake"),
    "3": node("KSamplerSelect", sampler_name="euler"),
    "4": node("UltraGenResume", sampler=["3", 0], every=1, unit="minutes", keep_gb=20),
    "5": node("SamplerCustom", model=["1", 0], positive=["2", 0], sampler=["4", 0]),
    "6": node("UltraGenSaveVideo", samples=["5", 0], fps=15.0),
}


def of(graph, node_id="5", position=0):
    return GraphDigest(graph, position).of(node_id)


def changed(node_id, **inputs):
    return GRAPH | {node_id: node(GRAPH[node_id]["class_type"], **GRAPH[node_id]["inputs"] | inputs)}


@pytest.mark.parametrize(
    "graph",
    [
        changed("6", fps=24.0),
        changed("4", every=9, unit="steps", keep_gb=1),
        changed("1", keep_gb=0),
        changed("5", sampler=["3", 0]),
        GRAPH | {"9": GRAPH["3"]},
    ],
    ids=["downstream", "how states are kept", "how results are kept", "without Resume", "a node apart"],
)
def test_what_changes_nothing_in_the_latent_is_left_out(graph):
    assert of(graph) == of(GRAPH)


@pytest.mark.parametrize(
    "graph",
    [
        changed("1", checkpoint="b.ckpt"),
        changed("1", attention_kernel="int8"),
        changed("2", text="a sea"),
        changed("5", cfg=2.0),
        changed("5", model=["1", 1]),
    ],
    ids=["model", "kernel", "prompt", "own widget", "output"],
)
def test_what_is_upstream_counts(graph):
    assert of(graph) != of(GRAPH)


def test_the_strength_of_deltas_counts():
    def configured(strength):
        config, apply = node("UltraGenGlobalConfig", ffn_lora_strength=strength), node("UltraGenApply", model=["1", 0])
        return changed("5", model=["8", 0]) | {"7": config, "8": apply | {"inputs": {"global_config": ["7", 0]}}}

    assert of(configured(1.0)) != of(configured(0.5))


def test_ids_do_not_count():
    renamed = {
        f"sub:{key}": node(
            each["class_type"],
            **{k: [f"sub:{v[0]}", v[1]] if isinstance(v, list) else v for k, v in each["inputs"].items()},
        )
        for key, each in GRAPH.items()
    }
    assert of(renamed, "sub:5") == of(GRAPH)


def test_a_loop_and_a_missing_node_have_digests():
    assert of(changed("2", text=["5", 0])) != of(changed("2", text=["99", 0]))


def test_a_node_made_while_running_hangs_on_the_whole_graph_and_on_its_position():
    made = functools.partial(of, node_id="5.0.0.1")
    assert made(GRAPH) != made(changed("6", fps=24.0))
    assert made(GRAPH) != made(GRAPH, position=1) and made(GRAPH) != of(GRAPH, "5.0.0.2")


def test_lists_of_other_nodes_count_as_a_whole_with_the_position():
    def graph(values):
        return changed("2", text=["8", 0]) | {"8": node("PlainList", values=values)}

    assert of(graph("a b")) != of(graph("a c"))
    assert of(graph("a b"), position=0) != of(graph("a b"), position=1)


def listed(text, between=None, **inputs):
    """The graph with its prompt from a list, through a node of the kind `between` where there is one."""
    graph = GRAPH | {"8": node("UltraGenPrompts", text=text, file="none", **inputs)}
    if between:
        graph["7"] = node(between, texts=["8", 0])
    return graph | {"2": node("CLIPTextEncode", text=["7" if between else "8", 0])}


def test_an_item_of_a_prompt_list_counts_by_itself():
    """Other lines may be changed, added and removed, and the whole list or one line a run may be queued."""
    second = of(listed("a lake\na sea"), position=1)
    assert second == of(listed("a hill\na sea"), position=1)
    assert second == of(listed("a sea\na lake"), position=0)
    assert second == of(listed("a lake\na sea", index=1), position=0)
    assert second != of(listed("a lake\nthe sea"), position=1)


def test_outputs_of_a_prompt_list_that_nothing_uses_do_not_count():
    assert of(listed("a lake", seed=1, negative="grey")) == of(listed("a lake", seed=2, negative="dark"))
    seeded = [listed("a lake", seed=seed) | {"5": changed("5", seed=["8", 2])["5"]} for seed in (1, 2)]
    assert of(seeded[0]) != of(seeded[1])


def test_a_long_graph_has_a_digest():
    graph = {str(number): node("Stage", before=[str(number - 1), 0]) for number in range(1, 2000)}
    assert of(graph, "1999") != of(graph | {"1": node("Stage", before=3)}, "1999")


def test_what_is_linked_to_a_prompt_list_counts():
    def graph(value, **inputs):
        made = listed(**{"text": "a lake\na sea"} | inputs) | {"9": node("PrimitiveInt", value=value)}
        return made | {"5": changed("5", seed=["8", 2])["5"]}

    assert of(graph(1, seed=["9", 0])) != of(graph(2, seed=["9", 0]))
    assert of(graph(1, text=["9", 0]), position=0) != of(graph(1, text=["9", 0]), position=1)


def test_a_node_that_takes_the_whole_list_depends_on_all_of_it():
    assert of(listed("a lake\na sea", "TakesLists")) != of(listed("a lake\na hill", "TakesLists"))


def test_a_family_is_one_graph_with_any_lists():
    graphs = [changed("2", text=["8", 0]) | {"8": node("PlainList", values=values)} for values in ("a b", "c")]
    assert of(graphs[0], position=None) == of(graphs[1], position=None)
    assert of(graphs[0], position=None) != of(changed("1", checkpoint="b.ckpt"), position=None)


def test_one_item_a_run_is_a_family_of_its_own():
    """Or the files of an item would be kept until the last one has run."""
    first, second = (listed("a lake\na sea", index=index) for index in (0, 1))
    assert of(first, position=None) != of(second, position=None)


def test_nodes_made_while_running_are_of_their_graph_s_family():
    assert of(GRAPH, "5.0.0.1", position=None) == of(GRAPH, "5.0.0.2", position=None)


@pytest.fixture
def a_file(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"one")
    return path


def test_model_files_are_found_by_their_name_with_all_their_pieces(tmp_path, monkeypatch):
    pieces = [tmp_path / f"big-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for path in (*pieces, tmp_path / "style.safetensors"):
        path.touch()
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    assert model_files("style.safetensors") == [tmp_path / "style.safetensors"]
    assert model_files(pieces[1].name) == pieces
    for other in ("other.safetensors", "style", "a prompt.", str(tmp_path / "style.safetensors"), ""):
        assert model_files(other) == []


def facts_of(path, first_facts=None, **inputs):
    graph, first_facts = {"1": node("Loader", **inputs)}, {} if first_facts is None else first_facts
    return list(file_facts(graph, lambda text: [path] * (text == "a"), first_facts))


@pytest.mark.parametrize("inputs", [{"file": "a"}, {"lora_1": {"on": True, "lora": "a"}}, {"stack": [["a", 1.0]]}])
def test_files_count_wherever_a_loader_names_them(a_file, inputs):
    assert len(facts_of(a_file, **inputs)) == 1


def test_a_file_replaced_while_this_process_runs_is_neither_the_old_nor_the_new(a_file):
    """ComfyUI may still hold the old one."""
    process = {}
    old = facts_of(a_file, process, file="a")
    a_file.write_bytes(b"another")
    between = facts_of(a_file, process, file="a")
    assert len({str(each) for each in (old, between, facts_of(a_file, file="a"))}) == 3


@pytest.mark.parametrize(
    ("option", "counts"),
    [
        ("force_upcast_attention", True),
        ("enable_triton_backend", True),  # other kernels for rotations and quantised weights
        ("fp32_vae", False),
        ("fast_disk", False),  # what users who ran out of RAM add before they continue
    ],
)
def test_options_that_change_the_models_numbers_count_and_no_others(monkeypatch, option, counts):
    monkeypatch.setattr(comfy.cli_args.args, option, False, raising=False)  # 0.3.75 lacks some
    before = digest(numeric_options())
    monkeypatch.setattr(comfy.cli_args.args, option, True)
    assert (digest(numeric_options()) != before) == counts


@pytest.mark.parametrize(("switch", "value"), [("ULTRAGEN_TRITON", "0"), ("ULTRAGEN_ATTENTION", "comfyui")])
def test_switches_of_the_pack_count_as_options_do(monkeypatch, switch, value):
    monkeypatch.delenv(switch, raising=False)
    before = digest(numeric_options())
    monkeypatch.setenv(switch, value)
    assert digest(numeric_options()) != before


@pytest.mark.parametrize("version", ["comfyui_version.__version__", "ultragen_core.host.resume.fingerprint.VERSION"])
def test_another_version_of_comfyui_or_of_the_pack_is_another_run(monkeypatch, version):
    def found():
        running = RunningNode("5", 0, GRAPH)
        return identity(fingerprint(STATE, running, torch.device("cpu"), {}, lambda name: []))

    before = found()
    assert found() == before
    monkeypatch.setattr(version, "0.0.0")
    assert found() != before


def control(fill, **more):
    made = comfy.controlnet.ControlNet(None)
    made.set_cond_hint(torch.full((1, 3, 8, 8), fill), **more)
    return made


def hooks(strength):
    group = comfy.hooks.HookGroup()
    group.add(comfy.hooks.WeightHook(strength_model=strength))
    return group


def loop(value):
    made = SimpleNamespace(value=value)
    made.own = [made]
    return made


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


VALUES = {
    "control image": (lambda: control(0.0), lambda: control(1.0)),
    "control strength": (lambda: control(0.0, strength=0.5), lambda: control(0.0)),
    "control before": (
        lambda: control(0.0).set_previous_controlnet(control(0.5)),
        lambda: control(0.0).set_previous_controlnet(control(0.6)),
    ),
    "hooks": (lambda: hooks(0.5), lambda: hooks(0.6)),
    "array": (lambda: numpy.zeros(3), lambda: numpy.ones(3)),
    "array of another shape": (lambda: numpy.zeros((2, 3)), lambda: numpy.zeros((3, 2))),
    "image": (lambda: Image.new("RGB", (2, 2)), lambda: Image.new("RGB", (2, 2), "red")),
    "set": (lambda: {"a", "b"}, lambda: {"a", "c"}),
    "partial": (lambda: functools.partial(round, 1), lambda: functools.partial(round, 2)),
    "slots": (lambda: Slotted(1), lambda: Slotted(2)),
    "a loop": (lambda: loop(1), lambda: loop(2)),
    "type": (lambda: 1, lambda: True),
    "tensor": (lambda: torch.zeros(2), lambda: torch.zeros(2, dtype=torch.int32)),
    "order": (lambda: [1, [2]], lambda: [[1], 2]),
}


@pytest.mark.parametrize("name", VALUES)
def test_conditionings_count_by_what_they_hold(name):
    one, other = VALUES[name]
    assert digest([{"held": one()}]) == digest([{"held": one()}]) != digest([{"held": other()}])


def test_random_ids_and_models_do_not_count():
    assert digest({"uuid": uuid.uuid4()}) == digest({"uuid": uuid.uuid4()})
    assert digest(torch.nn.Linear(2, 2)) == digest(torch.nn.Linear(2, 2))


def test_what_cannot_be_compared_is_never_the_same(monkeypatch):
    monkeypatch.setattr("ultragen_core.host.resume.digest.MAX_OBJECTS", 3)
    endless = [SimpleNamespace(value=number) for number in range(9)]
    assert digest(endless) != digest(endless)
