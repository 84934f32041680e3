"""Small files for the commands of the documentation: checkpoints of several makers, and data sets."""

import copy
import shutil
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import timm
import torch
import torchvision
from PIL import Image

from carryover.core.data.objects.voc import VOC_CLASSES
from carryover.core.data.shapes.write import write_shapes
from tests.core.backbones.makers_networks import randomized
from tests.transfer.convert.backbones import write_backbone


def write_sandbox(folder: Path) -> None:
    """Write what the commands name: checkpoints into `folder`, data sets into `folder`/data."""
    shapes = write_shapes(folder / "drawn", n_train=60, n_val=10, n_detection=12)
    data = folder / "data"
    shutil.copytree(shapes.classification / "train", data / "plants")
    shutil.copytree(shapes.classification, data / "imagenet")
    shutil.copytree(shapes.classification / "train", data / "cifar10" / "train")
    shutil.copytree(shapes.classification / "val", data / "cifar10" / "test")
    shutil.copytree(shapes.classification / "val", data / "some_images")
    _write_voc(shapes.detection / "VOC2007", data / "VOCdevkit")
    _write_coco(shapes.detection, data / "coco")
    _write_labelimg(shapes.detection / "VOC2007", data / "cells")
    _write_fields(data / "fields")
    _write_checkpoints(folder)


def _write_voc(voc: Path, devkit: Path) -> None:
    """Two years of the same images, all of VOC's classes in each, and masks for 2012 with SBD's list."""
    for year in ("2007", "2012"):
        folder = devkit / f"VOC{year}"
        for part in ("JPEGImages", "Annotations", "ImageSets/Main", "ImageSets/Segmentation"):
            (folder / part).mkdir(parents=True)
        for split in ("trainval", "test"):
            names = (voc / "ImageSets" / "Main" / f"{split}.txt").read_text("utf-8").split()
            listed = "".join(f"{year}_{name}\n" for name in names)
            (folder / "ImageSets" / "Main" / f"{split}.txt").write_text(listed, encoding="utf-8")
            for name in names:
                target = f"{year}_{name}"
                shutil.copy(voc / "JPEGImages" / f"{name}.jpg", folder / "JPEGImages" / f"{target}.jpg")
                tree = ET.parse(voc / "Annotations" / f"{name}.xml")
                tree.find("filename").text = f"{target}.jpg"
                _name_objects(tree.getroot())
                tree.write(folder / "Annotations" / f"{target}.xml")
    rng = np.random.default_rng(0)
    lists = folder / "ImageSets" / "Segmentation"
    names = (folder / "ImageSets" / "Main" / "trainval.txt").read_text("utf-8").split()
    for split, masks, some in (
        ("train", "SegmentationClass", names[:3]),
        ("val", "SegmentationClass", names[3:5]),
        ("aug", "SegmentationClassAug", names[5:]),
    ):
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in some), encoding="utf-8")
        (folder / masks).mkdir(exist_ok=True)
        for name in some:
            values = rng.integers(0, 21, (128, 128), dtype=np.uint8)
            Image.fromarray(values).save(folder / masks / f"{name}.png")


def _name_objects(root: ET.Element) -> None:
    """Give the objects classes of VOC, and add an object of every other class."""
    objects = root.findall("object")
    for number, found in enumerate(objects):
        found.find("name").text = VOC_CLASSES[number % len(VOC_CLASSES)]
    for name in VOC_CLASSES[len(objects) :] if objects else ():
        more = copy.deepcopy(objects[0])
        more.find("name").text = name
        root.append(more)


def _write_coco(detection: Path, coco: Path) -> None:
    (coco / "annotations").mkdir(parents=True)
    for split, name in (("train", "train2017"), ("test", "val2017")):
        shutil.copy(
            detection / "annotations" / f"{split}.json", coco / "annotations" / f"instances_{name}.json"
        )
        shutil.copytree(detection / "VOC2007" / "JPEGImages", coco / name)


def _write_labelimg(voc: Path, cells: Path) -> None:
    cells.mkdir()
    for picture in sorted((voc / "JPEGImages").iterdir()):
        shutil.copy(picture, cells)
        shutil.copy(voc / "Annotations" / f"{picture.stem}.xml", cells)


def _write_fields(fields: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind, high, shape in (("images", 256, (48, 48, 3)), ("masks", 3, (48, 48))):
            (fields / split / kind).mkdir(parents=True)
            for number in range(4):
                values = rng.integers(0, high, shape, dtype=np.uint8)
                Image.fromarray(values).save(fields / split / kind / f"{split}{number}.png")


def _write_checkpoints(folder: Path) -> None:
    torch.manual_seed(0)
    network = randomized(torchvision.models.resnet18()).state_dict()
    torch.save(network, folder / "theirs.pth")
    encoder = {k: v for k, v in network.items() if not k.startswith("fc.")}
    both = {f"module.encoder_{one}.{k}": v for one in "qk" for k, v in encoder.items()}
    torch.save({"epoch": 800, "arch": "resnet18", "state_dict": both}, folder / "moco.pth.tar")
    transformer = randomized(timm.create_model("vit_small_patch16_224", num_classes=0))
    torch.save(transformer.state_dict(), folder / "dino_vits16.pth")
    for name in ("dino.pth", "torchvision_r50.pth"):
        shutil.copy(folder / "theirs.pth", folder / name)
    for name in ("moco", "ours", "backbone"):
        write_backbone(folder / f"{name}.safetensors")
