"""A package of a user's own adds a task and a method: installed, listed, trained with and evaluated by."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from carryover.core.data.shapes.write import write_shapes

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "examples" / "plugin"
RECIPES = PLUGIN / "src" / "carryover_example" / "recipes"
SMALL = ("image.size=32", "image.resize=32", "precision=fp32", "extract_batch=16")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the example is installed in, as pip does it."""
    site = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source") / "plugin"
    subprocess.run(["cp", "-r", str(PLUGIN), str(source)], check=True)
    words = ["--quiet", "--no-deps", "--no-build-isolation", "--target", str(site), str(source)]
    subprocess.run([sys.executable, "-m", "pip", "install", *words], check=True, timeout=200)
    return site


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shapes") / "data"
    return write_shapes(out, n_train=80, n_val=40, n_detection=4).classification


def carryover(site: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run the command line where the example is installed."""
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "carryover", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)


@pytest.mark.slow
def test_a_checkpoint_of_its_method_is_evaluated_by_its_task(
    site: Path, images: Path, tmp_path: Path
) -> None:
    keys = ["schedule.epochs=2", "schedule.warmup_epochs=0", "batch_size=16", "workers=0", "precision=fp32"]
    recipe = str(RECIPES / "alignment_uniformity_demo.yaml")
    trained = carryover(site, "pretrain", recipe, f"data.root={images}", *keys, "--out", str(tmp_path / "au"))
    assert trained.returncode == 0, trained.stderr
    lines = [json.loads(line) for line in (tmp_path / "au" / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(line["loss"]) and {"alignment", "uniformity"} <= line.keys() for line in lines)

    checkpoint, out = str(tmp_path / "au" / "backbone.safetensors"), tmp_path / "out"
    words = ["evaluate", str(RECIPES / "class_mean.yaml"), "-c", checkpoint, f"data.root={images}", *SMALL]
    words += ["image.input_size=any"]
    evaluated = carryover(site, *words, "--out", str(out))
    assert evaluated.returncode == 0, evaluated.stderr
    record = json.loads((out / "result.json").read_text())
    assert (record["task"], record["method"]) == ("class_mean", "alignment_uniformity")
    (metric,) = record["metrics"]
    assert metric["value"] == pytest.approx(_by_hand(tmp_path / "au" / "features"))
    again = carryover(site, *words, "--out", str(out))
    assert again.returncode == 0 and "already evaluated" in again.stdout + again.stderr
    other = carryover(site, *words, "distance=cosine", "--out", str(out))
    assert other.returncode == 2 and "distance: euclidean -> cosine" in (other.stdout + other.stderr)


def test_a_misspelt_key_or_name_is_answered_with_the_nearest(
    site: Path, images: Path, tmp_path: Path
) -> None:
    def said(*words: str) -> str:
        done = carryover(site, "recipes", str(tmp_path / "mine.yaml"), *words)
        assert done.returncode == 2
        return re.sub(r"\s+", " ", done.stdout + done.stderr)

    text = (RECIPES / "class_mean.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text)
    assert "unknown key 'distanse'; did you mean 'distance'?" in said("distanse=cosine")
    (tmp_path / "mine.yaml").write_text(text.replace("task: class_mean", "task: class_means"))
    assert "task: no task is called 'class_means'; did you mean 'class_mean'?" in said()


def test_without_the_package_its_names_are_unknown(tmp_path: Path) -> None:
    done = carryover(tmp_path, "recipes", str(RECIPES / "class_mean.yaml"))
    assert done.returncode == 2 and "no task is called 'class_mean'" in done.stdout + done.stderr


def test_a_package_that_cannot_be_imported_is_named_and_harms_nothing_else(
    site: Path, tmp_path: Path
) -> None:
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[carryover.tasks]\nlost = nowhere_at_all:Config\n")
    assert carryover(tmp_path, "recipes", "demo_knn").returncode == 0
    (tmp_path / "lost.yaml").write_text("task: lost\n")
    done = carryover(tmp_path, "recipes", str(tmp_path / "lost.yaml"))
    said = re.sub(r"\s+", " ", done.stdout + done.stderr)
    assert done.returncode == 2
    assert "task 'lost' of broken: importing nowhere_at_all:Config fails: ModuleNotFoundError" in said


def test_alignment_and_uniformity_are_the_papers(site: Path) -> None:
    program = (
        "import sys, torch; sys.path.insert(0, sys.argv[1])\n"
        "from carryover_example.alignment_uniformity import alignment, uniformity\n"
        "g = torch.Generator().manual_seed(0)\n"
        "x, y = (torch.nn.functional.normalize(torch.randn(5, 3, generator=g), dim=1) for _ in range(2))\n"
        "print(x.tolist(), y.tolist(), float(alignment(x, y)), float(uniformity(x, 2.0)), sep='|')\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", program, str(site)], capture_output=True, text=True, check=True
    )
    x, y, aligned, spread = (np.array(json.loads(part)) for part in said.stdout.split("|"))
    assert float(aligned) == pytest.approx(np.mean([((a - b) ** 2).sum() for a, b in zip(x, y)]), rel=1e-5)
    kernel = [np.exp(-2.0 * ((x[i] - x[j]) ** 2).sum()) for i in range(5) for j in range(i)]
    assert float(spread) == pytest.approx(np.log(np.mean(kernel)), rel=1e-5)


def _by_hand(store: Path) -> float:
    """Compute the nearest class mean's accuracy with numpy from what the feature store holds."""
    sets = [(np.load(e / "features.pooled.npy"), np.load(e / "labels.npy")) for e in store.iterdir()]
    (bank, labels), (x, truth) = sorted(sets, key=lambda pair: -len(pair[1]))
    means = np.stack([bank[labels == c].mean(axis=0) for c in range(labels.max() + 1)]).astype(np.float64)
    nearest = np.linalg.norm(x[:, None] - means[None], axis=2).argmin(axis=1)
    return 100 * float((nearest == truth).mean())
