"""Images whose classes stand in a csv file, and splits that a list, a column, a folder or a draw makes."""

from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

from carryover.configs import UserError, load
from carryover.core.data.config import DataConfig
from carryover.core.data.labelled.config import ClassifyData
from carryover.core.data.labelled.images import LabeledImages
from carryover.core.data.prepared import build_dataset
from tests.core.data.folders import draw

LABELS = {"a": "moss", "b": "fern", "c": "moss", "d": "fern", "e": "oak", "f": "oak"}


def write_pictures(folder: Path, names=LABELS) -> None:
    for name in names:
        draw(folder / f"{name}.png", seed=ord(name[0]) * 1000 + len(name) * 100 + sum(map(ord, name)))


def write_csv(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def read(root: Path, split: str, **stated) -> dict[str, str]:
    """The class of every image of a split, by its name."""
    data = build_dataset(DataConfig.model_validate({"kind": "csv", "root": root, "split": split} | stated))
    assert data.paths is not None and data.labels is not None
    return {path.stem: data.classes[label] for path, label in zip(data.paths, data.labels, strict=True)}


FORMS = {
    "usual": ["filename,label", *(f"{n}.png,{c}" for n, c in LABELS.items())],
    "kaggle": ["id;species", *(f"{n};{c}" for n, c in LABELS.items())],
    "without titles": [f"some/folder/{n}.png,{c}" for n, c in LABELS.items()],
    "roboflow": [
        "filename, fern, moss, oak",
        *(f"{n}.png,{int(c == 'fern')},{int(c == 'moss')},{int(c == 'oak')}" for n, c in LABELS.items()),
    ],
}


@pytest.mark.parametrize("form", FORMS)
def test_a_table_says_the_class_of_every_image(tmp_path: Path, form: str) -> None:
    write_pictures(tmp_path / "photos")
    write_csv(tmp_path / "labels.csv", *FORMS[form])
    write_csv(tmp_path / "lists" / "few.txt", "b.png", "e.png")
    stated = {"images": "photos", "splits": {"few": "lists/few.txt"}}
    assert read(tmp_path, "few", **stated) == {"b": "fern", "e": "oak"}
    # A split's classes are those of all images, in one order.
    data = build_dataset(
        DataConfig.model_validate({"kind": "csv", "root": tmp_path, "split": "few"} | stated)
    )
    assert data.classes == ["fern", "moss", "oak"]


def test_splits_are_tables_values_of_a_column_folders_or_shares_of_every_class(tmp_path: Path) -> None:
    first, last = dict(list(LABELS.items())[:4]), dict(list(LABELS.items())[4:])
    # A table a split, as competitions give them.
    root = tmp_path / "tables"
    write_pictures(root / "images")
    for split, of in (("train", first), ("val", last)):
        write_csv(root / f"{split}.csv", "filename,label", *(f"{n}.png,{c}" for n, c in of.items()))
    assert (read(root, "train", images="images"), read(root, "val", images="images")) == (first, last)
    # A column.
    root = tmp_path / "column"
    write_pictures(root)
    write_csv(
        root / "t.csv",
        "split,path,label",
        *(f"{'tr' if n in first else 'te'},{n},{c}" for n, c in LABELS.items()),
    )
    assert read(root, "train", splits={"train": "tr"}) == first
    assert read(root, "te") == last
    # A folder of its own with its table; names repeat from folder to folder.
    for split, of in (("train", "moss"), ("valid", "oak")):
        write_pictures(tmp_path / "folders" / split)
        write_csv(
            tmp_path / "folders" / split / "_classes.csv",
            "filename,label",
            *(f"{n}.png,{of}" for n in LABELS),
        )
    stated = {"annotations": "_classes.csv"}
    assert read(tmp_path / "folders", "train", **stated) == dict.fromkeys(LABELS, "moss")
    assert read(tmp_path / "folders", "test", splits={"test": "valid"}, **stated) == dict.fromkeys(
        LABELS, "oak"
    )
    # Shares of every class.
    root = tmp_path / "drawn"
    many = {f"{c}{i}": c for c, n in (("x", 20), ("y", 10), ("z", 4)) for i in range(n)}
    write_pictures(root, many)
    write_csv(root / "t.csv", "image,label", *(f"{n},{c}" for n, c in many.items()))
    shares = {"splits": {"test": 0.2, "val": 0.1}}
    parts = {split: read(root, split, **shares) for split in ("train", "val", "test")}
    assert {split: dict(Counter(part.values())) for split, part in parts.items()} == {
        "train": {"x": 14, "y": 7, "z": 2},
        "val": {"x": 2, "y": 1, "z": 1},
        "test": {"x": 4, "y": 2, "z": 1},
    }
    assert {name for part in parts.values() for name in part} == set(many)
    assert parts["test"] != read(root, "test", splits_seed=1, **shares)
    # The same of class folders without splits.
    for name, label in many.items():
        (tmp_path / "classes" / label).mkdir(parents=True, exist_ok=True)
        (root / f"{name}.png").rename(tmp_path / "classes" / label / f"{name}.png")
    folders = {s: read(tmp_path / "classes", s, kind="imagefolder", **shares) for s in parts}
    assert {s: Counter(p.values()) for s, p in folders.items()} == {
        s: Counter(p.values()) for s, p in parts.items()
    }
    data = ClassifyData.model_validate(
        {"root": tmp_path / "classes", "test_split": "test", "selection_split": "val"} | shares
    )
    images = LabeledImages(data)
    assert (len(images.splits.train), len(images.test), len(images.selection or [])) == (23, 7, 4)


def test_what_is_wrong_with_a_table_is_named_by_its_line(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    wrong = {
        r"expected images and a csv file": [],
        r"no column for the image among its titles \(Bild, Art\); expected filename,label": [
            "Bild,Art",
            "a,moss",
        ],
        r"line 3: image a.png is of class 'oak', and of 'moss' in line 2": [
            "id,label",
            "a,moss",
            "a.png,oak",
        ],
        r"2 images are not there: y.png, z.png": ["id,label", "a,moss", "y.png,oak", "z.png,oak"],
        r"line 2: no label": ["id,label", "a,"],
        r"line 3: 2 classes \(fern, moss\); expected one class": ["id,fern,moss", "a,0,1", "b,1,1"],
        r"nothing says which of its 1 image is the split 'train'": ["id,label", "a,moss"],
    }
    for words, lines in wrong.items():
        if lines:
            write_csv(tmp_path / "t.csv", *lines)
        with pytest.raises(UserError, match=words):
            read(tmp_path, "train")
    write_csv(tmp_path / "t.csv", "Bild,Art,Jahr", *(f"{n},{c},2026" for n, c in LABELS.items()))
    columns = {"image": "Bild", "label": "Art"}
    assert len(read(tmp_path, "train", columns=columns, splits={"test": 0.4})) == 3
    write_csv(tmp_path / "train.txt", "a", "nobody")
    with pytest.raises(UserError, match="lists no class for 1 image: nobody"):
        read(tmp_path, "train", columns=columns)
    for given, words in (
        ({"kind": "imagefolder", "images": "x"}, "images belongs to kind: csv"),
        ({"kind": "cifar10", "splits": {"test": 0.2}}, "splits belongs to the kinds csv and imagefolder"),
    ):
        with pytest.raises(ValidationError, match=words):
            DataConfig.model_validate(given)
    with pytest.raises(
        ValidationError, match=r"splits draws test, and train and val would both be all that is left"
    ):
        ClassifyData.model_validate(
            {"kind": "csv", "splits": {"test": 0.2}, "selection_split": "val", "test_split": "test"}
        )


def test_recipes_for_small_data_take_a_table_and_class_folders(tmp_path: Path) -> None:
    for name in ("small_finetune", "small_finetune_cpu"):
        folders = load("transfer", name, [f"data.root={tmp_path}"])
        assert folders.data.kind == "imagefolder" and folders.data.splits == {"test": 0.2}
        table = load("transfer", name, [f"data.root={tmp_path}", "data.kind=csv", "data.images=photos"])
        assert table.data.train.split == "train" and table.data.test.split == "test"


def test_the_digest_is_of_the_table_the_images_and_the_lists(tmp_path: Path) -> None:
    def digest(**stated) -> str:
        config = DataConfig.model_validate(
            {"kind": "csv", "root": tmp_path, "splits": {"test": 0.3}} | stated
        )
        return config.contents().digest()

    write_pictures(tmp_path)
    write_csv(tmp_path / "t.csv", *FORMS["usual"])
    before = digest()
    assert digest() == before != digest(split="test")
    write_csv(tmp_path / "t.csv", *FORMS["usual"][:-1], "f.png,moss")
    assert digest() != before
