"""Transformers and ConvNeXts in pretraining: first weights, groups, crops, checkpoints, exact resume."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

timm = pytest.importorskip("timm", reason="timm is not installed")

from carryover.configs import UserError  # noqa: E402
from carryover.core.backbones.interface import Backbone  # noqa: E402
from carryover.core.data.prepared import Batch  # noqa: E402
from carryover.core.formats.state import load_state  # noqa: E402
from carryover.pretrain import trainer  # noqa: E402
from carryover.pretrain.methods import DataFacts, Method, Moment, build_method  # noqa: E402
from carryover.pretrain.methods.contrastive import MoCoV3  # noqa: E402
from carryover.pretrain.optim import build_optimizer  # noqa: E402
from carryover.pretrain.target import MomentumEncoder  # noqa: E402
from carryover.pretrain.trainer import train  # noqa: E402
from tests.interrupting import in_two_parts  # noqa: E402
from tests.pretrain.test_trainer import _same  # noqa: E402
from tests.pretrain.tiny import recipe, write_images  # noqa: E402

ADAMW = "optimizer={name: adamw, base_lr: 0.01, lr_per: 256}"
VIT = ("backbone={arch: timm/test_vit, patch_size: 4}", "augment.view.size=16", ADAMW)
CONVNEXT = ("backbone={arch: timm/test_convnext, patch_size: 2}", "augment.view.size=32", ADAMW)
FROZEN = "transformer={init: moco_v3, positions: sincos, frozen_patch_embed: true}"
TWO_VIEWS = "projector={depth: 2, hidden: 12, out: 6, norm: batch, norm_last: true}"
METHODS = {
    "unigrad": ("unigrad",),
    "simo": ("simo",),
    "sqrtkl": ("sqrtkl",),
    "simclr": ("simo", "method={name: simclr}", TWO_VIEWS),
    "byol": ("simo", "method={name: byol, predictor: {hidden: 12}}", TWO_VIEWS),
    "moco_v3": ("simo", "method={name: moco_v3, predictor: {hidden: 12, output_norm: true}}", TWO_VIEWS),
    "vicreg": ("simo", "method={name: vicreg}", TWO_VIEWS),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


def _built(name: str, *overrides: str) -> Method:
    base, *own = METHODS[name]
    return build_method(recipe(base, None, [*own, *overrides]), DataFacts(8, None))


def _inner(method: Method) -> Any:
    return method.online.backbone.inner


@pytest.mark.parametrize("network", [VIT, CONVNEXT], ids=["vit", "convnext"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_it_and_its_checkpoint_is_the_trained_network(
    name: str, network: tuple[str, ...], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, *own = METHODS[name]
    config = recipe(base, images, [*own, *network, "schedule={epochs: 1, warmup_epochs: 0.5}"])
    built: list[Method] = []
    real = trainer.build_method
    monkeypatch.setattr(trainer, "build_method", lambda *given: built.append(real(*given)) or built[-1])
    start = {n: v.clone() for n, v in real(config, DataFacts(40, None)).online.backbone.state_dict().items()}
    path = train(config, tmp_path / "out")
    carried, trained = Backbone.of(path), built[0].online.backbone.eval()
    x = torch.rand(2, 3, config.augment.view.size, config.augment.view.size)
    with torch.no_grad():
        assert carried.pooled(x).equal(trained(x))
        for stage, found in carried.features(x).items():
            assert found.equal(trained.feature_maps(x)[stage])
    metadata = carried.metadata
    assert (metadata.backbone.arch, metadata.norm) == (config.backbone.arch, "own")
    assert metadata.input_size == config.augment.view.size
    moved = [n for n, v in trained.state_dict().items() if not v.equal(start[n])]
    assert len(moved) == len(start)


def test_positions_are_those_of_the_recipes_crops(images: Path) -> None:
    inner = _inner(_built("unigrad", *VIT))
    assert inner.pos_embed.shape == (1, 1 + 16, 64)
    assert inner.patch_embed.proj.kernel_size == (4, 4)
    # A size that is stated stays: positions are interpolated to the crops.
    stated = "backbone={arch: timm/test_vit, patch_size: 4, input_size: 32}"
    assert _inner(_built("unigrad", *VIT, stated)).pos_embed.shape == (1, 1 + 64, 64)


def test_local_crops_are_interpolated_once_a_step_and_global_ones_never(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    local = "augment={views: multicrop, local: {count: 6, view: {size: 8, scale: [0.05, 0.4]}}}"
    method = _built("unigrad", *VIT, local)
    sizes: list[tuple[int, int]] = []
    real = torch.nn.functional.interpolate

    def counted(x: Tensor, size: tuple[int, int], **options: Any) -> Tensor:
        sizes.append(tuple(size))
        return real(x, size=size, **options)

    monkeypatch.setattr(timm.layers.pos_embed.F, "interpolate", counted)
    views = [torch.randn(4, 3, side, side) for side in (16, 16, *[8] * 6)]
    method(Batch(torch.arange(4), views, None), Moment(0, 10, torch.Generator().manual_seed(0)))
    assert sizes == [(2, 2)]


def test_fixed_positions_are_moco_v3s() -> None:
    inner = _inner(_built("moco_v3", *VIT, FROZEN))
    # vits.py of MoCo v3, build_2d_sincos_position_embedding.
    grid_w, grid_h = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    omega = 1.0 / 10000 ** (torch.arange(16.0) / 16)
    out_w, out_h = grid_w.flatten()[:, None] * omega, grid_h.flatten()[:, None] * omega
    patches = torch.cat([out_w.sin(), out_w.cos(), out_h.sin(), out_h.cos()], dim=1)
    wanted = torch.cat([torch.zeros(1, 64), patches])
    torch.testing.assert_close(inner.pos_embed[0], wanted)
    assert not inner.pos_embed.requires_grad


def test_first_weights_are_moco_v3s() -> None:
    inner = _inner(_built("moco_v3", *VIT, FROZEN))
    width = 64
    for name, module in inner.named_modules():
        if isinstance(module, nn.Linear):
            out = module.out_features // 3 if "qkv" in name else module.out_features
            bound = math.sqrt(6 / (out + module.in_features))
            assert 0.95 * bound < module.weight.abs().max() <= bound, name
            assert not module.bias.any(), name
    projection = inner.patch_embed.proj
    bound = math.sqrt(6 / (3 * 16 + width))
    assert 0.95 * bound < projection.weight.abs().max() <= bound
    assert not projection.bias.any()
    assert inner.cls_token.abs().max() < 1e-5


def test_what_is_frozen_does_not_move(images: Path, tmp_path: Path) -> None:
    base, *own = METHODS["moco_v3"]
    config = recipe(base, images, [*own, *VIT, FROZEN])
    before = build_method(config, DataFacts(40, None)).online.backbone.state_dict()
    after = Backbone.of(train(config, tmp_path / "out")).network.state_dict()
    still = {name for name, value in before.items() if value.equal(after[name])}
    assert still == {"pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}


def test_moco_v3_has_the_loss_and_the_gradient_of_its_code() -> None:
    method = _built("moco_v3", *VIT).double()
    assert isinstance(method, MoCoV3) and isinstance(method.target, MomentumEncoder)
    network: Any = method.target.network
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    generator = torch.Generator().manual_seed(0)
    x1, x2 = (torch.randn(6, 3, 16, 16, generator=generator, dtype=torch.float64) for _ in range(2))

    def contrastive_loss(q: Tensor, k: Tensor) -> Tensor:
        logits = torch.einsum("nc,mc->nm", normalize(q, dim=1), normalize(k, dim=1)) / 0.2
        return cross_entropy(logits, torch.arange(6)) * (2 * 0.2)

    q1, q2 = (method.predictor(method.online(x)) for x in (x1, x2))
    with torch.no_grad():
        k1, k2 = network(x1), network(x2)
    wanted = contrastive_loss(q1, k2) + contrastive_loss(q2, k1)
    found = method(Batch(torch.arange(6), [x1, x2], None), Moment(0, 10, torch.Generator())).loss
    torch.testing.assert_close(found, wanted)
    parameters = [p for p in method.parameters() if p.requires_grad]
    for a, b in zip(torch.autograd.grad(found, parameters), torch.autograd.grad(wanted, parameters)):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11)


def test_tokens_positions_norms_and_biases_are_not_decayed_and_not_adapted() -> None:
    for optimizer in (ADAMW, "optimizer={name: lars, base_lr: 0.1}"):
        config = recipe("unigrad", None, [*VIT, optimizer])
        method = build_method(config, DataFacts(8, None))
        groups = build_optimizer(config.optimizer, method, 0.1).param_groups
        names = {id(p): name.partition("inner.")[2] or name for name, p in method.named_parameters()}
        exempt = {names[id(p)] for g in groups for p in g["params"] if not g["weight_decay"]}
        assert {"cls_token", "pos_embed", "norm.weight", "patch_embed.proj.bias"} <= exempt
        assert "blocks.0.attn.qkv.weight" not in exempt and "patch_embed.proj.weight" not in exempt
        assert all(not g["adapt"] for g in groups if not g["weight_decay"])


def test_adamw_is_torchs_with_the_recipes_numbers() -> None:
    numbers = "betas: [0.8, 0.95], weight_decay: 0.3, decay_norm_and_bias: true"
    config = recipe("unigrad", None, [*VIT, f"optimizer={{name: adamw, base_lr: 0.01, {numbers}}}"])
    ours, theirs = (build_method(config, DataFacts(8, None)).online for _ in range(2))
    optimizer = build_optimizer(config.optimizer, ours, config.peak_lr)
    reference = torch.optim.AdamW(theirs.parameters(), lr=config.peak_lr, betas=(0.8, 0.95), weight_decay=0.3)
    for step in range(3):
        for network in (ours, theirs):
            generator = torch.Generator().manual_seed(step)
            for p in network.parameters():
                p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
        reference.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["unigrad", "moco_v3", "sqrtkl"])
def test_an_interrupted_run_is_that_of_one_never_interrupted(
    name: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, *own = METHODS[name]
    dropped = "backbone={arch: timm/test_vit, patch_size: 4, drop_path: 0.3}"
    config = recipe(base, images, [*own, *VIT, dropped, FROZEN])
    whole = train(config, tmp_path / "whole")
    in_two_parts(lambda: train(config, tmp_path / "parts"), 7, monkeypatch)
    states = [load_state(path / "checkpoint.pt") for path in (whole.parent, tmp_path / "parts")]
    for state in states:
        assert state is not None
        state.pop("seconds")
    _same(*states)


def test_stochastic_depth_is_off_unless_the_recipe_states_it() -> None:
    # timm's Swin has 0.1 of its own.
    for arch in ("test_vit", "swin_tiny_patch4_window7_224"):
        for rate in (0.0, 0.2):
            stated = f", drop_path: {rate}" if rate else ""
            network = f"backbone={{arch: timm/{arch}, patch_size: 2{stated}}}"
            method = _built("unigrad", network, "augment.view.size=32", ADAMW)
            found = [m.drop_prob for m in method.online.modules() if type(m).__name__ == "DropPath"]
            assert max(found, default=0.0) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["augment.view.size=18"], r"augment\.view\.size: 18 px is no multiple .* 4 px; choose 16"),
        (
            ["augment={views: multicrop, local: {count: 1, view: {size: 7}}}"],
            r"augment\.local\.view\.size: 7 px .* choose 8",
        ),
        (["zero_init_residual=true"], r"zero_init_residual .* timm/test_vit: set it to false"),
        (["backbone={arch: timm/test_vit, stem: cifar}"], "stem cifar .* set patch_size"),
        (["backbone={arch: resnet18, patch_size: 4}"], "patch_size is defined for models of timm"),
        (["backbone={arch: timm/test_resnet, patch_size: 4}"], r"backbone\.patch_size: .*leave it out"),
        (["backbone={arch: resnet18}", FROZEN], "transformer is for vision transformers .*transformer: null"),
        (
            [
                "backbone={arch: timm/mixer_s16_224}",
                "augment={views: multicrop, view: {size: 224}, local: {count: 1, view: {size: 96}}}",
            ],
            r"augment\.local\.view\.size: .* one size, here 224 px, not of 96",
        ),
        (["backbone={arch: timm/test_convnext}", FROZEN], "test_convnext is no plain vision transformer"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_key_and_the_way(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        _built("unigrad", *(VIT[1:] if "backbone" in overrides[0] else VIT), *overrides)
