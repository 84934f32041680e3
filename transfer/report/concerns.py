"""Concerns about the means: repeats, disagreement, mixtures, gaps."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from carryover.core.data.objects.config import VOC_RULES
from carryover.core.formats.backbone import CHANGES_FEATURES
from carryover.transfer.report.collection import Collection, Evaluation, Numbered, what
from carryover.transfer.report.tables import missing_seeds

_PICTURE_LIBRARIES = {
    "Pillow": ("pillow",),
    "OpenCV": ("opencv-python", "opencv-python-headless"),
}


@dataclass(frozen=True)
class Case:
    """One instance of a concern, and the records it is about."""

    text: str
    records: tuple[int, ...] = ()


@dataclass(frozen=True)
class Concern:
    """One kind of trouble: what it is, what the report does about it, and every case."""

    title: str
    consequence: str
    cases: tuple[Case, ...]


def concerns(collection: Collection) -> list[Concern]:
    """Look for everything that would make a mean say less than it seems to; most serious first."""
    found = [
        Concern(
            "Reruns that disagree",
            "The cell shows every number and has no mean.",
            tuple(_repeats(collection, agree=False)),
        ),
        Concern(
            "Different checkpoints of one recipe and seed",
            "Each has a row of its own.",
            tuple(_rivals(collection)),
        ),
        Concern(
            "Different protocols under one name",
            "Each has columns of its own; do not compare across them.",
            tuple(_mixtures(collection)),
        ),
        Concern(
            "Different data under one protocol",
            "The recipe is the same and the amounts of data are not: check the data sets before comparing.",
            tuple(_uneven_data(collection)),
        ),
        Concern(
            "Pictures read by different libraries",
            "Major versions of them resize or rotate some pictures to other pixels: small differences may be"
            " theirs.",
            tuple(_libraries(collection)),
        ),
        Concern(
            "Equal scores",
            "They are ranked by a rule (the first class, the earlier image), as if by a draw.",
            tuple(_ties(collection)),
        ),
        Concern(
            "Classes without a test object or pixel",
            "They have no AP or IoU: the mean is over the others.",
            tuple(_untested(collection)),
        ),
        Concern(
            "Different rules of one metric",
            "Numbers by different rules differ by several points: do not compare across them.",
            tuple(_rules(collection)),
        ),
        Concern(
            "Assumed of a checkpoint",
            "The file does not state it; if the assumption is wrong, the features differ from the authors'.",
            tuple(_assumptions(collection)),
        ),
        Concern("Missing seeds", "The cell states its number of seeds.", tuple(_gaps(collection))),
        Concern(
            "Different code revisions in one cell",
            "They are pooled: the recipes are the same.",
            tuple(_revisions(collection)),
        ),
        Concern("Repeated records", "Exact repetitions count once.", tuple(_repeats(collection, agree=True))),
    ]
    return [c for c in found if c.cases]


def _repeats(collection: Collection, agree: bool) -> Iterable[Case]:
    for (pretraining, evaluation), runs in collection.runs.items():
        trials: dict[tuple[int | None, int], list[Numbered]] = defaultdict(list)
        for run in runs:
            trials[run.record.pretrain_seed, run.record.seed].append(run)
        for (_, seed), same in trials.items():
            if len(same) > 1 and (len({_numbers(r) for r in same}) == 1) == agree:
                where = f"{collection.labels[pretraining]}, {collection.captions[evaluation]}, seed {seed}"
                yield Case(where, tuple(r.number for r in same))


def _numbers(run: Numbered) -> tuple[tuple[str, float | None], ...]:
    return tuple(sorted((m.label, m.value) for m in run.record.metrics))


def _rivals(collection: Collection) -> Iterable[Case]:
    for pretraining in collection.pretrainings:
        if pretraining.checkpoint_sha256 is not None:
            text = f"{collection.labels[pretraining]}: checkpoint {pretraining.checkpoint_sha256[:12]}"
            yield Case(text, tuple(r.number for r in collection.by_pretraining[pretraining]))


def _mixtures(collection: Collection) -> Iterable[Case]:
    differing: list[tuple[str, Callable[[Evaluation], str]]] = [
        ("recipe hashes", lambda e: e.recipe_hash[:12]),
        ("backends", lambda e: f"{e.backend} {e.backend_version}"),
        ("ways of selecting the checkpoint", lambda e: e.selection),
        ("test splits", lambda e: e.split),
        ("versions of the task", lambda e: str(e.task_version)),
        ("states of the data", lambda e: (e.data_digest or "not known")[:12]),
    ]
    named: dict[tuple[str, str, str], list[Evaluation]] = defaultdict(list)
    for evaluation in collection.evaluations:
        record = collection.by_evaluation[evaluation][0].record
        named[evaluation.task, evaluation.dataset, record.recipe].append(evaluation)
        if what(record) != record.recipe:
            named[evaluation.task, evaluation.dataset, what(record)].append(evaluation)
    seen: set[tuple[frozenset[Evaluation], str]] = set()
    for (_, dataset, name), evaluations in named.items():
        for word, of in differing:
            values = sorted({of(e) for e in evaluations})
            case = (frozenset(evaluations), word)
            if len(values) > 1 and case not in seen:
                seen.add(case)
                yield Case(f"{name} on {dataset}: {len(values)} {word} ({', '.join(values)})")


def _uneven_data(collection: Collection) -> Iterable[Case]:
    for evaluation, runs in collection.by_evaluation.items():
        tested: dict[str, set[int]] = defaultdict(set)
        for run in runs:
            for metric in run.record.metrics:
                tested[metric.label].add(metric.n)
        trained = {r.record.train_images for r in runs}
        for word, counts in (("tested", set().union(*tested.values())), ("trained", trained)):
            uneven = word == "trained" or any(len(n) > 1 for n in tested.values())
            if uneven and len(counts) > 1:
                listed = ", ".join("not said" if c is None else f"{c:,}" for c in _sorted(counts))
                yield Case(f"{collection.captions[evaluation]}: {word} on {listed} images")


def _libraries(collection: Collection) -> Iterable[Case]:
    for evaluation, runs in collection.by_evaluation.items():
        for library, names in _PICTURE_LIBRARIES.items():
            by_major: dict[str, list[Numbered]] = defaultdict(list)
            for run in runs:
                versions = [v for n, v in run.record.library_versions.items() if n in names]
                for version in versions:
                    by_major[version.partition(".")[0]].append(run)
            if len(by_major) > 1:
                told = ", ".join(f"{library} {major} ({len(of)} records)" for major, of in by_major.items())
                yield Case(f"{collection.captions[evaluation]}: {told}")


def _ties(collection: Collection) -> Iterable[Case]:
    """Return where ties could move a number by a tenth of a percent or more: one test image in a thousand."""
    for (pretraining, evaluation), runs in collection.runs.items():
        for run in runs:
            tested = max(m.n for m in run.record.metrics)
            # Of detections many score alike at the low end, where it decides nothing.
            if evaluation.task != "detection" and max(run.record.ties, default=0) * 1000 >= tested:
                where = f"{collection.labels[pretraining]}, {collection.captions[evaluation]}"
                yield Case(f"{where}: {max(run.record.ties)} of {tested:,} images", (run.number,))


def _untested(collection: Collection) -> Iterable[Case]:
    for (pretraining, evaluation), runs in collection.runs.items():
        for run in runs:
            classes, measured = (run.record.facts.get(key) for key in ("classes", "classes_measured"))
            if isinstance(classes, int) and isinstance(measured, int) and measured < classes:
                where = f"{collection.labels[pretraining]}, {collection.captions[evaluation]}"
                yield Case(f"{where}: {measured} of {classes} classes", (run.number,))


def _rules(collection: Collection) -> Iterable[Case]:
    """Find detections on VOC's layout that are scored by different rules; COCO's is not one of them."""
    numbers: dict[str, list[int]] = defaultdict(list)
    for runs in collection.runs.values():
        for run in runs:
            rule = run.record.facts.get("metric_rule")
            if isinstance(rule, str) and rule in VOC_RULES.values():
                numbers[rule].append(run.number)
    if len(numbers) > 1:
        yield Case("; ".join(numbers), tuple(n for found in numbers.values() for n in found))


def _assumptions(collection: Collection) -> Iterable[Case]:
    for pretraining, runs in collection.by_pretraining.items():
        said: dict[str, list[int]] = defaultdict(list)
        for run in runs:
            for about, sentence in run.record.assumed.items():
                if about in CHANGES_FEATURES:
                    said[sentence].append(run.number)
        for sentence, records in said.items():
            yield Case(f"{collection.labels[pretraining]}: {sentence}", tuple(records))


def _sorted(counts: Iterable[int | None]) -> Sequence[int | None]:
    return sorted(counts, key=lambda c: -1 if c is None else c)


def _gaps(collection: Collection) -> Iterable[Case]:
    for pretraining, evaluation in collection.runs:
        missing = missing_seeds(collection, pretraining, evaluation)
        if missing:
            listed = ", ".join(map(str, missing))
            where = f"{collection.labels[pretraining]}, {collection.captions[evaluation]}"
            yield Case(f"{where}: without evaluation seed{'s' if len(missing) > 1 else ''} {listed}")


def _revisions(collection: Collection) -> Iterable[Case]:
    for (pretraining, evaluation), runs in collection.runs.items():
        revisions = sorted({r.record.git_revision for r in runs})
        if len(revisions) > 1:
            where = f"{collection.labels[pretraining]}, {collection.captions[evaluation]}"
            yield Case(f"{where}: {', '.join(r[:12] for r in revisions)}", tuple(r.number for r in runs))
