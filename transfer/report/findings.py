"""Findings of the tables in words: pretrained against random initialization."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from carryover.configs.counted import counted, counted_of, signed
from carryover.transfer.report.cells import Cell
from carryover.transfer.report.naming import RANDOM
from carryover.transfer.report.statistics import Interval, possible_differences, welch
from carryover.transfer.report.tables import Column, Group, Row, Table

Verdict = Literal["beyond", "within", "one run"]

_SPREADS: Final = {"seeds": "the seed-to-seed spread", "images": "chance among the test images"}


@dataclass(frozen=True)
class Finding:
    """One pretraining beside random initialization of the same backbone.

    Attributes
    ----------
    difference
        Mean of the method minus mean of random initialization, in the metric's unit.
    spread
        Root of the summed variances over seeds of the two; of single runs, of the squared half widths of
        their intervals over the test images. None when neither is known.
    interval
        95 % interval of the difference: Welch's over seeds, else over the test images; None when neither.
    verdict
        "beyond" when |difference| exceeds `spread`, "within" when it does not, "one run" without a spread.
    over
        What the spread is over.
    baseline
        This is supervised pretraining, which methods are compared with rather than counted among.
    """

    label: str
    difference: float
    spread: float | None
    interval: Interval | None
    verdict: Verdict
    baseline: bool
    over: Literal["seeds", "images"] = "seeds"

    def text(self) -> str:
        """Return the difference with its interval: ``SiMo +3.4 (95 % interval +1.0 to +5.8)``."""
        if self.interval is None:
            return f"{self.label} {signed(self.difference)}"
        return (
            f"{self.label} {signed(self.difference)}"
            f" (95 % interval {signed(self.interval.low)} to {signed(self.interval.high)})"
        )


@dataclass(frozen=True)
class Summary:
    """Every finding by one evaluation's first metric."""

    heading: str
    metric: str
    higher_is_better: bool
    baseline: str
    findings: tuple[Finding, ...]

    def of(self, verdict: Verdict) -> tuple[Finding, ...]:
        """Return the findings with this verdict, largest gain first."""
        sign = -1 if self.higher_is_better else 1
        chosen = [f for f in self.findings if f.verdict == verdict]
        return tuple(sorted(chosen, key=lambda f: sign * f.difference))

    def better(self, verdict: Verdict) -> tuple[Finding, ...]:
        """Return the findings with this verdict in which pretraining gained."""
        sign = 1 if self.higher_is_better else -1
        return tuple(f for f in self.of(verdict) if sign * f.difference > 0)

    def lead(self) -> str:
        """Return all findings in one or two sentences."""
        parts = []
        for over, than in _SPREADS.items():
            judged = [f for f in self.findings if f.verdict != "one run" and f.over == over]
            if not judged:
                continue
            above = len([f for f in self.better("beyond") if f.over == over])
            within = len([f for f in judged if f.verdict == "within"])
            below = len(judged) - above - within
            parts.append(
                f"{counted_of(above, judged, 'pretraining', 'beats', 'beat')} random initialization"
                f" by more than {than}"
            )
            parts += [f"{within} with no difference found"] if within else []
            parts += [f"{below} {'is' if below == 1 else 'are'} worse by more than it"] if below else []
        if single := self.of("one run"):
            parts.append(
                f"{len(self.better('one run'))} of {counted(single, 'single run')} better than random"
                " initialization, with no spread to judge that by"
            )
        sign = 1 if self.higher_is_better else -1
        contenders = [f for f in self.findings if not f.baseline] or list(self.findings)
        best = max(contenders, key=lambda f: sign * f.difference)
        return f"{', '.join(parts)}. Best: {best.text()}."

    def sentences(self) -> list[str]:
        """Return every finding, one sentence a verdict."""
        words: list[tuple[Verdict, str]] = [
            ("beyond", "By more than {than}"),
            ("within", "No difference found: by no more than {than}"),
        ]
        told = [
            f"{word.format(than=than)}: {'; '.join(f.text() for f in found)}."
            for over, than in _SPREADS.items()
            for verdict, word in words
            if (found := [f for f in self.of(verdict) if f.over == over])
        ]
        single = self.of("one run")
        return [*told, f"Single runs: {'; '.join(f.text() for f in single)}."] if single else told


def summarize(tables: Sequence[Table]) -> list[Summary]:
    """Compare every pretraining with random initialization by the first metric of each column group."""
    summaries = []
    for table in tables:
        baselines = {r.pretraining.backbone: r for r in table.rows if r.pretraining.method == RANDOM}
        start = 0
        for group in table.groups:
            for baseline in baselines.values():
                summary = _summary(table, group, start, baseline, several=len(baselines) > 1)
                if summary is not None:
                    summaries.append(summary)
            start += len(group.columns)
    return summaries


def spread_note(summaries: Sequence[Summary]) -> str:
    """Return what the spreads and intervals of some summaries are; each interval is for one comparison."""
    used = {f.over for s in summaries for f in s.findings if f.verdict != "one run"}
    told = []
    if "seeds" in used:
        told.append(
            "The seed-to-seed spread is the root of the two summed variances, its intervals are Welch's."
        )
    if "images" in used:
        told.append(
            "Single runs are compared by their intervals over the test images, as if drawn apart; carryover"
            " report --paired ROW compares them image by image, and finds smaller differences."
        )
    return " ".join([*told, "Intervals are of 95 %, each for one comparison."]) if told else ""


def _summary(table: Table, group: Group, at: int, baseline: Row, several: bool) -> Summary | None:
    base = baseline.cells[at]
    if base.mean is None:
        return None
    backbone = baseline.pretraining.backbone
    found = [
        finding
        for row in table.rows
        if row.pretraining.backbone == backbone and row is not baseline
        if (finding := _compare(row, row.cells[at], base)) is not None
    ]
    if not found:
        return None
    column: Column = group.columns[0]
    heading = f"{group.heading}, {backbone}" if several else group.heading
    return Summary(heading, column.heading, column.higher_is_better, base.text(), tuple(found))


def _compare(row: Row, ours: Cell, base: Cell) -> Finding | None:
    if ours.mean is None or base.mean is None:
        return None
    difference = ours.mean - base.mean
    supervised = row.pretraining.baseline
    possible = possible_differences(base.possible)
    over_seeds = welch(ours.values, base.values)
    if over_seeds is not None and ours.std is not None and base.std is not None:
        spread = math.sqrt(ours.std**2 + base.std**2)
        verdict: Verdict = "beyond" if abs(difference) > spread else "within"
        return Finding(row.label, difference, spread, over_seeds.within(possible), verdict, supervised)
    if ours.interval is None or base.interval is None:
        return Finding(row.label, difference, None, None, "one run", supervised)
    spread = math.hypot(*((high - low) / 2 for low, high in (ours.interval, base.interval)))
    verdict = "beyond" if abs(difference) > spread else "within"
    interval = Interval(difference, difference - spread, difference + spread).within(possible)
    return Finding(row.label, difference, spread, interval, verdict, supervised, "images")


@dataclass(frozen=True)
class Differences:
    """Welch's intervals between any two pretrainings by one metric: row minus column."""

    heading: str
    metric: str
    labels: tuple[str, ...]
    intervals: tuple[tuple[Interval | None, ...], ...]


def differences(tables: Sequence[Table], most: int = 12) -> list[Differences]:
    """Compare every two rows that ran more than once, by each group's first metric; up to `most` rows."""
    found = []
    for table in tables:
        start = 0
        for group in table.groups:
            rows = [(r.label, r.cells[start]) for r in table.rows if r.cells[start].n > 1]
            start += len(group.columns)
            if 2 <= len(rows) <= most:
                intervals = tuple(tuple(None if a is b else _apart(a[1], b[1]) for b in rows) for a in rows)
                labels = tuple(label for label, _ in rows)
                found.append(Differences(group.heading, group.columns[0].heading, labels, intervals))
    return found


def _apart(one: Cell, other: Cell) -> Interval | None:
    """Return Welch's interval of two rows' difference, within the differences that the metric can have."""
    found = welch(one.values, other.values)
    return None if found is None else found.within(possible_differences(other.possible))
