"""Metrics of ComfyUI's own videos, through ComfyUI's own CLIP."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import av
import comfy.clip_vision
import comfy.model_management
import comfy.sd
import comfy.sd1_clip
import pytest
import torch
import transformers
from comfy_api.latest import InputImpl, Types
from helpers.support import seeded

from ultragen_core.host.metrics.clip import Clip, load_clip
from ultragen_core.host.metrics.measure import check, measure, stream
from ultragen_core.metrics.report import numbers, picture, text
from ultragen_core.metrics.scores import METRICS, Networks
from ultragen_core.video.codecs import CODECS
from ultragen_core.video.encoder import VideoWriter
from ultragen_core.weights.files import WeightsError

PROMPT = "a lake at dawn, mist over the water"
LAYERS = {"hidden_act": "quick_gelu", "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3}
TEXT = {**LAYERS, "hidden_size": 32, "vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 49407}
VISION = {**LAYERS, "hidden_size": 48, "image_size": 224, "patch_size": 56, "num_channels": 3, "projection_dim": 32}


def images(frames: int, height: int = 48, width: int = 64) -> torch.Tensor:
    return seeded(frames, height, width, 3).sigmoid().mul(255).round() / 255


def made_from(batch: torch.Tensor) -> InputImpl.VideoFromComponents:
    """ComfyUI's Create Video."""
    return InputImpl.VideoFromComponents(Types.VideoComponents(images=batch, frame_rate=Fraction(10)))


def no_file(folder: str, name: str) -> None:
    return None


def written(path: Path, batch: torch.Tensor) -> InputImpl.VideoFromFile:
    """A video in a lossless file."""
    with VideoWriter(path, CODECS["FFV1 lossless RGB"], (64, 48), Fraction(10), 17, len(batch)) as writer:
        for frame in batch:
            writer.write(frame.mul(255).byte().numpy())
        writer.finish(lambda: None)
    return InputImpl.VideoFromFile(str(path))


@pytest.fixture
def saved(tmp_path):
    """The same frames as an IMAGE batch, a video in memory and a video in a lossless file."""
    batch = images(7)
    return batch, made_from(batch), written(tmp_path / "video.mkv", batch)


def test_every_kind_of_video_gives_its_frames(saved):
    for video in saved:
        torch.testing.assert_close(torch.stack(list(stream(video))), saved[0])
    transparent = torch.cat([saved[0], torch.ones_like(saved[0][..., :1])], dim=-1)
    assert torch.equal(torch.stack(list(stream(transparent))), saved[0])


if hasattr(InputImpl.VideoFromFile, "as_trimmed"):  # 0.3.75 cuts no files

    def test_a_cut_video_is_cut(saved):
        cut = saved[2].as_trimmed(0.2, 0.3)
        torch.testing.assert_close(torch.stack(list(stream(cut))), saved[0][2:5])


def test_videos_are_measured_with_a_bar_that_counts_frames(saved, monkeypatch):
    seen = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda done, total, *_, **__: seen.append((done, total)))
    scores = measure(saved, ["hd_mse"], no_file)
    # 0.30.0 skips what comes too fast.
    assert seen[0] == (1, 21) and seen[-1] == (21, 21) and seen == sorted(seen)
    values = [video.mean("hd_mse") for video in scores.videos]
    assert values == pytest.approx([values[0]] * 3, rel=1e-5) and values[0] > 100


def test_an_interrupt_stops_within_a_frame(saved):
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        measure(saved, ["hd_mse"], no_file)


@pytest.mark.parametrize(
    ("wanted", "more", "message"),
    [
        ([], {}, "At least one metric must be on"),
        (["hd_fvd"], {}, "Connect reference, or switch hd_fvd off"),
        (["clip_score"], {"prompts": [" "]}, "needs a prompt, got an empty one"),
        (["clip_score"], {}, "needs a prompt, got an empty one"),
        (["clip_score"], {"prompts": ["a", "b"], "find": lambda *_: "there"}, "one for each, got 2 for 3 videos"),
    ],
)
def test_inputs_that_do_not_fit_together_are_refused(saved, wanted, more, message):
    with pytest.raises(ValueError, match=message):
        measure(saved, wanted, **{"find": no_file, **more})


class Damaged:
    """A video whose file is not a video, or is truncated."""

    def __init__(self, first: Exception | None, later: Exception | None = None):
        self.first, self.later = first, later

    def get_dimensions(self):
        if self.first:
            raise self.first
        return 64, 48

    def get_duration(self):
        return 1.0

    def get_frame_rate(self):
        return Fraction(2)

    def get_components(self):
        raise self.later


@pytest.mark.parametrize(
    ("wanted", "videos", "message"),
    [
        (["hd_mse"], [], "video must hold at least one video"),
        (["hd_mse"], ["a.mp4"], "Video 1 must be a video or images, got a value of type str"),
        (["hd_mse"], [torch.zeros(0, 8, 8, 3)], "Video 1 must have at least one frame"),
        (["hd_mse"], [torch.zeros(2, 8, 8, 1)], r"Video 1 must be images .* got \(2, 8, 8, 1\)"),
        (
            ["hd_mse"],
            [torch.zeros(1, 8, 8, 3), torch.full((2, 8, 8, 3), torch.nan)],
            "Video 2 must be finite: 2 of 2 frames",
        ),
        (
            ["hd_lpips"],
            [torch.zeros(2, 16, 31, 3)],
            "hd_lpips needs frames of at least 31x31 pixels, but Video 1 has 31x16",
        ),
        (["hd_fvd"], [torch.zeros(16, 224, 223, 3)], "hd_fvd needs frames of at least 224x224"),
        (["hd_fvd"], [torch.zeros(15, 224, 224, 3)], "hd_fvd needs at least 16 frames, but Video 1 has 15"),
        (["temporal_consistency"], [torch.zeros(1, 8, 8, 3)], "needs at least 2 frames, but Video 1 has 1"),
        (["hd_fvd"], [made_from(torch.full((16, 224, 224, 3), torch.nan))], "Video 1 must be finite: 16 of 16 frames"),
        (["hd_mse"], [made_from(torch.zeros(2, 8, 8, 1))], r"Video 1 must be images .* got \(2, 8, 8, 1\)"),
        (["temporal_consistency"], [made_from(torch.zeros(1, 8, 8, 3))], "needs at least 2 frames, but Video 1 has 1"),
        (["hd_mse"], [Damaged(ValueError("no video stream"))], "Video 1 cannot be read as a video: no video stream"),
        (["hd_mse"], [Damaged(None, av.error.InvalidDataError(1, "cut"))], "Video 1 cannot be read as a video: .*cut"),
        (["hd_mse"], [Damaged(None, IndexError("no frame"))], "Video 1 cannot be read as a video: no frame"),
    ],
)
def test_videos_that_cannot_be_measured_are_named_before_work_begins(wanted, videos, message, monkeypatch):
    monkeypatch.setattr("ultragen_core.host.metrics.measure._load", lambda *_: (Networks(), None))
    with pytest.raises(ValueError, match=message):
        measure(videos, wanted, lambda *_: "there", references=[torch.zeros(16, 224, 224, 3)])


def test_a_file_too_short_is_named(tmp_path, monkeypatch):
    networks = Networks(embed=lambda frame: frame.mean((1, 2))[None])
    monkeypatch.setattr("ultragen_core.host.metrics.measure._load", lambda *_: (networks, None))
    files = [written(tmp_path / f"{frames}.mkv", images(frames)) for frames in (2, 1)]
    with pytest.raises(ValueError, match="temporal_consistency needs at least 2 frames, but Video 2 has 1"):
        measure(files, ["temporal_consistency"], lambda *_: "there")


def test_videos_of_different_sizes_are_measured_together():
    scores = measure([images(2), images(3, 40, 56), images(1, 8, 8)], ["hd_mse"], no_file)
    assert text(scores).startswith("3 videos: 1 frame of 8x8, 2 frames of 64x48, 3 frames of 56x40")
    assert picture(scores).isfinite().all()


def test_numbers_are_json_whatever_the_values_are():
    """Finite pixels can be too large to square."""
    scores = measure([images(2) * 1e30], ["hd_mse"], no_file)
    found = json.loads(json.dumps(numbers(scores)), parse_constant=lambda name: pytest.fail(name))
    assert found["hd_mse"] is None and found["videos"][0]["hd_mse_by_factor"]["8"] is None
    assert "inf" in text(scores) and picture(scores).isfinite().all()


@pytest.mark.parametrize("metric", [name for name in METRICS if name != "hd_mse"])
def test_a_missing_file_is_named_with_its_source_and_folder(metric):
    with pytest.raises(ValueError, match=rf"{metric} needs files .* Put \S+ from \S+\.(com|org|co)/.* into models/cl"):
        check([metric], no_file, references=[None], prompts=[None])
    check(["hd_mse"], no_file, [], [])


@pytest.fixture(scope="module")
def reference():
    """transformers' CLIP at toy size, every weight random."""
    torch.manual_seed(0)
    config = transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=32)
    model = transformers.CLIPModel(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        # ComfyUI keeps CLIP's weights in 16 bits, as they were published.
        parameter.copy_((parameter + 0.1 * torch.randn(parameter.shape)).half())
    return model


@pytest.fixture
def clip(reference, tmp_path):
    """ComfyUI's CLIP_VISION and CLIP of the same size with the same weights."""
    for name, config in (("text", TEXT), ("vision", {**VISION, "model_type": "clip_vision_model"})):
        (tmp_path / f"{name}.json").write_text(json.dumps(config))
    vision = comfy.clip_vision.ClipVisionModel(str(tmp_path / "vision.json"))
    encoder = partial(comfy.sd1_clip.SDClipModel, textmodel_json_config=str(tmp_path / "text.json"))
    model = partial(comfy.sd1_clip.SD1ClipModel, clip_model=encoder)
    text = comfy.sd.CLIP(SimpleNamespace(params={}, clip=model, tokenizer=comfy.sd1_clip.SD1Tokenizer))
    assert [vision.load_sd(reference.state_dict())[0], text.load_sd(reference.state_dict())[0]] == [[], []]
    return Clip(vision, text)


def test_embeddings_are_those_of_transformers(reference, clip):
    frame = images(1, 224, 224)[0].movedim(-1, 0)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (clip._vision.image_mean, clip._vision.image_std))
    tokens = transformers.CLIPTokenizer.from_pretrained(Path(comfy.sd1_clip.__file__).parent / "sd1_tokenizer")
    ids = tokens(PROMPT, padding="max_length", max_length=77, return_tensors="pt").input_ids
    both = reference(input_ids=ids, pixel_values=((frame - mean) / std)[None])
    ours = clip.embed(frame), clip.embed_text(PROMPT)[None]
    for mine, theirs in zip(ours, (both.image_embeds, both.text_embeds), strict=True):
        torch.testing.assert_close(torch.nn.functional.normalize(mine), theirs, rtol=0, atol=1e-5)


@pytest.fixture
def published(tmp_path):
    """CLIP ViT-L/14 under its published keys and shapes; every weight is one number, so that the file is small."""
    with torch.device("meta"):
        vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
        config = transformers.CLIPConfig(vision_config={**vision, "patch_size": 14}, projection_dim=768)
        config.text_config = transformers.CLIPTextConfig(
            hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
        )
        shapes = {key: value.shape for key, value in transformers.CLIPModel(config).state_dict().items()}
    path = tmp_path / "clip.safetensors"

    def write(without: str = "") -> Path:
        torch.save({key: torch.tensor(0.01).expand(shapes[key]) for key in shapes if key != without}, path)
        return path

    return write


def test_the_published_file_gives_both_halves(published):
    clip = load_clip(published())
    assert clip.embed(torch.rand(3, 30, 40)).shape == (1, 768) and clip.embed_text(PROMPT).shape == (768,)


@pytest.mark.parametrize(
    "key",
    [
        "text_projection.weight",
        "vision_model.encoder.layers.22.layer_norm1.weight",  # by which ComfyUI tells the size
        "vision_model.encoder.layers.3.mlp.fc2.bias",  # which it would leave as memory holds it
        "text_model.final_layer_norm.weight",
    ],
)
def test_an_incomplete_clip_is_refused(published, key):
    with pytest.raises(WeightsError, match=rf"must hold {re.escape(key)} of shape .* it is missing.*openai"):
        load_clip(published(without=key))
