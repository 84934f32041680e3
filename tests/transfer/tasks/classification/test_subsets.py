"""Which images keep their labels: stratified, nested, official, or refused."""

import gzip
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carryover.configs import UserError
from carryover.core.data.labelled import subsets

CLASSES = ["cat", "dog", "emu"]
LABELS = [0] * 200 + [1] * 100 + [2] * 50


@settings(deadline=None)
@given(seed=st.integers(0, 2**31), few=st.floats(0.02, 0.5), more=st.floats(0.5, 1.0))
def test_a_smaller_fraction_lies_inside_a_larger_one(seed: int, few: float, more: float) -> None:
    small = subsets.take_fraction(LABELS, CLASSES, few, seed)
    large = subsets.take_fraction(LABELS, CLASSES, more, seed)
    assert set(small) <= set(large)


def test_a_fraction_takes_its_share_of_every_class() -> None:
    chosen = subsets.take_fraction(LABELS, CLASSES, 0.1, seed=3)
    assert subsets.per_class(LABELS, CLASSES, chosen) == {"cat": 20, "dog": 10, "emu": 5}
    assert len(set(chosen)) == 35


def test_seeds_draw_different_images_and_one_seed_the_same() -> None:
    first, again, other = (subsets.take_fraction(LABELS, CLASSES, 0.1, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_fraction_without_an_image_of_some_class_is_refused_by_the_class() -> None:
    with pytest.raises(UserError, match=r"no image of 1 class: 'emu' \(50 images\)"):
        subsets.take_fraction(LABELS, CLASSES, 0.009, seed=0)


def test_a_class_without_images_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="'yak'"):
        subsets.take_all(LABELS, [*CLASSES, "yak"])


def test_n_per_class_takes_exactly_n_and_says_where_there_are_fewer() -> None:
    chosen = subsets.take_per_class(LABELS, CLASSES, 7, seed=0)
    assert set(subsets.per_class(LABELS, CLASSES, chosen).values()) == {7}
    with pytest.raises(UserError, match="'emu' has 50"):
        subsets.take_per_class(LABELS, CLASSES, 51, seed=0)


def test_the_held_out_part_is_of_the_labeled_images_and_leaves_some_of_every_class() -> None:
    chosen = subsets.take_fraction(LABELS, CLASSES, 0.1, seed=0)
    fit, held = subsets.hold_out(LABELS, CLASSES, chosen, 0.2, seed=0)
    assert sorted([*fit, *held]) == sorted(chosen)
    assert subsets.per_class(LABELS, CLASSES, held) == {"cat": 4, "dog": 2, "emu": 1}


def test_one_labeled_image_of_a_class_cannot_be_held_out() -> None:
    chosen = subsets.take_per_class(LABELS, CLASSES, 1, seed=0)
    with pytest.raises(UserError, match="two labeled images"):
        subsets.hold_out(LABELS, CLASSES, chosen, 0.2, seed=0)


def paths_of(labels: list[int]) -> list[Path]:
    return [Path("train") / CLASSES[c] / f"{CLASSES[c]}_{i}.png" for i, c in enumerate(labels)]


def test_a_list_takes_what_it_names_in_its_order() -> None:
    paths = paths_of(LABELS)
    chosen = subsets.take_listed(
        paths, LABELS, CLASSES, ["emu_349.png", "dog/dog_250.png", "cat_0.png"], "list.txt"
    )
    assert list(chosen) == [349, 250, 0]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat_0.png", "cat_999.png", "nobody.png"], r"2 of 3 listed images.*cat_999.png, nobody.png"),
        (["cat_0.png", "cat_0.png", "dog_250.png", "emu_349.png"], "more than once.*cat_0.png"),
        (["cat_0.png", "dog_250.png"], "no image of 1 class is listed: 'emu'"),
    ],
)
def test_a_list_that_does_not_fit_the_data_is_refused(names: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        subsets.take_listed(paths_of(LABELS), LABELS, CLASSES, names, "list.txt")


def test_a_bare_name_that_fits_two_images_needs_its_folder() -> None:
    paths = [Path("a/1.png"), Path("b/1.png")]
    with pytest.raises(UserError, match="fits 2 images"):
        subsets.take_listed(paths, [0, 1], ["a", "b"], ["1.png"], "list.txt")
    chosen = subsets.take_listed(paths, [0, 1], ["a", "b"], ["b/1.png", "a/1.png"], "list.txt")
    assert list(chosen) == [1, 0]


@pytest.mark.parametrize(("name", "images"), [("simclr_1percent", 12_811), ("simclr_10percent", 128_116)])
def test_the_simclr_lists_are_whole_and_cover_the_thousand_classes(name: str, images: int) -> None:
    names, _ = subsets.read_list(name)
    assert len(names) == len(set(names)) == images
    counts = Counter(n.split("_")[0] for n in names)
    assert len(counts) == 1000
    assert max(counts.values()) - min(counts.values()) == 1


def test_simclrs_one_percent_is_inside_its_ten_percent() -> None:
    one, ten = (set(subsets.read_list(f"simclr_{p}percent")[0]) for p in (1, 10))
    assert one < ten


def test_a_list_of_the_users_own_may_be_plain_or_compressed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x.png\n\n y.png\n")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"x.png\ny.png"))
    for file in ("a.txt", "a.txt.gz"):
        assert subsets.read_list(str(tmp_path / file))[0] == ["x.png", "y.png"]


def test_an_unknown_or_damaged_list_is_refused_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="simclr_1percent"):
        subsets.read_list("simclr_2percent")
    (tmp_path / "torn.gz").write_bytes(gzip.compress(b"x.png\ny.png")[:-9])
    with pytest.raises(UserError, match=r"torn\.gz"):
        subsets.read_list(str(tmp_path / "torn.gz"))
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(UserError, match=r"empty\.txt"):
        subsets.read_list(str(tmp_path / "empty.txt"))


def test_a_subset_is_described_in_one_line() -> None:
    chosen = subsets.take_fraction(LABELS, CLASSES, 0.1, seed=0)
    counts = subsets.per_class(LABELS, CLASSES, chosen)
    assert subsets.describe(counts) == "35 images of 3 classes, 5 to 20 of each"
