"""Speed: rates and times on a device, each beside what it is to beat."""

import json
import shutil
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import ResNet, resnet18, resnet50
from torchvision.models.vision_transformer import VisionTransformer

from benchmarks import sqrtkl as sqrtkl_benchmark
from benchmarks.device_parts.row import Row, Setting, at_least, at_most, seconds_of
from carryover.configs import load
from carryover.core.data.config import DataConfig
from carryover.core.data.labelled.config import ImageConfig
from carryover.core.data.prepared import EvaluationLoader, build_dataset
from carryover.core.formats.backbone import BackboneConfig, register_backbone
from carryover.core.training.device import bf16_autocast, synchronize
from carryover.core.training.distributed import Ranks
from carryover.pretrain.trainer import train
from carryover.transfer.tasks.frozen.features import Request, stored_features
from carryover.transfer.tasks.knn.model import Neighborhood, classify, nearest

# Two views of 224 px a sample, 8 loading processes, bf16, on an H200: what is to be beaten by a fifth.
BARLOW_SAMPLES = 871.0


def sqrtkl(setting: Setting) -> Iterator[Row]:
    """Streaming SqrtKL, loss and gradient, beside the three matrix products it cannot do without."""
    sizes = (4096,) if setting.tiny else (1_281_167, 14_197_122)
    for images in sizes:
        data = sqrtkl_benchmark.inputs(images, 256, 128, str(setting.device))
        ours, products = (
            seconds_of(partial(variant, *data), setting.device, 2 if setting.tiny else 10)
            for variant in (sqrtkl_benchmark.streaming, sqrtkl_benchmark.products)
        )
        yield at_most(f"N = {images:,}, B = 256, d = 128", 1e3 * ours, 1e3 * products, 1.5, "ms")
        del data


def barlow(setting: Setting) -> list[Row]:
    """Samples a second of ViT-S/16 Barlow Twins: from JPEG files, and from pictures kept decoded."""
    register_backbone("benchmark_vit", partial(_vit_backbone, tiny=setting.tiny))
    batch, steps, size = (8, 4, 32) if setting.tiny else (256, 24, 224)
    method = (
        "method={name: barlow_twins}",
        "backbone={arch: benchmark_vit}",
        "projector={depth: 3, hidden: 64, out: 64}"
        if setting.tiny
        else "projector={depth: 3, hidden: 2048, out: 2048}",
        "augment.views=two",
    )
    files = _samples(setting, method, batch, steps, size, workers=1 if setting.tiny else 8)
    decoded = _samples(setting, method, batch, steps, size, workers=0, decoded=True)
    return [
        at_least(
            "ViT-S/16, 2 views, bf16, 8 loaders, from JPEG files", files, BARLOW_SAMPLES, 1.2, "samples/s"
        ),
        Row("the same, pictures kept decoded, views on the device", f"{decoded:.4g} samples/s", decoded),
    ]


def simclr(setting: Setting) -> list[Row]:
    """Samples a second of ResNet-50 SimCLR beside lightly's example: its transform, head, loss and loop."""
    batch, steps, size = (8, 4, 32) if setting.tiny else (256, 16, 224)
    workers = 1 if setting.tiny else 8
    method = (
        "method={name: simclr}",
        f"backbone={{arch: {'resnet18' if setting.tiny else 'resnet50'}}}",
        "projector={depth: 2, hidden: 2048, out: 128}",
        "augment.views=two",
    )
    ours = _samples(setting, method, batch, steps, size, workers)
    try:
        theirs = _lightly_simclr(setting, batch, steps, size, workers)
    except ImportError as error:
        return [Row(f"ResNet-50 SimCLR; nothing beside it: {error}", f"{ours:.4g} samples/s", ours)]
    return [at_least("ResNet-50 SimCLR beside lightly as documented", ours, theirs, 1.5, "samples/s")]


def features(setting: Setting) -> list[Row]:
    """Images a second of ViT-L features into the store, beside the same network, loader and nothing else."""
    images, batch, size = (32, 8, 32) if setting.tiny else (4096, 128, 224)
    network = _vit_backbone(BackboneConfig(), tiny=True) if setting.tiny else _Pooled(*_VIT_L)
    network.to(setting.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    config = DataConfig(kind="imagefolder", name="noise", root=_pictures(setting, images), cache_gib=0.0)
    dataset = build_dataset(config)
    augment = ImageConfig(size=size, resize=size).augment((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    workers, rates = (0 if setting.tiny else 12), {}
    for turn in ("warm-up", "bare", "ours"):
        synchronize(setting.device)
        start = time.perf_counter()
        if turn == "ours":
            store = setting.folder / "features"
            shutil.rmtree(store, ignore_errors=True)
            request = Request("0" * 64, dataset, augment, ("pooled",), "bf16")
            stored_features(request, network, store, Ranks(0, 1, setting.device), batch, workers)
        else:
            loader = EvaluationLoader(dataset, augment, batch, workers=workers, device=setting.device)
            with torch.inference_mode(), bf16_autocast(setting.device, True):
                found = [
                    network(b.views[0].contiguous(memory_format=torch.channels_last)).cpu() for b in loader
                ]
            assert sum(map(len, found)) == images
        rates[turn] = images / (time.perf_counter() - start)
    return [
        at_least("ViT-L/16 features beside the bare loop", rates["ours"], rates["bare"], 0.95, "images/s")
    ]


def knn(setting: Setting) -> list[Row]:
    """k-NN at k = 20 and 200 in one search, beside the product of all queries with all rows."""
    train_rows, queries, width = (2000, 200, 32) if setting.tiny else (1_281_167, 10_000, 768)
    generator = torch.Generator(setting.device).manual_seed(0)
    make = partial(torch.randn, generator=generator, device=setting.device)
    bank, query = make(train_rows, width), make(queries, width)
    labels = torch.arange(train_rows, device=setting.device) % 1000
    hows = [Neighborhood(k, t) for k in (20, 200) for t in (0.07, 0.1)]

    def product() -> None:
        for rows in query.split(2048):
            for part in bank.split(2**16):
                rows @ part.T

    def own() -> None:
        deque(classify(nearest(query, bank, 200), labels, 1000, hows), maxlen=0)

    runs = 2 if setting.tiny else 3
    ours, alone = (seconds_of(work, setting.device, runs) for work in (own, product))
    what = f"{queries:,} queries, {train_rows:,} x {width}, k = 20 and 200"
    return [at_most(what, ours, alone, 1.3, "s")]


class _Pooled(nn.Module):
    """A vision transformer whose class token is the pooled feature."""

    def __init__(self, size: int, patch: int, layers: int, heads: int, width: int) -> None:
        super().__init__()
        self.transformer = VisionTransformer(size, patch, layers, heads, width, 4 * width)
        self.transformer.heads = nn.Sequential()
        self.feature_dim = width

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.transformer(x)
        return pooled


_VIT_S, _VIT_L = (224, 16, 12, 6, 384), (224, 16, 24, 16, 1024)


def _vit_backbone(config: BackboneConfig, tiny: bool) -> _Pooled:
    return _Pooled(32, 8, 2, 2, 32) if tiny else _Pooled(*_VIT_S)


def _samples(
    setting: Setting,
    method: tuple[str, ...],
    batch: int,
    steps: int,
    size: int,
    workers: int,
    decoded: bool = False,
) -> float:
    """Return the samples a second of our trainer once it has begun, from pictures to updated weights."""
    pictures = _pictures(setting, batch * steps)
    kept = "cache_gib: 64" if decoded else "cache_gib: 0"
    base = setting.folder / "base.yaml"
    base.write_text("source: benchmark\n", encoding="utf-8")
    shared = [
        f"data={{kind: imagefolder, name: noise, root: {pictures}, check: none, {kept}}}",
        f"data.subset.count={batch * steps}",
        f"augment.view={{size: {size}, blur: {{sigma: [0.1, 2.0], p: 0.5}}}}",
        f"augment.backend={'batched' if decoded else 'loader'}",
        "optimizer={name: sgd, base_lr: 0.01, momentum: 0.9}",
        "schedule={epochs: 1}",
        f"batch_size={batch}",
        f"log_every={max(1, steps // 4)}",
        "precision=bf16",
        "tensorboard=false",
        f"workers={workers}",
        f"device={setting.device}",
    ]
    config: Any = load("pretrain", base, [*method, *shared])
    out = setting.folder / "speed"
    shutil.rmtree(out, ignore_errors=True)
    train(config, out)
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rates = [row["images_per_second"] for row in map(json.loads, lines) if "images_per_second" in row]
    # The first quarter starts loaders and chooses kernels; later ones are equally long.
    return len(rates[1:]) / sum(1 / rate for rate in rates[1:])


def _lightly_simclr(setting: Setting, batch: int, steps: int, size: int, workers: int) -> float:
    """Samples a second of lightly's documented SimCLR, in float32, on a ResNet-50."""
    import torchvision
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    network: ResNet = (resnet18 if setting.tiny else resnet50)(weights=None)
    width = network.fc.in_features
    backbone = nn.Sequential(*list(network.children())[:-1], nn.Flatten())
    model = nn.Sequential(backbone, SimCLRProjectionHead(width, 2048, 128)).to(setting.device)
    dataset = torchvision.datasets.ImageFolder(
        str(_pictures(setting, batch * steps)), SimCLRTransform(input_size=size)
    )
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=batch, shuffle=True, drop_last=True, num_workers=workers
    )
    criterion, optimizer = NTXentLoss(), torch.optim.SGD(model.parameters(), lr=0.06)
    batches: Iterator[Any] = iter(loader)
    warm, start = max(1, steps // 4), 0.0
    for step in range(steps):
        if step == warm:
            synchronize(setting.device)
            start = time.perf_counter()
        (x0, x1), *_ = next(batches)
        loss = criterion(model(x0.to(setting.device)), model(x1.to(setting.device)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    synchronize(setting.device)
    return batch * (steps - warm) / (time.perf_counter() - start)


def _pictures(setting: Setting, count: int) -> Path:
    """Write JPEG files of about a photograph's size and detail, those that are not there yet."""
    root, side = setting.folder / "pictures", (60, 48) if setting.tiny else (500, 375)
    folders = [root / f"class{number}" for number in range(2)]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)

    def write(number: int) -> None:
        path = folders[number % 2] / f"{number:05}.jpg"
        if path.exists():
            return
        # Noise at two scales: about 110 kB in JPEG, as an image of ImageNet has.
        random = np.random.default_rng(number)
        coarse = random.integers(0, 256, (side[1] // 12, side[0] // 12, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize(side, Image.Resampling.BICUBIC), dtype=np.int16)
        fine = random.integers(-24, 25, (side[1], side[0], 1), dtype=np.int16)
        Image.fromarray((smooth + fine).clip(0, 255).astype(np.uint8)).save(path, quality=90)

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, range(count)))
    return root
