"""Numbers agree with their nouns and verbs, and zero has no sign."""

import pytest

from carryover.configs import UserError, load
from carryover.configs.counted import counted, counted_of, signed
from carryover.core.data.defects import DefectPolicy, summarize
from carryover.core.data.labelled.subsets import describe, take_all


def test_a_number_agrees_with_its_noun_and_verb() -> None:
    assert [counted(n, "class") for n in (0, 1, 2)] == ["0 classes", "1 class", "2 classes"]
    assert [counted(n, "entry") for n in (1, 2)] == ["1 entry", "2 entries"]
    assert counted(["a"], "image is", "images are") == "1 image is"
    assert counted_of(["a"], "abc", "class", "has", "have") == "1 of 3 classes has"
    assert counted_of(1200, 5000, "image", "is", "are") == "1,200 of 5,000 images are"


def test_messages_about_one_thing_are_in_the_singular(tmp_path) -> None:
    with pytest.raises(UserError, match=r"^1 class has no training image: 'b'$"):
        take_all([0, 0], ["a", "b"])
    with pytest.raises(UserError, match=r"^2 classes have no training image: 'b', 'c'$"):
        take_all([0, 0], ["a", "b", "c"])
    assert describe({"a": 1}) == "1 image of 1 class, 1 of each"
    defect = DefectPolicy().defect(tmp_path, "zero_area", "a line")
    assert summarize([defect], "plants").startswith("plants: 1 defect (")


def test_a_difference_that_rounds_to_zero_has_no_sign() -> None:
    assert [signed(v) for v in (-0.04, 0.04, -0.06, 2.0)] == ["0.0", "0.0", "-0.1", "+2.0"]
    assert signed(-0.004, 2) == "0.00" and signed(0.006, 2) == "+0.01"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("k=5", r"k: a list is expected, such as \[20, 200\] \(got 5\)"),
        ("workers=1.5", r"workers: a whole number is expected \(got 1\.5\)"),
        ("data=3", r"data: keys and values are expected, such as \{key: value\} \(got 3\)"),
    ],
)
def test_values_of_the_wrong_type_are_described_in_the_words_of_yaml(override: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        load("transfer", "small_knn", [override])


def test_a_recipe_of_another_command_is_named_by_its_command() -> None:
    with pytest.raises(UserError, match="is a recipe of `carryover pretrain`, not of `carryover evaluate`"):
        load("transfer", "random_r50")
    with pytest.raises(
        UserError, match=r"^no recipe of `carryover evaluate` is called 'moco_v3_vits_30ep'"
    ) as error:
        load("transfer", "moco_v3_vits_30ep")
    assert "did you mean 'moco_v3_vits_300ep', a recipe of `carryover pretrain`?" in str(error.value)
    with pytest.raises(UserError, match="`carryover recipes transfer` lists all"):
        load("transfer", "qqqqqqqqqqq")
