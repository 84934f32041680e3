"""Image files of every mode become RGB; unreadable ones are reported, replaced and counted."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from carryover.configs import UserError
from carryover.core.data.config import AugmentConfig, DataConfig, ViewConfig
from carryover.core.data.datasets import MemoryImages
from carryover.core.data.images import read_image
from carryover.core.data.pictures import AmbiguousRange, UnreadableImage, read_header
from carryover.core.data.prepared import EvaluationLoader, Loader, build_dataset
from tests.core.data.folders import draw, image_folder, truncate

AUGMENT = AugmentConfig(views="single", view=ViewConfig(size=8, blur=None))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_every_mode_becomes_eight_bit_rgb(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("image.tif" if mode in ("CMYK", "YCbCr", "I", "F") else "image.png")
    gray = Image.new("RGB", (7, 5), (128, 128, 128))
    if mode.startswith("I"):
        Image.fromarray(np.full((5, 7), 0x80FF, np.uint16 if mode == "I;16" else np.int32)).save(path)
    elif mode == "P":
        gray.quantize(4).save(path)
    elif mode == "YCbCr":
        # Pillow older than 13 cannot decode it uncompressed; in real files it is compressed.
        gray.convert(mode).save(path, compression="jpeg", quality=100)
    else:
        gray.convert(mode).save(path)
    image = read_image(path)
    assert image.shape == (3, 5, 7) and image.dtype == torch.uint8
    if mode != "1":
        assert (image.int() - 128).abs().max() <= 1


def test_transparency_is_dropped(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (4, 2), (10, 20, 30, 0))
    clear.save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png")[:, 0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_the_orientation_is_applied_unless_pixels_are_wanted_as_stored(suffix: str, tmp_path: Path) -> None:
    upright = np.zeros((24, 40, 3), np.uint8)
    upright[:8, :20], upright[8:16, 20:] = (250, 0, 0), (0, 250, 0)
    options = {"lossless": True} if suffix == ".webp" else {"quality": 100} if suffix == ".jpg" else {}
    Image.fromarray(upright).save(plain := tmp_path / f"plain{suffix}", **options)
    for turn in range(1, 9):
        path, picture = tmp_path / f"turned_{turn}{suffix}", Image.fromarray(upright)
        exif = picture.getexif()
        exif[0x0112] = turn
        picture.save(path, exif=exif, **options)
        expected = np.asarray(ImageOps.exif_transpose(Image.open(path)))
        shown, stored = read_image(path).permute(1, 2, 0).numpy(), read_image(path, orientation="stored")
        assert np.array_equal(shown, expected)
        assert torch.equal(stored, read_image(plain))
        header = read_header(path)
        assert (header.height, header.width) == shown.shape[:2] and header.turned == (turn > 1)
        assert read_header(path, "stored").size == (40, 24)


def test_many_levels_become_eight_bits_by_one_rule(tmp_path: Path) -> None:
    for values, suffix, expected in (
        (np.uint16([[0, 0x1234], [0x8000, 0xFFFF]]), ".png", [[0, 0x12], [0x80, 0xFF]]),
        (np.uint16([[0, 0], [0, 0]]), ".png", [[0, 0], [0, 0]]),
        (np.int32([[0, 100], [200, 255]]), ".tif", [[0, 100], [200, 255]]),
        (np.int32([[0, 0x1234], [0x8000, 0xFFFF]]), ".tif", [[0, 0x12], [0x80, 0xFF]]),
        (np.float32([[0, 0.25], [0.5, 1]]), ".tif", [[0, 64], [128, 255]]),
        (np.float32([[0, 0.25], [100.6, 255]]), ".tif", [[0, 0], [101, 255]]),
    ):
        path = tmp_path / f"deep{suffix}"
        Image.fromarray(values).save(path)
        assert read_image(path).tolist() == [expected] * 3


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (np.uint16([[0, 200], [17, 255]]), "16-bit picture with no value above 255"),
        (np.int32([[0, 70000], [0, 0]]), "integers up to 70000, beyond 16 bits"),
        (np.int32([[-1, 7], [0, 0]]), "negative values"),
        (np.float32([[0, 300], [0, 0]]), "floating-point values up to 300, neither 0..1 nor 0..255"),
        (np.float32([[0, np.nan], [0, 0]]), "values that are not finite"),
    ],
)
def test_a_range_that_cannot_be_known_is_not_guessed(values: np.ndarray, why: str, tmp_path: Path) -> None:
    path = tmp_path / ("deep.png" if values.dtype == np.uint16 else "deep.tif")
    Image.fromarray(values).save(path)
    with pytest.raises(AmbiguousRange, match=why):
        read_image(path)


def test_resizing_on_reading_makes_a_square(tmp_path: Path) -> None:
    path = draw(tmp_path / "a.png", size=(10, 31))
    assert read_image(path, resize=8).shape == (3, 8, 8)


def test_what_cannot_be_decoded_names_file_and_reason(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image at all")
    (tmp_path / "empty.jpg").touch()
    truncate(draw(tmp_path / "half.png"))
    for name in ("text.png", "empty.jpg", "half.png", "missing.png"):
        with pytest.raises(UnreadableImage, match=name):
            read_image(tmp_path / name)


def broken_folder(root: Path) -> Path:
    """18 images in 3 classes; c0/01, c1/05 and c2/05 cannot be read, the first two not even by header."""
    image_folder(root)
    (root / "train" / "c0" / "01.png").write_text("no image at all")
    (root / "train" / "c1" / "05.png").write_bytes(b"")
    truncate(root / "train" / "c2" / "05.png")
    return root


@pytest.mark.parametrize(("check", "found"), [("header", 3), ("full", 3)])
def test_unreadable_images_are_reported_by_path_at_the_start(
    check: str, found: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = broken_folder(tmp_path)
    with caplog.at_level(logging.WARNING):
        build_dataset(DataConfig(root=root, check=check, cache_gib=0))
    assert f"{found} of 18 images cannot be read" in caplog.text
    for name in ("c0/01.png", "c1/05.png"):
        assert name in caplog.text
    with pytest.raises(UserError, match=r"of 18 images cannot be read, 1 are tolerated.*\n.*c0/01.png"):
        build_dataset(DataConfig(root=root, check=check, max_unreadable=1))


@pytest.mark.parametrize("cache_gib", [0.0, 1.0])
def test_an_unreadable_images_place_shows_the_next_readable_one(cache_gib: float, tmp_path: Path) -> None:
    data = build_dataset(DataConfig(root=broken_folder(tmp_path), check="none", cache_gib=cache_gib))
    assert isinstance(data, MemoryImages) == (cache_gib > 0)
    assert len(data) == 18
    (batch,) = EvaluationLoader(data, AUGMENT, 18)
    view = batch.views[0]
    assert batch.index.tolist() == list(range(18))
    assert batch.label is not None
    for broken, shown in ((1, 2), (11, 12), (17, 0)):
        assert torch.equal(view[broken], view[shown])
        assert batch.label[broken] == batch.label[shown]
    assert len({tuple(v.flatten().tolist()) for v in view}) == 15


@pytest.mark.parametrize("workers", [0, 1])
def test_images_that_break_during_training_are_counted_up_to_the_limit(
    workers: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = image_folder(tmp_path)
    data = build_dataset(DataConfig(root=root, max_unreadable=2, cache_gib=0))
    (root / "train" / "c0" / "03.png").write_text("broken since")
    truncate(root / "train" / "c1" / "00.png")
    loader = Loader(data, AUGMENT, 6, seed=0, workers=workers)
    with caplog.at_level(logging.WARNING):
        assert len(list(loader.epoch(0))) == 3
        assert len(list(loader.epoch(1))) == 3
    assert caplog.text.count("c0/03.png") == 1 and caplog.text.count("c1/00.png") == 1
    assert "unreadable image 1 (2 tolerated)" in caplog.text
    assert "unreadable image 2 (2 tolerated)" in caplog.text
    (root / "train" / "c2" / "04.png").unlink()
    with pytest.raises(UserError, match=r"3 images cannot be read, 2 are tolerated") as raised:
        list(loader.epoch(2))
    assert "c2/04.png" in str(raised.value) and "Traceback" not in str(raised.value)


def test_a_data_set_without_one_readable_image_is_refused(tmp_path: Path) -> None:
    root = image_folder(tmp_path, per_class=1)
    for path in (root / "train").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="3 of 3 images cannot be read"):
        build_dataset(DataConfig(root=root))
    with pytest.raises(UserError, match="images cannot be read"):
        list(Loader(build_dataset(DataConfig(root=root, check="none")), AUGMENT, 2, seed=0).epoch(0))


def test_images_of_different_sizes_are_not_kept_decoded_unless_resized(tmp_path: Path) -> None:
    root = image_folder(tmp_path)
    draw(root / "train" / "c1" / "02.png", size=(9, 14))
    data = build_dataset(DataConfig(root=root))
    assert not isinstance(data, MemoryImages)
    with pytest.raises(UserError, match=r"augment.backend: batched needs a data set that is kept decoded"):
        Loader(data, AUGMENT.model_copy(update={"backend": "batched"}), 4, seed=0)
    resized = build_dataset(DataConfig(root=root, resize=10))
    assert isinstance(resized, MemoryImages) and resized.read(0).shape == (3, 10, 10)
