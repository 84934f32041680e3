"""Labels that a pretraining saves: which share of them a baseline needs to reach the same value."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from carryover.configs.counted import counted
from carryover.transfer.report.cells import Cell, joint_variances
from carryover.transfer.report.naming import share
from carryover.transfer.report.statistics import LEVEL, holm, p_value

SAVINGS_NOTE: Final = (
    "Every point of a curve is compared with every point of the baseline of the same network, by their"
    f" variances over test images and seeds; a difference counts where its p-value, adjusted for all of these"
    f" comparisons (Holm), is below {1 - LEVEL:.2f}. A point of a single run counts its test images alone."
)


@dataclass(frozen=True)
class At:
    """One point of a curve: the share of the labels, the number of labeled images, and the value."""

    share: float
    images: float | None
    cell: Cell

    def text(self, first: bool = False) -> str:
        """Return the point in words: ``5 % of the labels (60 images)``."""
        images = "" if self.images is None else f" ({counted(round(self.images), 'image')})"
        return f"{share(self.share)}{' of the labels' if first else ''}{images}"


@dataclass(frozen=True)
class Match:
    """What a curve reaches with few labels that the other one needs more for.

    Attributes
    ----------
    few
        The point of the curve.
    reached
        The last point of the other curve up to which `few` is better than all of them.
    beyond
        The first point of the other curve that is better than `few`; None where none is.
    end
        `reached` is the other curve's last point.
    """

    few: At
    reached: At
    beyond: At | None
    end: bool

    @property
    def factor(self) -> float:
        """How many times as many labels the other curve needs, at least."""
        return self.reached.share / self.few.share


@dataclass(frozen=True)
class Saved:
    """One curve beside that of a baseline, both by their names.

    Attributes
    ----------
    saving, cost
        The largest factor by which it needs fewer labels, and by which the baseline does; None: not found.
    better, worse, alike
        The shares at which it is better or worse with the same labels, or no difference was found.
    """

    label: str
    baseline: str
    saving: Match | None
    cost: Match | None
    better: tuple[float, ...]
    worse: tuple[float, ...]
    alike: tuple[float, ...]

    def text(self) -> str:
        """Return everything that was found, in sentences."""
        if not (self.better or self.worse or self.saving or self.cost):
            span = f" at {_shares(self.alike)} of the labels" if self.alike else ""
            return f"No difference between {self.label} and {self.baseline} was found{span}."
        told = [] if self.saving is None else [f"{_reached(self.saving, self.label, self.baseline)}."]
        told += [] if self.cost is None else [f"{_reached(self.cost, self.baseline, self.label)}."]
        verdicts = [f"better at {_shares(self.better)}"] if self.better else []
        verdicts += [f"worse at {_shares(self.worse)}"] if self.worse else []
        same = [f"{self.label} is {' and '.join(verdicts)}"] if verdicts else []
        same += [f"no difference was found at {_shares(self.alike)}"] if self.alike else []
        told += [f"With equally many labels, {'; '.join(same)}."] if same else []
        if self.saving is None and self.cost is None:
            told.append(
                "How many labels that saves was not found: on this grid, no point reaches what the other"
                " curve reaches at the next larger share."
            )
        return " ".join(told)


def saved(
    ours: tuple[str, Sequence[At]], base: tuple[str, Sequence[At]], higher_is_better: bool
) -> Saved | None:
    """Compare two curves, each with its name and its points by share; None where no points can be compared.

    Points are compared as if drawn apart, although both curves saw the same test images and labels: that
    finds less, and nothing wrongly. The claims of one pair of curves hold together with 95 % (Holm 1979). A
    curve reaches a point of the other only if it is better there and at every smaller share of the other.
    """
    sign = 1 if higher_is_better else -1
    pairs = [(a, b, p) for a in ours[1] for b in base[1] if (p := _p(a.cell, b.cell)) is not None]
    if not pairs:
        return None
    found: dict[tuple[float, float], int] = {}
    for (a, b, _), p in zip(pairs, holm([p for *_, p in pairs])):
        difference = sign * ((a.cell.mean or 0.0) - (b.cell.mean or 0.0))
        found[a.share, b.share] = 0 if p >= 1 - LEVEL else (1 if difference > 0 else -1)
    reverse = {(b, a): -verdict for (a, b), verdict in found.items()}
    equal = {a: verdict for (a, b), verdict in found.items() if a == b}
    return Saved(
        ours[0],
        base[0],
        _best(_matches(ours[1], base[1], found)),
        _best(_matches(base[1], ours[1], reverse)),
        *(tuple(s for s, verdict in sorted(equal.items()) if verdict == v) for v in (1, -1, 0)),
    )


def _p(one: Cell, other: Cell) -> float | None:
    variances = [joint_variances(cell) for cell in (one, other)]
    if one.mean is None or other.mean is None or None in variances:
        return None
    known = [v for v in variances if v is not None]
    parts = [(v[1], cell.n - 1) for v, cell in zip(known, (one, other)) if cell.n > 1]
    return p_value(one.mean - other.mean, sum(map(sum, known)), parts)


def _matches(
    curve: Sequence[At], other: Sequence[At], found: dict[tuple[float, float], int]
) -> Iterator[Match]:
    """Yield every point of a curve that reaches a point of the other one that has more labels."""
    for few in curve:
        reached: At | None = None
        for point in other:
            if found.get((few.share, point.share)) != 1:
                break
            reached = point
        if reached is None or reached.share <= few.share:
            continue
        beyond = next((p for p in other if found.get((few.share, p.share)) == -1), None)
        yield Match(few, reached, beyond, reached is other[-1])


def _best(matches: Iterator[Match]) -> Match | None:
    """Return the match of the largest factor; of several the one with the most labels."""
    return max(matches, key=lambda m: (m.factor, m.few.share), default=None)


def _reached(match: Match, curve: str, other: str) -> str:
    few, reached, beyond = match.few, match.reached, match.beyond
    said = (
        f"With {few.text(first=True)}, {curve} reaches what {other} reaches with {reached.text()}"
        f" ({few.cell.text()} against {reached.cell.text()})"
    )
    if beyond is not None:
        times = f"{match.factor:.3g} to {beyond.share / few.share:.3g}"
        return f"{said}, and not what it reaches with {beyond.text()}: {times} times fewer labels"
    least = f"at least {match.factor:.3g} times fewer labels"
    if match.end:
        return f"{said}, the largest share of the grid: {least}"
    return f"{said}; whether it reaches more was not found: {least}"


def _shares(found: Sequence[float]) -> str:
    """Return shares as a list in words: ``1, 2 and 5 %``."""
    parts = [share(s).removesuffix(" %") for s in found]
    return " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:]))) + " %" if parts else ""
