"""UltraGen Save Video."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import folder_paths
from comfy_api.latest import InputImpl, io, ui

from ..ultragen_core.host.save.latent import keep_latent_of_refused_call
from ..ultragen_core.host.save.request import (
    KEEP,
    KEEP_NEVER,
    KEEP_UNTIL_SAVED,
    SIDE_FILES,
    Folders,
    VideoSettings,
    chosen,
)
from ..ultragen_core.host.save.save import SavedVideos, save_video
from ..ultragen_core.host.server import prompt_server
from ..ultragen_core.host.vae.exact import check_tile
from ..ultragen_core.video.codecs import CODECS, CROPS, check_encoders
from .base import Node
from .vae import gpus_input, tile_input


class UltraGenSaveVideo(Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UltraGenSaveVideo",
            display_name="UltraGen Save Video",
            category="UltraGen",
            description="Decodes a latent in exact tiles and streams the frames to a video file, without holding the"
            " video in memory as an IMAGE. The latent is kept first, so a failed decode costs no sampling. Each video"
            " of a batch becomes a file.",
            inputs=[
                io.Latent.Input("samples", tooltip="The sampler's video latent, not yet decoded."),
                io.Vae.Input("vae", tooltip="The model's VAE: Wan 2.1's, or Wan 2.2's for the 5B model."),
                io.Float.Input(
                    "fps",
                    default=15.0,
                    min=1.0,
                    max=240.0,
                    step=0.001,
                    tooltip="Frames per second. UltraGen: 15. T3-Video: 30. Wan: 16.",
                ),
                io.Combo.Input(
                    "codec",
                    options=list(CODECS),
                    default=next(iter(CODECS)),
                    tooltip="H.264 8-bit (.mp4) plays everywhere. H.265: smaller files; 10-bit avoids banding in smooth"
                    " skies (a VAE in bf16 resolves about 9 bits, in fp16 or fp32 more). FFV1 (.mkv): lossless, large,"
                    " for editing; plays in mpv and VLC, not in browsers. If a browser may not play the file, the node"
                    " shows a small H.264 preview.",
                ),
                io.Int.Input(
                    "crf",
                    default=17,
                    min=1,
                    max=51,
                    tooltip="Constant rate factor of H.264 and H.265. Lower: better and larger. 17 is visually"
                    " lossless, 23 takes about half the space. FFV1 ignores it.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="video/ultragen",
                    tooltip="Folder and name inside ComfyUI's output folder. A number is added; no file is replaced. "
                    "Placeholders: %year%-%month%-%day%, %width% and %height%, %date:yyyy-MM-dd% and "
                    "%NodeTitle.widget%.",
                ),
                io.Combo.Input(
                    "crop",
                    options=list(CROPS),
                    default="keep",
                    tooltip="Removes lines equally at top and bottom, such as 1088 to 1080 for Full HD.",
                ),
                io.Combo.Input(
                    "keep_latent",
                    options=[KEEP, KEEP_UNTIL_SAVED, KEEP_NEVER],
                    default=KEEP,
                    tooltip="Save the latent to output/latents first, so that a failed decode costs no sampling. "
                    "UltraGen Load Latent loads it again. Choose off when you save a loaded latent again, because it is"
                    " already on disk.",
                ),
                tile_input(),
                io.Audio.Input(
                    "audio",
                    optional=True,
                    tooltip="Audio track: AAC in .mp4, FLAC in .mkv. Cut to the video's length, or padded with"
                    " silence.",
                ),
                io.String.Input(
                    "details",
                    default="",
                    optional=True,
                    force_input=True,
                    tooltip="Text to store in the file as its comment, such as the details of UltraGen Prompts (prompt,"
                    " negative, seed).",
                ),
                io.Combo.Input(
                    "side_file",
                    options=list(SIDE_FILES),
                    default=next(iter(SIDE_FILES)),
                    optional=True,
                    tooltip="json: also write details, codec and size to NAME_00001_.json next to the video, for"
                    " scripts and catalogues.",
                ),
                io.Boolean.Input(
                    "trim_to_audio",
                    default=False,
                    optional=True,
                    tooltip="If the audio is shorter, end the video with it instead of padding it with silence.",
                ),
                gpus_input(),
                io.Int.Input(
                    "max_frames",
                    default=0,
                    min=0,
                    max=1_000_000,
                    optional=True,
                    tooltip="End the video after this many frames, for example as many as the source video has: Wan"
                    " makes 4n + 1. 0: all.",
                ),
            ],
            outputs=[
                io.Video.Output(
                    "video", is_output_list=True, tooltip="The video files, one for each video of the batch."
                )
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, codec=None, tile=None, filename_prefix=None):
        """Check the widgets when the prompt is queued, before any sampling. A linked input is None here."""
        if codec is not None:
            check_encoders(chosen("codec", CODECS, codec), with_audio=False)
        if filename_prefix is not None:
            cls.folders().check(filename_prefix)
        check_tile(tile or None)
        return True

    @classmethod
    def execute(cls, samples, vae, filename_prefix, tile, audio=None, details="", **widgets) -> io.NodeOutput:
        settings = VideoSettings(prefix=filename_prefix, tile=tile or None, details=details or "", **widgets)
        saved = save_video(vae, samples, settings, cls.folders(), cls.metadata(), audio, cls.show_status)
        previews = [cls.shown(path) for path in saved.previews]
        # `ultragen_files` is for API clients; the frontend plays `images`, which may be previews.
        written = [*saved.videos, *saved.side_files]
        shown = {**ui.PreviewVideo(previews).as_dict(), **ui.PreviewText(cls.summary(saved)).as_dict()}
        return io.NodeOutput(
            [InputImpl.VideoFromFile(str(path)) for path in saved.videos],
            ui={**shown, "ultragen_files": [cls.shown(path) for path in written]},
        )

    @classmethod
    def on_refused(cls, inputs) -> str:
        return keep_latent_of_refused_call(inputs, cls.folders(), cls.metadata())

    @classmethod
    def folders(cls) -> Folders:
        kinds = io.FolderType.output, io.FolderType.temp, io.FolderType.input
        paths = (folder_paths.get_directory_by_type(kind.value) for kind in kinds)
        return Folders(*paths, folder_paths.get_save_image_path)

    @classmethod
    def metadata(cls) -> dict:
        extra = cls.hidden.extra_pnginfo
        metadata = dict(extra) if isinstance(extra, Mapping) else {}
        return metadata if cls.hidden.prompt is None else metadata | {"prompt": cls.hidden.prompt}

    @classmethod
    def show_status(cls, text: str) -> None:
        """Show a line in the node while it runs, if a server runs."""
        server = prompt_server()
        if server is not None and cls.hidden.unique_id is not None:
            server.send_progress_text(text, cls.hidden.unique_id)

    @classmethod
    def summary(cls, saved: SavedVideos) -> str:
        lines = [f"{path}{cls.size(path)}" for path in saved.videos]
        lines += [str(path) for path in saved.side_files]
        if saved.latent is not None:
            lines.append(f"Latent: {saved.latent}")
        lines += saved.notes
        if saved.fallback_reason:
            lines.append(f"ComfyUI's own decode was used. {saved.fallback_reason}")
        return "\n".join(lines)

    @staticmethod
    def size(path: Path) -> str:
        try:
            return f" ({path.stat().st_size / 2**20:.1f} MiB)"
        except OSError:  # already moved or deleted
            return ""

    @classmethod
    def shown(cls, path: Path) -> ui.SavedResult:
        """Return a file of the output or temp folder in the form that the frontend requests."""
        for folder in (io.FolderType.output, io.FolderType.temp):
            base = Path(folder_paths.get_directory_by_type(folder.value))
            if path.is_relative_to(base):
                return ui.SavedResult(path.name, path.parent.relative_to(base).as_posix(), folder)
        raise ValueError(f"{path} must be in ComfyUI's output folder or temp folder.")


NODES = [UltraGenSaveVideo]
