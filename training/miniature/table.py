"""Results of the ablation or the search as a Markdown table."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from training.miniature.scenes import CHECKED
from ultragen_core.metrics.scores import HD_FVD, HD_LPIPS, HD_MSE

# {measure: (heading, digits)}.
COLUMNS = {
    "loss": ("held-out loss", 4),
    "agreement": ("caption", 3),
    "side": ("its side", 2),
    "seam_ratio": ("seam ratio", 2),
    "seams_to_painted": ("seams / painted", 2),
    HD_FVD: ("HD-FVD*", 4),
    HD_LPIPS: ("HD-LPIPS*", 4),
    HD_MSE: ("HD-MSE", 1),
}


GROUPS = {
    "not trained here": lambda row: not (row["equal_steps"] or row["equal_time"]),
    "at equal steps": lambda row: row["equal_steps"],
    "at equal time": lambda row: row["equal_time"],
}


def table(results: Iterable[dict], variants: Sequence[str], reference: str) -> str:
    """Return mean and standard deviation over the seeds, as Markdown.

    Bold marks a difference from the reference, on the same seeds, of more than twice the deviation of that difference.
    results: from Ablation.results() or Search.results(). variants: in the order of the rows. reference: the variant
    that all others are compared with, in the ablation at equal steps. A search whose variants have different numbers
    of seeds has a column with these.
    """
    results = [{"agreement": statistics.mean(row[name] for name in CHECKED)} | row for row in results]
    measured = [column for column in COLUMNS if all(column in row for row in results)]
    compared = {row["seed"]: row for row in results if row["variant"] == reference and row.get("equal_steps", True)}
    stepped = all("steps" in row for row in results)
    uneven = len({sum(row["variant"] == name for row in results) for name in variants} - {0}) > 1 and not stepped
    counts = ["steps"] if stepped else ["seeds"] if uneven else []
    headings = ["", *counts, *(COLUMNS[column][0] for column in measured)]
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    for group, belongs in GROUPS.items() if stepped else [("", lambda row: True)]:
        chosen = [row for row in results if belongs(row)]
        rows = {name: found for name in variants if (found := [row for row in chosen if row["variant"] == name])}
        lines += [f"| *{group}* |" + " |" * (len(headings) - 1)] if rows and group else []
        for name, found in rows.items():
            count = round(statistics.mean(row["steps"] for row in found)) if stepped else len(found)
            cells = [_cell(found, compared, column) for column in measured]
            lines.append("| " + " | ".join([name, *([str(count)] if counts else []), *cells]) + " |")
    return "\n".join([*lines, "", "\\* through fixed random networks: comparable within this table only."])


def _cell(results: Sequence[dict], compared: Mapping[int, dict], column: str) -> str:
    digits, values = COLUMNS[column][1], [row[column] for row in results]
    mean = f"{statistics.mean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    cell = f"{mean} ± {statistics.stdev(values):.{digits}f}"
    apart = [row[column] - compared[row["seed"]][column] for row in results if row["seed"] in compared]
    differs = len(apart) > 1 and abs(statistics.mean(apart)) > 2 * statistics.stdev(apart)
    return f"**{cell}**" if differs else cell
