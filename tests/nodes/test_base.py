"""The nodes' base class, called as ComfyUI calls it."""

from __future__ import annotations

import asyncio
import inspect
import math
import re
import sys

import execution
import folder_paths
import numpy as np
import pytest
import torch
from comfy_api.internal import first_real_override
from comfy_api.latest import io

import nodes as comfyui_nodes

SECOND_COPY = r"installed twice, in the folders ultragen-old and \S+ of custom_nodes\. Remove one"
BYTES_NAME = "gr\udcf6n.ckpt"  # not UTF-8, as Python hands it on
SOCKETS = {"LATENT": {"samples": torch.zeros(1, 16, 1, 8, 8)}}


@pytest.fixture
def base(pack):
    return sys.modules[f"{pack.__name__}.nodes.base"]


@pytest.fixture
def toy(base):
    """A node that returns its inputs."""

    class Toy(base.Node):
        fail = broken = None  # what execute and validate_inputs raise

        @classmethod
        def define_schema(cls):
            return io.Schema(
                node_id="Toy",
                display_name="Toy Node",
                inputs=[
                    io.Float.Input("rate", default=1.0, min=0.5, max=2.0),
                    io.Int.Input("count", default=1, min=1, max=8, optional=True),
                    io.Boolean.Input("switch", optional=True),
                    io.String.Input("text", optional=True),
                    io.Combo.Input("mode", options=["a", "b"], optional=True),
                    io.Combo.Input("file", options=[], optional=True),
                    io.Latent.Input("latent", optional=True),
                ],
                outputs=[io.Float.Output()],
            )

        @classmethod
        def validate_inputs(cls, file=None):
            if cls.broken:
                raise cls.broken
            return True if file in (None, "there") else f"no file {file}"

        @classmethod
        def fingerprint_inputs(cls, rate, **_):
            return 1 / rate

        @classmethod
        def execute(cls, rate, count=3, **others) -> io.NodeOutput:
            if cls.fail:
                raise cls.fail
            return io.NodeOutput(rate, count, others)

    return Toy


def called(node, name: str = "EXECUTE_NORMALIZED", /, **inputs):
    """Call a node as ComfyUI's executor does: on a locked copy of its class, with a list for each input."""
    inputs = {key: [value] for key, value in inputs.items()}
    mapped = execution._async_map_node_over_list("prompt", "1", node, inputs, name, False, None, None, {})
    return asyncio.run(mapped)[0]


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"rate": math.nan}, "Toy Node: rate must be a number from 0.5 to 2.0, got nan."),
        ({"rate": math.inf}, "got inf"),
        ({"rate": 10**400}, "got a value of type int"),
        ({"rate": "1"}, "got '1'"),
        ({"rate": None}, "got nothing"),
        ({"rate": True}, "got True"),
        ({"rate": torch.ones(2)}, "got a value of type Tensor"),
        ({}, "Toy Node: rate is missing."),
        (
            {"rate": 1, "count": 0},
            "count must be a whole number from 1 to 8, got 0. Change the value or the link.",
        ),
        ({"rate": 1, "count": 1.5}, "got 1.5"),
        ({"rate": 1, "switch": "no"}, "switch must be true or false, got 'no'"),
        ({"rate": 1, "text": 5}, "text must be text, got 5"),
        ({"rate": 1, "mode": "c" * 99}, "mode must be one of a, b, got 'ccc"),
        ({"rate": 1, "mode": {}}, "mode must be one of a, b"),
        ({"rate": 1, "latent": {"samples": None}}, "latent must be a latent, got a value of type dict"),
        ({"rate": 1, "file": "gone"}, "Toy Node: no file gone"),
    ],
)
def test_linked_values_have_the_limits_of_the_widget(toy, inputs, sentence):
    toy.fail = AssertionError("work began")
    with pytest.raises(ValueError) as refused:
        called(toy, **inputs)
    assert sentence in str(refused.value) and len(str(refused.value)) < 200


def test_valid_values_arrive_in_the_schemas_types(toy):
    given = {"rate": 1, "count": 2.0, "switch": 1, "text": "", "mode": "b", "file": "there", "latent": None}
    rate, count, others = called(toy, **given).result
    assert (rate, type(rate), count, type(count)) == (1.0, float, 2, int)
    assert others == {key: given[key] for key in ("switch", "text", "mode", "file", "latent")}
    assert called(toy, rate=1, count=None).result[1] == 3, "a link that brings nothing leaves the default"
    assert called(toy, rate=np.float32(0.5)).result[:2] == (0.5, 3), "a default of execute stays one"
    assert toy.execute(1.0, 2).result[1] == 2


def test_items_of_a_list_node_are_validated_one_by_one(pack):
    metrics = sys.modules[f"{pack.__name__}.nodes.metrics"].UltraGenMetrics
    switches = dict.fromkeys(("hd_mse", "hd_lpips", "hd_fvd", "clip_score", "temporal_consistency"), [False])
    for wrong, sentence in (
        ({"prompt": ["a", 5]}, "prompt must be text, got 5"),
        ({"video": []}, "UltraGen Metrics: video must not be an empty list"),
        ({"video": [None]}, "video must be connected, got nothing"),
        ({"hd_mse": ["yes"]}, "hd_mse must be true or false"),
    ):
        with pytest.raises(ValueError, match=sentence):
            metrics.execute(**{"video": [torch.zeros(1, 8, 8, 3)], "prompt": [""], **switches, **wrong})


def test_every_error_that_leaves_a_node_can_be_encoded(toy):
    class Odd(Exception):
        def __init__(self, name):
            self.name = name

        def __str__(self):
            return self.name

    for error in (
        ValueError(f"{BYTES_NAME} is no weights file"),
        FileNotFoundError(2, "No such file", BYTES_NAME),
        Odd(BYTES_NAME),
    ):
        error.__cause__ = KeyError("inner")
        error.__cause__.__context__ = RuntimeError(BYTES_NAME)
        toy.fail = error
        with pytest.raises(type(error)) as raised:
            called(toy, rate=1)
        assert raised.value is error and raised.traceback[-1].name == "execute"
        while error is not None:
            assert str(error).encode()
            assert "inner" in str(error) or r"\xf6" in str(error)
            error = error.__cause__ or error.__context__


def test_validation_ends_in_a_sentence_and_fingerprints_in_a_run(toy):
    assert called(toy, "validate_inputs", file=None) is True
    assert called(toy, "validate_inputs", file="there") is True
    assert called(toy, "validate_inputs", file=5) == "Toy Node: file must be text, got 5. Change the value or the link."
    assert called(toy, "validate_inputs", file=BYTES_NAME) == "no file gr\\xf6n.ckpt"
    toy.broken = ValueError(BYTES_NAME)
    assert called(toy, "validate_inputs", file="there") == "gr\\xf6n.ckpt"
    toy.broken = OSError("The folder is full.")
    assert called(toy, "validate_inputs", file="there") == "The folder is full."
    toy.broken = KeyError("x")
    assert called(toy, "validate_inputs", file="there") == "KeyError: 'x'"
    assert called(toy, "fingerprint_inputs", rate=2) == 0.5
    assert math.isnan(called(toy, "fingerprint_inputs", rate=0)) and math.isnan(called(toy, "fingerprint_inputs"))


def test_comfyui_sees_the_same_parameters_and_overrides(toy, pack):
    assert inspect.getfullargspec(toy.validate_inputs).args == ["cls", "file", "rate"]
    assert first_real_override(toy, "fingerprint_inputs") is not None and toy.FUNCTION == "EXECUTE_NORMALIZED"
    resume = next(node for node in pack.nodes.NODES if node.__name__ == "UltraGenResume")
    for name in ("validate_inputs", "fingerprint_inputs"):
        assert first_real_override(resume, name) is None, "a node without it gets none"


@pytest.mark.parametrize(("value", "refused"), [(math.nan, True), ("nan", True), (3.0, True), (1.5, False)])
def test_comfyui_refuses_a_float_outside_its_limits_when_it_is_queued(toy, monkeypatch, value, refused):
    """ComfyUI compares a value with the widget's limits, and NaN passes every comparison."""
    monkeypatch.setitem(comfyui_nodes.NODE_CLASS_MAPPINGS, "Toy", toy)
    prompt = {"1": {"class_type": "Toy", "inputs": {"rate": value}}}
    valid, errors, _ = asyncio.run(execution.validate_inputs("an id", prompt, "1", {}))
    assert valid is not refused and ("rate must be a number from 0.5 to 2.0" in str(errors)) is refused


@pytest.mark.parametrize("enabled", [True, False])
def test_a_graph_with_an_older_value_is_refused_with_the_options(pack, monkeypatch, enabled):
    """`enabled` of UltraGen Global Config was true or false. ComfyUI 0.3.75 checks no combo when a graph is queued."""
    node = next(node for node in pack.nodes.NODES if node.__name__ == "UltraGenGlobalConfig")
    given = {each.id: each.default for each in node.define_schema().inputs} | {"enabled": enabled}
    with pytest.raises(ValueError, match=f"enabled must be one of auto, on, off, got {enabled}. Change the value"):
        called(node, **given)
    monkeypatch.setitem(comfyui_nodes.NODE_CLASS_MAPPINGS, node.__name__, node)
    prompt = {"1": {"class_type": node.__name__, "inputs": given}}
    _, errors, _ = asyncio.run(execution.validate_inputs("an id", prompt, "1", {}))
    assert all("not in ['auto', 'on', 'off']" in error["details"] for error in errors)


def test_nan_is_refused_by_every_float_when_it_is_queued(pack):
    tried = []
    for node in pack.nodes.NODES:
        for each in node.define_schema().inputs:
            if isinstance(each, io.Float.Input):
                assert each.id in inspect.getfullargspec(first_real_override(node, "validate_inputs")).args
                sentence = node.validate_inputs(**{each.id: math.nan})
                assert f"{each.id} must be a number from" in sentence and "got nan" in sentence
                assert node.validate_inputs(**{each.id: None}) is True
                tried.append(each.id)
    assert len(tried) >= 10


def test_every_input_of_every_node_refuses_what_its_widget_could_not_hold(pack, base, monkeypatch, tmp_path):
    monkeypatch.setattr(folder_paths, "get_filename_list", lambda _: ["model.safetensors"])
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))  # Save Video keeps what it refuses
    tried = 0
    for node in pack.nodes.NODES:
        assert issubclass(node, base.Node)
        schema = node.define_schema()
        valid = {each.id: SOCKETS.get(each.io_type, object()) for each in schema.inputs}
        for each in schema.inputs:
            if getattr(each, "default", None) is not None or getattr(each, "options", None):
                valid[each.id] = each.options[0] if each.default is None else each.default
        for each in schema.inputs:
            for wrong in wrong_values(each):
                given = valid | {each.id: wrong}
                if schema.is_input_list:
                    given = {name: [value] for name, value in given.items()}
                with pytest.raises(ValueError, match=rf"{schema.display_name}: .*\b{each.id}\b"):
                    called_once(node, given)
                tried += 1
    assert tried > 150


def wrong_values(each) -> list:
    nothing = [] if each.optional else [None]
    if isinstance(each, (io.Int.Input, io.Float.Input)):
        return [each.min - 1, each.max + 1, math.nan, "1", [1], *nothing]
    if isinstance(each, io.Combo.Input):
        return ["no such option", 5, {}, *nothing]
    if isinstance(each, (io.String.Input, io.Boolean.Input)):
        return [5, [], *nothing]
    return nothing


def called_once(node, inputs: dict):
    """Call execute on ComfyUI's copy of the class, with the inputs unchanged."""
    node.VALIDATE_CLASS()
    return node.PREPARE_CLASS_CLONE({"hidden_inputs": {}} if hasattr(io, "V3Data") else {}).execute(**inputs)


def test_a_second_copy_of_the_pack_is_said_in_the_log(pack, monkeypatch, caplog):
    """ComfyUI takes the nodes of the copy that it loads last, but answers the canvas from the first."""
    asyncio.run(pack.comfy_entrypoint())
    assert not re.search(SECOND_COPY, caplog.text)
    other = type("OfAnotherCopy", (), {"RELATIVE_PYTHON_MODULE": "custom_nodes.ultragen-old"})
    monkeypatch.setitem(comfyui_nodes.NODE_CLASS_MAPPINGS, "UltraGenLoadModel", other)
    asyncio.run(pack.comfy_entrypoint())
    assert re.search(SECOND_COPY, caplog.text)
