"""`carryover demo`, shrunk by nothing but overrides: minutes of work become seconds."""

import gzip
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from carryover.transfer.results.reading import read_records

_IMAGES = '"data.root=${roots.classification}"'
_SMALL = '"augment.view.size=32", "batch_size=16", "schedule.epochs=2", "schedule.warmup_epochs=0"'
OVERRIDES = (
    "shapes={n_train: 80, n_val: 20, n_detection: 12}",
    f"pretrain=[{{recipe: unigrad_demo, overrides: [{_IMAGES}, {_SMALL}]}}]",
    "convert=[torchvision]",
    "evaluate=["
    "{recipe: demo_finetune_10percent, seeds: [0, 1], "
    f'overrides: [{_IMAGES}, "image.size=32", "image.resize=32", "schedule.epochs=2"]}}, '
    '{recipe: demo_faster_fpn, intermediate: false, overrides: ["data.root=${roots.detection}", '
    '"solver.max_iter=4", "solver.steps=[3]", "solver.warmup_iters=1", "precise_bn=0", "samples=0", '
    '"data.defects.absent_class=keep"]}]',
)


def metrics(run: Path) -> Mapping[tuple[Any, ...], Any]:
    """Return every result of a run by what it is a result of; nothing in it depends on time or place."""
    found, problems = read_records([run])
    assert not problems
    return {
        (r.method, r.pretrain_epochs, r.task, r.recipe, r.seed): (
            r.metrics,
            r.recipe_hash,
            r.pretrain_seed,
            r.selection,
            r.train_images,
        )
        for r in (stored.record for stored in found)
    }


def weights(run: Path) -> Mapping[str, str]:
    """Return a digest of the tensors in every file of weights that a run's stages left, by file and name.

    The files themselves differ: their metadata say how long the training took.
    """
    return {
        f"{path.relative_to(run)}: {name}": hashlib.sha256(tensor.tobytes()).hexdigest()
        for path in sorted(run.glob("stages/**/*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def predictions(run: Path) -> list[str]:
    """Return what every detector found: after so few steps its AP is 0, and its boxes say more."""
    found = sorted(run.glob("stages/evaluate/**/out/predictions.json.gz"))
    return [gzip.decompress(path.read_bytes()).decode() for path in found]
