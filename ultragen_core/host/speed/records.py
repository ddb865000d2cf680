"""The file of measurements in ComfyUI's user folder. Whatever it holds, reading it never fails."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import folder_paths

from ...plan.flops import FLOPs
from ...plan.speed import DecodeTime, EvaluationTime, Speed
from ...sizes import VideoSize
from ...storage.files import finished_file
from .setup import Setup, current_setup

NAME = "ultragen_speed.json"
MOST_BYTES = 2**20
MOST_SETUPS = 32  # older ones are dropped
DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
LARGEST = 1e30  # of a number in the file

log = logging.getLogger(__name__)


def records_file() -> Path:
    return Path(folder_paths.get_user_directory()) / NAME


def current_speed() -> Speed | None:
    """Return what was measured on this card with these versions; None if nothing was."""
    setup = current_setup()
    return None if setup is None else read_speed(records_file(), setup)


def read_speed(path: Path, setup: Setup) -> Speed | None:
    """Return what the file at `path` holds for `setup`; None if there is nothing, or nothing valid."""
    found = _read(path).get(setup.key)
    if found is None:
        return None
    try:
        return _speed(found)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        log.warning("UltraGen: %s is damaged (%s: %s). Measure the card again.", path, type(error).__name__, error)
        return None


def write_speed(path: Path, setup: Setup, speed: Speed) -> None:
    """Add `speed` to the file at `path`, or replace what it holds for `setup`, in one step. Raises OSError."""
    records = _read(path)
    records.pop(setup.key, None)
    records[setup.key] = asdict(speed)  # the newest is last
    kept = dict(list(records.items())[-MOST_SETUPS:])
    path.parent.mkdir(parents=True, exist_ok=True)
    with finished_file(path) as part:
        part.write_text(json.dumps(kept, indent=1), encoding="utf-8")


def _read(path: Path) -> dict:
    """The whole file, by setup; empty if it is missing or damaged."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it is larger than {MOST_BYTES} bytes")
        records = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(records, dict):
            raise ValueError("it is not a JSON object")
        return records
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        log.warning("UltraGen: %s cannot be used (%s). Measure the card again.", path, error)
        return {}


def _speed(record: Mapping) -> Speed:
    """Raises ValueError, TypeError, KeyError or AttributeError for anything that `write_speed` does not write."""
    if not DATE.fullmatch(record["date"]):
        raise ValueError("date must be YYYY-MM-DD")
    evaluations = tuple(
        EvaluationTime(_size(size), FLOPs(*map(_positive, flops)), _positive(seconds))
        for size, flops, seconds in record["evaluations"]
    )
    return Speed(record["date"], evaluations, tuple(DecodeTime(_size(a), _positive(b)) for a, b in record["decodes"]))


def _size(values: list) -> VideoSize:
    if not all(type(value) is int and 0 < value < 2**16 for value in values):
        raise ValueError("a size must be three positive integers")
    return VideoSize(*values)


def _positive(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < LARGEST:
        raise ValueError("times and FLOPs must be positive numbers")
    return float(value)
