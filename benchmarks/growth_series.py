"""What `benchmarks/growth.py` measures: each series, and what its size counts.

A series' `prepare(size, work)` makes the input and returns a function that is called before every turn,
outside the clock; what that returns is the turn, which is timed.
"""

import os
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.coco_metric import ours, write_scene
from benchmarks.report import write_records
from carryover.configs import load
from carryover.core.data.config import DataConfig
from carryover.core.data.datasets import FileImages, MemoryImages
from carryover.core.data.labelled.config import ImageConfig
from carryover.core.data.prepared import Batch, Loader, build_dataset, open_dataset
from carryover.core.training.distributed import Ranks
from carryover.pretrain.config import PretrainConfig
from carryover.pretrain.heads import Encoder
from carryover.pretrain.methods import DataFacts, Method, Moment, method_around
from carryover.pretrain.methods.instance import SqrtKL
from carryover.transfer.tasks.frozen.features import Request, stored_features
from carryover.transfer.tasks.knn.model import Neighborhood, classify, nearest
from carryover.transfer.tasks.linear.logistic import fit_path

Turn = Callable[[], object]
Prepare = Callable[[int, Path], Callable[[], Turn]]

WIDTH = 256
BANK_WIDTH = 128
BANK_BATCH = 256
RECIPES = {
    "unigrad": "unigrad_r50_100ep",
    "simclr": "unigrad_table2b_simclr",
    "simo": "simo_r50_200ep_k256_a256",
    "sqrtkl": "sqrtkl_imagenet_r50",
    "barlow_twins": "unigrad_table2f_barlow_twins",
}


@dataclass(frozen=True)
class Series:
    """One curve. `sizes` count `unit`; `quick` are the sizes of the smoke test; `what` is done in a turn."""

    name: str
    group: str
    unit: str
    what: str
    prepare: Prepare
    sizes: Sequence[int]
    quick: Sequence[int]


def around_embeddings(name: str, batch: int, width: int, images: int, online: nn.Module) -> Method:
    """A recipe's method around a network that stands in for its own: objective, target, memory are real."""
    overrides = ["data.root=unread", f"batch_size={batch}", "optimizer.lr=null", f"projector.out={width}"]
    config = load("pretrain", RECIPES[name], overrides)
    assert isinstance(config, PretrainConfig)
    return method_around(Encoder(online, nn.Identity(), bf16=False), config, DataFacts(images, None)).train()


def objective(name: str, batch: int, width: int, images: int) -> Turn:
    """One objective and its gradient in the embeddings, the method's memory moved along."""
    method = around_embeddings(name, batch, width, images, nn.Identity())
    generator = torch.Generator().manual_seed(0)
    views = 1 if name == "sqrtkl" else 2
    trained = 1 if name in ("sqrtkl", "simo") else 2
    rows = [torch.randn(batch, width, generator=generator) for _ in range(2 * views)]
    embeddings = [row.requires_grad_() for row in rows[:trained]]
    targets = [] if name == "sqrtkl" else rows[views : views + trained]
    index = torch.randperm(images, generator=generator)[:batch]

    def step() -> None:
        moment = Moment(1, 100, torch.Generator().manual_seed(0))
        method.objective(embeddings, targets, Batch(index, [], None), moment).loss.backward()

    return step


def by_batch(name: str) -> Prepare:
    def prepare(size: int, work: Path) -> Callable[[], Turn]:
        step = objective(name, size, WIDTH, 16_384)
        return lambda: step

    return prepare


def bank_step(size: int, work: Path) -> Callable[[], Turn]:
    step = objective("sqrtkl", BANK_BATCH, BANK_WIDTH, size)
    return lambda: step


def bank_update(size: int, work: Path) -> Callable[[], Turn]:
    method = around_embeddings("sqrtkl", BANK_BATCH, BANK_WIDTH, size, nn.Identity())
    assert isinstance(method, SqrtKL)
    z = normalize(torch.randn(BANK_BATCH, BANK_WIDTH), dim=1)
    index, log_partition = torch.randperm(size)[:BANK_BATCH], torch.full((BANK_BATCH,), 20.0).double()
    return lambda: lambda: method.move_bank(z, index, log_partition, corrected=True)


def calibrate(size: int, work: Path) -> Callable[[], Turn]:
    """The bank made and filled in one pass over N images; the network is a single small layer."""
    pixels = torch.randn(512, 16)

    def batches() -> Iterator[Batch]:
        order = torch.randperm(size, generator=torch.Generator().manual_seed(0))
        for index in order.split(512):
            yield Batch(index, [pixels[: len(index)]], None)

    def turn() -> None:
        around_embeddings("sqrtkl", 512, BANK_WIDTH, size, nn.Linear(16, BANK_WIDTH)).begin(batches())

    return lambda: turn


def image_folder(size: int, work: Path) -> Path:
    """A folder of `size` different small JPEGs, 125 a class; smaller ones are links into the same files."""
    rng, root = np.random.default_rng(0), work / f"images{size}" / "train"
    if root.exists():
        return root.parent
    root.mkdir(parents=True)
    noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    noise.save(work / "one.jpg", quality=85)
    content = (work / "one.jpg").read_bytes()
    for number in range(size // 125):
        folder = work / "classes" / f"{number:05d}"
        if not folder.exists():
            folder.mkdir(parents=True)
            for i in range(125):
                # Decoders ignore what follows the image's end; it keeps the files from being duplicates.
                (folder / f"{i:05d}.JPEG").write_bytes(content + number.to_bytes(4) + i.to_bytes(4))
        (root / folder.name).symlink_to(folder, target_is_directory=True)
    return root.parent


def over_folder(call: Callable[[Path], object]) -> Prepare:
    def prepare(size: int, work: Path) -> Callable[[], Turn]:
        root = image_folder(size, work)
        return lambda: lambda: call(root)

    return prepare


def folder_config(root: Path) -> DataConfig:
    return DataConfig(kind="imagefolder", root=root, cache_gib=0, check="header")


def check(root: Path) -> None:
    from carryover.core.data.check_imagefolder import check_imagefolder

    assert not check_imagefolder(root)


def feature_store(read: bool) -> Prepare:
    def prepare(size: int, work: Path) -> Callable[[], Turn]:
        pixels = torch.randint(0, 256, (size, 3, 8, 8), dtype=torch.uint8)
        images = MemoryImages(pixels, [i % 100 for i in range(size)], [str(c) for c in range(100)])
        augment = ImageConfig(size=8, resize=8).augment((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        backbone = nn.Sequential(nn.Flatten(), nn.Linear(192, 512)).requires_grad_(False)
        request = Request("0" * 64, images, augment, ("pooled",), "fp32")
        alone = Ranks(0, 1, torch.device("cpu"))
        kept = tempfile.TemporaryDirectory(dir=work)

        def store(place: Path) -> None:
            stored_features(request, backbone, place, alone, 1024, 0)

        if read:
            store(Path(kept.name))
            return lambda: lambda: store(Path(kept.name))

        def fresh() -> Turn:
            kept.cleanup()
            Path(kept.name).mkdir()
            return lambda: store(Path(kept.name))

        return fresh

    return prepare


def clustered(size: int, width: int, classes: int) -> tuple[Tensor, Tensor]:
    """Features around one center a class, as a trained network's are; not linearly separable."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(size) % classes
    centers = torch.randn(classes, width, generator=generator)
    return 0.3 * centers[labels] + torch.randn(size, width, generator=generator), labels


def knn(size: int, work: Path) -> Callable[[], Turn]:
    bank, labels = clustered(size, 512, 100)
    queries, _ = clustered(500, 512, 100)
    hows = [Neighborhood(k, t) for k in (20, 200) for t in (0.07, 0.1)]
    return lambda: lambda: deque(classify(nearest(queries, bank, 200), labels, 100, hows), maxlen=0)


def linear(size: int, work: Path) -> Callable[[], Turn]:
    features, labels = clustered(size, 128, 20)
    return lambda: lambda: fit_path(features, labels, 20, (1e-3, 1e-2, 1e-1, 1.0, 10.0))


def coco_metric(of: str) -> Prepare:
    """COCO's AP of `size` images of 7 objects and 65 detections, from the files that `evaluate` writes."""

    def prepare(size: int, work: Path) -> Callable[[], Turn]:
        folder = work / f"coco-{of}-{size}"
        if not folder.exists():
            folder.mkdir()
            write_scene(folder, size, 65, of == "segm")
        return lambda: lambda: ours(folder, of)

    return prepare


def views(size: int, work: Path) -> Callable[[], Turn]:
    """One epoch of UniGrad's loader: two views of 224 px of photograph-sized JPEGs, in this process."""
    root = work / "photographs"
    folder = root / "train" / "one"
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(len(list(folder.iterdir())), size):
        rng = np.random.default_rng(i)
        coarse = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{i:05d}.jpg", quality=90)
    found = open_dataset(DataConfig(kind="imagefolder", root=root))
    assert isinstance(found, FileImages)
    config = load("pretrain", "unigrad_r50_100ep", ["data.root=unread"])
    assert isinstance(config, PretrainConfig)
    loader = Loader(found.take(range(size)), config.augment, 32, seed=0, drop_last=False)
    return lambda: lambda: deque(loader.epoch(0), maxlen=0)


def pipeline_config(size: int, work: Path) -> object:
    """A pipeline of `size` stages: the shapes, the report, and 12 for each of as many pretrainings as fit."""
    seeds = list(range((size - 2) // 12))
    file = work / f"stages{size}.yaml"
    file.write_text(
        "shapes: {seed: 0}\n"
        "pretrain:\n"
        f"  - {{recipe: random_demo, seeds: {seeds}, overrides: ['data.root=shapes:classification']}}\n"
        "convert: [torchvision]\n"
        "evaluate:\n"
        "  - {recipe: demo_finetune_1percent, seeds: [0, 1, 2, 3, 4],"
        " overrides: ['data.root=shapes:classification']}\n"
        "  - {recipe: demo_faster_fpn, seeds: [0, 1, 2, 3, 4], overrides: ['data.root=shapes:detection']}\n"
    )
    return load("pipelines", str(file))


def stages(kind: str) -> Prepare:
    def prepare(size: int, work: Path) -> Callable[[], Turn]:
        import pytest

        from carryover.slurm.cluster_executor import SlurmExecutor
        from carryover.slurm.executor import run_graph
        from carryover.slurm.resources import Cluster
        from carryover.slurm.status import status
        from carryover.transfer.pipeline.config import PipelineConfig
        from carryover.transfer.pipeline.plan import plan
        from tests.slurm import fake_slurm

        config = pipeline_config(size, work)
        assert isinstance(config, PipelineConfig)
        if kind == "plan":
            return lambda: lambda: plan(config, work / "run")
        graph = plan(config, work / "run")
        assert len(graph) == size

        def fresh() -> tuple[Path, Turn]:
            place = Path(tempfile.mkdtemp(dir=work))
            # PATH keeps no earlier turn's commands in front: the last installed come first.
            fake_slurm.install(place / "fake", pytest.MonkeyPatch())
            return place / "run", lambda: run_graph(graph, SlurmExecutor(Cluster()), place / "run")

        if kind == "submit":
            return lambda: fresh()[1]
        run, submit = fresh()
        submit()
        return lambda: lambda: status(run)

    return prepare


def report(kind: str) -> Prepare:
    def prepare(size: int, work: Path) -> Callable[[], Turn]:
        from carryover.transfer.report import write_report
        from carryover.transfer.report.collection import collect
        from carryover.transfer.report.tables import build_tables
        from carryover.transfer.results.reading import read_records, to_frame

        run = work / f"records{size}"
        if not run.exists():
            write_records(run, size)
        if kind == "frame":
            return lambda: lambda: to_frame(read_records([run])[0])
        if kind == "tables":
            records, _ = read_records([run])
            return lambda: lambda: build_tables(collect(records))
        return lambda: lambda: write_report([run], work / f"report{size}-{os.getpid()}")

    return prepare


_N = (10_000, 40_000, 160_000, 640_000, 1_281_167)
_N_QUICK = (500, 1_000, 2_000, 4_000)
_B, _B_QUICK = (256, 512, 1024, 2048, 4096), (256, 320, 384, 448)
_FILES, _FILES_QUICK = (500, 2_000, 8_000, 32_000), (125, 250, 500, 1_000)
_IMAGES, _IMAGES_QUICK = (2_000, 8_000, 32_000, 128_000), (300, 600, 1_200, 2_400)
_COCO, _COCO_QUICK = (250, 1_000, 4_000), (10, 20, 40)
_VIEWS, _VIEWS_QUICK = (50, 200, 800), (4, 8, 16)
_STAGES, _STAGES_QUICK = (62, 242, 962, 1_922), (14, 26, 38, 50)
_RECORDS, _RECORDS_QUICK = (250, 1_000, 4_000, 10_000), (20, 40, 80, 160)

SERIES = [
    Series("sqrtkl_step", "bank", "N", "SqrtKL step, bank apart", bank_step, _N, _N_QUICK),
    Series("bank_update", "bank", "N", "corrected update of 256 rows", bank_update, _N, _N_QUICK),
    Series("calibrate", "bank", "N", "bank made and calibrated", calibrate, _N, _N_QUICK),
    *(
        Series(name, "batch", "B", f"{name} objective and gradient", by_batch(name), _B, _B_QUICK)
        for name in RECIPES
    ),
    Series(
        "index",
        "images",
        "images",
        "data set indexed",
        over_folder(lambda root: open_dataset(folder_config(root))),
        _FILES,
        _FILES_QUICK,
    ),
    Series(
        "headers",
        "images",
        "images",
        "indexed, every header read",
        over_folder(lambda root: build_dataset(folder_config(root))),
        _FILES,
        _FILES_QUICK,
    ),
    Series("check", "images", "images", "carryover data check", over_folder(check), _FILES, _FILES_QUICK),
    Series(
        "store_write", "images", "images", "features stored", feature_store(False), _IMAGES, _IMAGES_QUICK
    ),
    Series("store_read", "images", "images", "features found", feature_store(True), _IMAGES, _IMAGES_QUICK),
    Series("knn", "images", "images", "k-NN of 500 queries", knn, _IMAGES, _IMAGES_QUICK),
    Series("coco_boxes", "images", "images", "COCO metric of boxes", coco_metric("bbox"), _COCO, _COCO_QUICK),
    Series("coco_masks", "images", "images", "COCO metric of masks", coco_metric("segm"), _COCO, _COCO_QUICK),
    Series("views", "images", "images", "two views of 224 px", views, _VIEWS, _VIEWS_QUICK),
    Series("linear_cached", "images", "images", "five logistic regressions", linear, _IMAGES, _IMAGES_QUICK),
    *(
        Series(kind, "stages", "stages", f"pipeline: {kind}", stages(kind), _STAGES, _STAGES_QUICK)
        for kind in ("plan", "submit", "status")
    ),
    *(
        Series(kind, "records", "records", f"report: {kind}", report(kind), _RECORDS, _RECORDS_QUICK)
        for kind in ("frame", "tables", "pages")
    ),
]
