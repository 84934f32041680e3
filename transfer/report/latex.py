"""The report's tables as LaTeX: booktabs, a document that compiles as it is."""

import re
from collections.abc import Mapping, Sequence

from carryover.transfer.report.beside import PublishedRow
from carryover.transfer.report.cells import Cell
from carryover.transfer.report.content import Content
from carryover.transfer.report.costs import CostTable
from carryover.transfer.report.tables import Row, Table

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "–": "--",
    "±": r"$\pm$",
}
_SUBSCRIPT = re.compile(r"^(AP)(50|75|s|m|l)$")
_HEAD = r"""\documentclass{article}
\usepackage[utf8]{inputenc}
\usepackage[T1]{fontenc}
\usepackage{booktabs,graphicx}
\usepackage[landscape,margin=2cm]{geometry}
\begin{document}
"""


def latex(content: Content) -> str:
    """Return a document of every combined table; a single table can be cut out and needs only booktabs."""
    partial = [
        rf"\noindent\textbf{{Partial results:}} {_escape(p.text())}.\par" + "\n" for p in content.partial
    ]
    return (
        _HEAD
        + "\n".join([*partial, *map(_table, content.tables), *map(_costs, content.costs)])
        + "\\end{document}\n"
    )


def _table(table: Table) -> str:
    columns = table.columns
    groups = [
        rf"\multicolumn{{{len(g.columns)}}}{{c}}{{{_escape(g.heading)}$^{{{g.note}}}$}}" for g in table.groups
    ]
    rules, start = [], 2
    for group in table.groups:
        rules.append(rf"\cmidrule(lr){{{start}-{start + len(group.columns) - 1}}}")
        start += len(group.columns)
    headings = " & ".join(["Pretraining", *(_heading(c.heading) for _, c in columns)])
    ours = _body(table.rows)
    marks = _marks(table.published.others)
    theirs = [line for _, rows in table.published.groups for line in (r"\midrule", *_published(rows, marks))]
    notes = " ".join(f"$^{{{letter}}}$ {_escape(note)}" for letter, note in table.notes)
    lines = [
        " & ".join(["", *groups]) + r" \\",
        " ".join(rules),
        headings + r" \\",
        r"\midrule",
        *ours,
        *theirs,
    ]
    deviations = "".join(
        f" Deviation of $^{{{of}}}$ from what was published: {_escape(text)}."
        for of, text in table.deviations
    )
    others = "".join(
        f" $^{{{mark}}}$ Published, other protocol: {_escape(own)}." for own, mark in marks.items()
    )
    caption = f"{_escape(table.title)}. {_escape(table.spreads())} {notes}{deviations}{others}"
    return _float(caption, len(columns), lines)


def _marks(rows: Sequence[PublishedRow]) -> dict[str, int]:
    """Number the protocols of published rows that stand apart: rows carry the mark, the caption the text."""
    own = dict.fromkeys(r.own_protocol for r in rows if r.own_protocol)
    return {text: i for i, text in enumerate(own, start=1)}


def _published(rows: Sequence[PublishedRow], marks: Mapping[str, int]) -> list[str]:
    lines = []
    for row in rows:
        mark = f"$^{{{marks[row.own_protocol]}}}$" if row.own_protocol else ""
        values = ["" if v is None else f"{v:.1f}" for v in row.values]
        lines.append(" & ".join([f"{_escape(row.label)}{mark} ({_escape(row.where)})", *values]) + r" \\")
    return lines


def _costs(table: CostTable) -> str:
    lines = [" & ".join([table.what, *(c.heading for c in table.columns)]) + r" \\", r"\midrule"]
    for row in table.rows:
        values = [c.text(v) for c, v in zip(table.columns, row.values)]
        lines.append(" & ".join([_escape(f"{row.label} ({row.detail})"), *values]) + r" \\")
    return _float(f"{table.title}. {_escape(table.note)}", len(table.columns), lines)


def _float(caption: str, columns: int, lines: Sequence[str]) -> str:
    """Set a table of `columns` numbers beside its row headings, no wider than the page."""
    return "\n".join(
        [
            r"\begin{table}[ht]",
            r"\centering",
            rf"\caption{{{caption}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{l{'r' * columns}}}",
            r"\toprule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table}",
            "",
        ]
    )


def _body(rows: Sequence[Row]) -> list[str]:
    lines = []
    for i, row in enumerate(rows):
        if i and rows[i - 1].pretraining.baseline and not row.pretraining.baseline:
            lines.append(r"\midrule")
        lines.append(" & ".join([_escape(row.label), *map(_cell, row.cells)]) + r" \\")
    return lines


def _cell(cell: Cell) -> str:
    text = _escape(cell.text())
    if cell.clashing:
        return rf"{text} (reruns disagree)"
    if cell.missing:
        text += f" ($n = {cell.n}$)"
    marked = {1: rf"\textbf{{{text}}}", 2: rf"\underline{{{text}}}"}.get(cell.rank, text)
    return rf"{marked} {{\scriptsize {_escape(cell.brackets())}}}" if cell.brackets() else marked


def _heading(metric: str) -> str:
    if match := _SUBSCRIPT.match(metric):
        return rf"{match[1]}$_{{{match[2]}}}$"
    return _escape(metric)


def _escape(text: str) -> str:
    return "".join(_SPECIAL.get(c, c) for c in text)
