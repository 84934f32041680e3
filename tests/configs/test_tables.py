"""A table is its rows: what they are called, what they are made of, and what is said of a wrong one."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from carryover.configs import (
    Incidental,
    Recipe,
    Section,
    UserError,
    header,
    kind_of,
    load,
    recipe_names,
    title,
)
from carryover.configs import loading as loading_module
from carryover.configs.loading import KINDS


class Fast(Section):
    name: Literal["fast"] = "fast"
    rate: float = 0.1


class Slow(Section):
    name: Literal["slow"]
    patience: int


class Trial(Recipe):
    epochs: int = 1
    width: int = 1
    method: Annotated[Fast | Slow, Field(discriminator="name")] = Fast()
    root: Annotated[str, Incidental] = ""


KINDS.register("trials", Trial)

TABLE = """\
# What all rows share.
base: common
width: 3
source: "Table 7, {method}"
matrix:
  method:
    fast: {title: Fast method, method: {name: fast, rate: 0.5}}
    slow: {title: Slow method, method: {name: slow, patience: 4}, note: "Patience is {method.patience}."}
  epochs:
    "": {title: ten}
    _long: {title: a hundred, epochs: 100}
exclude: [{method: slow, epochs: _long}]
name: "{method}_trial{epochs}"
title: "{method}, {epochs} epochs, width {width}"
rows:
  fast_trial_long: {width: 9, note: Wider than the others.}
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "common.yaml").write_text("epochs: 10\nwidth: 2\n")
    path = tmp_path / "mine.yaml"
    path.write_text(TABLE)
    return path


@pytest.fixture
def shipped(table: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The table's folder, as if it were the one of shipped recipes."""
    (table.parent / "common.yaml").rename(table.parent / "_common.yaml")
    table.write_text(TABLE.replace("base: common", "base: _common"))
    monkeypatch.setattr(loading_module, "_shipped", lambda kind: table.parent)
    yield table.parent


def row(path: Path, name: str) -> Trial:
    trial = load("trials", f"{path}:{name}")
    assert isinstance(trial, Trial)
    return trial


def test_a_row_is_the_base_the_table_its_entries_and_its_own_in_that_order(table: Path) -> None:
    assert (row(table, "fast_trial").epochs, row(table, "fast_trial").width) == (10, 3)
    assert (row(table, "fast_trial_long").epochs, row(table, "fast_trial_long").width) == (100, 9)
    assert row(table, "fast_trial").method == Fast(rate=0.5)
    assert row(table, "slow_trial").method == Slow(name="slow", patience=4)


def test_a_row_has_its_name_and_its_source_names_its_entries(table: Path) -> None:
    assert row(table, "slow_trial").name == "slow_trial"
    assert row(table, "slow_trial").source == "Table 7, Slow method"


def test_overrides_win_over_the_row(table: Path) -> None:
    assert load("trials", f"{table}:fast_trial_long", ["width=1"]).width == 1


def test_what_is_excluded_is_no_row(table: Path) -> None:
    with pytest.raises(UserError, match=r"has no row 'slow_trial_long'; did you mean 'slow_trial'"):
        row(table, "slow_trial_long")


def test_an_exclusion_may_list_entries(table: Path) -> None:
    table.write_text(TABLE.replace("epochs: _long}]", 'epochs: ["", _long]}]'))
    with pytest.raises(UserError, match="has no row 'slow_trial'"):
        row(table, "slow_trial")


def test_a_table_without_its_row_names_them_all(table: Path) -> None:
    said = r"mine\.yaml is a table; choose one row, as in .*mine\.yaml:fast_trial, of its 3 rows: fast_trial,"
    for ask in (lambda: load("trials", table), lambda: kind_of(table), lambda: header("trials", table)):
        with pytest.raises(UserError, match=said):
            ask()


def test_a_row_of_a_file_that_is_no_table_is_refused(table: Path) -> None:
    with pytest.raises(UserError, match=r"common\.yaml is one recipe, no table: it has no row 'fast'"):
        load("trials", f"{table.parent / 'common.yaml'}:fast")


def test_a_rows_kind_is_found(table: Path) -> None:
    assert kind_of(Path(f"{table}:fast_trial")) == "trials"


def test_a_row_may_be_the_base_of_a_file_beside_its_table(table: Path) -> None:
    child = table.parent / "child.yaml"
    child.write_text("base: mine:fast_trial_long\nroot: /here\n")
    loaded = load("trials", child)
    assert (loaded.epochs, loaded.width, loaded.name) == (100, 9, "child")
    assert header("trials", child) == ""


def test_bases_of_entries_are_laid_before_all_keys(table: Path) -> None:
    (table.parent / "wide.yaml").write_text("width: 50\nepochs: 7\n")
    table.write_text(TABLE.replace("slow: {", "slow: {base: wide, "))
    assert (row(table, "slow_trial").width, row(table, "slow_trial").epochs) == (3, 7)


def test_a_row_cannot_be_its_own_base(table: Path) -> None:
    table.write_text(TABLE.replace("slow: {", "slow: {base: mine:slow_trial, "))
    with pytest.raises(UserError, match="circular base: slow_trial -> slow_trial"):
        row(table, "slow_trial")


def test_a_rows_header_is_its_title_its_notes_and_the_tables_story(table: Path) -> None:
    assert header("trials", f"{table}:slow_trial").splitlines() == [
        "Slow method, ten epochs, width 3.",
        "Patience is 4.",
        "What all rows share.",
    ]
    assert "Wider than the others." in header("trials", f"{table}:fast_trial_long")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("rate: 0.5", "raet: 0.5", r"mine\.yaml: fast_trial:\n.*'method.raet'; did you mean 'rate'"),
        ("exclude:", "exlude:", r"mine\.yaml: fast_trial:\n.*'exlude'; did you mean 'exclude'"),
        ("{method}_trial", "{metod}_trial", r"mine\.yaml: name: .*'metod'; did you mean 'method'"),
        (
            'name: "{method}_trial{epochs}"',
            "",
            r"mine\.yaml: name: a table must state how its rows are named",
        ),
        ("{method}_trial{epochs}", "{method}_trial", r"name: .*are both called 'fast_trial'"),
        ("[{method: slow", "[{metod: slow", r"exclude: no axis is called 'metod'; did you mean 'method'"),
        (
            "[{method: slow",
            "[{method: slov",
            r"exclude: method: no entry is called 'slov'; did you mean 'slow'",
        ),
        ("exclude: [", "exclude: [3, ", r"exclude: expected a mapping of keys, found int"),
        ("fast_trial_long: {", "fast_tial_long: {", r"rows: no row is called 'fast_tial_long'; did you mean"),
        ("title: Fast method", "rows: {}", r"matrix: method: fast: 'rows' belongs to the whole table"),
        (
            "    _long: {title: a hundred, epochs: 100}",
            "    _long: 3",
            r"matrix: epochs: _long: expected a mapping",
        ),
        ("width {width}", "width {widht}", r"title: no axis is called 'widht'"),
        ("base: common", "base: comon", r"mine\.yaml: base: no trials recipe is called 'comon'"),
        ("{method: slow, epochs: _long}", "{}", "every combination of the matrix is excluded"),
    ],
)
def test_a_wrong_table_is_refused_by_file_and_word(table: Path, old: str, new: str, said: str) -> None:
    assert old in TABLE
    table.write_text(TABLE.replace(old, new))
    with pytest.raises(UserError, match=said):
        header("trials", f"{table}:fast_trial")
        row(table, "fast_trial")


def test_shipped_rows_are_recipes_like_any_other(shipped: Path) -> None:
    (shipped / "plain.yaml").write_text("base: fast_trial_long\nepochs: 5\n")
    assert recipe_names("trials") == ["fast_trial", "fast_trial_long", "plain", "slow_trial"]
    assert load("trials", "plain").width == 9
    assert load("trials", "slow_trial").name == "slow_trial"
    with pytest.raises(UserError, match="no trials recipe is called 'slow_tril'; did you mean 'slow_trial'"):
        load("trials", "slow_tril")
    with pytest.raises(
        UserError, match="'mine' is a table of several recipes; name one of them: fast_trial,"
    ):
        load("trials", "mine")


@pytest.mark.parametrize("twin", ["slow_trial.yaml", "other.yaml"])
def test_a_name_that_two_shipped_files_give_is_refused_with_both(shipped: Path, twin: str) -> None:
    text = "epochs: 5\n" if twin == "slow_trial.yaml" else 'matrix: {a: {slow_trial: {}}}\nname: "{a}"\n'
    (shipped / twin).write_text(text)
    with pytest.raises(
        UserError, match=r"two recipes are called 'slow_trial': in .*\.yaml and in .*\.yaml"
    ) as caught:
        recipe_names("trials")
    assert {"mine.yaml", twin} == set(re.findall(r"\w+\.yaml", str(caught.value)))


def test_shipped_tables_are_fewer_than_forty_files() -> None:
    assert len(list((Path(__file__).parents[2] / "configs" / "pretrain").glob("*.yaml"))) <= 40


def test_a_title_is_a_headers_first_sentence_on_one_line(table: Path) -> None:
    assert title("trials", f"{table}:slow_trial") == "Slow method, ten epochs, width 3."
    (table.parent / "plain.yaml").write_text(
        "# A sentence that goes on\n#   in a second line.\n# Not this.\n"
    )
    assert title("trials", table.parent / "plain.yaml") == "A sentence that goes on in a second line."
