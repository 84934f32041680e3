"""Reading COCO instances: what is understood, and what is found wrong before anything trains on it."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from carryover.configs.errors import UserError
from carryover.core.data.defects import DefectPolicy
from carryover.core.data.objects.coco import read_coco
from carryover.core.data.objects.coco_masks import _decompress
from carryover.core.data.objects.dataset import decode_masks
from tests.transfer.tasks.detection.coco_scenes import uncompressed
from tests.transfer.tasks.detection.layouts import write_coco, write_image

SQUARE = [5.0, 6.0, 15.0, 6.0, 15.0, 16.0, 5.0, 16.0]
TRIANGLE = [20.0, 20.0, 30.0, 20.0, 25.0, 28.0]


def cat(**changes):
    """A sound annotation, changed; None leaves a key out."""
    entry = {
        "image_id": 1,
        "category_id": 1,
        "bbox": [5, 6, 10, 10],
        "area": 77,
        "iscrowd": 0,
        "segmentation": [SQUARE],
    }
    return {key: value for key, value in (entry | changes).items() if value is not None}


def read(folder, annotations, policy=None, **keywords):
    return read_coco(*write_coco(folder, annotations, **keywords), policy)


def rewrite(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_boxes_labels_areas_and_crowds(tmp_path):
    dataset, defects = read(tmp_path, [cat(), cat(category_id=7, iscrowd=1), cat(image_id=2, area=None)])
    a = dataset.images[0].annotation
    assert a.boxes.tolist() == [[5, 6, 15, 16]] * 2
    assert a.labels.tolist() == [0, 1] and a.iscrowd.tolist() == [False, True] and a.area.tolist() == [77, 77]
    assert dataset.images[1].annotation.area.tolist() == [100]
    assert dataset.classes == ("cat", "dog") and dataset.category_ids == (1, 7)
    assert (dataset.images[0].id, dataset.images[0].width, dataset.images[0].height) == (1, 40, 30)
    assert defects == []


def test_sparse_category_ids_count_in_their_order_not_the_files(tmp_path):
    categories = {90: "toothbrush", 3: "car", 44: "bottle"}
    dataset, _ = read(tmp_path, [cat(category_id=90), cat(category_id=3)], categories=categories)
    assert dataset.classes == ("car", "bottle", "toothbrush")
    assert dataset.category_ids == (3, 44, 90)
    assert dataset.images[0].annotation.labels.tolist() == [2, 0]


def test_classes_may_be_chosen_by_name(tmp_path):
    file, root = write_coco(tmp_path, [cat(category_id=7), cat(category_id=1)])
    dataset, _ = read_coco(file, root, DefectPolicy(unknown_class="drop"), classes=["dog"])
    assert dataset.category_ids == (7,) and dataset.images[0].annotation.labels.tolist() == [0]
    with pytest.raises(UserError, match="annotation 2: its category 1 is 'cat', which is not among"):
        read_coco(file, root, classes=["dog"])
    with pytest.raises(UserError, match="no category is called wolf"):
        read_coco(file, root, classes=["wolf"])


def test_images_without_annotations_belong_to_the_data_set(tmp_path):
    dataset, _ = read(tmp_path, [cat(image_id=2)], images=3)
    assert [len(image.annotation) for image in dataset.images] == [0, 1, 0]
    assert decode_masks(dataset.images[0]).shape == (0, 30, 40)


def test_polygons_and_both_kinds_of_rle_give_the_same_mask(tmp_path):
    square = np.zeros((30, 40), dtype=np.uint8)
    square[6:16, 5:15] = 1
    compressed = coco_mask.encode(np.asfortranarray(square))
    compressed["counts"] = compressed["counts"].decode()
    dataset, defects = read(
        tmp_path, [cat(), cat(segmentation=uncompressed(square)), cat(segmentation=compressed)]
    )
    assert defects == []
    masks = decode_masks(dataset.images[0])
    assert masks.dtype == np.uint8
    np.testing.assert_array_equal(masks, [square] * 3)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), density=st.floats(0, 1), stripes=st.integers(1, 60))
def test_compressed_runs_are_read_as_pycocotools_reads_them(seed, density, stripes):
    mask = np.random.default_rng(seed).random((stripes, 300 // stripes)) < density
    mask = np.repeat(mask, stripes, axis=0).astype(np.uint8)
    rle = coco_mask.encode(np.asfortranarray(mask))
    assert _decompress(rle["counts"]).tolist() == uncompressed(mask)["counts"]


def test_several_polygons_are_one_object(tmp_path):
    dataset, _ = read(tmp_path, [cat(segmentation=[SQUARE, TRIANGLE])])
    [mask] = decode_masks(dataset.images[0])
    assert mask[10, 10] == 1 and mask[22, 25] == 1 and mask[18, 18] == 0


def test_a_file_of_boxes_has_no_masks(tmp_path):
    dataset, defects = read(tmp_path, [cat(segmentation=None), cat(segmentation=[])])
    assert dataset.images[0].annotation.masks is None and defects == []


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"bbox": [5, 6, 0, 10]}, "zero_area", "a line or a point"),
        ({"bbox": [35, 6, 10, 10]}, "outside_image", "reaches over the edge of the image of 40 x 30"),
        ({"bbox": [50, 6, 10, 10]}, "outside_image", "wholly outside"),
        ({"bbox": [5, 6, -1, 10]}, "malformed_object", "negative size"),
        ({"bbox": [5, 6, float("nan"), 10]}, "malformed_object", "four finite numbers"),
        ({"bbox": [5, 6]}, "malformed_object", "four finite numbers"),
        ({"bbox": None}, "malformed_object", "four finite numbers"),
        ({"category_id": 2}, "unknown_class", "its category 2 is unknown"),
        ({"image_id": 9}, "orphan_annotation", "there is no image 9"),
        ({"image_id": [1]}, "malformed_object", "ids are numbers or text"),
        ({"image_id": None}, "malformed_object", "ids are numbers or text"),
        ({"segmentation": [[1, 1, 5, 5]]}, "degenerate_mask", "has 4 numbers"),
        ({"segmentation": [[1, 1, 5, 5, 9]]}, "degenerate_mask", "has 5 numbers"),
        ({"segmentation": [[1, 1, 5, 5, 9, 9]]}, "degenerate_mask", "encloses no area"),
        ({"segmentation": ["1", 1, 5, 5, 9, 9]}, "degenerate_mask", "not a list of finite numbers"),
        ({"iscrowd": "maybe"}, "malformed_object", "its iscrowd is 'maybe', neither yes nor no"),
        ({"segmentation": {"size": [40, 30], "counts": [1200]}}, "degenerate_mask", r"\[40, 30\], but"),
        ({"segmentation": {"size": [30, 40], "counts": [7, 3]}}, "degenerate_mask", "do not add up"),
        ({"segmentation": {"size": [30, 40], "counts": [1200]}}, "degenerate_mask", "is empty"),
        ({"segmentation": {"size": [30, 40]}}, "degenerate_mask", "cannot be read"),
        ({"segmentation": {"size": [30, 40], "counts": "0000"}}, "degenerate_mask", "do not add up"),
        ({"segmentation": {"size": [30, 40], "counts": "é\n"}}, "degenerate_mask", "cannot be read"),
        ({"segmentation": {"size": [30, 40], "counts": "oooo"}}, "degenerate_mask", "cannot be read"),
        ({"segmentation": {"size": [30, 40], "counts": ["a"]}}, "degenerate_mask", "cannot be read"),
        ({"segmentation": None}, "missing_mask", "has no segmentation"),
    ],
)
def test_annotations_that_cannot_be_used(tmp_path, changes, kind, message):
    annotations = [cat(), cat(**changes)]
    with pytest.raises(UserError, match=rf"annotation [12]\b.*{message}.*\[{kind}: fatal\]"):
        read(tmp_path, annotations, DefectPolicy(**{kind: "fatal"}))
    dataset, defects = read(tmp_path, annotations, DefectPolicy(**{kind: "drop"}))
    assert [(d.kind, d.action) for d in defects] == [(kind, "drop")]
    # A bad mask costs the mask, and no more.
    assert len(dataset.images[0].annotation) == (2 if kind == "degenerate_mask" else 1)


def test_one_bad_polygon_goes_the_others_stay(tmp_path):
    dataset, defects = read(tmp_path, [cat(segmentation=[[1, 1, 5, 5], SQUARE])])
    assert "polygon 0 of 2 has 4 numbers" in defects[0].message
    assert dataset.images[0].annotation.masks == ([SQUARE],)


def test_a_kept_object_without_a_mask_has_an_empty_one(tmp_path):
    policy = DefectPolicy(missing_mask="keep", degenerate_mask="keep")
    dataset, defects = read(tmp_path, [cat(), cat(segmentation=None), cat(segmentation=[[1, 1]])], policy)
    assert [d.kind for d in defects] == ["missing_mask", "degenerate_mask"]
    assert decode_masks(dataset.images[0]).sum(axis=(1, 2)).tolist() == [100, 0, 0]


def test_overhang_by_rounding_is_no_defect(tmp_path):
    dataset, defects = read(tmp_path, [cat(bbox=[30.01, 20, 10, 10.3])])
    assert defects == []
    np.testing.assert_allclose(dataset.images[0].annotation.boxes, [[30.01, 20, 40.01, 30.3]], rtol=1e-6)


def test_boxes_over_the_edge_are_clipped(tmp_path):
    dataset, defects = read(tmp_path, [cat(bbox=[35, -4, 10, 10])])
    assert [d.action for d in defects] == ["clip"]
    assert dataset.images[0].annotation.boxes.tolist() == [[35, 0, 40, 6]]


@pytest.mark.parametrize(
    ("sabotage", "kind", "message"),
    [
        (lambda folder: (folder / "1.jpg").unlink(), "missing_image", r"1\.jpg: no such image file"),
        (lambda folder: (folder / "1.jpg").write_text("x"), "unreadable_image", r"1\.jpg: not a readable"),
        (lambda folder: write_image(folder / "1.jpg", (30, 40)), "size_mismatch", "40 x 30, but .* 30 x 40"),
    ],
)
def test_images_that_cannot_be_used(tmp_path, sabotage, kind, message):
    file, root = write_coco(tmp_path, [cat(), cat(image_id=2)])
    sabotage(root)
    with pytest.raises(UserError, match=rf"{message}.*\[{kind}: fatal\]"):
        read_coco(file, root)
    # The annotations of an image that was dropped go with it, without a defect each.
    dataset, defects = read_coco(file, root, DefectPolicy(**{kind: "drop"}))
    assert [image.id for image in dataset.images] == [2]
    assert [(d.kind, d.action) for d in defects] == [(kind, "drop")]


def test_ids_that_occur_twice(tmp_path):
    file, root = write_coco(tmp_path, [cat()])
    rewrite(file, lambda c: c["images"].append(c["images"][0]))
    with pytest.raises(UserError, match="image id 1 occurs again"):
        read_coco(file, root)
    rewrite(file, lambda c: c["categories"].append({"id": 1, "name": "lion"}))
    dataset, defects = read_coco(file, root, DefectPolicy(duplicate_id="drop"))
    assert len(defects) == 2 and len(dataset.images) == 2 and dataset.classes == ("cat", "dog")


def test_a_file_without_images_is_always_fatal(tmp_path):
    file, root = write_coco(tmp_path, [])
    rewrite(file, lambda c: c["images"].clear())
    with pytest.raises(UserError, match="the file lists no image"):
        read_coco(file, root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON that can be read"),
        ("[]", "expected a list under 'images'"),
        ('{"images": [], "annotations": []}', "expected a list under 'categories'"),
        ('{"images": [], "annotations": [], "categories": [{"id": "1"}]}', r"categories\[0\] needs"),
    ],
)
def test_files_that_are_not_cocos(tmp_path, text, message):
    file = tmp_path / "instances.json"
    file.write_text(text)
    with pytest.raises(UserError, match=rf"instances\.json: {message}"):
        read_coco(file, tmp_path)


def test_missing_file_or_folder(tmp_path):
    file, root = write_coco(tmp_path, [])
    with pytest.raises(UserError, match=r"none\.json: no such file"):
        read_coco(tmp_path / "none.json", root)
    with pytest.raises(UserError, match="nowhere: no such folder"):
        read_coco(file, tmp_path / "nowhere")


def test_a_flat_list_is_one_polygon_and_two_corners_of_the_box_are_a_rectangle(tmp_path):
    flat, corners = cat(segmentation=SQUARE), cat(bbox=[5, 6, 10, 10], segmentation=[[5, 6, 15, 16]])
    dataset, defects = read(tmp_path, [flat, corners])
    assert decode_masks(dataset.images[0]).sum(axis=(1, 2)).tolist() == [100, 100]
    assert [(d.kind, d.action) for d in defects] == [("degenerate_mask", "keep")] and dataset.altered


def test_a_crowd_in_every_spelling_of_yes_and_no(tmp_path):
    no, yes = ["0", "false", "No", None, 0.0, False, "null", ""], ["1", "TRUE", "yes", 1.0, True, "1.0"]
    dataset, defects = read(
        tmp_path, [cat(iscrowd=value, bbox=[5 + n / 9, 6, 10, 10]) for n, value in enumerate((*no, *yes))]
    )
    assert dataset.images[0].annotation.iscrowd.tolist() == [False] * len(no) + [True] * len(yes)
    assert defects == []


def test_an_area_that_is_none_is_measured(tmp_path):
    areas = {77: 77, "77": 77, 0: 100, -5: 100, "big": 100, None: 100}
    found = [cat(area=area, bbox=[5 + n / 9, 6, 10, 10]) for n, area in enumerate(areas)]
    dataset, defects = read(tmp_path, found)
    assert dataset.images[0].annotation.area.tolist() == list(areas.values()) and defects == []


def test_ids_that_repeat_are_renumbered_and_said_once(tmp_path, caplog):
    with caplog.at_level("INFO"):
        dataset, defects = read(tmp_path, [cat(id=1), cat(id=1), cat(id=1, image_id=2)])
    assert [len(i.annotation) for i in dataset.images] == [2, 1] and defects == [] and dataset.altered
    assert sum("renumbered (2 of them" in line for line in caplog.messages) == 1


@pytest.mark.parametrize(
    "name", ["images\\1.jpg", "C:\\data\\images\\1.jpg", "/home/me/images/1.jpg", "../images/1.jpg"]
)
def test_a_name_of_another_machine_is_found_by_its_tail(tmp_path, name):
    file, root = write_coco(tmp_path, [cat()])
    (root / "images").mkdir()
    (root / "1.jpg").rename(root / "images" / "1.jpg")
    rewrite(file, lambda c: c["images"][0].update(file_name=name))
    dataset, defects = read_coco(file, root)
    assert dataset.images[0].path == root / "images" / "1.jpg" and defects == []


def test_a_size_that_is_none_contradicts_nothing(tmp_path):
    file, root = write_coco(tmp_path, [cat()])
    for width, height in (("40", "30"), (-1, -1), (0, 0), ("?", None), (40.0, 30.0)):
        rewrite(file, lambda c, w=width, h=height: c["images"][0].update(width=w, height=h))
        dataset, defects = read_coco(file, root)
        assert (dataset.images[0].width, dataset.images[0].height) == (40, 30) and defects == []


def rectangle(x, y, w, h):
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


@pytest.mark.parametrize(
    ("written", "guess"),
    [
        (lambda x, y, w, h: [x, y, x + w, y + h], "corners x1, y1, x2, y2"),
        (lambda x, y, w, h: [y, x, h, w], "x and y swapped"),
        (lambda x, y, w, h: [x + w / 2, y + h / 2, w, h], "the center"),
        (lambda x, y, w, h: [x / 2, y / 2, w / 2, h / 2], "pictures of half the size"),
        (lambda x, y, w, h: [x / 40, y / 30, w / 40, h / 30], "normalized"),
    ],
)
def test_boxes_that_disagree_with_their_masks_are_one_defect_with_a_guess(tmp_path, written, guess):
    where = [(20, 2, 8, 9), (22, 3, 7, 7), (25, 1, 6, 10), (18, 4, 9, 6), (24, 2, 10, 8)]
    annotations = [cat(bbox=written(*box), segmentation=rectangle(*box)) for box in where]
    with pytest.raises(UserError, match=rf"5 of 5 boxes .*{guess}"):
        read(tmp_path, annotations)
    keep = DefectPolicy(box_mask_mismatch="keep", below_pixel="keep", outside_image="keep")
    assert len(read(tmp_path, annotations, keep)[0].images[0].annotation) == 5


def test_run_lengths_by_rows_are_recognized(tmp_path):
    where = [(20, 2, 8, 9), (2, 3, 7, 7), (25, 11, 6, 10), (18, 14, 9, 6)]
    annotations = []
    for x, y, w, h in where:
        mask = np.zeros((30, 40), np.uint8)
        mask[y : y + h, x : x + w] = 1
        by_rows = uncompressed(np.ascontiguousarray(mask.T)) | {"size": [30, 40]}
        annotations.append(cat(bbox=[x, y, w, h], segmentation=by_rows))
    with pytest.raises(UserError, match="run lengths written by rows"):
        read(tmp_path, annotations)


@pytest.mark.parametrize("mask", [[[1, 1, 5, 5]], [], ["x"], {"size": [40, 30], "counts": [1200]}])
def test_a_recipe_of_boxes_never_looks_at_bad_masks(tmp_path, mask):
    policy = DefectPolicy(degenerate_mask="fatal", missing_mask="fatal")
    file, root = write_coco(tmp_path, [cat(segmentation=[SQUARE]), cat(segmentation=mask)])
    dataset, defects = read_coco(file, root, policy, needs_masks=False)
    assert len(dataset.images[0].annotation) == 2 and defects == []
    with pytest.raises(UserError, match=r"degenerate_mask|missing_mask"):
        read_coco(file, root, policy)


def test_numbers_as_text_points_as_pairs_and_names_in_a_url(tmp_path):
    pairs = [[[5, 6], [15, 6], [15, 16], [5, 16]]]
    file, root = write_coco(
        tmp_path, [cat(image_id="1", category_id="7", bbox=["5", "6", "10", "10"]), cat()]
    )
    rewrite(file, lambda content: content["annotations"][1].update(segmentation=pairs))
    (root / "1.jpg").rename(root / "grün 1.JPEG")
    rewrite(file, lambda content: content["images"][0].update(file_name="gr%C3%BCn%201.jpg"))
    dataset, defects = read_coco(file, root)
    found = dataset.images[0].annotation
    assert found.boxes.tolist() == [[5, 6, 15, 16]] * 2 and found.labels.tolist() == [1, 0]
    assert found.masks[1] == [SQUARE] and dataset.altered and defects == []
    assert dataset.images[0].path == root / "grün 1.JPEG"


def test_what_is_left_out_or_cut_is_no_longer_the_files_truth(tmp_path):
    """Otherwise a detector that finds what was kept would be scored for what was left out."""
    changes = {
        "sound": {},
        "zero_area": {"bbox": [5, 5, 0, 0]},
        "outside_image": {"bbox": [35, 6, 10, 10]},
        "malformed_object": {"bbox": [float("nan")] * 4},
    }
    for kind, change in changes.items():
        policy = DefectPolicy(malformed_object="drop")
        dataset, _ = read(
            tmp_path / kind,
            [cat(segmentation=None), cat(**({"image_id": 2, "segmentation": None} | change))],
            policy,
        )
        assert dataset.altered == (kind != "sound"), kind


def test_repeated_objects_and_images_and_lost_masks_stop_a_training(tmp_path):
    with pytest.raises(UserError, match=r"2 of 4 objects repeat another .*1\.jpg\): were exports merged"):
        read(tmp_path / "objects", [cat(), cat(), cat(image_id=2), cat(image_id=2)])
    file, root = write_coco(tmp_path / "images", [cat(), cat(image_id=2, category_id=7)])
    rewrite(file, lambda content: content["images"][1].update(file_name="1.jpg"))
    with pytest.raises(UserError, match=r"1\.jpg: is the file of images 1, 2 \[repeated_image"):
        read_coco(file, root)
    turned = {"size": [40, 30], "counts": [0, 1200]}
    with pytest.raises(UserError, match=r"2 of 4 masks cannot be read, the first: .*size \[40, 30\]"):
        found = [
            cat(image_id=i, category_id=k, segmentation=m)
            for i, m in ((1, turned), (2, [SQUARE]))
            for k in (1, 7)
        ]
        read(tmp_path / "masks", found)
    found = [cat(segmentation=turned), cat(image_id=2)]
    assert read_coco(*write_coco(tmp_path / "boxes", found), needs_masks=False)[1] == []
