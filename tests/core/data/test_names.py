"""Lists, names and flags as people write them."""

import pytest

from carryover.core.data.names import as_number, flag, is_hidden, located, read_text


def test_lists_in_any_encoding(tmp_path):
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "latin-1"):
        (tmp_path / "list.txt").write_bytes("café_01\nb\n".encode(encoding))
        assert read_text(tmp_path / "list.txt").split() == ["café_01", "b"]


def test_yes_and_no_in_every_spelling():
    yes = [True, 1, 1.0, "1", "1.0", " True ", "yes", "Y", "on"]
    no = [None, False, 0, 0.0, "0", "0.0", "FALSE", "no", "off", "", "None"]
    neither = [2, -1, 0.5, "maybe", "2", [], {}, "nan"]
    assert [(value, flag(value)) for value in yes] == [(value, True) for value in yes]
    assert [(value, flag(value)) for value in no] == [(value, False) for value in no]
    assert [(value, flag(value)) for value in neither] == [(value, None) for value in neither]


def test_numbers_as_text():
    assert [as_number(v) for v in ("40", " 4.5 ", 3)] == [40.0, 4.5, 3.0]
    assert [as_number(v) for v in ("nan", "inf", "4px", None, True, [4], "1e999")] == [None] * 7


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train").mkdir()
    for name in ("a.jpg", "train/b.jpg"):
        (tmp_path / name).touch()
    return tmp_path


def test_a_name_is_found_by_its_tail(folder):
    names = {
        "a.jpg": "a.jpg",
        "train/b.jpg": "train/b.jpg",
        "train\\b.jpg": "train/b.jpg",
        "D:\\set\\train\\b.jpg": "train/b.jpg",
        "/data/set/train/b.jpg": "train/b.jpg",
        "../images/a.jpg": "a.jpg",
        "images/a.jpg": "a.jpg",
    }
    assert {name: located(folder, name).relative_to(folder).as_posix() for name in names} == names


def test_a_name_that_is_nowhere_stays_as_it_is_written(folder):
    assert located(folder, "b.jpg") == folder / "b.jpg"
    assert located(folder, "x/none.jpg") == folder / "x/none.jpg"


def test_what_lies_in_the_folder_goes_before_what_lies_outside(folder):
    outside = folder.parent / "outside.jpg"
    outside.touch()
    assert located(folder, str(outside)) == outside
    (folder / "outside.jpg").touch()
    assert located(folder, str(outside)) == folder / "outside.jpg"
    assert located(folder, "../outside.jpg") == folder / "outside.jpg"


def test_folders_that_nobody_means():
    hidden = [name for name in (".ipynb_checkpoints", "__MACOSX", "cat", "_cat") if is_hidden(name)]
    assert hidden == [".ipynb_checkpoints", "__MACOSX"]
