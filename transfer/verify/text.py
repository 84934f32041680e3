"""A verification in words, for the terminal, and as plain data."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from carryover.configs.counted import signed
from carryover.configs.formats import Format
from carryover.transfer.verify.findings import Reading, Verification

FORMAT: Final = Format("verification", 1)
# The layers that are farthest from their running statistics are listed, at most so many.
_LAYERS = 3


def header(found: Verification) -> list[str]:
    """Return what was verified and what is named, line by line."""
    lines = [found.path, f"  claims    {found.about}", f"  images    {found.images}"]
    lines += [f"  note      {remark}" for remark in found.remarks]
    if found.named is None:
        lines.append("  verdict   nothing found against what it claims")
    else:
        lines.append(f"  verdict   likely cause: {found.named.cause}: {found.named.words}")
        lines.append(f"  why       {found.named.why}")
        lines += [f"  remedy    {found.named.remedy}"] if found.named.remedy else []
    lines += [f"  open      {question}" for question in found.open_questions]
    far = sorted(found.layers, key=lambda layer: -layer[1])[:_LAYERS]
    if far and far[0][1] >= 0.1:
        shown = ", ".join(f"{name} {distance:.2f}" for name, distance in far)
        lines.append(f"  layers    batch statistics farthest from the running ones: {shown}")
    for claim in found.claims:
        lines.append(
            f"  published {claim.number}: {claim.published:.1f} %; here {claim.measured:.1f} %"
            f" ({signed(claim.difference)}; {claim.how}, another protocol)"
        )
    return lines


def rows(found: Verification) -> list[list[str]]:
    """Return the table of readings as text: cause, reading, k-NN, linear, difference, p, distance."""
    return [_row(r) for r in (*found.readings, *found.controls)]


HEADER: Final = ("what", "reading", "k-NN %", "linear %", "difference", "p", "statistics")


def write(found: Verification, path: Path) -> None:
    """Write a verification as JSON."""
    plain: dict[str, Any] = asdict(found)
    FORMAT.write(path, plain)


def _row(r: Reading) -> list[str]:
    difference = ""
    if r.difference is not None and r.low is not None and r.high is not None:
        difference = f"{signed(r.difference)} ({signed(r.low)} to {signed(r.high)})"
    p = "" if r.p is None else ("<0.001" if r.p < 0.001 else f"{r.p:.3f}")
    return [r.cause, r.words, _shown(r.knn), _shown(r.linear), difference, p, _distance(r.mismatch)]


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _distance(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
