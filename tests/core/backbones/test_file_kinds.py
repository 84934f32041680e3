"""Folders, shards, wrappers of other libraries: read where they hold a network, else refused truthfully."""

import gzip
import json
import os
import pickle
import resource
import struct
import sys
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from carryover.configs import UserError
from carryover.core.backbones.importers import import_checkpoint, take_backbone
from carryover.core.backbones.inspection import inspect_checkpoint, live_backbone
from carryover.core.backbones.reading import read_contents
from carryover.core.backbones.shapes_only import shapes_only
from carryover.core.backbones.source import open_source
from carryover.core.backbones.timm_network import library
from carryover.core.backbones.torch_file import read_legacy
from carryover.core.formats.checkpoint_files import sha256_checkpoint
from carryover.transfer.convert import convert
from carryover.transfer.tasks.evaluate import canonical_of
from tests.core.backbones.layouts import State, backbone_of, network, prefixed
from tests.core.backbones.makers_networks import randomized
from tests.core.backbones.transformers_names import KINDS, Kind


@pytest.fixture
def backbone() -> State:
    """A whole ResNet-18."""
    return backbone_of(network(1))


def same(path: Path, backbone: State, encoder: str | None = None) -> bool:
    state, _ = import_checkpoint(path, encoder)
    return state.keys() == backbone.keys() and all(torch.equal(state[n], backbone[n]) for n in backbone)


def norm_epsilon(model: nn.Module) -> float | None:
    """The epsilon of a network's layer norms."""
    return next((m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)), None)


@pytest.mark.parametrize("name", KINDS)
def test_transformers_networks_are_timms(name: str, tmp_path: Path) -> None:
    kind: Kind = KINDS[name]
    model = randomized(timm.create_model(kind.timm, num_classes=0, **kind.options))
    state = prefixed(kind.prefix, kind.rename(dict(model.state_dict())))
    state |= {"classifier.weight": torch.randn(2, 3), "classifier.bias": torch.randn(2)}
    save_file({n: v.contiguous() for n, v in state.items()}, tmp_path / "model.safetensors")
    side = kind.options.get("img_size", 224)
    (tmp_path / "config.json").write_text(json.dumps(kind.config | {"image_size": side}))
    normalized = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "size": {"height": 112}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(normalized))
    taken = take_backbone(tmp_path)
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(live_backbone(taken).eval()(images), model(images), atol=1e-5, rtol=1e-5)
    about = taken.metadata
    assert about.maker == "Hugging Face transformers"
    assert (about.pixel_mean, about.input_size) == ((0.5, 0.5, 0.5), 112)
    assert "heads" not in about.assumed
    assert about.backbone.heads is None
    assert inspect_checkpoint(tmp_path).coverage == 1.0
    if name == "ViTMAE":
        assert about.method == "MAE"
    # The epsilon is timm's, and where transformers computes with another, that is said.
    beside = kind.config | {"image_size": side}
    for epsilon in (norm_epsilon(model), 1e-12):
        (tmp_path / "config.json").write_text(json.dumps(beside | {"layer_norm_eps": epsilon}))
        told = any("epsilon of 1e-12" in note for note in inspect_checkpoint(tmp_path).notes)
        assert told == (epsilon == 1e-12 and norm_epsilon(model) not in (None, 1e-12))


def test_dinov3_biases_that_are_not_zero_decide_the_model(tmp_path: Path) -> None:
    kind = KINDS["DINOv3ViT"]
    state = kind.rename(dict(randomized(timm.create_model(kind.timm, num_classes=0)).state_dict()))
    torch.save(state, tmp_path / "c.pth")
    assert take_backbone(tmp_path / "c.pth").metadata.backbone.arch.endswith("dinov3_qkvb")
    zeros = {
        n: torch.zeros_like(v) if n.endswith(("q_proj.bias", "v_proj.bias")) else v for n, v in state.items()
    }
    torch.save(zeros, tmp_path / "c.pth")
    assert take_backbone(tmp_path / "c.pth").metadata.backbone.arch == "timm/vit_small_patch16_dinov3"


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_are_one_checkpoint(suffix: str, backbone: State, tmp_path: Path) -> None:
    names, stem = list(backbone), "model" if suffix == "safetensors" else "pytorch_model"
    placed: dict[str, str] = {}
    for number in (1, 2, 3):
        file = f"{stem}-{number:05}-of-00003.{suffix}"
        part = {n: backbone[n].contiguous() for n in names[number - 1 :: 3]}
        placed |= dict.fromkeys(part, file)
        save_file(part, tmp_path / file) if suffix == "safetensors" else torch.save(part, tmp_path / file)
    index = tmp_path / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    for given in (tmp_path, index, tmp_path / f"{stem}-00002-of-00003.{suffix}"):
        assert same(given, backbone)
    source = open_source(canonical_of(tmp_path, tmp_path / "out"))
    assert torch.equal(source.backbone.state_dict()["conv1.weight"], backbone["conv1.weight"])
    before = sha256_checkpoint(tmp_path)
    receipt = convert(tmp_path, "canonical", tmp_path / "out" / "c.safetensors")
    assert receipt.source.sha256 == before
    shard = tmp_path / f"{stem}-00003-of-00003.{suffix}"
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"00003-of-00003\.\w+: (not a whole|truncated or damaged)"):
        read_contents(tmp_path)
    shard.unlink()
    with pytest.raises(
        UserError, match=rf"1 of 3 shards are not there: '{stem}-00003-of-00003.{suffix}' \(40 of"
    ):
        read_contents(tmp_path)
    index.unlink()
    with pytest.raises(UserError, match=r"shard 2 of 3; expected '.*index\.json' beside it"):
        read_contents(tmp_path / f"{stem}-00002-of-00003.{suffix}")


def sparse_shards(folder: Path, state: State, count: int) -> None:
    """Write shards of these shapes whose values are holes in the files."""
    placed, names = {}, list(state)
    for number in range(count):
        file, header, end = f"model-{number + 1:05}-of-{count:05}.safetensors", {}, 0
        for name in names[number::count]:
            size = state[name].numel() * 4
            header[name] = {
                "dtype": "F32",
                "shape": list(state[name].shape),
                "data_offsets": [end, end + size],
            }
            placed[name], end = file, end + size
        text = json.dumps(header).encode()
        (folder / file).write_bytes(len(text).to_bytes(8, "little") + text)
        os.truncate(folder / file, 8 + len(text) + end)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))


def test_seven_billion_parameters_are_inspected_by_their_headers(tmp_path: Path) -> None:
    with shapes_only():
        model = library().create_model("vit_7b_patch16_dinov3", num_classes=0)
    sparse_shards(tmp_path, KINDS["DINOv3ViT"].rename(dict(model.state_dict())), 6)
    config = {"model_type": "dinov3_vit", "num_attention_heads": 32, "image_size": 224}
    (tmp_path / "config.json").write_text(json.dumps(config))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seen = inspect_checkpoint(tmp_path)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20 < 1
    assert seen.metadata.backbone.arch == "timm/vit_7b_patch16_dinov3"
    assert seen.coverage == 1.0
    assert "its values (26.9 GB) were not read: convert and evaluate check them" in seen.notes
    assert len(seen.report().splitlines()) <= 12


def two_ranks(rank: int, folder: str, port: int) -> None:
    """Write what two processes leave that train a model with FSDP."""
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType, fully_shard

    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    model = fully_shard(network(1), mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), 0.0, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = {"model": model.state_dict(), "optim": optimizer.state_dict(), "epoch": 3}
    torch.save(state, f"{folder}/fsdp2-{rank}.pth")
    dcp.save(state, checkpoint_id=f"{folder}/dcp")
    older = FullyShardedDataParallel(network(1), device_id=torch.device("cpu"))
    with FullyShardedDataParallel.state_dict_type(older, StateDictType.SHARDED_STATE_DICT):
        torch.save(older.state_dict(), f"{folder}/fsdp1-{rank}.pth")
    torch.save({"model": {"blocks.0._flat_param": torch.zeros(9)}}, f"{folder}/flat-{rank}.pth")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_distributed_folder_is_read_and_a_ranks_file_refused(backbone: State, tmp_path: Path) -> None:
    import socket

    import torch.multiprocessing as multiprocessing

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(two_ranks, (str(tmp_path), port), nprocs=2)
    for given in (tmp_path / "dcp", tmp_path / "dcp" / ".metadata", tmp_path / "dcp" / "__1_0.distcp"):
        assert same(given, backbone)
    seen = inspect_checkpoint(tmp_path / "dcp")
    assert seen.metadata.epochs == 3
    assert {f.reason for f in seen.fates if ".momentum_buffer" in f.source} == {"training state"}
    refused = {
        "fsdp2": r"'model\.conv1\.weight' is a DTensor of one rank \[Shard\(0\)\], \(32, 3, 7, 7\) of \(64",
        "fsdp1": r"'conv1\.weight' is a ShardedTensor of one rank",
        "flat": r"'model\.blocks\.0\._flat_param' is a flat parameter.*FULL_STATE_DICT",
    }
    for name, message in refused.items():
        with pytest.raises(UserError, match=message):
            read_contents(tmp_path / f"{name}-0.pth")
    with pytest.raises(UserError, match=r"full_state_dict=True.*dcp_to_torch"):
        read_contents(tmp_path / "fsdp2-1.pth")
    (tmp_path / "dcp" / "__1_0.distcp").unlink()
    with pytest.raises(UserError, match=r"1 of 2 files are not there: '__1_0\.distcp'"):
        read_contents(tmp_path / "dcp")


def of_module(name: str, kind: str, base: type = object, **members: Any) -> Any:
    """A class of a module that is importable only while a file is written."""
    return type(kind, (base,), {"__module__": name, "__qualname__": kind, **members})


def bookkeeping() -> dict[str, Any]:
    """What trainings leave beside the tensors, by classes that nobody has installed."""
    made = {
        "lightning": of_module("nobody.callbacks", "ModelCheckpoint")(),
        "config": of_module("nobody.config", "ConfigDict", dict)(lr=0.3, inner={"arch": "resnet18"}),
        "history": of_module("nobody.history", "HistoryBuffer", list)([1.0, 2.0]),
        "plain": of_module("nobody.plain", "Args")(),
        "partial": of_module("nobody.plain", "Run")(),
    }
    made["plain"].lr, made["plain"].nested = 0.1, made["config"]
    made["partial"].network = network(2)
    return made


@pytest.mark.parametrize("writer", ["torch", "legacy", "protocol 4", "pickle"])
def test_classes_that_nobody_has_are_never_imported(
    writer: str, backbone: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = bookkeeping()
    for value in extra.values():
        module = ModuleType(type(value).__module__)
        for other in extra.values():
            if type(other).__module__ == module.__name__:
                setattr(module, type(other).__name__, type(other))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(sys.modules, "nobody", ModuleType("nobody"))
    content = {
        "state_dict": prefixed("backbone.", backbone),
        "hyper_parameters": extra,
        "pytorch-lightning_version": "2.6.6",
        "random": np.random.RandomState(0).get_state(),
        "generator": np.random.default_rng(0),
        "path": tmp_path,
        "epoch": 4,
    }
    path = tmp_path / "c.ckpt"
    if writer == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        options = {
            "torch": {},
            "legacy": {"_use_new_zipfile_serialization": False},
            "protocol 4": {"pickle_protocol": 4},
        }
        torch.save(content, path, **options[writer])  # type: ignore[arg-type]
    monkeypatch.undo()
    assert same(path, backbone)
    assert not any(name.startswith("nobody") for name in sys.modules)
    read = read_contents(path)
    assert read.configuration["hyper_parameters.config.lr"] == 0.3
    assert read.configuration["hyper_parameters.plain.nested.inner.arch"] == "resnet18"
    assert read.entries["path"] == str(tmp_path)
    # A network among the settings is the one that the training began with.
    assert not any(name.startswith("hyper_parameters") for name in read.tensors)


def test_paths_of_python_313_and_arrays_of_both_numpys_are_read(backbone: State, tmp_path: Path) -> None:
    torch.save({"model": backbone, "p": tmp_path, "a": np.arange(3.0)}, tmp_path / "c.pth")
    changes = {b"cpathlib\nPosixPath": b"cpathlib._local\nPosixPath", b"cnumpy._core.": b"cnumpy.core."}
    with zipfile.ZipFile(tmp_path / "c.pth") as old, zipfile.ZipFile(tmp_path / "n.pth", "w") as new:
        for info in old.infolist():
            data = old.read(info)
            if info.filename.endswith("data.pkl"):
                for before, after in changes.items():
                    assert before in data
                    data = data.replace(before, after)
            new.writestr(info.filename, data)
    read = read_contents(tmp_path / "n.pth")
    assert read.entries["p"] == str(tmp_path)
    assert read.tensors["a"].tolist() == [0, 1, 2]
    assert same(tmp_path / "n.pth", backbone)


WRAPPED: dict[str, Callable[[str], str]] = {
    "torch.compile of a block": lambda n: n.replace("layer2.", "layer2._orig_mod."),
    "FSDP": lambda n: "_fsdp_wrapped_module." + n.replace("layer3.0.", "layer3.0._fsdp_wrapped_module."),
    "activation checkpointing": lambda n: n.replace("layer1.1.", "layer1.1._checkpoint_wrapped_module."),
    "DDP of a block": lambda n: n.replace("layer4.", "layer4.module."),
    "all of them": lambda n: f"module._orig_mod.{n.replace('layer1.0.', 'layer1.0.module._orig_mod.')}",
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_words_of_wrappers_are_seen_through_wherever_they_are(
    wrapper: str, backbone: State, tmp_path: Path
) -> None:
    torch.save({"model": {WRAPPED[wrapper](n): v for n, v in backbone.items()}}, tmp_path / "c.pth")
    assert same(tmp_path / "c.pth", backbone)
    fates = inspect_checkpoint(tmp_path / "c.pth").fates
    assert {fate.source for fate in fates} == {f"model.{WRAPPED[wrapper](n)}" for n in backbone}


def odd_files(folder: Path, backbone: State) -> dict[str, tuple[Path, str | None]]:
    """Files that people have, and why each is refused; None: it is read."""
    found: dict[str, tuple[Path, str | None]] = {}

    def write(name: str, why: str | None, content: bytes | Callable[[Path], object]) -> None:
        path = folder / name
        path.write_bytes(content) if isinstance(content, bytes) else content(path)
        found[name] = (path, why)

    whole = {n: v.contiguous() for n, v in backbone.items()}
    arrays = {n: v.numpy() for n, v in backbone.items()}
    parameters = {n: nn.Parameter(v, requires_grad=v.is_floating_point()) for n, v in backbone.items()}
    write("parameters.pth", None, lambda p: torch.save({"net": parameters}, p))
    write("pickled.pkl", None, lambda p: p.write_bytes(pickle.dumps({"model": backbone})))
    write("arrays.pkl", None, lambda p: p.write_bytes(pickle.dumps(arrays, protocol=5)))
    write("pair.pth", None, lambda p: torch.save((backbone, {"lr": 0.1}), p))
    write(
        "ema.pth", None, lambda p: torch.save({"model": None, "ema": {"module": backbone}, "updates": 9}, p)
    )
    write(
        "named.safetensors.pth",
        None,
        lambda p: save_file(whole, p),
    )
    write("c.pth.gz", "compressed file .*`gzip -dk", gzip.compress(b"x" * 600))
    write("graph.onnx", "an ONNX graph", b"\x08\x08\x12\x07pytorch\x1a\x052.1.0" + bytes(50))
    # As onnx.helper writes one, as Keras' converter does, and the values that torch puts beside.
    write("helper.bin", "an ONNX graph", b"\x08\x0e:9\n\x10\n\x01w" + bytes(50))
    write("keras.bin", "an ONNX graph", b"\x08\x0e\x12\nkeras2onnx:9" + bytes(50))
    write("graph.onnx.data", "the values of an ONNX graph", b"P;\xa3<G\xbc" + bytes(50))
    write("weights.h5", "HDF5", b"\x89HDF\r\n\x1a\n" + bytes(600))
    write("one.npy", "one array of numpy's", lambda p: np.save(p, np.ones(3)))
    write("state.bin", "flax's msgpack.*msgpack_restore", b"\x81\xa6params\x81" + bytes(50))
    write("manifest.ocdbt", "a part of a checkpoint of JAX's Orbax", b"\x0c\xdb:*q" + bytes(50))
    parts = {"ds_version": "0.19.8", "mp_world_size": 1, "ds_config": {}}
    empty = {name: torch.empty(0) for name in backbone}
    write("whole.pt", None, lambda p: torch.save({"module": backbone, **parts}, p))
    write(
        "zero_pp_rank_0_mp_rank_00_model_states.pt",
        r"ZeRO stage 3, whose tensors are empty; .*`python .*zero_to_fp32\.py",
        lambda p: torch.save({"module": empty, **parts}, p),
    )
    flat = {"optimizer_state_dict": {"fp32_flat_groups": [torch.ones(9)]}, "ds_version": "0.19.8"}
    write("optim.pt", r"optimizer states of one rank \(ZeRO\)", lambda p: torch.save(flat, p))
    write(
        "mp_rank_01_model_states.pt",
        "one of 2 parts of a model that is split among its ranks",
        lambda p: torch.save({"module": backbone, **parts, "mp_world_size": 2}, p),
    )
    write(
        "jax.npz",
        r"timm reads JAX's weights: `python -c",
        lambda p: np.savez(p, **{"Transformer/a": np.zeros(3)}),
    )
    write("model.gguf", "GGUF", b"GGUF\x03" + bytes(50))
    write("flax_model.msgpack", "flax's msgpack", b"\x81\xa6params" + bytes(50))
    write("model.ckpt.index", "a file of TensorFlow", b"\x00\x00\x01\x02" + bytes(50))
    write("config.json", "JSON, not a checkpoint", b'{"architectures": []}')
    write("one.pth", "holds a Tensor, expected a dictionary", lambda p: torch.save(torch.zeros(3), p))

    def zipped(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("weights/resnet.pth", b"0")

    def keras(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("model.weights.h5", b"0")

    def packed(path: Path) -> None:
        (folder / "inner.pth").write_bytes(b"0")
        with tarfile.open(path, "w") as archive:
            archive.add(folder / "inner.pth", "inner.pth")

    def of_2016(path: Path) -> None:
        with tarfile.open(path, "w") as archive:
            for name in ("sys_info", "pickle", "tensors", "storages"):
                archive.add(folder / "inner.pth", name)

    write("download.zip", r"a zip archive with 'weights/resnet\.pth'.*`unzip", zipped)
    write("model.keras", "Keras 3 archive", keras)
    write("weights.tar", r"a tar archive with 'inner\.pth'.*`tar -xf", packed)
    write("old.tar", "torch's layout of 2016", of_2016)
    return found


def test_odd_files_are_read_or_refused_for_what_they_are(backbone: State, tmp_path: Path) -> None:
    for name, (path, why) in odd_files(tmp_path, backbone).items():
        if why is None:
            assert same(path, backbone), name
            continue
        with pytest.raises(UserError, match=why) as refused:
            read_contents(path)
        assert str(path) in str(refused.value)


FOLDERS = {
    "DeepSpeed": (["zero_to_fp32.py", "latest"], r"python .*zero_to_fp32\.py"),
    "a step of DeepSpeed": (
        ["mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"],
        r"one step's folder of DeepSpeed.*zero_to_fp32\.py.*or name .*mp_rank_00_model_states\.pt",
    ),
    "ZeRO stage 3": (
        ["zero_pp_rank_0_mp_rank_00_model_states.pt", "zero_pp_rank_1_mp_rank_00_model_states.pt"],
        r"one step's folder of DeepSpeed.*zero_to_fp32\.py \S+ OUT`$",
    ),
    "Orbax": (["manifest.ocdbt", "_METADATA"], "JAX's Orbax .*StandardCheckpointer"),
    "Orbax by step": (["5/default/manifest.ocdbt"], r"JAX's Orbax \(.*5/default\)"),
    "TensorFlow": (["saved_model.pb"], "a folder of TensorFlow"),
    "several": (["a.pth", "b.pth"], "a folder with 'a.pth', 'b.pth'; name one of them"),
    "none": (["notes.txt"], "a folder with 'notes.txt'; expected"),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_folders_without_one_checkpoint_say_what_would_do(kind: str, tmp_path: Path) -> None:
    names, message = FOLDERS[kind]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"0")
    with pytest.raises(UserError, match=message):
        take_backbone(tmp_path)


def test_the_only_checkpoint_of_a_folder_is_taken(backbone: State, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    torch.save(backbone, tmp_path / "checkpoints" / "last.ckpt")
    assert same(tmp_path, backbone)
    assert same(tmp_path / "checkpoints", backbone)


def test_values_are_mapped_and_not_written_back(backbone: State, tmp_path: Path) -> None:
    torch.save(backbone, tmp_path / "c.pth")
    before = (tmp_path / "c.pth").read_bytes()
    read: dict[str, Tensor] = dict(read_contents(tmp_path / "c.pth").tensors)
    read["conv1.weight"].zero_()
    assert (tmp_path / "c.pth").read_bytes() == before


def test_a_word_of_lightning_does_not_make_the_method(backbone: State, tmp_path: Path) -> None:
    state = prefixed("backbone.", backbone)
    file = {"state_dict": state, "pytorch-lightning_version": "2.6.6", "epoch": 1}
    torch.save(file, tmp_path / "c.ckpt")
    assert inspect_checkpoint(tmp_path / "c.ckpt").maker == "PyTorch Lightning"
    file["state_dict"] = state | {"classifier.weight": torch.zeros(2, 3)}
    torch.save(file, tmp_path / "c.ckpt")
    assert inspect_checkpoint(tmp_path / "c.ckpt").maker == "solo-learn"


class _Stored:
    """Is written as a tensor of the first torches: a part of a storage that is a part of another."""

    def __init__(self, part: tuple[str, int, int] | None, offset: int, size: int) -> None:
        self.identifier = ("storage", torch.FloatStorage, "0", "cpu", 6, part)
        self.where = (offset, (size,), (1,))

    def __reduce__(self) -> tuple[object, ...]:
        return torch._utils._rebuild_tensor_v2, (_Named(self.identifier), *self.where, False, OrderedDict())


class _Named:
    def __init__(self, identifier: tuple[object, ...]) -> None:
        self.identifier = identifier


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: object) -> object:
        return obj.identifier if isinstance(obj, _Named) else None


def test_storages_that_are_parts_of_others_are_torchs(tmp_path: Path) -> None:
    """Files of torch before 0.4: offsets count from the beginning of the part."""
    path = tmp_path / "old.pth"
    sizes = {"short": 2, "int": 4, "long": 4}
    with path.open("wb") as file:
        pickle.dump(0x1950A86A20F9469CFC6C, file, 2)
        pickle.dump(1001, file, 2)
        pickle.dump({"protocol_version": 1001, "little_endian": True, "type_sizes": sizes}, file, 2)
        _Pickler(file, 2).dump({"whole": _Stored(None, 0, 6), "part": _Stored(("1", 2, 3), 1, 2)})
        pickle.dump(["0"], file, 2)
        file.write(struct.pack("<q6f", 6, *range(6)))
    found, expected = read_legacy(path), torch.load(path, weights_only=False)
    assert isinstance(found, dict) and found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert found["part"].tolist() == [3.0, 4.0]
