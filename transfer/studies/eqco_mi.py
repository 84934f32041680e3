"""carryover study eqco-mi: EqCo's Table 5 beside the published one."""

import csv
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from carryover.transfer.studies.writing import (
    make,
    markdown,
    out_console,
    print_table,
    provenance_line,
    write,
)

if TYPE_CHECKING:
    from carryover.pretrain.studies.mutual_information import Bound


@dataclass(frozen=True)
class ComparedBound:
    """One cell of EqCo's Table 5: ours beside the published one, which other protocols do not have."""

    bound: "Bound"
    published: float | None

    @property
    def difference(self) -> float | None:
        """Ours minus the published one, in nats."""
        return None if self.published is None else self.bound.value - self.published

    @property
    def text(self) -> str:
        return f"{self.bound.value:.2f} ({'-' if self.published is None else f'{self.published:.1f}'})"


def eqco_mi(seed: int, steps: int, estimates: int, out: Path | None, command: str) -> None:
    """Compute EqCo's Table 5, print it beside the published one, and write it to `out` as csv and md."""
    from carryover.core.training.progress import progress
    from carryover.core.training.provenance import git_revision
    from carryover.pretrain.studies.mutual_information import ToyProtocol, eqco_table

    make(out)
    # Now: an hour later the tree may hold other code than what ran.
    git_revision()
    protocol = ToyProtocol(steps=steps, estimates=estimates)
    total = (steps + estimates) * len(protocol.information) * len(protocol.pairs) * 2
    started = time.monotonic()
    with progress("study eqco-mi", total) as bar:
        bounds = list(eqco_table(protocol, seed, bar.advance))
    seconds = time.monotonic() - started

    published = published_bounds()
    cells = [ComparedBound(b, published.get((b.estimator, b.information, b.pairs))) for b in bounds]
    header = ["MI", "estimator", *(f"K = {pairs}" for pairs in protocol.pairs)]
    rows = _rows(cells)
    print_table("lower bound in nats: ours (published)", header, rows)
    out_console.print(summary(cells), soft_wrap=True)
    if out is not None:
        story = [
            "# Mutual information estimated by InfoNCE and by EqCo",
            "EqCo (Zhu et al. 2020), Eqs. 9 and 10, Table 5: X and Y are correlated Gaussians of 20"
            " dimensions with a known mutual information (MI). A critic of two MLPs is trained for"
            f" {steps} steps of K pairs; the table is its mean lower bound, frozen, over {estimates} fresh"
            " batches. Where EqCo is silent, its source decides (Poole et al. 2019): embeddings of 32"
            " dimensions, not normalized, compared by their dot product. In nats: ours (published).",
            f"`{command}`",
            provenance_line(seed, seconds),
            markdown(header, rows),
            summary(cells),
        ]
        write(out / "eqco_mi.md", "\n\n".join(story) + "\n")
        write(out / "eqco_mi.csv", _csv(cells))


def published_bounds() -> Mapping[tuple[str, float, int], float]:
    """EqCo's Table 5 as published: by estimator, true mutual information and K."""
    from carryover.transfer.report.published import published_numbers

    return {
        (n.method, float((n.data or "").rsplit(" ", 1)[1]), int((n.variant or "").rsplit(" ", 1)[1])): n.value
        for n in published_numbers()
        if n.paper == "eqco" and n.table == 5
    }


def summary(cells: Sequence[ComparedBound]) -> str:
    """Return how far from the published table the farthest cell is."""
    compared = [(abs(c.difference), c) for c in cells if c.difference is not None]
    if not compared:
        return "The published table has none of these cells."
    furthest, cell = max(compared, key=lambda pair: pair[0])
    b = cell.bound
    return (
        f"Largest difference from the published table: {furthest:.2f} nats"
        f" ({b.estimator}, MI {b.information:g}, K {b.pairs}), over {len(compared)} cells;"
        f" {sum(d <= 0.2 for d, _ in compared)} of them are within 0.2."
    )


def _rows(cells: Sequence[ComparedBound]) -> list[list[str]]:
    lines = groupby(cells, key=lambda c: (c.bound.information, c.bound.estimator))
    return [[f"{mi:g}", estimator, *(c.text for c in line)] for (mi, estimator), line in lines]


def _csv(cells: Sequence[ComparedBound]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["information", "estimator", "pairs", "value", "published", "difference"])
    for c in cells:
        rest = ["", ""] if c.difference is None else [c.published, f"{c.difference:.4f}"]
        writer.writerow(
            [c.bound.information, c.bound.estimator, c.bound.pairs, f"{c.bound.value:.4f}", *rest]
        )
    return text.getvalue()
