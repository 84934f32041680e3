"""Everything a report says, whatever format it is written in."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from carryover.transfer.report.by_class import ClassTable, build_class_tables
from carryover.transfer.report.collection import Collection, collect
from carryover.transfer.report.concerns import Concern, concerns
from carryover.transfer.report.costs import CostTable, build_cost_tables
from carryover.transfer.report.drawing import Picture
from carryover.transfer.report.findings import Differences, Summary, differences, summarize
from carryover.transfer.report.learning_curves import SavedLabels, saved_labels
from carryover.transfer.report.paired import Paired, paired
from carryover.transfer.report.progress import RunProgress
from carryover.transfer.report.samples import Strip, sample_strips
from carryover.transfer.report.tables import Table, build_full_tables, build_tables
from carryover.transfer.results.reading import Problem, StoredRecord


@dataclass(frozen=True)
class Content:
    """The parts of a report, in the order in which a reader meets them.

    `partial` holds the runs that have not finished; `refresh_seconds` how often a page of such a run loads
    itself again, None if it is not rewritten.
    """

    title: str
    written: str
    partial: tuple[RunProgress, ...]
    refresh_seconds: int | None
    collection: Collection
    problems: tuple[Problem, ...]
    summaries: tuple[Summary, ...]
    concerns: tuple[Concern, ...]
    tables: tuple[Table, ...]
    full_tables: tuple[Table, ...]
    differences: tuple[Differences, ...]
    costs: tuple[CostTable, ...]
    by_class: tuple[ClassTable, ...]
    paired: Paired | None = None
    saved: tuple[SavedLabels, ...] = ()


@dataclass(frozen=True)
class Pictures:
    """Content for the page alone."""

    standings: tuple[Picture, ...]
    labels: tuple[Picture, ...]
    images: tuple[Picture, ...]
    cost: tuple[Picture, ...]
    features: tuple[Picture, ...]
    curves: tuple[Picture, ...]
    strips: tuple[Strip, ...]

    @property
    def drawn(self) -> tuple[Picture, ...]:
        """Every figure."""
        return tuple(p for group in self.numbers for p in group) + self.features + self.curves

    @property
    def numbers(self) -> tuple[tuple[Picture, ...], ...]:
        """Figures of what the tables hold, by kind."""
        return tuple(filter(None, (self.standings, self.labels + self.images, self.cost)))


def build_content(
    title: str,
    records: Sequence[StoredRecord],
    problems: Sequence[Problem],
    partial: Sequence[RunProgress] = (),
    refresh_seconds: int | None = None,
    reference: str | None = None,
) -> Content:
    """Sort the records and work out all tables and findings; compare all rows with `reference` if told to."""
    collection = collect(records)
    tables = tuple(build_tables(collection))
    return Content(
        title=title,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        partial=tuple(partial),
        refresh_seconds=refresh_seconds if any(p.under_way for p in partial) else None,
        collection=collection,
        problems=tuple(problems),
        summaries=tuple(summarize(tables)),
        concerns=tuple(concerns(collection)),
        tables=tables,
        full_tables=tuple(build_full_tables(collection)),
        differences=tuple(differences(tables)),
        costs=tuple(build_cost_tables(collection)),
        by_class=tuple(build_class_tables(collection)),
        paired=None if reference is None else paired(collection, reference),
        saved=tuple(saved_labels(collection)),
    )


def build_pictures(content: Content, runs: Sequence[Path], directory: Path | None) -> Pictures:
    """Draw the figures, also into `directory` as SVG and PDF, and inline the detectors' samples."""
    from carryover.transfer.report.against import against_cost, against_images, against_labels
    from carryover.transfer.report.figures import standings, training_curves
    from carryover.transfer.report.tsne import tsne_pictures

    return Pictures(
        standings=tuple(standings(content.tables, content.collection, directory)),
        labels=tuple(against_labels(content.collection, directory)),
        images=tuple(against_images(content.collection, directory)),
        cost=tuple(against_cost(content.tables, content.collection, directory)),
        features=tuple(tsne_pictures(content.collection, directory)),
        curves=tuple(training_curves(content.collection, runs, directory)),
        strips=tuple(sample_strips(content.collection)),
    )
