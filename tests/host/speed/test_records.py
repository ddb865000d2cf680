"""The file of measurements: what was measured on this card comes back, and nothing else does."""

from __future__ import annotations

import json
import os

import pytest
import torch

from ultragen_core.host.speed import records
from ultragen_core.host.speed.records import MOST_SETUPS, current_speed, read_speed, write_speed
from ultragen_core.host.speed.setup import Setup, current_setup, setup_of
from ultragen_core.plan.flops import FLOPs
from ultragen_core.plan.speed import DecodeTime, EvaluationTime, Speed
from ultragen_core.sizes import VideoSize

SETUP = Setup("Card 9000", "570.1", "2.11.0", "0.30.0", "0.1.0", "attention_pytorch")
SIZE = VideoSize(1920, 1088, 81)
SPEED = Speed("2026-11-27", (EvaluationTime(SIZE, FLOPs(1.4e15, 4e14), 3.5),), (DecodeTime(SIZE, 5.1),))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "user" / "file.json"


def test_what_was_measured_comes_back_for_this_setup_alone(path):
    assert read_speed(path, SETUP) is None
    write_speed(path, SETUP, SPEED)
    assert read_speed(path, SETUP) == SPEED
    for name in Setup._fields:
        assert read_speed(path, SETUP._replace(**{name: "another"})) is None, name


def test_other_setups_are_kept_and_the_oldest_dropped(path):
    setups = [SETUP._replace(driver=str(number)) for number in range(MOST_SETUPS + 1)]
    for setup in setups:
        write_speed(path, setup, SPEED)
    write_speed(path, setups[1], SPEED)  # now the newest
    write_speed(path, SETUP, SPEED)
    found = [setup.driver for setup in (*setups, SETUP) if read_speed(path, setup)]
    assert found == [*(setup.driver for setup in setups if setup.driver not in ("0", "2")), SETUP.driver]


def test_a_failing_write_leaves_the_former_file(path, monkeypatch):
    write_speed(path, SETUP, SPEED)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_speed(path, SETUP, Speed("2027-01-01", (), ()))
    assert read_speed(path, SETUP) == SPEED and os.listdir(path.parent) == [path.name]


def record(**changes) -> str:
    good = {"date": "2026-11-27", "evaluations": [[[64, 32, 9], [1.0, 2.0], 3.0]], "decodes": [[[64, 32, 9], 1.0]]}
    return json.dumps({SETUP.key: {**good, **changes}})


HOSTILE = {
    "empty": "",
    "no JSON": "{",
    "a list": "[]",
    "nested too deeply": "[" * 100_000,
    "too large": " " * (records.MOST_BYTES + 1) + "{}",
    "a setup is a list": json.dumps({SETUP.key: [1, 2]}),
    "a setup is null": json.dumps({SETUP.key: None}),
    "no fields": json.dumps({SETUP.key: {}}),
    "a date with more": record(date="2026-11-27<script>"),
    "a date that is a number": record(date=20261127),
    "no list": record(evaluations=None),
    "too few values": record(evaluations=[[[64, 32, 9], [1.0, 2.0]]]),
    "three FLOPs": record(evaluations=[[[64, 32, 9], [1.0, 2.0, 3.0], 3.0]]),
    "a text": record(evaluations=[[[64, 32, 9], ["1", "2"], 3.0]]),
    "a negative time": record(decodes=[[[64, 32, 9], -1.0]]),
    "no time at all": record(decodes=[[[64, 32, 9], 0]]),
    "true": record(decodes=[[[64, 32, 9], True]]),
    "not a number": record(decodes=[[[64, 32, 9], float("nan")]]),
    "infinite": record(decodes=[[[64, 32, 9], float("inf")]]),
    "a huge number": record(decodes=[[[64, 32, 9], 10**400]]),
    "an empty size": record(decodes=[[[0, 32, 9], 1.0]]),
    "a size of two": record(decodes=[[[64, 32], 1.0]]),
    "a size of fractions": record(decodes=[[[64.5, 32, 9], 1.0]]),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_damaged_file_counts_as_no_measurement(path, text):
    path.parent.mkdir()
    path.write_text(text)
    assert read_speed(path, SETUP) is None
    write_speed(path, SETUP, SPEED)
    assert read_speed(path, SETUP) == SPEED


def test_a_good_record_is_read(path):
    path.parent.mkdir()
    path.write_text(record())
    assert read_speed(path, SETUP).decodes == (DecodeTime(VideoSize(64, 32, 9), 1.0),)


def test_a_folder_or_bytes_in_place_of_the_file(path):
    path.mkdir(parents=True)
    assert read_speed(path, SETUP) is None
    path.rmdir()
    path.write_bytes(b"\xff\xfe\x00")
    assert read_speed(path, SETUP) is None


def test_without_a_gpu_nothing_is_known():
    assert current_setup() is None and current_speed() is None
    setup = setup_of(torch.device("cpu"))
    assert setup.card == "cpu" and all(setup) and setup.torch == torch.__version__


def test_attention_chosen_by_the_environment_is_another_setup(monkeypatch):
    plain = setup_of(torch.device("cpu"))
    monkeypatch.setenv("ULTRAGEN_ATTENTION", "comfyui")
    assert setup_of(torch.device("cpu")).key != plain.key
