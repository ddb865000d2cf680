"""Plot the time of one evaluation over the tokens, log-log, from CSV files of the subject model. Needs matplotlib."""

from __future__ import annotations

import argparse
import csv
import math
from pathlib import Path

NAMES = {
    "comfyui": "ComfyUI 0.30.0, dense",
    "cudnn": "the same, cuDNN's attention",
    "published": "UltraGen's arithmetic as published",
    "ours": "this pack, UltraGen (6 of 30 blocks dense, as published)",
    "all": "this pack, UltraGen in all blocks",
    "t3": "this pack, T3-Video's rule",
}
FIRST_FITTED = 75_600  # tokens of 720P x 81


def add_parser(subjects: argparse._SubParsersAction) -> None:
    parser = subjects.add_parser("plot", help=__doc__)
    parser.add_argument("tables", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmark.png"))
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    import matplotlib.pyplot as plt

    rows = [row for table in options.tables for row in csv.DictReader(table.open(encoding="utf-8"))]
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for method, name in NAMES.items():
        points = sorted((int(row["tokens"]), float(row["seconds"]), row) for row in rows if row["method"] == method)
        if not points:
            continue
        tokens, seconds = [p[0] for p in points], [p[1] for p in points]
        fitted = [(a, b) for a, b in zip(tokens, seconds, strict=True) if a >= FIRST_FITTED]
        power = exponent(fitted)
        (line,) = axes.loglog(
            tokens, seconds, marker="o", label=name + (f": tokens^{power:.2f}" if len(fitted) > 2 else "")
        )
        extrapolated = [p[:2] for p in points if p[2]["extrapolated"] == "True"]
        axes.loglog(
            *zip(*extrapolated, strict=True), "o", color="white", mec=line.get_color()
        ) if extrapolated else None
        print(f"{method:10} exponent {power:.2f} from {len(fitted)} sizes")
    sizes = {int(row["tokens"]): row["size"] for row in rows}
    axes.set_xticks(list(sizes), [name.replace(" x ", "\n") for name in sizes.values()], fontsize=8)
    axes.minorticks_off()
    axes.set_ylabel("seconds an evaluation")
    axes.set_title("Wan 2.1 1.3B, one evaluation, H200, bf16, random weights (hollow: 30 times one block)", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(options.out, dpi=130)


def exponent(points: list[tuple[int, float]]) -> float:
    """Slope of the least-squares line through log(seconds) over log(tokens)."""
    xs, ys = ([math.log(value) for value in values] for values in zip(*points, strict=True))
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / sum((x - mean_x) ** 2 for x in xs)
