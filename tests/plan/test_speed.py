"""Seconds from a measurement, by FLOPs."""

from __future__ import annotations

import pytest

from ultragen_core.plan.flops import FLOPs
from ultragen_core.plan.speed import DecodeTime, EvaluationTime, Speed, seconds_text
from ultragen_core.sizes import VideoSize

HD, UHD = VideoSize(1920, 1088, 5), VideoSize(3840, 2176, 5)
ATTENTION, PRODUCTS = 2e-15, 3e-15  # seconds per FLOP


def evaluation(attention: float, products: float) -> EvaluationTime:
    return EvaluationTime(HD, FLOPs(attention, products), ATTENTION * attention + PRODUCTS * products)


def speed(*evaluations: EvaluationTime) -> Speed:
    return Speed("2026-11-27", evaluations, (DecodeTime(HD, 0.5), DecodeTime(UHD, 3.0)))


def test_two_evaluations_determine_both_rates():
    made = speed(evaluation(1.4e15, 0.4e15), evaluation(1.2e15, 1.9e15))
    other = FLOPs(2.2e16, 1.8e15)
    assert made.evaluation(other) == pytest.approx(ATTENTION * other.attention + PRODUCTS * other.products)


NEGATIVE = EvaluationTime(HD, FLOPs(1e15, 1e15), 9.0), EvaluationTime(HD, FLOPs(2e15, 4e15), 9.1)
PROPORTIONAL = EvaluationTime(HD, FLOPs(1e15, 2e15), 9.0), EvaluationTime(HD, FLOPs(2e15, 4e15), 20.0)


@pytest.mark.parametrize("measured", [(evaluation(1e15, 2e15),), NEGATIVE, PROPORTIONAL])
def test_otherwise_the_nearest_is_scaled(measured):
    made = speed(*measured)
    for one in measured:
        assert made.evaluation(one.flops) == pytest.approx(one.seconds)
        assert made.evaluation(one.flops * 1.1) == pytest.approx(1.1 * one.seconds)


def test_a_decode_is_scaled_from_the_nearest_size():
    made = speed()
    assert made.decode(HD._replace(frames=81)) == pytest.approx(8.1)
    assert made.decode(VideoSize(3840, 2160, 10)) == pytest.approx(6.0 * 2160 / 2176)


def test_only_what_was_measured_is_estimated():
    flops, nothing = FLOPs(1e15, 1e15), Speed("2026-11-27", (), ())
    assert nothing.estimate(flops, HD) is None and speed().estimate(flops, HD, decoded=False) is None
    assert str(speed().estimate(flops, HD)) == (
        "about 0.5 s for the exact decode, estimated from the measurement of 2026-11-27"
    )
    made = speed(evaluation(1e15, 1e15)).estimate(flops, HD)
    assert str(made).startswith("about 5 s for one evaluation and 0.5 s for the exact decode, estimated")


def test_seconds_in_words():
    times = [0.456, 3.47, 9.96, 43.8, 599, 600, 7200]
    assert [seconds_text(time) for time in times] == ["0.46 s", "3.5 s", "10 s", "44 s", "599 s", "10 min", "120 min"]
