"""The blueprint in subgraphs/: the 1080P template as one node in the canvas's node library."""

from __future__ import annotations

import copy
import uuid

NAME, SOURCE = "UltraGen 1080P", "ultragen_t2v_1080p"
DESCRIPTION = "Native 1080P text to video with UltraGen's weights: models, sampling and saving in one node."
# Widgets of the blueprint's node: (inner node's type, its title, widget, type, label, index in widgets_values).
PROMOTED = (
    ("CLIPTextEncode", "Prompt", "text", "STRING", "prompt", 0),
    ("UltraGenEmptyLatent", None, "preset", "COMBO", "size", 0),
    ("RandomNoise", "Seed", "noise_seed", "INT", "seed", 0),
)
OUTPUT = ("UltraGenSaveVideo", "VIDEO")
# Node ids that the frontend gives to a subgraph's inputs and outputs.
INPUTS, OUTPUTS = -10, -20
IDENTITY = uuid.uuid5(uuid.NAMESPACE_URL, f"ultragen/{NAME}")


def make(template: dict) -> dict:
    """Return the content of subgraphs/`NAME`.json. template: the content of workflows/`SOURCE`.json."""
    definition, values = _definition(template)
    return {
        "id": str(uuid.uuid5(IDENTITY, "workflow")), "revision": 0, "last_node_id": 1, "last_link_id": 0,
        "nodes": [_node(definition, values)], "links": [], "groups": [], "definitions": {"subgraphs": [definition]},
        "config": {}, "extra": {}, "version": 0.4,
    }  # fmt: skip


def _definition(template: dict) -> tuple[dict, list]:
    """Return the subgraph, which has inputs for the widgets of PROMOTED, and these widgets' values."""
    template = copy.deepcopy(template)
    nodes = [node for node in template["nodes"] if node["type"] != "MarkdownNote"]
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    links = [dict(zip(names, link, strict=True)) for link in template["links"]]
    inputs, values = [], []

    def join(*ends) -> int:
        links.append(dict(zip(names, (len(links) + 1, *ends), strict=True)))
        return len(links)

    for slot, (node_type, title, widget, type_, label, index) in enumerate(PROMOTED):
        (node,) = (node for node in nodes if (node["type"], node.get("title")) == (node_type, title))
        link = join(INPUTS, slot, node["id"], len(node["inputs"]), type_)
        node["inputs"].append({"name": widget, "type": type_, "widget": {"name": widget}, "link": link})
        key = str(uuid.uuid5(IDENTITY, label))
        inputs.append({"id": key, "name": widget, "label": label, "type": type_, "linkIds": [link]})
        values.append(node["widgets_values"][index])
    (node,) = (node for node in nodes if node["type"] == OUTPUT[0])
    link = join(node["id"], 0, OUTPUTS, 0, OUTPUT[1])
    node["outputs"][0]["links"].append(link)
    outputs = [{"id": str(uuid.uuid5(IDENTITY, OUTPUT[1])), "name": OUTPUT[1], "type": OUTPUT[1], "linkIds": [link]}]
    last = {"lastGroupId": len(template["groups"]), "lastNodeId": template["last_node_id"], "lastLinkId": len(links)}
    definition = {
        "id": str(IDENTITY), "version": 1, "state": {**last, "lastRerouteId": 0}, "revision": 0, "config": {},
        "name": NAME, "category": "UltraGen", "description": DESCRIPTION,
        "inputNode": {"id": INPUTS, "bounding": [-240, 60, 160, 100]},
        "outputNode": {"id": OUTPUTS, "bounding": [1900, 60, 120, 60]},
        "inputs": inputs, "outputs": outputs, "widgets": [],
        "nodes": nodes, "groups": template["groups"], "links": links, "extra": {},
    }  # fmt: skip
    return definition, values


def _node(definition: dict, values: list) -> dict:
    """Return the one node that stands for the subgraph."""
    inputs = definition["inputs"]
    return {
        "id": 1, "type": definition["id"], "pos": [400, 200], "size": [400, 300], "flags": {}, "order": 0, "mode": 0,
        "inputs": [
            {"name": slot["name"], "label": slot["label"], "type": slot["type"], "widget": {"name": slot["name"]},
             "link": None}
            for slot in inputs
        ],
        "outputs": [{"name": OUTPUT[1], "type": OUTPUT[1], "links": None}],
        "properties": {"proxyWidgets": [["-1", slot["name"]] for slot in inputs], "cnr_id": "ultragen"},
        "widgets_values": values,
    }  # fmt: skip
