"""Lists of prompts."""

from __future__ import annotations

import hashlib
from pathlib import Path

import folder_paths
from comfy_api.latest import io, ui
from comfy_execution.graph_utils import ExecutionBlocker, is_link

from ..ultragen_core.printable import printable
from ..ultragen_core.prompts.entries import MAX_SEED
from ..ultragen_core.prompts.formats import AUTO, ENDINGS, FORMATS, MAX_BYTES
from ..ultragen_core.prompts.items import NO_FILE, WHOLE_LIST, Item, chosen_items, read_list
from ..ultragen_core.storage.files import file_within
from ..ultragen_core.video.image import read_image
from .base import Node
from .questions import add_question, mapping

IMAGE = 3  # its place among the outputs


class UltraGenPrompts(Node):
    """One item a queue entry, by `index`, rather than an expansion of the whole list within one: each entry is a run of
    its own for ComfyUI, so a video is on disk before the next run begins, an error or a kill costs one item, and an
    item can be cancelled, found in the history and queued again alone. It works the same through the API.
    """

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UltraGenPrompts",
            display_name="UltraGen Prompts",
            category="UltraGen",
            description=(
                "A list of prompts, with a negative, a seed and a start image for each where you want them. With index"
                " 0 and its control on increment, each Run makes the next video: set the number beside Run to as many."
                " With index -1 one Run makes all, and saves them at the end."
            ),
            inputs=[
                io.String.Input(
                    "text",
                    default="",
                    multiline=True,
                    tooltip=(
                        "One prompt a line; a line that starts with # and a blank is a comment. Or a table or json with"
                        " prompt, negative, seed and image, as in a file."
                    ),
                ),
                io.Combo.Input(
                    "file",
                    options=[NO_FILE, *cls.prompt_files()],
                    default=NO_FILE,
                    tooltip=(
                        "A .txt, .csv, .tsv, .json or .jsonl file of the input folder, read instead of the text. Press"
                        " R to see new ones."
                    ),
                ),
                io.Combo.Input(
                    "format",
                    options=list(FORMATS),
                    default=AUTO,
                    optional=True,
                    tooltip=(
                        "auto goes by the file's ending, and takes pasted json and tables for what they are. lines:"
                        " each line is a prompt. paragraphs: blank lines stand between prompts. CSV: a first row with"
                        " prompt, negative, seed, image. JSON: a list of strings or of objects with these keys."
                    ),
                ),
                io.Int.Input(
                    "index",
                    default=WHOLE_LIST,
                    min=WHOLE_LIST,
                    max=2**31 - 1,
                    optional=True,
                    # A word names the control in frontends that mix up two of one name.
                    control_after_generate="fixed",
                    tooltip=(
                        "Which prompt this run makes, counted from 0; with the control on increment the next Run makes"
                        " the next one, and the queue refuses what is beyond the end. -1: the whole list in one run."
                    ),
                ),
                io.String.Input(
                    "negative",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="What the video must not show, for prompts whose entry in the list has no negative.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=MAX_SEED,
                    optional=True,
                    control_after_generate=True,
                    tooltip=(
                        "For prompts whose entry has no seed. The same entry again takes the next seed, so a line"
                        " written four times makes four different videos."
                    ),
                ),
            ],
            outputs=[
                io.String.Output(
                    "prompts", display_name="prompt", is_output_list=True, tooltip="For CLIP Text Encode."
                ),
                io.String.Output(
                    "negatives", display_name="negative", is_output_list=True, tooltip="For a second CLIP Text Encode."
                ),
                io.Int.Output(
                    "seeds", display_name="seed", is_output_list=True, tooltip="For RandomNoise, or a sampler's seed."
                ),
                io.Image.Output(
                    "images",
                    display_name="image",
                    is_output_list=True,
                    tooltip="The start image of each prompt, for image-to-video.",
                ),
                io.String.Output(
                    "details", is_output_list=True, tooltip="All of it as json, for details of UltraGen Save Video."
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
        )

    @classmethod
    def prompt_files(cls) -> list[str]:
        folder = cls.folder()
        names = (path.name for path in folder.glob("*") if path.suffix.lower() in ENDINGS and path.is_file())
        return sorted(name for name in names if name == printable(name))

    @classmethod
    def folder(cls) -> Path:
        return Path(folder_paths.get_input_directory())

    @classmethod
    def read_file(cls, name: str) -> bytes:
        """The content of a file of the input folder. Raises ValueError where there is none that can be read."""
        path = file_within(cls.folder(), str(name))
        try:
            with open(path, "rb") as file:
                return file.read(MAX_BYTES + 1)
        except OSError as error:
            raise ValueError(f"{printable(name)} cannot be read: {error.strerror}.") from error

    @classmethod
    def items(cls, text, file, format, index, negative="", seed=0) -> tuple[str, list[Item]]:
        """What was understood, in a line, and the items of this run. Raises ValueError."""
        found = read_list({"text": text, "file": file, "format": format}, cls.read_file)
        return found.summary(), chosen_items(found, index, negative, seed)

    @classmethod
    def image_path(cls, item: Item) -> Path:
        try:
            return file_within(cls.folder(), item.image)
        except ValueError as error:
            raise ValueError(f"The image of prompt {item.index + 1}: {error}") from error

    @classmethod
    def validate_inputs(cls, text="", file=NO_FILE, format=AUTO, index=WHOLE_LIST):
        """When the prompt is queued; what comes through a link is None here."""
        if None in (file, format) or (file == NO_FILE and text is None):
            return True
        _, items = cls.items(text, file, format, WHOLE_LIST if index is None else index)
        for item in items:
            if item.image is not None:
                cls.image_path(item)
        return True

    @classmethod
    def fingerprint_inputs(cls, text, file, format=AUTO, index=WHOLE_LIST, negative="", seed=0):
        """By the content of the items of this run, and size and time of their images."""
        if text is None and file == NO_FILE:  # ComfyUI looks at what it is linked to
            return ""
        index = WHOLE_LIST if index is None else index
        _, items = cls.items(text, file, format, index, negative or "", seed or 0)
        images = [cls.image_path(item).stat() for item in items if item.image is not None]
        facts = [[item.details() for item in items], [(image.st_size, image.st_mtime_ns) for image in images]]
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    @classmethod
    def execute(cls, text, file, format=AUTO, index=WHOLE_LIST, negative="", seed=0) -> io.NodeOutput:
        summary, items = cls.items(text, file, format, index, negative, seed)
        shown = [summary, *(f"Now number {item.index + 1}: {item.prompt}" for item in items if index != WHOLE_LIST)]
        return io.NodeOutput(
            [item.prompt for item in items],
            [item.negative for item in items],
            [item.seed for item in items],
            [cls.image(item) for item in items],
            [item.details() for item in items],
            ui=ui.PreviewText("\n".join(shown)),
        )

    @classmethod
    def image(cls, item: Item):
        """The image, read only where something is linked to it; there, none is an error.

        Otherwise a blocker, for a link that is made while ComfyUI has this output cached.
        """
        number, linked = item.index + 1, cls.is_linked(IMAGE)
        if item.image is None:
            reason = f"Prompt {number} has no image. Give each one in the column image, or unlink the output image."
            if linked:
                raise ValueError(reason)
            return ExecutionBlocker(reason)
        if linked:
            return read_image(cls.image_path(item))
        return ExecutionBlocker(
            f"The image of prompt {number} was not read, as nothing was linked to it when UltraGen Prompts last ran."
            " Change the node's seed and queue again."
        )

    @classmethod
    def is_linked(cls, output: int) -> bool:
        graph = (cls.hidden.prompt if cls.hidden else None) or {}
        values = (value for node in graph.values() for value in node.get("inputs", {}).values() if is_link(value))
        return [cls.hidden.unique_id, output] in values


def length_of(asked: object) -> dict:
    """asked: the node's text, file and format. Raises ValueError where they are no list."""
    asked = {"text": None, **UltraGenPrompts.checked(mapping("The question", asked), queued=True)}
    return {"count": len(read_list(asked, UltraGenPrompts.read_file).entries)}


def add_route() -> None:
    """POST /ultragen/prompts, for the button on the canvas that queues a run for each."""
    add_question("/ultragen/prompts", length_of)


NODES = [UltraGenPrompts]
