"""The Python API: it imports nothing heavy, leaves a module as it was, and its documentation runs."""

import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import carryover
from carryover.core.data.shapes.write import write_shapes
from carryover.transfer.results.record import load_record

DOCUMENT = Path(__file__).parents[2] / "docs" / "python-api.md"
SMALL = {"image": {"size": 32, "resize": 32}, "precision": "fp32", "workers": 0}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labeled data set."""
    return write_shapes(
        tmp_path_factory.mktemp("api") / "s", n_train=40, n_val=20, n_detection=4
    ).classification


def encoder() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.ReLU())


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import carryover, sys; print(sorted({'torch', 'numpy', 'pydantic', 'yaml'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_name_of_the_api_is_there_and_documented() -> None:
    for name in carryover.__all__:
        value = getattr(carryover, name)
        assert name == "__version__" or value.__doc__, name
    assert set(carryover.__all__) <= set(dir(carryover))
    with pytest.raises(AttributeError, match="no attribute 'pretrian'"):
        carryover.pretrian  # noqa: B018


def test_a_module_is_left_exactly_as_it_was(images: Path) -> None:
    module = encoder()
    module[2].eval()
    module[0].weight.requires_grad_(False)
    module(torch.randn(4, 3, 32, 32)).sum().backward()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    gradients = [None if p.grad is None else p.grad.clone() for p in module.parameters()]
    modes, fixed = [m.training for m in module.modules()], [p.requires_grad for p in module.parameters()]
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002

    for recipe in ("demo_knn", "demo_tsne"):
        more = {"k": [5]} if recipe == "demo_knn" else {"images": 20, "perplexity": 5}
        assert carryover.evaluate(module, recipe, data=images, **SMALL, **more).metrics

    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    for parameter, gradient in zip(module.parameters(), gradients, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)
    assert [m.training for m in module.modules()] == modes
    assert [p.requires_grad for p in module.parameters()] == fixed
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert random.getstate() == states[2]


def test_a_module_and_its_number_are_those_of_the_same_network_from_a_file(
    images: Path, tmp_path: Path
) -> None:
    checkpoint = carryover.pretrain("random_r18", out=tmp_path / "random", **{"augment.view.size": 32})
    arguments = {"data": images, "k": [5], **SMALL}
    from_file = carryover.evaluate(checkpoint, "demo_knn", **arguments)
    network = carryover.load_backbone(checkpoint)
    said = carryover.Given(label="mine", method="random")
    in_memory = carryover.evaluate(network, "demo_knn", said=said, out=tmp_path / "out", **arguments)
    assert in_memory.metrics == from_file.metrics
    kept = load_record(tmp_path / "out" / "result.json")
    assert (kept.checkpoint, kept.backbone, kept.method) == ("<mine>", "mine", "random")
    assert kept == in_memory


def test_other_weights_are_other_work(images: Path, tmp_path: Path) -> None:
    arguments = {"data": images, "k": [5], "out": tmp_path, **SMALL}
    module = encoder()
    carryover.evaluate(module, "demo_knn", **arguments)
    with torch.no_grad():
        module[0].weight += 0.1
    with pytest.raises(carryover.UserError, match="holds another result: backbone: "):
        carryover.evaluate(module, "demo_knn", **arguments)


class _Tuple(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x,)


def test_what_a_module_cannot_be_used_for_is_said(images: Path) -> None:
    with pytest.raises(carryover.UserError, match=r"returned tuple for images .*; expected features"):
        carryover.evaluate(_Tuple(), "demo_knn", data=images, k=[5], **SMALL)
    with pytest.raises(carryover.UserError, match="a finetune recipe trains the network"):
        carryover.evaluate(encoder(), "demo_finetune_10percent", data=images)


def test_a_backbone_declares_its_stages(tmp_path: Path) -> None:
    checkpoint = carryover.pretrain("random_r18", out=tmp_path)
    backbone = carryover.load_backbone(checkpoint)
    maps = backbone.features(torch.zeros(1, 3, 64, 64))
    assert tuple(maps) == backbone.stages and backbone.strides == (4, 4, 8, 16, 32)
    assert tuple(m.shape[1] for m in maps.values()) == backbone.widths
    assert tuple(64 // m.shape[-1] for m in maps.values()) == backbone.strides
    assert torch.equal(backbone.pooled(torch.ones(1, 3, 64, 64)), backbone(torch.ones(1, 3, 64, 64)))


@pytest.mark.slow
def test_the_blocks_of_the_documentation_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.S)
    assert len(blocks) == 6
    done: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(DOCUMENT), "exec"), done)
    assert len(done["frame"]) == 1  # type: ignore[arg-type]
