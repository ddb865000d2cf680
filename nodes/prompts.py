"""Lists of prompts."""

from __future__ import annotations

import hashlib
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..ultragen_core.prompts import parse_prompts, read_prompts
from .base import Node

NO_FILE = "none"
PROMPT_FILES = (".txt", ".json")


class UltraGenPrompts(Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UltraGenPrompts",
            display_name="UltraGen Prompts",
            category="UltraGen",
            description=(
                "A list of prompts; every node that follows runs once for each before the next node runs, so that the"
                " videos of a long list are saved at the end."
            ),
            inputs=[
                io.String.Input(
                    "text",
                    default="",
                    multiline=True,
                    tooltip="One prompt a line; lines that start with # are comments. Or json: a list of strings.",
                ),
                io.Combo.Input(
                    "file",
                    options=[NO_FILE, *cls.prompt_files()],
                    default=NO_FILE,
                    tooltip="A .txt or .json file of the input folder, read instead of the text.",
                ),
            ],
            outputs=[io.String.Output("prompts", is_output_list=True)],
        )

    @classmethod
    def prompt_files(cls) -> list[str]:
        folder = Path(folder_paths.get_input_directory())
        return sorted(path.name for path in folder.glob("*") if path.suffix.lower() in PROMPT_FILES and path.is_file())

    @classmethod
    def fingerprint_inputs(cls, text, file):
        return text if file == NO_FILE else hashlib.sha256(cls.file_path(file).read_bytes()).hexdigest()

    @classmethod
    def file_path(cls, file: str) -> Path:
        return Path(folder_paths.get_input_directory()) / Path(file).name

    @classmethod
    def execute(cls, text, file) -> io.NodeOutput:
        if file == NO_FILE:
            return io.NodeOutput(parse_prompts(text))
        return io.NodeOutput(read_prompts(cls.file_path(file)))


NODES = [UltraGenPrompts]
