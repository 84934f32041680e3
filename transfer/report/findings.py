"""What the tables say in words: pretrained against random initialisation, beside the spread over seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from transfer.report.tables import RANDOM, Cell, Row, Table


@dataclass(frozen=True)
class Finding:
    """One comparison with random initialisation in one table.

    Attributes
    ----------
    difference
        Mean of the method minus mean of random initialisation, in the metric's unit.
    spread
        Root of the summed variances over seeds of the two, None when one of them ran only once.
    verdict
        "beyond" when |difference| exceeds `spread`, "within" when it does not, "one run" without a spread.
    """

    table: Table
    metric: str
    row: Row
    difference: float
    spread: float | None
    verdict: Literal["beyond", "within", "one run"]

    def text(self) -> str:
        """The finding as a sentence."""
        sign = "above" if self.difference >= 0 else "below"
        start = f"{self.row.label} is {abs(self.difference):.1f} points {sign} random initialisation"
        if self.spread is None:
            return f"{start} (a single run: no spread to judge it by)"
        relation = "more" if self.verdict == "beyond" else "no more"
        return f"{start}, {relation} than the seed-to-seed spread of {self.spread:.1f}"


def findings(tables: Sequence[Table]) -> list[Finding]:
    """Compare every pretraining with random initialisation by each table's first metric."""
    found = []
    for table in tables:
        baseline = next((r for r in table.rows if r.method == RANDOM), None)
        if baseline is None:
            continue
        for row in table.rows:
            if row is not baseline and row.cells and baseline.cells:
                finding = _compare(table, row, row.cells[0], baseline.cells[0])
                found += [finding] if finding else []
    return found


def _compare(table: Table, row: Row, ours: Cell, base: Cell) -> Finding | None:
    if ours.mean is None or base.mean is None:
        return None
    difference = ours.mean - base.mean
    if ours.std is None or base.std is None:
        return Finding(table, table.columns[0], row, difference, None, "one run")
    spread = math.sqrt(ours.std**2 + base.std**2)
    return Finding(
        table, table.columns[0], row, difference, spread, "beyond" if abs(difference) > spread else "within"
    )
