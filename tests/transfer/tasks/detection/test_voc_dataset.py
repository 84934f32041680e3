"""Reading Pascal VOC: what is understood, and what is found wrong before anything trains on it."""

import numpy as np
import pytest

from carryover.configs.errors import UserError
from carryover.core.data.defects import DefectPolicy
from carryover.core.data.objects.dataset import decode_masks
from carryover.core.data.objects.voc import VOC_CLASSES, read_voc, scan_voc
from tests.transfer.tasks.detection.layouts import write_image, write_voc, write_voc_split, write_voc_xml

DOG = ("dog", (5, 6, 20, 25))


def kinds(defects):
    return [(defect.kind, defect.action) for defect in defects]


def read_one(folder, objects, policy=None, **keywords):
    """Read an image `a` with these objects beside a sound image `b`."""
    write_voc(folder, {"a": objects, "b": [DOG]}, **keywords)
    return read_voc(folder, [(None, "train")], policy=policy)


def test_boxes_become_zero_based_and_half_open(tmp_path):
    dataset, defects = read_one(tmp_path, [("dog", (1, 1, 40, 30)), ("cat", (5, 6, 20, 25), True)])
    a = dataset.images[0].annotation
    np.testing.assert_array_equal(a.boxes, [[0, 0, 40, 30], [4, 5, 20, 25]])
    assert [dataset.classes[label] for label in a.labels] == ["dog", "cat"]
    assert a.difficult.tolist() == [False, True]
    assert a.area.tolist() == [1200, 320]
    assert a.boxes.dtype == np.float32 and a.labels.dtype == np.int64
    assert dataset.classes == VOC_CLASSES and dataset.kind == "voc" and defects == []


def test_splits_of_several_years_are_joined(tmp_path):
    write_voc(tmp_path / "VOC2007", {"000001": [DOG]}, "trainval")
    write_voc(tmp_path / "VOC2012", {"2008_000001": [DOG], "2008_000002": []}, "trainval")
    dataset, _ = read_voc(tmp_path, [(2007, "trainval"), (2012, "trainval")])
    assert [image.id for image in dataset.images] == ["000001", "2008_000001", "2008_000002"]
    assert len(dataset.images[2].annotation) == 0
    assert dataset.year is None
    assert dataset.name == "VOC2007 trainval + VOC2012 trainval"
    assert read_voc(tmp_path, [(2012, "trainval")])[0].year == 2012


@pytest.mark.parametrize("below", [".", "VOC2007", "VOCdevkit/VOC2007", "BCCD"])
def test_the_root_may_be_the_devkit_or_the_folder_itself(tmp_path, below):
    folder = write_voc(tmp_path / below, {"a": [DOG]})
    for root in {folder, folder.parent if folder != tmp_path else folder}:
        assert len(read_voc(root, [(2007, "train")])[0].images) == 1


def test_another_year_than_the_folder_is_refused(tmp_path):
    folder = write_voc(tmp_path / "VOC2007", {"a": [DOG]})
    with pytest.raises(UserError, match="not the requested VOC2012"):
        read_voc(folder, [(2012, "train")])
    with pytest.raises(UserError, match="holds no VOC2012; folders with JPEGImages in them: VOC2007"):
        read_voc(tmp_path, [(2012, "train")])


def test_a_missing_split_names_those_that_are_there(tmp_path):
    write_voc(tmp_path, {"a": [DOG]}, "train")
    (tmp_path / "ImageSets" / "Main" / "dog_train.txt").write_text("a  1\n")
    with pytest.raises(UserError, match=r"val\.txt: no such split; splits found: train$"):
        read_voc(tmp_path, [(None, "val")])
    assert len(read_voc(tmp_path, [(None, "dog_train")])[0].images) == 1


def test_classes_may_be_listed_or_found(tmp_path):
    write_voc(tmp_path, {"a": [("RBC", (1, 1, 9, 9)), ("Platelets", (1, 1, 9, 9))]})
    found, _ = read_voc(tmp_path, [(None, "train")], classes=None)
    assert found.classes == ("Platelets", "RBC")
    listed, _ = read_voc(tmp_path, [(None, "train")], classes=["RBC", "WBC", "Platelets"])
    assert listed.images[0].annotation.labels.tolist() == [0, 2]


def test_images_may_have_another_suffix_and_xml_no_size(tmp_path):
    write_voc(tmp_path, {"a": [DOG]})
    (tmp_path / "JPEGImages" / "a.jpg").rename(tmp_path / "JPEGImages" / "a.png")
    xml = tmp_path / "Annotations" / "a.xml"
    xml.write_text(xml.read_text().replace("<size>", "<ignored>").replace("</size>", "</ignored>"))
    dataset, defects = read_voc(tmp_path, [(None, "train")])
    assert dataset.images[0].path.name == "a.png"
    assert (dataset.images[0].width, dataset.images[0].height) == (40, 30)
    assert defects == []


def test_there_are_no_masks(tmp_path):
    dataset, _ = read_one(tmp_path, [DOG])
    with pytest.raises(ValueError, match="no masks"):
        decode_masks(dataset.images[0])


@pytest.mark.parametrize("box", [(7, 8, 7, 20), (7, 8, 20, 8), (7, 8, 7, 8)])
def test_zero_area_boxes(tmp_path, box):
    dataset, defects = read_one(tmp_path, [("dog", box), DOG])
    assert kinds(defects) == [("zero_area", "drop")]
    assert defects[0].file.name == "a.xml"
    assert f"object 1 ('dog' at {', '.join(map(str, box))})" in defects[0].message
    assert len(dataset.images[0].annotation) == 1
    dataset, defects = read_one(tmp_path, [("dog", box), DOG], DefectPolicy(zero_area="keep"))
    assert kinds(defects) == [("zero_area", "keep")]
    assert len(dataset.images[0].annotation) == 2
    with pytest.raises(UserError, match=r"a\.xml: object 1"):
        read_one(tmp_path, [("dog", box)], DefectPolicy(zero_area="fatal"))


@pytest.mark.parametrize(
    ("box", "clipped"),
    [
        ((0, 0, 20, 25), [0, 0, 20, 25]),
        ((30, 20, 44, 33), [29, 19, 40, 30]),
        ((-3, 5, 44, 10), [0, 4, 40, 10]),
    ],
)
def test_boxes_over_the_edge(tmp_path, box, clipped):
    dataset, defects = read_one(tmp_path, [("dog", box)])
    zero = [("counted_from_zero", "keep")] if 0 in box[:2] else []
    assert kinds(defects) == [*zero, ("outside_image", "clip")]
    assert dataset.images[0].annotation.boxes.tolist() == [clipped]
    dataset, _ = read_one(tmp_path, [("dog", box)], DefectPolicy(outside_image="drop"))
    assert len(dataset.images[0].annotation) == 0
    dataset, _ = read_one(tmp_path, [("dog", box)], DefectPolicy(outside_image="keep"))
    assert dataset.images[0].annotation.boxes.tolist() == [[box[0] - 1, box[1] - 1, box[2], box[3]]]


def test_a_box_wholly_outside_cannot_be_clipped(tmp_path):
    dataset, defects = read_one(tmp_path, [("dog", (50, 5, 60, 9)), DOG])
    assert kinds(defects) == [("outside_image", "drop")]
    assert "wholly outside" in defects[0].message
    assert len(dataset.images[0].annotation) == 1


def test_a_size_that_disagrees_with_the_image(tmp_path):
    write_voc(tmp_path, {"a": [DOG], "b": [DOG]})
    write_voc_xml(tmp_path, "a", [DOG], size=(30, 40))
    with pytest.raises(UserError, match=r"a\.xml: states a size of 30 x 40, but a\.jpg is 40 x 30"):
        read_voc(tmp_path, [(None, "train")])
    dataset, _ = read_voc(tmp_path, [(None, "train")], policy=DefectPolicy(size_mismatch="drop"))
    assert [image.id for image in dataset.images] == ["b"]
    dataset, _ = read_voc(tmp_path, [(None, "train")], policy=DefectPolicy(size_mismatch="keep"))
    assert (dataset.images[0].width, dataset.images[0].height) == (40, 30)


def without_image(folder):
    (folder / "JPEGImages" / "a.jpg").unlink()


def with_broken_image(folder):
    (folder / "JPEGImages" / "a.jpg").write_bytes(b"not a jpeg")


def without_xml(folder):
    (folder / "Annotations" / "a.xml").unlink()


def with_cut_xml(folder):
    path = folder / "Annotations" / "a.xml"
    path.write_text(path.read_text()[:-30])


def with_entities(folder):
    (folder / "Annotations" / "a.xml").write_text(
        '<!DOCTYPE a [<!ENTITY b "cc"><!ENTITY d "&b;&b;">]><annotation>&d;</annotation>'
    )


def with_undecodable_text(folder):
    (folder / "Annotations" / "a.xml").write_bytes(b"<annotation>\xff\xfe</annotation>")


@pytest.mark.parametrize(
    ("sabotage", "kind", "file"),
    [
        (without_image, "missing_image", "a.jpg"),
        (with_broken_image, "unreadable_image", "a.jpg"),
        (without_xml, "missing_annotation", "a.xml"),
        (with_cut_xml, "unparsable_annotation", "a.xml"),
        (with_entities, "unparsable_annotation", "a.xml"),
        (with_undecodable_text, "unparsable_annotation", "a.xml"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, sabotage, kind, file):
    write_voc(tmp_path, {"a": [DOG], "b": [DOG]})
    sabotage(tmp_path)
    with pytest.raises(UserError, match=rf"1 defect .*\n.*{file}: .*\[{kind}: fatal\]"):
        read_voc(tmp_path, [(None, "train")])
    dataset, defects = read_voc(tmp_path, [(None, "train")], policy=DefectPolicy(**{kind: "drop"}))
    assert [(d.kind, d.action, d.file.name) for d in defects] == [(kind, "drop", file)]
    assert [image.id for image in dataset.images] == ["b"]


def test_an_image_without_xml_may_count_as_one_without_objects(tmp_path):
    write_voc(tmp_path, {"a": [DOG], "b": [DOG]})
    without_xml(tmp_path)
    dataset, _ = read_voc(tmp_path, [(None, "train")], policy=DefectPolicy(missing_annotation="keep"))
    assert [len(image.annotation) for image in dataset.images] == [0, 1]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<name>dog</name>", "", "object 1: it has no <name>"),
        ("<xmin>5</xmin>", "", "needs four numbers"),
        ("<xmin>5</xmin>", "<xmin>five</xmin>", "needs four numbers"),
        ("<xmin>5</xmin>", "<xmin>nan</xmin>", "is not finite"),
        ("<xmin>5</xmin>", "<xmin>21</xmin>", "ends before it begins"),
    ],
)
def test_malformed_objects(tmp_path, old, new, message):
    write_voc(tmp_path, {"a": [DOG]})
    xml = tmp_path / "Annotations" / "a.xml"
    xml.write_text(xml.read_text().replace(old, new))
    with pytest.raises(UserError, match=message):
        read_voc(tmp_path, [(None, "train")])
    dataset, _ = read_voc(tmp_path, [(None, "train")], policy=DefectPolicy(malformed_object="drop"))
    assert len(dataset.images[0].annotation) == 0


def test_unknown_classes(tmp_path):
    with pytest.raises(UserError, match=r"object 2 \('wolf' at 1, 1, 9, 9\): not among the 20 classes"):
        read_one(tmp_path, [DOG, ("wolf", (1, 1, 9, 9))])
    policy = DefectPolicy(unknown_class="drop")
    dataset, _ = read_one(tmp_path, [DOG, ("wolf", (1, 1, 9, 9))], policy)
    assert len(dataset.images[0].annotation) == 1


def test_images_listed_twice(tmp_path):
    write_voc(tmp_path, {"a": [DOG], "b": [DOG]})
    write_voc_split(tmp_path, "train", ["a", "b", "a"])
    write_voc_split(tmp_path, "val", ["b"])
    with pytest.raises(UserError, match=r"train\.txt: image a is listed again"):
        read_voc(tmp_path, [(None, "train")])
    policy = DefectPolicy(duplicate_id="drop")
    dataset, defects = read_voc(tmp_path, [(None, "train"), (None, "val")], policy=policy)
    assert [image.id for image in dataset.images] == ["a", "b"]
    assert kinds(defects) == [("duplicate_id", "drop")] * 2


def test_an_empty_split_is_always_fatal(tmp_path):
    write_voc(tmp_path, {"a": [DOG]})
    write_voc_split(tmp_path, "val", [])
    with pytest.raises(UserError, match=r"val\.txt: the split lists no image \[empty_split: fatal\]"):
        read_voc(tmp_path, [(None, "val")])


def test_all_fatal_defects_are_listed_at_once_the_rare_kinds_first_of_all(tmp_path):
    images = {f"{n:02d}": [("wolf", (1, 1, 9, 9))] * 3 for n in range(30)}
    write_voc(tmp_path, images)
    (tmp_path / "JPEGImages" / "29.jpg").unlink()
    with pytest.raises(UserError) as error:
        read_voc(tmp_path, [(None, "train")])
    lines = str(error.value).splitlines()
    assert "88 defects that the recipe does not forgive (unknown_class 87, missing_image 1)" in lines[0]
    assert lines[6:8] == [
        "  ... and 82 more of unknown_class",
        "    to decide otherwise: data: {defects: {unknown_class: drop}}",
    ]
    assert "29.jpg: no such image file" in lines[8]
    assert lines[9:] == ["    to decide otherwise: data: {defects: {missing_image: drop}}"]


def test_boxes_may_count_from_0(tmp_path):
    write_voc(tmp_path, {"a": [("dog", (0, 2, 39, 29))]})
    _, defects = read_voc(tmp_path, [(None, "train")])
    assert "1 of 1 box begins at 0 (the first in a.xml), 0 reach" in defects[0].message
    assert "`data: {first_pixel: 0}`" in defects[0].message
    dataset, defects = read_voc(tmp_path, [(None, "train")], first_pixel=0)
    assert dataset.images[0].annotation.boxes.tolist() == [[0, 2, 40, 30]] and defects == []


def test_scanning_returns_fatal_defects_instead(tmp_path):
    write_voc(tmp_path, {"a": [("wolf", (1, 1, 9, 9))]})
    write_image(tmp_path / "JPEGImages" / "a.jpg", (10, 10))
    _, defects = scan_voc(tmp_path, [(None, "train")], VOC_CLASSES, DefectPolicy())
    assert kinds(defects) == [("size_mismatch", "fatal"), ("unknown_class", "fatal")]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
def test_lists_as_people_write_them(tmp_path, encoding):
    folder = write_voc(tmp_path, {"a": [DOG], "b": [DOG]})
    for line in (
        "a",
        "a.jpg",
        "a.jpg 1",
        "'a'",
        '"a.jpg"',
        "JPEGImages/a.jpg",
        "/JPEGImages/a.jpg /SegmentationClass/a.png",
        "VOC2007\\JPEGImages\\a.jpg",
        "/home/me/VOCdevkit/VOC2007/JPEGImages/a.jpg",
    ):
        (folder / "ImageSets" / "Main" / "train.txt").write_bytes(f"{line}\r\nb\r\n".encode(encoding))
        dataset, defects = read_voc(tmp_path, [(None, "train")])
        assert [image.path.name for image in dataset.images] == ["a.jpg", "b.jpg"] and defects == []


def test_images_in_folders_below_with_their_xml_beside_the_others(tmp_path):
    folder = write_voc(tmp_path, {"a": [DOG]})
    (folder / "JPEGImages" / "day").mkdir()
    (folder / "JPEGImages" / "a.jpg").rename(folder / "JPEGImages" / "day" / "a.jpg")
    (folder / "ImageSets" / "Main" / "train.txt").write_text("day/a.jpg\n")
    dataset, defects = read_voc(tmp_path, [(None, "train")])
    assert [len(image.annotation) for image in dataset.images] == [1] and defects == []


def test_xml_with_a_namespace(tmp_path):
    folder = write_voc(tmp_path, {"a": [DOG]})
    xml = folder / "Annotations" / "a.xml"
    xml.write_text(xml.read_text().replace("<annotation", '<annotation xmlns="http://example.org/x"', 1))
    assert len(read_voc(tmp_path, [(None, "train")])[0].images[0].annotation) == 1


def test_difficult_in_every_spelling(tmp_path):
    folder = write_voc(tmp_path, {"a": [DOG]})
    xml = folder / "Annotations" / "a.xml"
    text, stated = xml.read_text(), "<difficult>0</difficult>"
    assert stated in text
    for written, difficult in (("True", True), ("yes", True), ("0.0", False), ("no", False)):
        xml.write_text(text.replace(stated, f"<difficult>{written}</difficult>"))
        (image,) = read_voc(tmp_path, [(None, "train")])[0].images
        assert image.annotation.difficult.tolist() == [difficult]


def test_files_of_another_system_are_no_annotations(tmp_path):
    write_voc(tmp_path / "train", {"a": [DOG]})
    for file in [*(tmp_path / "train").glob("*/*.jpg"), *(tmp_path / "train").glob("*/*.xml")]:
        file.rename(tmp_path / "train" / file.name)
    for folder in ("JPEGImages", "Annotations"):
        (tmp_path / "train" / folder).rmdir()
    (tmp_path / "train" / "._a.xml").write_bytes(b"\x00\x05\x16\x07")
    dataset, defects = read_voc(tmp_path, [(None, "train")])
    assert [image.id for image in dataset.images] == ["a"] and defects == []
