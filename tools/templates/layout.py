"""Build a graph in the canvas's file format: nodes stacked in columns of titled groups, linked by input name."""

from __future__ import annotations

import uuid
from typing import NamedTuple

GAP, TITLE, MARGIN, TOP = 40, 80, 20, 60
VIEW_WIDTH, VIEW_HEIGHT, SIDEBAR = 1400, 870, 90  # screen pixels: for the graph, and left of it
SHORTEST = 800  # height of the shortest column in pixels
LEAST = {"UltraGenSaveVideo": 560, "SaveVideo": 400}  # heights of nodes that show a video: they take what is left
NOTE_WIDTH = 480
WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
# Node heights in pixels, in the taller of the two renderers.
HEIGHTS = {
    "CFGGuider": 110, "CLIPLoader": 120, "CLIPTextEncode": 200, "CLIPVisionEncode": 90, "CLIPVisionLoader": 60,
    "CreateList": 150, "CreateVideo": 140, "GetImageSize": 120, "GetVideoComponents": 130, "ImageBatch": 90,
    "ImageFromBatch": 110, "ImageMergeTileList": 150, "ImageScale": 190, "ImageScaleBy": 110, "KSampler": 320,
    "KSamplerSelect": 60, "LatentUpscaleBy": 100, "LoadImage": 320, "LoadVideo": 320, "LoraLoaderModelOnly": 100,
    "PrimitiveInt": 110, "RandomNoise": 100, "RepeatImageBatch": 90, "SamplerCustomAdvanced": 130,
    "SeedVR2Conditioning": 80, "SeedVR2Preprocess": 60, "SeedVR2TemporalChunk": 130, "SeedVR2TemporalMerge": 80,
    "SplitSigmasDenoise": 90, "UNETLoader": 100, "UltraGenApply": 590, "UltraGenEmptyLatent": 210,
    "UltraGenLoadLatent": 100, "UltraGenLoadModel": 440, "UltraGenMetrics": 380, "UltraGenModelSampling": 140,
    "UltraGenMultiGPU": 420, "UltraGenPrompts": 560, "UltraGenResume": 150, "UltraGenVAEDecode": 130,
    "UltraGenVAETiling": 100, "VAEEncode": 80, "VAEEncodeTiled": 190, "VAELoader": 60, "Video Slice": 150,
    "WanImageToVideo": 240,
}  # fmt: skip
OUTPUTS = {"GetVideoComponents": 3}  # newer versions have more
NEWER = ("CreateList", "ImageMergeTileList", "SeedVR2", "Video Slice")  # how names that ComfyUI 0.3.75 lacks begin
DYNAMIC_COMBO, AUTOGROW, MATCHTYPE = "COMFY_DYNAMICCOMBO_V3", "COMFY_AUTOGROW_V3", "COMFY_MATCHTYPE_V3"
OURS, GREEN, RED, BROWN = (
    {"color": color, "bgcolor": background}
    for color, background in (("#223", "#335"), ("#232", "#353"), ("#322", "#533"), ("#432", "#321"))
)
COLORS = {"Prompt": GREEN, "Negative prompt": RED}


class ModelFile(NamedTuple):
    """A model file: its download address and its folder under models/."""

    url: str
    directory: str

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


class Out(NamedTuple):
    """An output of a node, to link to inputs."""

    node: dict
    slot: int


class Layout:
    """Add groups from left to right, nodes to the last group, then call `workflow` for the file's content."""

    def __init__(self, name: str, object_info: dict, files: list[ModelFile]):
        self.name, self.object_info = name, object_info
        self.files = {file.name: file for file in files}
        self.used: list[ModelFile] = []
        self.nodes, self.links, self.groups = [], [], []
        self.x, self.y, self.width = 0, 0, 0
        self.top, self.right = TOP, 0

    def group(self, title: str, width: int | None = None) -> None:
        """Begin a group: in a new column with nodes of `width` pixels, or without it below the last group."""
        if width is not None:
            self.x += self.width + GAP + MARGIN if self.width else 0
            self.y, self.width = self.top, width
            self.right = max(self.right, self.x + self.width + MARGIN)
        else:
            self._close(self.y)
            self.y += TITLE
        bounding = [self.x - MARGIN, self.y - TITLE, self.width + 2 * MARGIN, 0]
        self.groups.append({"title": f"{len(self.groups) + 1}  {title}", "bounding": bounding})

    def row(self) -> None:
        """Begin a row of columns below all others."""
        self.top = self._close_row() + MARGIN + GAP + TITLE
        self.x = self.width = 0

    def add(self, kind: str, title: str = "", **inputs) -> Out:
        """Add a node and return its first output.

        inputs: an Out to link, or a widget's value. Other widgets keep their default. A list of Outs fills an input
        that grows.
        """
        schema = self.object_info[kind]
        specs = {name: (spec, group) for group in ("required", "optional")
                 for name, spec in schema["input"].get(group, {}).items()}  # fmt: skip
        assert inputs.keys() <= specs.keys(), f"{kind} has {list(specs)}, got {list(inputs)}"
        specs, inputs, matched = _grown(specs, inputs)
        ours = kind.startswith("UltraGen")
        types = [matched if type_ == MATCHTYPE else type_ for type_ in schema["output"]]
        outputs = list(zip(schema["output_name"], types, strict=True))[: OUTPUTS.get(kind)]
        version = "0.30.0" if kind.startswith(NEWER) else "0.3.75"
        source = {"cnr_id": "ultragen"} if ours else {"cnr_id": "comfy-core", "ver": version}
        node = {
            "id": len(self.nodes) + 1, "type": kind,
            "pos": [self.x, self.y], "size": [self.width, HEIGHTS.get(kind, 0)],
            "flags": {}, "order": len(self.nodes), "mode": 0, "inputs": [],
            "outputs": [{"name": name, "type": type_, "links": []} for name, type_ in outputs],
            **({"title": title} if title else {}),
            "properties": {"Node name for S&R": kind, **source}, "widgets_values": [],
            **COLORS.get(title, OURS if ours else {}),
        }  # fmt: skip
        # The frontend gives all widgets a slot where one is linked.
        slots = any(_is_widget(spec) and isinstance(inputs.get(name), Out) for name, (spec, _) in specs.items())
        for name, (spec, group) in specs.items():
            self._input(node, name, spec, group == "optional", inputs.get(name), slots)
        node["inputs"].sort(key=lambda slot: "widget" in slot)
        for index, slot in enumerate(node["inputs"]):
            self._link(inputs.get(slot["name"]), node, index)
        self.nodes.append(node)
        self.y += node["size"][1] + GAP
        return Out(node, 0)

    def _input(self, node: dict, name: str, spec: list, optional: bool, given, widget_slots: bool) -> None:
        kind, options = (*spec, {})[:2]
        linked = isinstance(given, Out)
        choices = kind if isinstance(kind, list) else options.get("options", [])
        choices = [choice["key"] for choice in choices] if kind == DYNAMIC_COMBO else choices
        widget = _is_widget(spec)
        if widget_slots or not widget:
            slot = {"name": name, "type": kind, "link": None}
            extra = {"widget": {"name": name}} if widget else {"shape": 7} if optional else {}
            node["inputs"].append(slot | extra)
        if not widget:
            return
        if given is None or linked:
            given = options.get("default", choices[0] if choices else "")
        node["widgets_values"].append(given)
        node["widgets_values"] += ["fixed"] if options.get("control_after_generate") else []
        node["widgets_values"] += ["image"] if options.get("image_upload") or options.get("video_upload") else []
        if (file := self.files.get(given)) is not None:
            node["properties"]["models"] = [{"name": file.name, **file._asdict()}]
            self.used.append(file)

    def _link(self, source: Out | None, target: dict, index: int) -> None:
        if not isinstance(source, Out):
            return
        output, slot = source.node["outputs"][source.slot], target["inputs"][index]
        accepted = slot["type"].split(",")  # of several types
        assert output["type"] in accepted, f"{source.node['type']} {output} -> {target['type']} {slot}"
        slot["link"] = len(self.links) + 1
        output["links"].append(slot["link"])
        self.links.append([slot["link"], source.node["id"], source.slot, target["id"], index, output["type"]])

    def _close(self, bottom: int) -> None:
        box = self.groups[-1]["bounding"]
        box[3] = bottom - box[1]

    def _close_row(self) -> int:
        """Give the row's columns one height and return their bottom."""
        ends = (node["pos"][1] + (node["size"][1] or LEAST[node["type"]]) for node in self.nodes)
        bottom = max(self.top + SHORTEST, *ends)
        for group in self.groups:
            if not group["bounding"][3]:
                group["bounding"][3] = bottom + MARGIN - group["bounding"][1]
        for node in self.nodes:
            if not node["size"][1]:
                node["size"][1] = bottom - node["pos"][1]
        return bottom

    def workflow(self, note: str) -> dict:
        """Return the file's content. note: Markdown, shown at the left; it should name the files in `used`."""
        bottom, right = self._close_row(), self.right
        identity, left = len(self.nodes) + 1, -NOTE_WIDTH - GAP
        read_me = {
            "id": identity, "type": "MarkdownNote", "pos": [left, TOP], "size": [NOTE_WIDTH, bottom - TOP],
            "flags": {}, "order": len(self.nodes), "mode": 0, "inputs": [], "outputs": [], "title": "Read me",
            "properties": {}, "widgets_values": [note], **BROWN,
        }  # fmt: skip
        scale = round(min(0.6, VIEW_WIDTH / (right - left), VIEW_HEIGHT / bottom), 2)
        view = {"scale": scale, "offset": [round(SIDEBAR / scale) - left, 200]}
        looks = {"color": "#3f789e", "font_size": 24, "flags": {}}
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"ultragen/{self.name}")), "revision": 0,
            "last_node_id": identity, "last_link_id": len(self.links),
            "nodes": [*self.nodes, read_me], "links": self.links,
            "groups": [{"id": number, **group, **looks} for number, group in enumerate(self.groups, 1)],
            "config": {}, "extra": {"ds": view}, "version": 0.4,
        }  # fmt: skip


def _grown(specs: dict, inputs: dict) -> tuple[dict, dict, str]:
    """Return specs and inputs with one input for each Out of a list, and the type of these Outs."""
    found, given, matched = {}, dict(inputs), ""
    for name, (spec, group) in specs.items():
        if spec[0] != AUTOGROW:
            found[name] = spec, group
            continue
        for index, out in enumerate(given.pop(name)):
            matched = out.node["outputs"][out.slot]["type"]
            slot = f"{name}.{spec[1]['template']['prefix']}{index}"
            found[slot], given[slot] = ([matched], "required" if index == 0 else "optional"), out
    return found, given, matched


def _is_widget(spec: list) -> bool:
    kind, options = (*spec, {})[:2]
    return (isinstance(kind, list) or kind in (*WIDGET_TYPES, DYNAMIC_COMBO)) and not options.get("forceInput")
