"""LabelImg's XML, YOLO's text and csv files as exporters write them are read to the same boxes."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from carryover.configs import UserError, load
from carryover.core.data.check import check
from carryover.core.data.objects.box_table import read_box_table
from carryover.core.data.objects.config import BoxesData
from carryover.core.data.objects.splits import Splits, read_splits
from carryover.transfer.cli.commands import check_data
from tests.transfer.tasks.detection.layouts import VOC_OBJECT, write_image

WIDTH, HEIGHT = SIZE = (40, 32)
# (class, box in continuous coordinates)
OBJECTS = {
    "a": [("cat", (4, 8, 20, 24)), ("dog", (0, 0, 40, 32))],
    "b": [("dog", (10, 4, 30, 28))],
    "c": [("cat", (8, 8, 16, 16)), ("cat", (20, 16, 40, 32))],
    "d": [("dog", (2, 4, 10, 20)), ("cat", (20, 4, 36, 12))],
}
SPLITS = {"train": ["a", "b"], "test": ["c", "d"]}


def write_pictures(folder: Path, ids=OBJECTS, suffix: str = ".jpg") -> None:
    for name in ids:
        write_image(folder / f"{name}{suffix}", SIZE)
        with (folder / f"{name}{suffix}").open("ab") as file:
            file.write(name.encode())  # Behind the picture's end: no file is like another one.


def write_xml(path: Path, objects) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    one_based = [(name, (x + 1, y + 1, right, bottom)) for name, (x, y, right, bottom) in objects]
    texts = [VOC_OBJECT.format(name=name, box=box, difficult=0) for name, box in one_based]
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
    path.write_text(f"<annotation><filename>x</filename>{size}{''.join(texts)}</annotation>")


def write_yolo(path: Path, objects, names=("dog", "cat")) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        (names.index(c), (x + r) / 2 / WIDTH, (y + b) / 2 / HEIGHT, (r - x) / WIDTH, (b - y) / HEIGHT)
        for c, (x, y, r, b) in objects
    ]
    path.write_text("".join(f"{' '.join(map(str, row))}\n" for row in rows))


def write_csv(path: Path, titles: str, row, ids=OBJECTS, separator: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row(name, c, *box) for name in ids for c, box in OBJECTS[name]]
    text = [titles] * bool(titles) + [",".join(map(str, line)) for line in lines]
    path.write_text("\n".join(text).replace(",", separator) + "\n")


def data_of(root: Path, **stated) -> BoxesData:
    return BoxesData.model_validate({"kind": "boxes", "root": root, **stated})


def read(root: Path, **stated) -> Splits:
    return read_splits(data_of(root, **stated), needs_masks=False)


def found_in(splits: Splits) -> dict[str, list]:
    """What was read, by the file's name: class and box of every object."""
    return {
        image.path.stem: [
            (dataset.classes[label], tuple(box))
            for label, box in zip(image.annotation.labels, image.annotation.boxes.tolist(), strict=True)
        ]
        for dataset in (splits.train, splits.test)
        for image in dataset.images
    }


def members(splits: Splits) -> dict[str, list[str]]:
    return {
        "train": [i.path.stem for i in splits.train.images],
        "test": [i.path.stem for i in splits.test.images],
    }


LISTS = {"train": "train.txt", "test": "test.txt"}


def write_lists(root: Path) -> None:
    (root / "train.txt").write_text("a.jpg\nb.jpg\n")
    (root / "test.txt").write_text("c\nd\n")


def test_labelimg_folders_are_read_with_xml_or_yolos_text_beside_the_images_or_apart(tmp_path: Path) -> None:
    for layout in ("beside", "apart", "nested", "yolo", "yolo apart", "ultralytics"):
        root = tmp_path / layout
        text = layout.startswith(("yolo", "ultra"))
        write, suffix = (write_yolo, ".txt") if text else (write_xml, ".xml")
        nested = layout in ("nested", "ultralytics")
        images = root / ("images" if nested else "pictures" if "apart" in layout else "")
        notes = root / {
            "apart": "notes",
            "yolo apart": "notes",
            "nested": "annotations",
            "ultralytics": "labels",
        }.get(layout, "")
        for split, ids in SPLITS.items():
            write_pictures(images / split if nested else images, ids)
            for name in ids:
                file = (notes / split if nested else notes) / f"{name}{suffix}"
                write(file, OBJECTS[name])
        stated = {} if nested else {"splits": LISTS}
        if not nested:
            write_lists(root)
        if "apart" in layout:
            stated |= {"images": "pictures", "annotations": "notes"}
        if layout == "ultralytics":
            (root / "data.yaml").write_text("names: {0: dog, 1: cat}\n")
        elif text:
            (notes / "classes.txt").write_text("dog\ncat\n")
        splits = read(root, **stated)
        assert members(splits) == SPLITS, layout
        assert found_in(splits) == OBJECTS, layout
        # YOLO's file orders the classes; elsewhere names are sorted.
        assert splits.train.classes == (("dog", "cat") if text else ("cat", "dog")), layout


CSV_STYLES = {
    # TensorFlow's xml_to_csv, Roboflow's "Tensorflow Object Detection"
    "tensorflow": (
        "filename,width,height,class,xmin,ymin,xmax,ymax",
        lambda n, c, x, y, r, b: (f"{n}.jpg", WIDTH, HEIGHT, c, x, y, r, b),
    ),
    "retinanet": ("", lambda n, c, x, y, r, b: (f"some/where/{n}.jpg", x, y, r, b, c)),
    "open images": (
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction",
        lambda n, c, x, y, r, b: (
            n, "xclick", f"/m/{c}", 1, x / WIDTH, r / WIDTH, y / HEIGHT, b / HEIGHT, 0, 0, 0, -1,
        ),
    ),
    "automl": (
        "",
        lambda n, c, x, y, r, b: (
            "TRAIN", f"gs://bucket/{n}.jpg", c, x / WIDTH, y / HEIGHT, "", "", r / WIDTH, b / HEIGHT, "", "",
        ),
    ),
    "makesense": (
        "label_name,bbox_x,bbox_y,bbox_width,bbox_height,image_name,image_width,image_height",
        lambda n, c, x, y, r, b: (c, x, y, r - x, b - y, f"{n}.jpg", WIDTH, HEIGHT),
    ),
    "makesense without titles": (
        "",
        lambda n, c, x, y, r, b: (c, x, y, r - x, b - y, f"{n}.jpg", WIDTH, HEIGHT),
    ),
    "kaggle": ("image_id,x,y,w,h,label", lambda n, c, x, y, r, b: (n, x, y, r - x, b - y, c)),
}  # fmt: skip


@pytest.mark.parametrize("style", CSV_STYLES)
def test_csv_files_of_exporters_give_the_same_boxes(tmp_path: Path, style: str) -> None:
    titles, row = CSV_STYLES[style]
    for separator in ",;\t" if "images" not in style else ",":
        root = tmp_path / str(ord(separator))
        write_pictures(root / "images")
        write_csv(root / "boxes.csv", titles, row, separator=separator)
        write_lists(root)
        (root / "class-descriptions-boxable.csv").write_text("/m/cat,cat\n/m/dog,dog\n")
        splits = read(root, splits=LISTS)
        assert members(splits) == SPLITS
        assert found_in(splits) == OBJECTS
        assert splits.train.classes == ("cat", "dog")


def test_pixels_that_count_from_one_are_said_and_unusual_titles_too(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    write_lists(tmp_path)
    one_based = lambda n, c, x, y, r, b: (n, c, x + 1, y + 1, r, b)  # noqa: E731
    write_csv(tmp_path / "t.csv", "Bild,Art,links,oben,rechts,unten", one_based)
    with pytest.raises(UserError, match=r"no column for image, label, xmin.*Bild, Art.*columns: \{image"):
        read(tmp_path, splits=LISTS)
    titles = {
        "image": "Bild",
        "label": "Art",
        "xmin": "links",
        "ymin": "oben",
        "xmax": "rechts",
        "ymax": "unten",
    }
    splits = read(tmp_path, splits=LISTS, columns=titles, first_pixel=1)
    assert found_in(splits) == OBJECTS
    with pytest.raises(
        UserError, match=r"no column is called 'Sorte' \(data.columns.label\); its titles: Bild"
    ):
        read(tmp_path, splits=LISTS, columns=titles | {"label": "Sorte"})
    with pytest.raises(ValidationError, match="unknown: color; there are image, label"):
        data_of(tmp_path, columns={"color": "x"})


def test_splits_are_lists_folders_values_of_a_column_or_a_share(tmp_path: Path) -> None:
    titles = "split,filename,class,xmin,ymin,xmax,ymax"
    of = {name: split for split, ids in SPLITS.items() for name in ids}
    write_pictures(tmp_path / "column")
    write_csv(tmp_path / "column" / "b.csv", titles, lambda n, c, *box: (of[n].upper(), f"{n}.jpg", c, *box))
    splits = read(tmp_path / "column", splits={"train": "TRAIN", "test": "TEST"})
    assert members(splits) == SPLITS
    # A table in the folder of every split, as Roboflow exports them; images of one name are told apart.
    for split, ids in SPLITS.items():
        folder = tmp_path / "roboflow" / ("valid" if split == "test" else split)
        write_pictures(folder, ids)
        write_csv(folder / "_annotations.csv", *CSV_STYLES["tensorflow"], ids=ids)
    stated = {"annotations": "_annotations.csv", "splits": {"test": "valid"}}
    splits = read(tmp_path / "roboflow", **stated)
    assert members(splits) == SPLITS and found_in(splits) == OBJECTS
    # A share, drawn by a seed: the rest is trained on, nothing is in both, and a seed says which.
    names = {f"{i:02d}": [("cat", (1, 2, 9 + i, 20)), ("dog", (0, 0, 20, 20 + i // 2))] for i in range(20)}
    flat = tmp_path / "flat"
    write_pictures(flat, names)
    for name, objects in names.items():
        write_xml(flat / f"{name}.xml", objects)
    drawn = [members(read(flat, splits={"test": 0.25}, splits_seed=seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]["test"]) == 5 and sorted(drawn[0]["train"] + drawn[0]["test"]) == sorted(names)
    third = members(read(flat, splits={"test": 0.2, "val": 0.1}, train=["train", "val"]))
    assert len(third["test"]) == 4 and len(third["train"]) == 16
    with pytest.raises(ValidationError, match="leave no image"):
        data_of(flat, splits={"test": 0.5, "train": 0.5})
    with pytest.raises(
        UserError, match=r"which of its 20 images are the split 'train'.*splits: \{test: 0.2\}"
    ):
        read(flat)


def test_what_is_not_there_or_wrong_is_named_by_file_and_line(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    with pytest.raises(UserError, match=r"no annotations in it; expected an .xml \(LabelImg\) or a .txt"):
        read(tmp_path)
    with pytest.raises(UserError, match=r"data.images: .*pics: no such folder"):
        read(tmp_path, images="pics")
    with pytest.raises(UserError, match=r"data.annotations: .*notes: no such folder or csv file"):
        read(tmp_path, annotations="notes")
    for name, objects in OBJECTS.items():
        write_yolo(tmp_path / f"{name}.txt", objects)
    with pytest.raises(UserError, match=r"the classes have numbers but no names; expected classes.txt"):
        read(tmp_path, splits={"test": 0.5})
    (tmp_path / "classes.txt").write_text("dog\n")
    with pytest.raises(UserError, match=r"a.txt: line 1: class 1, but 1 class is named"):
        read(tmp_path, splits={"test": "test.txt", "train": "train.txt"}, **_lists(tmp_path))
    # Not labeled yet is not the same as without objects.
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    (tmp_path / "b.txt").unlink()
    with pytest.raises(UserError, match=r"no text of boxes for image b.*missing_annotation"):
        read(tmp_path, splits=LISTS)
    kept = read(tmp_path, splits=LISTS, defects={"missing_annotation": "keep"})
    assert found_in(kept) == OBJECTS | {"b": []}
    for path in tmp_path.glob("*.txt"):
        path.unlink()
    write_lists(tmp_path)
    lines = [
        "filename,class,xmin,ymin,xmax,ymax",
        "a.jpg,cat,4,8,20,24",
        "b.jpg,dog,x,1,2,3",
        "c.jpg,dog,9,9,4,4",
    ]
    (tmp_path / "t.csv").write_text(
        "\n".join([*lines, "d.jpg,,1,2,3,4", "e.jpg,cat,1,1,5,5", "a.jpg,dog,,,,"])
    )
    (tmp_path / "test.txt").write_text("c\nd\ne\n")
    defects = check_data("boxes", tmp_path, None)
    said = "\n".join(map(str, defects))
    assert (
        "t.csv: line 3: its box needs four numbers xmin, ymin, xmax, ymax, not ['x', '1', '2', '3']" in said
    )
    assert "t.csv: line 4: its box ends before it begins" in said and "t.csv: line 5: it has no class" in said
    assert "e.jpg: no such image file [missing_image: fatal]" in said and len(defects) == 4
    (tmp_path / "via.csv").write_text(
        "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes\n"
    )
    with pytest.raises(UserError, match=r"VIA's own csv.*export it as COCO"):
        read_box_table(tmp_path / "via.csv", {})


def _lists(root: Path) -> dict:
    write_lists(root)
    return {}


def test_groups_and_images_without_objects_are_read_as_such(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    write_lists(tmp_path)
    titles = "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf"
    rows = [
        "a,cat,0.1,0.5,0.25,0.75,0",
        "a,dog,0,1,0,1,1",
        "b,dog,0.25,0.75,0.25,0.75,-1",
        "c,cat,0,0.5,0,0.5,0",
    ]
    (tmp_path / "t.csv").write_text("\n".join([titles, *rows, "d,,,,,,"]))
    splits = read(tmp_path, splits=LISTS)
    a, b = (image.annotation for image in splits.train.images)
    assert a.iscrowd.tolist() == a.difficult.tolist() == [False, True] and b.iscrowd.tolist() == [False]
    assert len(splits.test.images[1].annotation) == 0


def test_data_check_takes_a_folder_of_labelimg_as_it_is_and_a_recipe_its_splits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "cells"
    write_pictures(data)
    for name, objects in OBJECTS.items():
        write_xml(data / f"{name}.xml", objects)
    with caplog.at_level(logging.INFO):
        assert check("boxes", data) == []
    assert "all images: 4 usable images (0 without objects), 7 objects" in caplog.text
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "base: small_detection_cpu\ndata: {root: cells, splits: {test: 0.5}, classes: [cat, dog, cow]}\n"
    )
    said = [defect.kind for defect in check_data("boxes", data, str(recipe))]
    assert said == ["absent_class", "untested_class"]
    with pytest.raises(UserError, match="need a recipe, not voc"):
        check_data("voc", data, str(recipe))


def test_the_digest_is_of_what_is_read_and_not_of_where_it_lies(tmp_path: Path) -> None:
    digests = {}
    for place in ("one", "two"):
        root = tmp_path / place
        write_pictures(root)
        for name, objects in OBJECTS.items():
            write_xml(root / f"{name}.xml", objects)
        (root / "README.txt").write_text(place)
        digests[place] = data_of(root, splits={"test": 0.5}).contents().digest()
    assert digests["one"] == digests["two"]
    root = tmp_path / "two"
    assert data_of(root, splits={"test": 0.5}, splits_seed=5).contents().digest() == digests["two"]
    write_xml(root / "a.xml", OBJECTS["b"])
    assert data_of(root, splits={"test": 0.5}).contents().digest() != digests["two"]
    assert not data_of(tmp_path / "none").contents()


def test_recipes_for_small_data_state_everything_but_the_data(tmp_path: Path) -> None:
    gpu, cpu = (
        load("transfer", name, [f"data.root={tmp_path}"])
        for name in ("small_detection", "small_detection_cpu")
    )
    assert gpu.data.kind == cpu.data.kind == "boxes"
    assert gpu.solver.max_iter > cpu.solver.max_iter and max(cpu.input.min_sizes_train) <= 320
    assert json.loads(gpu.model_dump_json())["data"]["splits"] == {"test": 0.2}
    assert np.isclose(gpu.solver.rate(gpu.solver.warmup), gpu.solver.peak_lr)


def test_data_check_names_what_drawn_splits_would_stumble_over(tmp_path: Path) -> None:
    data = tmp_path / "cells"
    write_pictures(data)
    for name, objects in OBJECTS.items():
        write_xml(data / f"{name}.xml", objects)
    shutil.copy(data / "a.jpg", data / "again.jpg")
    write_xml(data / "again.xml", [("CAT", *OBJECTS["a"][0][1:]), *OBJECTS["a"][1:]])
    found = {defect.kind: defect for defect in check("boxes", data)}
    assert found.keys() == {"duplicate_image", "unknown_class"}
    assert "the same file as" in found["duplicate_image"].message
    assert "differ in capitals only" in found["unknown_class"].message
