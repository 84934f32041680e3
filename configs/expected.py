"""Published numbers in a recipe's header, read from configs/published.

`expected` of a recipe is a sentence, or what sets its numbers apart in the files:
``{paper: sqrtkl, table: [3, 9], method: byol}``. `table` may list several; any other key is a column of the
files with the cell's content, or a list of contents of which one must be there; null is an empty cell. A list
has several of these. A number whose task is ``pretraining`` (hours, memory) says what the pretraining cost.
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from carryover.configs.errors import UserError
from carryover.configs.nearest import nearest

Number = Mapping[str, str]
"""One line of a file of configs/published, by column."""

_COST = "pretraining"
_RESULT_COLUMNS = ("task", "detector", "data", "label_fraction", "metric", "recipe")
"""Columns that say how a number was measured; those of a cost are empty."""
_ROW_COLUMNS = {
    "method": "{}",
    "variant": "{}",
    "backbone": "{}",
    "pretrain_images": "{} images",
    "pretrain_epochs": "{} epochs",
}
"""Columns that say whose a number is, and how a header says it."""
_METRICS = {"top1": "top-1", "top5": "top-5"}
_TASKS = {"linear": "linear evaluation", "finetune": "fine-tuning"}


def find_numbers(expected: Any, where: str) -> tuple[list[Number], list[Number]]:
    """Return the published results that `expected` asks for, and the published costs.

    Raises
    ------
    UserError
        A key that is no column, a table that is not in configs/published, or no number at all; names `where`
        and the nearest column.
    """
    results: list[Number] = []
    costs: list[Number] = []
    for asked in as_list(expected):
        if not isinstance(asked, Mapping):
            continue
        cells = {k: _allowed(v) for k, v in asked.items() if k not in ("paper", "table")}
        found: list[Number] = []
        for table in as_list(asked.get("table")):
            by_method = _table(asked.get("paper"), table, where)
            _check_columns(cells, list(next(iter(by_method.values()))[0]), where)
            for method, rows in by_method.items():
                found += rows if method in cells.get("method", by_method) else ()
        fit = [n for n in found if n["task"] != _COST and _fits(n, cells)]
        if not fit:
            raise UserError(f"{where}: expected: no published row matches {dict(asked)}")
        results += fit
        cost = {k: v for k, v in cells.items() if k not in _RESULT_COLUMNS}
        costs += [n for n in found if n["task"] == _COST and _fits(n, cost)]
    return results, costs


def result_lines(expected: Any, results: Sequence[Number]) -> list[str]:
    """Return the sentences of a header's "Expected:": one for each table, then those that were words."""
    said = [str(e).rstrip(".") for e in as_list(expected) if not isinstance(e, Mapping)]
    by_source: dict[str, list[Number]] = {}
    for number in results:
        by_source.setdefault(_source(number), []).append(number)
    differing = [c for c in _ROW_COLUMNS if len({n[c] for n in results} - {"", "0"}) > 1]
    lines = [f"{_measured(numbers, differing)} ({source})" for source, numbers in by_source.items()]
    return [*lines, *said]


def cost_line(cost: str, costs: Sequence[Number]) -> str:
    """Return what a header says of "Hardware and cost": the recipe's words, then the published hours."""
    numbers = list(dict.fromkeys(f"{n['value']} {n['unit']}" for n in costs if n["value"] != "0"))
    return ": ".join(part for part in (cost.rstrip("."), ", ".join(numbers)) if part)


def as_list(value: Any) -> list[Any]:
    """Return a list as it is, nothing as an empty one, anything else as the only element of one."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _source(number: Number) -> str:
    own = f"; {number['own_protocol']}" if number["own_protocol"] else ""
    return f"{number['citation']}, Table {number['table']}{own}"


def _measured(numbers: Sequence[Number], differing: Sequence[str]) -> str:
    """Return numbers by evaluation, with what tells their rows apart: the `differing` columns."""
    by_evaluation: dict[str, dict[str, list[str]]] = {}
    for number in numbers:
        what = number["detector"] or _TASKS.get(number["task"], number["task"])
        share = number["label_fraction"]
        of = f" with {100 * float(share):g} % of the labels" if share else ""
        row = ", ".join(_ROW_COLUMNS[c].format(number[c]) for c in differing if number[c] not in ("", "0"))
        rows = by_evaluation.setdefault(f"{what}{of} on {number['data']}", {})
        metric = _METRICS.get(number["metric"])
        unit = f" {number['unit']}" if metric or number["unit"] != "%" else ""
        rows.setdefault(row, []).append(f"{metric or number['metric']} {number['value']}{unit}")
    said = []
    for evaluation, rows in by_evaluation.items():
        texts = [f"{row} {', '.join(metrics)}".strip() for row, metrics in rows.items()]
        said.append(f"{evaluation}: {'; '.join(texts)}" if differing else f"{texts[0]}, {evaluation}")
    return "; ".join(said)


def _allowed(value: Any) -> frozenset[str]:
    values = value if isinstance(value, list) else [value]
    return frozenset("" if v is None else str(v) for v in values)


def _fits(number: Number, cells: Mapping[str, frozenset[str]]) -> bool:
    return all(number[column] in allowed for column, allowed in cells.items())


def _check_columns(asked: Iterable[str], columns: Sequence[str], where: str) -> None:
    for column in asked:
        if column not in columns:
            guess = nearest(column, columns)
            hint = f"; did you mean '{guess}'?" if guess else f"; there are: {', '.join(columns)}"
            raise UserError(f"{where}: expected: no column is called '{column}'{hint}")


def _table(paper: Any, table: Any, where: str) -> Mapping[str, list[Number]]:
    found = _published(f"{paper}_table{table}")
    if found is None:
        raise UserError(
            f"{where}: expected: there is no Table {table} of '{paper}': configs/published has no"
            f" {paper}_table{table}.csv"
        )
    return found


@cache
def _published(name: str) -> Mapping[str, list[Number]] | None:
    """Return the numbers of one file by method, None for a file that is not there."""
    file = Path(str(resources.files("carryover.configs"))) / "published" / f"{name}.csv"
    if not file.is_file():
        return None
    found: dict[str, list[Number]] = {}
    with file.open(encoding="utf-8", newline="") as lines:
        for number in csv.DictReader(lines):
            found.setdefault(number["method"], []).append(number)
    return found
