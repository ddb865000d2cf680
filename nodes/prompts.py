"""UltraGen Prompts, and the route that counts the prompts of a list for the canvas."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import folder_paths
from comfy_api.latest import io, ui
from comfy_execution.graph_utils import ExecutionBlocker, is_link

from ..ultragen_core.printable import printable
from ..ultragen_core.prompts.entries import MAX_SEED
from ..ultragen_core.prompts.formats import AUTO, ENDINGS, FORMATS, MAX_BYTES
from ..ultragen_core.prompts.items import NO_FILE, WHOLE_LIST, Item, chosen_items, read_list
from ..ultragen_core.storage.files import file_within, files_in
from ..ultragen_core.video.image import read_image
from .base import Node
from .questions import add_question, mapping

IMAGE = 3  # index of the output `images`


class UltraGenPrompts(Node):
    """Outputs one item of a list (`index`), or the whole list.

    Why one item per queue entry rather than expanding the list in one run: each video is on disk before the next run
    begins, an error or a crash costs one item, and each item can be cancelled, found in the history and run again
    alone. It works the same way through the API.
    """

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UltraGenPrompts",
            display_name="UltraGen Prompts",
            category="UltraGen",
            description=(
                "A list of prompts, each optionally with a negative prompt, a seed and a start image. With index 0 and"
                " its control set to increment, each run makes the next video: set the batch count of Run to the length"
                " of the list. With index -1 one run makes all videos and saves them at the end."
            ),
            inputs=[
                io.String.Input(
                    "text",
                    default="",
                    multiline=True,
                    tooltip=(
                        "One prompt per line; a line that starts with # and a space is a comment. Or CSV or JSON with"
                        " prompt, negative, seed and image, as in a file."
                    ),
                ),
                io.Combo.Input(
                    "file",
                    options=[NO_FILE, *cls.prompt_files()],
                    default=NO_FILE,
                    tooltip=(
                        "A .txt, .csv, .tsv, .json or .jsonl file in the input folder, read instead of the text. Press"
                        " R to refresh the list."
                    ),
                ),
                io.Combo.Input(
                    "format",
                    options=list(FORMATS),
                    default=AUTO,
                    optional=True,
                    tooltip=(
                        "auto: by the file's extension, and pasted CSV and JSON are detected. lines: one prompt per"
                        " line. paragraphs: prompts separated by blank lines. CSV: the first row names the columns"
                        " prompt, negative, seed, image. JSON: a list of strings, or of objects with these keys."
                    ),
                ),
                io.Int.Input(
                    "index",
                    default=WHOLE_LIST,
                    min=WHOLE_LIST,
                    max=2**31 - 1,
                    optional=True,
                    # A string names the control: some frontends confuse two controls with the default name.
                    control_after_generate="fixed",
                    tooltip=(
                        "Which prompt this run uses, from 0. With the control set to increment each run uses the next"
                        " one, and a run beyond the end is refused when queued. -1: the whole list in one run."
                    ),
                ),
                io.String.Input(
                    "negative",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="Negative prompt for entries of the list that have none.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=MAX_SEED,
                    optional=True,
                    control_after_generate=True,
                    tooltip=(
                        "Seed for entries that have none. A repeated entry gets the next seed, so a line written four"
                        " times makes four different videos."
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
                    "seeds", display_name="seed", is_output_list=True, tooltip="For RandomNoise or a sampler's seed."
                ),
                io.Image.Output(
                    "images",
                    display_name="image",
                    is_output_list=True,
                    tooltip="The start image of each prompt, for image-to-video.",
                ),
                io.String.Output(
                    "details", is_output_list=True, tooltip="All values as JSON, for details of UltraGen Save Video."
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
        )

    @classmethod
    def prompt_files(cls) -> list[str]:
        found = (path for path in files_in(cls.folder()) if path.suffix.lower() in ENDINGS and os.path.isfile(path))
        return sorted(path.name for path in found if path.name == printable(path.name))

    @classmethod
    def folder(cls) -> Path:
        return Path(folder_paths.get_input_directory())

    @classmethod
    def read_file(cls, name: str) -> bytes:
        """Return the content of a file in the input folder. Raises ValueError if it cannot be read."""
        path = file_within(cls.folder(), str(name))
        try:
            with open(path, "rb") as file:
                return file.read(MAX_BYTES + 1)
        except OSError as error:
            raise ValueError(
                f"{printable(name)} cannot be read: {error.strerror}. Check the file in the input folder, and press R."
            ) from error

    @classmethod
    def items(cls, text, file, format, index, negative="", seed=0) -> tuple[str, list[Item]]:
        """Return a one-line summary of the list and the items of this run. Raises ValueError."""
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
        """Check the list when the prompt is queued. Linked inputs are None here."""
        if None in (file, format) or (file == NO_FILE and text is None):
            return True
        _, items = cls.items(text, file, format, WHOLE_LIST if index is None else index)
        for item in items:
            if item.image is not None:
                cls.image_path(item)
        return True

    @classmethod
    def fingerprint_inputs(cls, text, file, format=AUTO, index=WHOLE_LIST, negative="", seed=0):
        """Hash the items of this run, with size and time of their images."""
        if text is None and file == NO_FILE:  # ComfyUI itself tracks the linked node
            return ""
        index = WHOLE_LIST if index is None else index
        _, items = cls.items(text, file, format, index, negative or "", seed or 0)
        images = [cls.image_path(item).stat() for item in items if item.image is not None]
        facts = [[item.details() for item in items], [(image.st_size, image.st_mtime_ns) for image in images]]
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    @classmethod
    def execute(cls, text, file, format=AUTO, index=WHOLE_LIST, negative="", seed=0) -> io.NodeOutput:
        summary, items = cls.items(text, file, format, index, negative, seed)
        shown = [summary, *(f"Number {item.index + 1}: {item.prompt}" for item in items if index != WHOLE_LIST)]
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
        """Return the item's image, read only if the output is linked; then a missing image raises ValueError.

        Otherwise return a blocker, in case the output is linked later while ComfyUI has it cached.
        """
        number, linked = item.index + 1, cls.is_linked(IMAGE)
        if item.image is None:
            reason = f"Prompt {number} has no image. Name a file in the column image, or unlink the output image."
            if linked:
                raise ValueError(reason)
            return ExecutionBlocker(reason)
        if linked:
            return read_image(cls.image_path(item))
        return ExecutionBlocker(
            f"The image of prompt {number} was not read, because nothing was linked to it when UltraGen Prompts last"
            " ran. Change the node's seed and run the workflow again."
        )

    @classmethod
    def is_linked(cls, output: int) -> bool:
        graph = (cls.hidden.prompt if cls.hidden else None) or {}
        values = (value for node in graph.values() for value in node.get("inputs", {}).values() if is_link(value))
        return [cls.hidden.unique_id, output] in values


def length_of(asked: object) -> dict:
    """Return {"count": length of the list}. asked: the node's text, file and format. Raises ValueError."""
    asked = {"text": None, **UltraGenPrompts.checked(mapping("The request", asked), queued=True)}
    return {"count": len(read_list(asked, UltraGenPrompts.read_file).entries)}


def add_route() -> None:
    """Add POST /ultragen/prompts, for the button that queues one run per prompt."""
    add_question("/ultragen/prompts", length_of)


NODES = [UltraGenPrompts]
