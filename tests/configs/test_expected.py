"""What headers say of published numbers is what configs/published says."""

import re
from pathlib import Path
from typing import Any

import pytest

from carryover.configs import UserError, header
from carryover.configs.expected import cost_line, find_numbers, result_lines
from tests.configs.published_values import numbers, value


def lines_of(expected: Any) -> list[str]:
    return result_lines(expected, find_numbers(expected, "here")[0])


ASKED = {"paper": "sqrtkl", "table": 1, "method": "byol", "backbone": "resnet50"}


def test_a_rows_number_and_its_hours_are_the_published_ones() -> None:
    top1 = value("sqrtkl", 1, method="byol", backbone="resnet50", data="CIFAR-100")
    hours = value("sqrtkl", 1, method="byol", backbone="resnet50", metric="time")
    story = header("pretrain", "byol_cifar100_r50")
    assert f"Expected: top-1 {top1} %, linear evaluation on CIFAR-100 (Cao and Wu 2023, Table 1)." in story
    assert f"Hardware and cost: 4 Tesla K80 (reported for CIFAR-10): {hours} h, " in story


def test_numbers_of_several_tables_stand_side_by_side() -> None:
    story = " ".join(header("pretrain", "sqrtkl_in10k_r18").split())
    asked = {"method": "sqrtkl", "backbone": "resnet18", "pretrain_images": 10000, "pretrain_epochs": 200}
    for table in (2, 3, 9):
        assert f"(Cao and Wu 2023, Table {table})" in story
        assert all(str(n.value) in story for n in numbers("sqrtkl", table, **asked))


def test_numbers_of_several_rows_say_whose_they_are() -> None:
    (line,) = lines_of({**ASKED, "method": ["byol", "sqrtkl"], "data": "CIFAR-10"})
    both = "byol top-1 90.3 %; sqrtkl top-1 92.0 %"
    assert line == f"linear evaluation on CIFAR-10: {both} (Cao and Wu 2023, Table 1)"


def test_a_rows_own_protocol_is_said_beside_it() -> None:
    (line,) = lines_of(
        {**ASKED, "table": 3, "method": "moco_v2", "backbone": "resnet18", "pretrain_images": 1281167}
    )
    assert line.endswith("(Cao and Wu 2023, Table 3; quoted; linear evaluation as in Shi et al. 2022)")


def test_words_stand_as_they_are_written() -> None:
    assert lines_of(["a curve", {**ASKED, "data": "CIFAR-10"}])[1] == "a curve"
    assert cost_line("not reported", []) == "not reported"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"metod": "byol"}, "here: expected: no column is called 'metod'; did you mean 'method'"),
        ({"method": "byoll"}, r"here: expected: no published row matches \{.*'byoll'"),
        ({"table": 77}, "here: expected: there is no Table 77 of 'sqrtkl'"),
    ],
)
def test_what_was_not_published_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        find_numbers({**ASKED, **change}, "here")


def test_tables_state_no_published_number_themselves() -> None:
    for path in sorted((Path(__file__).parents[2] / "configs" / "pretrain").glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        if "\nmatrix:" in text:
            assert not re.search(r"# Expected|\d\d\.\d ?%", text), path.name
