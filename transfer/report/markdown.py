"""The report as Markdown."""

from collections.abc import Sequence

from transfer.report.findings import Finding
from transfer.report.tables import Table
from transfer.results import Problem


def markdown(
    title: str, tables: Sequence[Table], told: Sequence[Finding], problems: Sequence[Problem]
) -> str:
    """Return the report as Markdown: findings, tables (mean ± standard deviation (seeds)), sources."""
    parts = [f"# {_escape(title)}", ""]
    for table in tables:
        parts += [f"## {_escape(table.title)}", "", _caption(table), ""]
        head = ["pretraining", "backbone", "epochs", *table.columns]
        parts += [
            "| " + " | ".join(map(_escape, head)) + " |",
            "|" + "---|" * 3 + "---:|" * len(table.columns),
        ]
        for row in table.rows:
            epochs = "–" if row.epochs is None else f"{row.epochs:g}"
            cells = [f"**{c.text()}**" if c.best else c.text() for c in row.cells]
            parts.append(
                "| " + " | ".join([_escape(row.label), _escape(row.backbone), epochs, *cells]) + " |"
            )
        parts += [""]
        parts += [f"- {_escape(f.text())}." for f in told if f.table is table]
        parts += ["", "Sources:", ""]
        for row in table.rows:
            for source in row.cells[0].sources:
                parts.append(
                    f"- {_escape(row.label)}, seed {source.seed}: `{source.record}`, "
                    f"checkpoint `{source.checkpoint_sha256[:16]}`"
                )
        parts += [""]
    if problems:
        parts += ["## Records that could not be read", ""]
        parts += [f"- `{p.path}`: {_escape(p.reason)}" for p in problems] + [""]
    return "\n".join(parts)


def _caption(table: Table) -> str:
    images = f"{table.train_images} training images, " if table.train_images else ""
    return _escape(
        f"{images}{table.backend}, {table.selection} checkpoint, recipe hash {table.recipe_hash[:12]}."
    )


def _escape(text: str) -> str:
    for mark in "\\`*_[]<>|":
        text = text.replace(mark, "\\" + mark)
    return text
