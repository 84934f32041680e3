"""The report as Markdown."""

from collections.abc import Sequence

from carryover.configs.counted import signed
from carryover.transfer.report.beside import PublishedRow
from carryover.transfer.report.cells import Cell
from carryover.transfer.report.concerns import Concern
from carryover.transfer.report.content import Content
from carryover.transfer.report.costs import CostTable
from carryover.transfer.report.findings import Summary
from carryover.transfer.report.learning_curves import SavedLabels
from carryover.transfer.report.paired import Paired
from carryover.transfer.report.progress import RunProgress
from carryover.transfer.report.savings import SAVINGS_NOTE
from carryover.transfer.report.tables import Table, reproductions
from carryover.transfer.results.reading import Problem


def markdown(content: Content) -> str:
    """Return the report as Markdown: findings, what needs attention, tables, sources of every number."""
    parts = [f"# {_escape(content.title)}", "", f"Written {content.written}.", ""]
    parts += _partial(content.partial)
    parts += [] if content.collection.records else ["No result yet.", ""]
    parts += _findings(content.summaries)
    parts += _attention(content.problems, content.concerns)
    for table in [*content.tables, *content.full_tables]:
        parts += _table(table)
    if content.paired is not None:
        parts += _paired(content.paired)
    parts += _saved(content.saved)
    for costs in content.costs:
        parts += _costs(costs)
    parts += ["## Records", ""]
    for run in content.collection.records:
        record = run.record
        seed = "" if record.pretrain_seed is None else f" (seed {record.pretrain_seed})"
        parts.append(
            f"{run.number}. `{run.path}`: {_escape(record.pretrain_recipe)}{seed},"
            f" {_escape(record.recipe)} (seed {record.seed}), checkpoint `{record.checkpoint_sha256}`"
        )
    return "\n".join([*parts, ""])


def _partial(partial: Sequence[RunProgress]) -> list[str]:
    lines = [f"> **Partial results.** `{p.run}`: {_escape(p.text())}." for p in partial]
    return ["\n>\n".join(lines), ""] if lines else []


def _findings(summaries: Sequence[Summary]) -> list[str]:
    if not summaries:
        return []
    lines = [f"- **{_escape(s.heading)}, {_escape(s.metric)}:** {_escape(s.lead())}" for s in summaries]
    return ["## In short", "", *lines, ""]


def _attention(problems: Sequence[Problem], concerns: Sequence[Concern]) -> list[str]:
    if not problems and not concerns:
        return []
    parts = ["## Needs attention", ""]
    if problems:
        parts += ["Records left out:", "", *(f"- `{p.path}`: {_escape(p.reason)}" for p in problems), ""]
    for concern in concerns:
        parts += [f"{concern.title}. {concern.consequence}", ""]
        for case in concern.cases:
            numbers = f" (records {', '.join(map(str, case.records))})" if case.records else ""
            parts.append(f"- {_escape(case.text)}{numbers}")
        parts.append("")
    return parts


def _table(table: Table) -> list[str]:
    head = ["pretraining", "backbone", "epochs"]
    head += [f"{_escape(g.heading)} ({g.note}), {_escape(c.heading)}" for g, c in table.columns]
    parts = [f"## {_escape(table.title)}", ""]
    parts += ["| " + " | ".join(head) + " |", "|" + "---|" * 3 + "---:|" * len(table.columns)]
    for row in table.rows:
        epochs = "–" if row.pretraining.epochs is None else f"{row.pretraining.epochs:g}"
        named = [_escape(row.label), _escape(row.pretraining.backbone), epochs]
        parts.append("| " + " | ".join([*named, *map(_cell, row.cells)]) + " |")
    for theirs in table.published.rows:
        values = ["" if v is None else f"{v:.1f}" for v in theirs.values]
        epochs = "–" if theirs.epochs is None else str(theirs.epochs)
        named = [
            _published(theirs),
            _escape(theirs.backbone),
            epochs,
        ]
        parts.append("| " + " | ".join([*named, *values]) + " |")
    parts += ["", f"{table.spreads()} Best of a column bold, second italic.", ""]
    parts += [
        f"- Deviation of ({of}) from what was published: {_escape(text)}." for of, text in table.deviations
    ]
    parts += [f"- Of published rows: {_escape(note)}." for note in table.published.notes]
    parts += [f"- {_escape(told)}." for told in reproductions(table)]
    parts += [f"- ({letter}) {_escape(note)}" for letter, note in table.notes]
    return [*parts, ""]


def _paired(found: Paired) -> list[str]:
    rows = [
        f"| {_escape(d.label)} | {_escape(d.heading)} | {_escape(d.metric)} | {signed(d.difference, 2)} |"
        f" {signed(d.low, 2)} to {signed(d.high, 2)} | {d.p:.3f} | {d.verdict} |"
        for d in found.differences
    ]
    return [
        f"## Compared with {_escape(found.reference)}, image by image",
        "",
        "| pretraining | evaluation | metric | difference | 95 % interval | p (Holm) | found |",
        "|---|---|---|---:|---:|---:|---|",
        *rows,
        "",
        *(f"- not compared: {_escape(reason)}" for reason in found.left_out),
        "",
    ]


def _saved(found: Sequence[SavedLabels]) -> list[str]:
    if not found:
        return []
    parts = ["## Labels that a pretraining saves", ""]
    for one in found:
        parts += [f"{_escape(one.heading)}:", "", *(f"- {_escape(text)}" for text in one.texts), ""]
    return [*parts, SAVINGS_NOTE, ""]


def _published(row: PublishedRow) -> str:
    """Name a row of a paper; one that stands apart says so, as Markdown's tables have one body."""
    where = _escape(f"{row.label} ({row.where})")
    if row.own_protocol is None:
        return f"published: {where}"
    return f"published, other protocol: {where}; *{_escape(row.own_protocol)}*"


def _costs(table: CostTable) -> list[str]:
    parts = [
        f"## {table.title}",
        "",
        "| " + " | ".join([table.what.lower(), "", *(c.heading for c in table.columns)]) + " |",
    ]
    parts.append("|" + "---|" * 2 + "---:|" * len(table.columns))
    for row in table.rows:
        values = [c.text(v) for c, v in zip(table.columns, row.values)]
        parts.append("| " + " | ".join([_escape(row.label), _escape(row.detail), *values]) + " |")
    return [*parts, "", _escape(table.note), ""]


def _cell(cell: Cell) -> str:
    text = _escape(cell.text())
    if cell.clashing:
        return f"{text} (reruns disagree)"
    if cell.missing:
        text += f" (n = {cell.n})"
    if cell.brackets():
        text += f" {_escape(cell.brackets())}"
    return {1: f"**{text}**", 2: f"*{text}*"}.get(cell.rank, text)


def _escape(text: str) -> str:
    for mark in "\\`*_[]<>|":
        text = text.replace(mark, "\\" + mark)
    return text.replace("\n", " ")
