"""What a run does, in one line for the log."""

from __future__ import annotations

from ..attention.config import BlockSpec, BranchSpec, format_blocks
from ..attention.grid import TokenGrid
from ..attention.layer import branch_layout
from .extras import LoadedExtras


def describe_run(grid: TokenGrid, specs: dict[int, BlockSpec], dense: dict[int, str], extras: LoadedExtras, dm) -> str:
    """Rule, blocks and windows on this grid, and why the other blocks stay dense."""
    parts = [
        f"grid {grid}",
        f"rule ultragen in {len(specs)} of {len(specs) + len(dense)} blocks ({format_blocks(specs)})",
    ]
    for parity, name in enumerate(("even", "odd")):
        spec = next((spec for index, spec in specs.items() if index % 2 == parity), None)
        if spec is not None:
            parts.append(f"{name} blocks {' + '.join(_branches(grid, spec, extras))}")
    for reason in dict.fromkeys(dense.values()):
        parts.append(f"dense {format_blocks(i for i, other in dense.items() if other == reason)} ({reason})")
    if vace := len(getattr(dm, "vace_blocks", ())):
        parts.append(f"dense also the {vace} VACE blocks (not windowed yet)")
    return ", ".join(parts) + ("" if extras.trained else "; without trained weights (experimental)")


def _branches(grid: TokenGrid, spec: BlockSpec, extras: LoadedExtras) -> list[str]:
    branches = [f"local {_windows(grid, spec.local)}"]
    if spec.hierarchical:
        branches.append(f"hierarchical {_windows(grid, spec.hierarchical, extras.shape.hierarchical_ratio)}")
    return branches + (["global"] if spec.global_ else [])


def _windows(grid: TokenGrid, spec: BranchSpec, ratio: int = 1) -> str:
    """Windows per axis as they come out: a short axis has fewer, shifted windows are one more."""
    _, regions = branch_layout(grid, spec, ratio)
    rows = {region.rows.start: region.windows[0] for region in regions}
    columns = {region.columns.start: region.windows[1] for region in regions}
    return f"{sum(rows.values())}x{sum(columns.values())}" + (" shifted" if spec.shifted else "")
