"""Every layout is read as it lies on disk; whatever is missing is named, with what was expected there."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from torchvision.datasets import CIFAR10

from carryover.configs import UserError
from carryover.core.data.config import (
    AugmentConfig,
    BlurConfig,
    DataConfig,
    LocalConfig,
    SubsetConfig,
    ViewConfig,
)
from carryover.core.data.datasets import Paths
from carryover.core.data.labelled.config import ClassifyData, check_data
from carryover.core.data.prepared import build_dataset, open_dataset
from tests.core.data.folders import draw, image_folder


def test_an_image_folder_has_sorted_classes_and_its_images_in_order(tmp_path: Path) -> None:
    data = build_dataset(DataConfig(root=image_folder(tmp_path)))
    assert data.classes == ["c0", "c1", "c2"]
    assert data.labels == [0] * 6 + [1] * 6 + [2] * 6
    assert data.paths is not None
    assert [p.name for p in data.paths[:3]] == ["00.png", "01.png", "02.png"]
    assert data.paths[6] == tmp_path / "train" / "c1" / "00.png"


def test_a_folder_of_class_folders_is_a_training_split(tmp_path: Path) -> None:
    image_folder(tmp_path)
    assert len(build_dataset(DataConfig(root=tmp_path / "train"))) == 18


def test_a_folder_of_images_has_no_labels(tmp_path: Path) -> None:
    for i in range(3):
        draw(tmp_path / f"{i}.png")
    (tmp_path / "._0.png").write_bytes(b"what some systems leave behind")
    data = build_dataset(DataConfig(root=tmp_path))
    assert len(data) == 3 and data.labels is None and data.classes == []


def test_images_in_folders_below_a_class_are_found(tmp_path: Path) -> None:
    draw(tmp_path / "train" / "a" / "deep" / "er" / "1.png")
    draw(tmp_path / "train" / "a" / "0.PNG")
    data = build_dataset(DataConfig(root=tmp_path))
    assert data.paths is not None
    assert [p.name for p in data.paths] == ["0.PNG", "1.png"]


def test_tiny_imagenet_reads_its_own_layout(tmp_path: Path) -> None:
    for wnid in ("n02", "n01"):
        for i in range(2):
            draw(tmp_path / "train" / wnid / "images" / f"{wnid}_{i}.JPEG")
        (tmp_path / "train" / wnid / f"{wnid}_boxes.txt").write_text("n02_0.JPEG\t0\t0\t1\t1\n")
    for i in range(3):
        draw(tmp_path / "val" / "images" / f"val_{i}.JPEG")
    lines = ["val_2.JPEG\tn01\t0\t0\t62\t57", "val_0.JPEG\tn02\t0\t0\t1\t1", "val_1.JPEG\tn01\t1\t1\t2\t2"]
    (tmp_path / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    train = build_dataset(DataConfig(kind="tiny_imagenet", root=tmp_path))
    assert (train.classes, train.labels) == (["n01", "n02"], [0, 0, 1, 1])
    val = build_dataset(DataConfig(kind="tiny_imagenet", root=tmp_path, split="val"))
    assert val.labels == [0, 1, 0] and val.paths is not None
    assert val.paths[0] == tmp_path / "val" / "images" / "val_2.JPEG"


def test_an_image_list_may_have_labels_and_names_with_spaces(tmp_path: Path) -> None:
    draw(tmp_path / "a b.png")
    draw(tmp_path / "c.png")
    (tmp_path / "list.txt").write_text("a b.png 2\nc.png\t0\n\n")
    data = build_dataset(DataConfig(kind="list", root=tmp_path, list_file=Path("list.txt")))
    assert data.labels == [2, 0] and data.classes == ["0", "1", "2"]
    assert data.paths is not None and data.paths[0].name == "a b.png"
    (tmp_path / "bare.txt").write_text("a b.png\nc.png\n")
    bare = build_dataset(DataConfig(kind="list", root=tmp_path, list_file=tmp_path / "bare.txt"))
    assert bare.labels is None and len(bare) == 2


def test_cifar_reads_torchvisions_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)

    def write(name: str, content: object) -> str:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    batch = write("data_batch_1", {"data": pixels.reshape(4, -1), "labels": [3, 1, 0, 1]})
    meta = write("batches.meta", {"label_names": ["w", "x", "y", "z"]})
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", batch]])
    monkeypatch.setattr(CIFAR10, "test_list", [])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": meta})
    data = build_dataset(DataConfig(kind="cifar10", root=tmp_path))
    assert data.labels == [3, 1, 0, 1] and data.classes == ["w", "x", "y", "z"]
    np.testing.assert_array_equal(data.read(2).numpy(), pixels[2])

    (folder / "data_batch_1").write_bytes(b"half a download")
    with pytest.raises(UserError, match=r"missing or damaged.*cifar-10-batches-py.*data.download=true"):
        build_dataset(DataConfig(kind="cifar10", root=tmp_path))


def test_missing_things_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.root is not set"):
        build_dataset(DataConfig())
    with pytest.raises(UserError, match="nowhere: no such folder; expected one folder a class"):
        build_dataset(DataConfig(root=tmp_path / "nowhere"))
    with pytest.raises(UserError, match="no images; expected one folder a class"):
        build_dataset(DataConfig(root=tmp_path))
    image_folder(tmp_path)
    with pytest.raises(UserError, match=r"val: no such folder \(data.split: val\).*holds train"):
        build_dataset(DataConfig(root=tmp_path, split="val"))
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(UserError, match="train/empty: no images in this class"):
        build_dataset(DataConfig(root=tmp_path))
    with pytest.raises(UserError, match=r"other.txt: cannot be read"):
        build_dataset(DataConfig(kind="list", root=tmp_path, list_file=Path("other.txt")))


def test_a_root_with_other_splits_only_is_not_taken_for_class_folders(tmp_path: Path) -> None:
    draw(tmp_path / "val" / "a" / "0.png")
    with pytest.raises(UserError, match="train: no such folder"):
        build_dataset(DataConfig(root=tmp_path))


def test_images_beside_class_folders_are_refused(tmp_path: Path) -> None:
    image_folder(tmp_path)
    draw(tmp_path / "train" / "stray.png")
    with pytest.raises(UserError, match=r"stray.png.* beside folders"):
        build_dataset(DataConfig(root=tmp_path))


def test_a_list_with_labels_on_some_lines_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.png 1\nb.png\n")
    with pytest.raises(UserError, match=r"list.txt, line 2: no label"):
        build_dataset(DataConfig(kind="list", root=tmp_path, list_file=Path("list.txt")))


def test_subsets_of_one_seed_are_nested(tmp_path: Path) -> None:
    root = image_folder(tmp_path, per_class=10)

    def names(count: int, seed: int = 0, stratified: bool = False) -> list[str]:
        subset = SubsetConfig(count=count, seed=seed, stratified=stratified)
        paths = build_dataset(DataConfig(root=root, subset=subset)).paths
        assert paths is not None
        return [str(p) for p in paths]

    assert len(names(7)) == 7
    assert set(names(7)) < set(names(20))
    assert names(7) == names(7) != names(7, seed=1)
    assert names(20) == sorted(names(20))
    assert set(names(7, stratified=True)) < set(names(20, stratified=True))
    balanced = build_dataset(DataConfig(root=root, subset=SubsetConfig(count=8, stratified=True)))
    assert balanced.labels is not None
    assert sorted(np.bincount(balanced.labels)) == [2, 3, 3]
    with pytest.raises(UserError, match="31 images requested, but there are 30"):
        names(31)


def test_paths_keep_any_name(tmp_path: Path) -> None:
    names = ["a b.png", "ü/日本.png", "x" * 50]
    paths = Paths.of(tmp_path, names)
    assert list(paths) == [tmp_path / n for n in names]
    assert list(paths.take([2, 0])) == [tmp_path / names[2], tmp_path / names[0]]


@pytest.mark.parametrize(
    ("section", "says"),
    [
        (lambda: DataConfig(kind="list"), "list_file belongs to kind: list"),
        (lambda: DataConfig(download=True), "download: true is for cifar10"),
        (lambda: DataConfig(kind="cifar10", split="val"), "splits train and test"),
        (lambda: ViewConfig(scale=(0.5, 0.2)), "smallest, largest"),
        (lambda: ViewConfig(size=6), "wider than a view of 6"),
        (lambda: BlurConfig(sigma=(2.0, 1.0)), "smallest, largest"),
        (lambda: AugmentConfig(views="multicrop"), "local: belongs to views: multicrop"),
        (lambda: AugmentConfig(views="single", second=ViewConfig()), "second: belongs to views"),
    ],
)
def test_sections_that_contradict_themselves_are_refused(section: object, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        section()  # type: ignore[operator]


def test_the_views_of_each_kind() -> None:
    a, b = ViewConfig(size=32), ViewConfig(size=32, solarize=0.2)
    assert AugmentConfig(views="single", view=a).view_list == (a,)
    assert AugmentConfig(view=a).view_list == (a, a)
    assert AugmentConfig(view=a, second=b).view_list == (a, b)
    crops = AugmentConfig(views="multicrop", local=LocalConfig(count=6)).view_list
    assert [v.size for v in crops] == [224] * 2 + [96] * 6
    assert crops[2].scale == (0.05, 0.4)
    assert (AugmentConfig().test_view.resize, AugmentConfig().test_view.size) == (256, 224)
    assert AugmentConfig(view=a).test_view.resize == 32


def test_class_folders_without_splits_are_answered_with_the_keys_that_split_them(tmp_path: Path) -> None:
    for name in ("elm", "oak"):
        draw(tmp_path / name / "0.png")
    with pytest.raises(
        UserError, match=r"contains elm, oak; .*'data.splits=\{test: 0.2\}' data.test_split=test"
    ):
        check_data(ClassifyData(root=tmp_path, kind="imagefolder"))
    check_data(ClassifyData(root=tmp_path, kind="imagefolder", splits={"test": 0.2}, test_split="test"))


def test_folders_of_splits_are_not_drawn_from_as_if_they_were_classes(tmp_path: Path) -> None:
    for split in ("test", "Train"):
        for number, name in enumerate(("elm", "oak")):
            draw(tmp_path / split / name / f"{split}{number}.png")
    config = DataConfig(kind="imagefolder", root=tmp_path, splits={"test": 0.5}, split="train")
    with pytest.raises(UserError, match=r"splits of class folders.*data.split=Train data.test_split=test"):
        open_dataset(config)
    # Classes may be called so where they hold images.
    for split in ("test", "Train"):
        for folder in (tmp_path / split / "elm", tmp_path / split / "oak"):
            for path in folder.iterdir():
                path.rename(tmp_path / split / path.name)
            folder.rmdir()
    assert open_dataset(config).classes == ["Train", "test"]
