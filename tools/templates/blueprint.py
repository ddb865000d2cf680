"""The blueprint in subgraphs/: the 1080P template as one node, for the canvas' node library."""

from __future__ import annotations

import copy
import uuid

NAME, SOURCE = "UltraGen 1080P", "ultragen_t2v_1080p"
DESCRIPTION = "Native 1080P text to video with UltraGen's weights: models, sampling and saving in one node."
# What the one node shows: (node type, its title, widget, type, label, place among the node's widgets).
PROMOTED = (
    ("CLIPTextEncode", "Prompt", "text", "STRING", "prompt", 0),
    ("UltraGenEmptyLatent", None, "preset", "COMBO", "size", 0),
    ("RandomNoise", "Seed", "noise_seed", "INT", "seed", 0),
)
OUTPUT = ("UltraGenSaveVideo", "VIDEO")
# The frontend's ids for a subgraph's own inputs and outputs.
INPUTS, OUTPUTS = -10, -20


def make(template: dict) -> dict:
    """The content of subgraphs/`NAME`.json. template: that of workflows/`SOURCE`.json."""
    template = copy.deepcopy(template)
    nodes = [node for node in template["nodes"] if node["type"] != "MarkdownNote"]
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    links = [dict(zip(names, link, strict=True)) for link in template["links"]]
    identity = uuid.uuid5(uuid.NAMESPACE_URL, f"ultragen/{NAME}")
    inputs, values = [], []

    def join(*ends) -> int:
        links.append(dict(zip(names, (len(links) + 1, *ends), strict=True)))
        return len(links)

    for slot, (kind, title, widget, type_, label, place) in enumerate(PROMOTED):
        (node,) = (node for node in nodes if (node["type"], node.get("title")) == (kind, title))
        link = join(INPUTS, slot, node["id"], len(node["inputs"]), type_)
        node["inputs"].append({"name": widget, "type": type_, "widget": {"name": widget}, "link": link})
        key = str(uuid.uuid5(identity, label))
        inputs.append({"id": key, "name": widget, "label": label, "type": type_, "linkIds": [link]})
        values.append(node["widgets_values"][place])
    (node,) = (node for node in nodes if node["type"] == OUTPUT[0])
    link = join(node["id"], 0, OUTPUTS, 0, OUTPUT[1])
    node["outputs"][0]["links"].append(link)
    outputs = [{"id": str(uuid.uuid5(identity, OUTPUT[1])), "name": OUTPUT[1], "type": OUTPUT[1], "linkIds": [link]}]
    last = {"lastGroupId": len(template["groups"]), "lastNodeId": template["last_node_id"], "lastLinkId": len(links)}
    definition = {
        "id": str(identity), "version": 1, "state": {**last, "lastRerouteId": 0}, "revision": 0, "config": {},
        "name": NAME, "category": "UltraGen", "description": DESCRIPTION,
        "inputNode": {"id": INPUTS, "bounding": [-240, 60, 160, 100]},
        "outputNode": {"id": OUTPUTS, "bounding": [1900, 60, 120, 60]},
        "inputs": inputs, "outputs": outputs, "widgets": [],
        "nodes": nodes, "groups": template["groups"], "links": links, "extra": {},
    }  # fmt: skip
    shown = {
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
    return {
        "id": str(uuid.uuid5(identity, "workflow")), "revision": 0, "last_node_id": 1, "last_link_id": 0,
        "nodes": [shown], "links": [], "groups": [], "definitions": {"subgraphs": [definition]},
        "config": {}, "extra": {}, "version": 0.4,
    }  # fmt: skip
