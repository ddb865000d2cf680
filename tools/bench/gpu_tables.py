"""The page's tables of one video on several GPUs."""

from __future__ import annotations

from .cells import VIDEOS, table, times
from .measured import Row, row, rows

RULES = {"ours": "ultragen"}
HEAD = (
    "rule", "CFG", "GPUs", "seconds a step", "efficiency", "exchange", "GiB received", "host s", "peak GiB",
    "difference",
)  # fmt: skip
SAME_RUN = "run", "size", "method", "cfg", "allocator", "options", "card", "recorded"
FOUR_K = {"size": "4K x 81", "method": "t3", "cfg": "1"}
# Name, row, steps, and how many evaluations of the row's a step has.
WHOLE_RUNS = (
    ("1920x1088, UltraGen, 30 steps with CFG", {"size": "1080P x 81", "method": "ours", "cfg": "5"}, 30, 1),
    ("3840x2176, T3-Video, 50 steps without CFG", FOUR_K, 50, 1),
    ("3840x2176, T3-Video, 50 steps with CFG (assumed: twice the time without)", FOUR_K, 50, 2),
)


def gpus() -> str:
    """Under headings that say what rows have in common, those of the newest code first."""
    found, groups = rows("gpus"), {}
    last = {one["note"]: number for number, one in enumerate(found)}
    for one in sorted(found, key=lambda one: (bool(one["note"]), -last[one["note"]], one["method"], float(one["cfg"]))):
        groups.setdefault(_heading(one), []).append(one)
    body = []
    for heading, members in groups.items():
        body += [[f"*{heading}*", *[""] * (len(HEAD) - 1)], *map(_cells, members)]
    return table(HEAD, body)


def gpu_videos() -> str:
    """Extrapolated: the first step, and the measured one for each other step."""
    body, card = [], ""
    for name, wanted, steps, evaluations in WHOLE_RUNS:
        four = _newest(gpus="4", **wanted)
        one, card = one_gpu(four), four["card"]
        alone, shared = (evaluations * (float(r["first_s"]) + (steps - 1) * float(r["seconds"])) for r in (one, four))
        body.append([name, f"{alone:.0f} s", f"{shared:.0f} s {times(alone, shared)}"])
    return table(["81 frames, extrapolated", f"one {card}", f"four {card}"], body)


def efficiency(one: Row) -> float:
    """Seconds on one GPU, over the number of GPUs times the seconds on them."""
    return float(one_gpu(one)["seconds"]) / (int(one["gpus"]) * float(one["seconds"]))


def one_gpu(one: Row) -> Row:
    """The row with 1 GPU of the same run. Raises ValueError where it is missing."""
    same = {name: one[name] for name in SAME_RUN}
    found = row("gpus", gpus="1", **same)
    if found is None:
        raise ValueError(f"gpus.csv has no row with 1 GPU for {same}. Add the row of that run.")
    return found


def _newest(**wanted: str) -> Row:
    """The last row with ComfyUI's allocator, of this code if there is one."""
    wanted |= {"options": "", "allocator": "cudaMallocAsync"}
    found = [one for one in rows("gpus") if wanted.items() <= one.items()]
    return sorted(found, key=lambda one: not one["note"])[-1]


def _heading(one: Row) -> str:
    common = [VIDEOS[one["size"]], one["card"], one["allocator"], one["recorded"]]
    common += [f"`{one['options']}`"] if one["options"] else []
    return "; ".join([", ".join(common), *([one["note"]] if one["note"] else [])])


def _cells(one: Row) -> list[str]:
    alone, seconds, exchange = one["gpus"] == "1", float(one["seconds"]), float(_most(one["exchange"]) or 0)
    return [
        RULES.get(one["method"], one["method"]),
        one["cfg"],
        _number(one),
        f"{seconds:.2f}" if seconds >= 1 else f"{seconds:.3f}",
        "" if alone else f"{efficiency(one):.0%}",
        f"{exchange:.1%}" if exchange else "",
        one["received_gib"] if exchange else "",
        _most(one["host_s"]),
        _most(one["peak_gib"]),
        "" if alone else _difference(one["difference"]),
    ]


def _number(one: Row) -> str:
    count = int(one["gpus"])
    if one["cfg"] == "1" or count == 1 or count % 2 or "--split" in one["options"]:
        return one["gpus"]
    return f"{count} (a prompt each)" if count == 2 else f"{count} ({count // 2} for each prompt)"


def _most(values: str) -> str:
    """The largest of values with "/" between; empty where none was measured."""
    return max(values.split("/"), key=float) if values else ""


def _difference(value: str) -> str:
    if not value:
        return "not measured"
    digits, _, exponent = f"{float(value):.1e}".partition("e")
    return f"{digits}e{int(exponent)}" if float(value) else "equal"
