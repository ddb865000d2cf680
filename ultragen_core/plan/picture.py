"""Draws a plan: windows over the frame, rectangles of several GPUs, gates over the run, FLOPs and memory. SVG in the
page's own text colour, so that it suits light and dark themes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from html import escape

from ..rules.groups import BlockGroup, Branch
from .report import DECODE_TILES, GatePoint, Plan, exchange_text, gib, windows_text
from .split import Shares

WIDTH, MARGIN, LINE = 420, 10, 14  # pixels
LETTERS = 68  # per line
SIGN = 18  # width of what stands before a line: its colour in the legend, the sign of a warning
FRAME_HEIGHT = 110
SMALL_FRAME = 90, 48  # width and height, at most, of the frame with the rectangles of GPUs
PLOT = 100, 60  # width and height of the gates' plot
COLOURS = {
    "local": "#4a9eff",
    "hierarchical": "#f0a030",
    "global": "#4fb477",
    "neighbours": "#4a9eff",
    "strided": "#b58cff",
}
GATES = {  # by the coarse branch that each blends in
    "hierarchical": "of the local branch against hierarchical",
    "global": "of the finer branches against global",
}


def picture(plan: Plan) -> str:
    """The whole drawing as an SVG document."""
    parts, y = [_text(MARGIN, LINE, f"{plan.size}: {plan.rule}", bold=True)], LINE + 8
    for draw in (_frames, _all_shares, _costs):
        drawn, height = draw(plan, y)
        parts += drawn
        y += height
    sentences = [*plan.fits, *([f"{plan.time_name}: {plan.estimate}"] if plan.estimate else [])]
    warnings = [(warning, MARGIN + SIGN) for warning in (*plan.misfits, *plan.warnings)]
    for sentence, left in [(sentence, MARGIN) for sentence in sentences] + warnings:
        if left > MARGIN:
            parts.append(_text(MARGIN, y + LINE, "\N{WARNING SIGN}", "#e0a000"))
        for line in textwrap.wrap(sentence, _letters(left)):
            y += LINE
            parts.append(_text(left, y, line))
    size = f'width="{WIDTH}" height="{y + MARGIN}" viewBox="0 0 {WIDTH} {y + MARGIN}"'
    style = 'font-family="sans-serif" font-size="11" fill="currentColor"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{"".join(parts)}</svg>'


def _frames(plan: Plan, y: float) -> tuple[list[str], float]:
    """One frame for every group of blocks, side by side."""
    if not plan.groups:
        return [], 0
    column = (WIDTH - MARGIN * (len(plan.groups) + 1)) / len(plan.groups)
    scale = min(column / plan.size.width, FRAME_HEIGHT / plan.size.height)
    width, height = plan.size.width * scale, plan.size.height * scale
    parts = []
    for number, group in enumerate(plan.groups):
        parts.append(_frame(group, MARGIN + number * (column + MARGIN), y, width, height))
    branches = {branch.name: branch for group in plan.groups for branch in group.branches}
    return parts + _legend(branches.values(), y + height + 2 * LINE), height + 2 * LINE + 8


def _frame(group: BlockGroup, x: float, y: float, width: float, height: float) -> str:
    lines = []
    for branch in group.branches:
        rows = "".join(f"M{x:.1f} {y + height * row:.1f}h{width:.1f}" for row in branch.rows[1:-1])
        columns = "".join(f"M{x + width * column:.1f} {y:.1f}v{height:.1f}" for column in branch.columns[1:-1])
        if rows or columns:
            lines.append(_border(rows + columns, branch))
    outline = f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    title = escape("\n".join(windows_text(branch) for branch in group.branches))
    frame = f'{outline} fill="transparent" stroke="currentColor"><title>{title}</title></rect>'
    return "".join(lines) + frame + _text(x, y + height + LINE, group.counted)


def _border(data: str, branch: Branch) -> str:
    hierarchical = branch.name == "hierarchical"
    return _path(data, COLOURS[branch.name], 2 if hierarchical else 1, dashed=hierarchical)


def _legend(branches: Sequence[Branch], y: float) -> list[str]:
    parts, x = [], MARGIN
    for branch in branches:
        parts.append(_border(f"M{x} {y - 4}h{SIGN - 4}", branch))
        parts.append(_text(x + SIGN, y, branch.name))
        x += SIGN + 7 * len(branch.name) + MARGIN
    return parts


def _all_shares(plan: Plan, y: float) -> tuple[list[str], float]:
    """For each number of prompts the rectangles of the GPUs that share one, with what they exchange."""
    parts, height = [], SMALL_FRAME[1] + MARGIN
    for number, shares in enumerate(plan.shares):
        parts += _shares(plan, shares, y + number * height)
    return parts, len(plan.shares) * height


def _shares(plan: Plan, shares: Shares, y: float) -> list[str]:
    scale = min(SMALL_FRAME[0] / plan.grid.w, SMALL_FRAME[1] / plan.grid.h)
    parts, received = [], zip(shares.rectangles, shares.received, strict=True)
    for gpu, (rectangle, size) in enumerate(received):
        x, top = MARGIN + scale * rectangle.columns.start, y + scale * rectangle.rows.start
        height, width = (scale * side for side in rectangle.size)
        title = f"rectangle {gpu}: {plan.grid.part(rectangle)} tokens, {gib(size)} into its GPU in an evaluation"
        parts.append(
            f'<rect x="{x:.1f}" y="{top:.1f}" width="{width:.1f}"'
            f' height="{height:.1f}" fill="{COLOURS["local"]}" fill-opacity="{0.15 + gpu % 2 / 4}"'
            f' stroke="currentColor"><title>{title}</title></rect>'
        )
    left = SMALL_FRAME[0] + 2 * MARGIN
    lines = textwrap.wrap(exchange_text(shares, plan.grid), _letters(left))
    parts.append(_text(left, y + LINE - 4, shares.heading, bold=True))
    return parts + [_text(left, y + LINE * row - 4, line) for row, line in enumerate(lines, 2)]


def _costs(plan: Plan, y: float) -> tuple[list[str], float]:
    """The gates on the left, bars on the right."""
    parts, left, gated = [], MARGIN, _gated_branches(plan)
    if gated:
        parts.append(_gate_plot(plan.gates, gated, MARGIN, y + 4))
        left += PLOT[0] + 2 * MARGIN
    low, high = plan.activations
    planned, dense = plan.flops.total, plan.dense_flops.total
    against = "of one evaluation of the model, compared with full attention"
    memory = "GPU memory to sample one video, " + ("with the weights" if plan.weights else "besides the weights")
    least, most = (gib(size + plan.weights).removesuffix(" GiB") for size in plan.activations)
    bars = (
        (f"{plan.flops_text(planned, dense)} ({plan.against_dense()})", against, min(planned / dense, 1)),
        (
            f"{'sampling' if plan.weights else 'activations'}: {least} (least) to {most} GiB (fastest)",
            memory,
            low / high,
        ),
    )
    for number, (text, title, part) in enumerate(bars):
        top = y + 4 + number * 2 * LINE
        full = WIDTH - MARGIN - left
        parts.append(_titled(title, _text(left, top + 8, text)))
        parts.append(f'<rect x="{left}" y="{top + 12}" width="{full}" height="5" fill="currentColor" opacity="0.2"/>')
        parts.append(f'<rect x="{left}" y="{top + 12}" width="{full * part:.1f}" height="5" fill="#4a9eff"/>')
    small, usual = map(gib, plan.decode)
    where = "GPU memory" if plan.decodes_on_gpu else "RAM"
    tiles = f"{where} with tiles of {DECODE_TILES[0]} and of {DECODE_TILES[1]} pixels"
    parts.append(_titled(tiles, _text(left, y + 12 + 4 * LINE, f"exact decode: {small} (least) to {usual}")))
    return parts, (PLOT[1] + LINE if gated else 4 * LINE) + 10


def _gated_branches(plan: Plan) -> list[str]:
    """The coarse branches that run, with known gates."""
    running = {branch.name for group in plan.groups for branch in group.branches}
    return [name for name in GATES if plan.gates and name in running]


def _gate_plot(gates: Sequence[GatePoint], branches: Sequence[str], x: float, y: float) -> str:
    """Shares of the finer side over the run, noise on the left, for each of the coarse branches."""
    width, height = PLOT

    def line(name: str) -> str:
        points = (
            f"{x + width * (1 - point.sigma):.1f}"
            f" {y + height * (1 - (point.local if name == 'hierarchical' else point.windows)):.1f}"
            for point in gates
        )
        return _path("M" + "L".join(points), COLOURS[name], 1.5)

    frame = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="none" stroke="currentColor" opacity="0.4"/>'
    title = f"share {', and '.join(GATES[name] for name in branches)}, from noise to the end"
    return _titled(title, frame, *map(line, branches), _text(x, y + height + LINE, "gates over the run"))


def _letters(left: float) -> int:
    """How many letters fit into a line that begins at `left`."""
    return int(LETTERS * (WIDTH - left) / WIDTH)


def _path(data: str, colour: str, width: float, dashed: bool = False) -> str:
    dashes = ' stroke-dasharray="4 3"' if dashed else ""
    return f'<path d="{data}" fill="none" stroke="{colour}" stroke-width="{width}"{dashes}/>'


def _titled(title: str, *parts: str) -> str:
    """Parts whose title is shown where one points at them."""
    return f"<g><title>{escape(title)}</title>{''.join(parts)}</g>"


def _text(x: float, y: float, text: str, colour: str = "currentColor", bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}"{weight}>{escape(text)}</text>'
