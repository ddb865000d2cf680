"""The results of the ablation as tables for people."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from tools.demo_nodes.scenes import CHECKED
from ultragen_core.metrics.scores import HD_FVD, HD_LPIPS, HD_MSE

# Column, digits after the point.
COLUMNS = {
    "loss": ("held-out loss", 4),
    "agreement": ("caption", 3),
    "seam_ratio": ("seam ratio", 3),
    HD_FVD: ("HD-FVD*", 3),
    HD_LPIPS: ("HD-LPIPS*", 4),
    HD_MSE: ("HD-MSE", 1),
}


def tables(results: Iterable[dict], variants: Sequence[str]) -> str:
    """Markdown: one table at equal steps and one at equal time, mean and standard deviation over the seeds.

    results: of Ablation.results(). variants: names in the order of the rows.
    """
    results = [{"agreement": statistics.mean(row[name] for name in CHECKED)} | row for row in results]
    made = []
    for title in ("equal steps", "equal time"):
        chosen = [row for row in results if row[title.replace(" ", "_")]]
        rows = {name: [row for row in chosen if row["variant"] == name] for name in variants}
        measured = [column for column in COLUMNS if all(column in row for row in chosen)]
        made += [f"**At {title}**", "", *_table({name: row for name, row in rows.items() if row}, measured), ""]
    return "\n".join([*made, "\\* through fixed random networks: comparable within these tables only."])


def _table(rows: dict[str, list[dict]], columns: Sequence[str]) -> list[str]:
    lines = [
        "| " + " | ".join(["", "steps", *(COLUMNS[column][0] for column in columns)]) + " |",
        "|" + "---|" * (len(columns) + 2),
    ]
    for name, results in rows.items():
        steps = round(statistics.mean(row["steps"] for row in results))
        cells = [_spread([row[column] for row in results], COLUMNS[column][1]) for column in columns]
        lines.append("| " + " | ".join([name, str(steps), *cells]) + " |")
    return lines


def _spread(values: Sequence[float], digits: int) -> str:
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean
