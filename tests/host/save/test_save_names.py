"""Names: no file is replaced, even if other programs write into the folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import av
import pytest
from conftest import ROOT
from helpers.save_run import files, folders_in, settings
from helpers.support import seeded

from ultragen_core.host.save.request import KEEP_NEVER
from ultragen_core.host.save.save import save_video

pytestmark = pytest.mark.usefixtures("inference")

SAMPLES = seeded(1, 16, 1, 4, 4)


def saved_names(tmp_path, vae, prefix, batch=1, **more) -> list[str]:
    samples = {"samples": SAMPLES.expand(batch, -1, -1, -1, -1)}
    choices = settings("H.264 8-bit", prefix=prefix, keep_latent=KEEP_NEVER)
    saved = save_video(vae, samples, choices, folders_in(tmp_path), more)
    return [path.relative_to(tmp_path / "output").as_posix() for path in saved.videos]


@pytest.mark.parametrize(
    ("prefix", "name"),
    [
        ("video/lake/", "video/lake"),
        ("video/lake", "video/lake"),
        (".", "ultragen"),
        ("v1.2/take 1.5_7_", "v1.2/take 1.5_7_"),
        ("holiday.mp4\0x", "holiday.mp4_x"),
        ("12:30", "12_30"),
    ],
)
def test_every_run_gets_numbers_of_its_own(tmp_path, vae, prefix, name):
    assert saved_names(tmp_path, vae, prefix, batch=2) == [f"{name}_00001_.mp4", f"{name}_00002_.mp4"]
    assert saved_names(tmp_path, vae, prefix) == [f"{name}_00003_.mp4"]
    assert len(files(tmp_path / "output")) == 3


@pytest.mark.parametrize(
    ("others", "number"),
    [
        (["lake_00001_.png", "lake_00007_.webm"], "00008"),
        (["LAKE_00003_.mp4", "lake_00001_.mp4.part"], "00002"),
        (["lake_-5_.png"], "00001"),
        (["lake_.mp4", "lake.mp4", "lake_x.mp4", "lake_00001_"], "00002"),
        (["lake_123456_.mp4"], "123457"),
    ],
)
def test_files_of_others_stay_as_they_are(tmp_path, vae, others, number):
    folder = tmp_path / "output/video"
    folder.mkdir(parents=True)
    for name in others:
        (folder / name).write_text(name)
    assert saved_names(tmp_path, vae, "video/lake") == [f"video/lake_{number}_.mp4"]
    assert all((folder / name).read_text() == name for name in others)


def test_placeholders_of_comfyuis_page_are_filled_in_here_too(tmp_path, vae):
    prompt = {"3": {"class_type": "KSampler", "inputs": {"seed": 42}}}
    (name,) = saved_names(tmp_path, vae, "%date:yyyy%/%KSampler.seed%_%width%", prompt=prompt)
    assert name.split("/")[0].isdigit() and name.endswith("/42_32_00001_.mp4")


PROCESS = """
import sys
sys.path[:0] = sys.argv[1:4]
import comfy.cli_args
comfy.cli_args.args.cpu = True
import torch
from pathlib import Path
from helpers.save_run import folders_in, narrow_vae, settings
from helpers.support import seeded
from ultragen_core.host.save.save import save_video

vae, folders, choices = narrow_vae(), folders_in(Path(sys.argv[4])), settings("H.264 8-bit")
with torch.inference_mode():
    while True:
        print(save_video(vae, {"samples": seeded(1, 16, 1, 4, 4)}, choices, folders, {}).videos[0].name, flush=True)
"""


def playable(path: Path) -> bool:
    with av.open(str(path)) as container:
        return len(list(container.decode(video=0))) == 1


def test_two_processes_share_a_folder_and_one_is_killed(tmp_path, vae):
    """Each name belongs to one video, and a crash never leaves a partial video under a final name."""
    tests = ROOT / "tests"
    paths = [os.environ["COMFYUI_PATH"], str(tests), str(tests.parent), str(tmp_path)]
    other = subprocess.Popen([sys.executable, "-c", PROCESS, *paths], stdout=subprocess.PIPE, text=True)
    names = [other.stdout.readline().strip()]
    for _ in range(6):
        names += [Path(name).name for name in saved_names(tmp_path, vae, "video/clip")]
        names.append(other.stdout.readline().strip())  # or a busy machine might let it make hardly any
    other.kill()
    names += other.communicate()[0].split()
    assert len(names) == len(set(names)) >= 13
    videos = list((tmp_path / "output/video").glob("*.mp4"))
    assert {*names} <= {path.name for path in videos} and len(videos) <= len(names) + 1
    assert all(playable(path) for path in videos)
