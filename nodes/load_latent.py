"""The node UltraGen Load Latent."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

import folder_paths
from comfy_api.latest import io, ui

from ..ultragen_core.storage.files import file_within, files_in
from ..ultragen_core.video.latents import SUFFIX, count_not_finite, load_latent, newest_first
from .base import Node

log = logging.getLogger(__name__)


class UltraGenLoadLatent(Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UltraGenLoadLatent",
            display_name="UltraGen Load Latent",
            category="UltraGen",
            description="Loads a latent that UltraGen Save Video or ComfyUI's Save Latent has saved.",
            inputs=[
                io.Combo.Input(
                    "latent",
                    options=cls.choices(),
                    tooltip="Latents in output/latents and the input folder, newest first. Press R to see new ones.",
                )
            ],
            outputs=[io.Latent.Output(tooltip="The latent as it was saved.")],
        )

    @classmethod
    def choices(cls) -> list[str]:
        output = Path(folder_paths.get_output_directory())
        names = {path: path.name for path in files_in(Path(folder_paths.get_input_directory()), SUFFIX)}
        kept = [*files_in(output, SUFFIX), *files_in(output / "latents", SUFFIX, deep=True)]
        names |= {path: f"{path.relative_to(output).as_posix()} [output]" for path in kept}
        return [names[path] for path in newest_first(names)]

    @classmethod
    def path(cls, latent: str) -> Path:
        """Return the file of a choice. Raises ValueError unless it is a latent in ComfyUI's output or input folder."""
        name, folder = folder_paths.annotated_filepath(latent)
        with suppress(ValueError):
            path = file_within(Path(folder or folder_paths.get_input_directory()), name)
            if path.suffix == SUFFIX:
                return path
        raise ValueError(f"ComfyUI's output and input folders hold no latent file {latent!r}. Choose another one.")

    @classmethod
    def validate_inputs(cls, latent):
        """Check the choice when the prompt is queued; None for a linked value."""
        if latent is not None:
            cls.path(latent)
        return True

    @classmethod
    def fingerprint_inputs(cls, latent):
        if latent is None:  # linked: the name is not known yet
            return float("nan")
        facts = cls.path(latent).stat()
        return f"{facts.st_mtime_ns} {facts.st_size}"

    @classmethod
    def execute(cls, latent) -> io.NodeOutput:
        samples = load_latent(cls.path(latent))
        lines, wrong = [f"{latent}: {tuple(samples.shape)}"], count_not_finite(samples)
        if wrong:
            lines.append(f"{wrong} of {samples.numel()} values are NaN or infinite: the sampling that made it failed.")
            log.warning("UltraGen: %s: %s", latent, lines[-1])
        return io.NodeOutput({"samples": samples}, ui=ui.PreviewText("\n".join(lines)))


NODES = [UltraGenLoadLatent]
