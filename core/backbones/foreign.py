"""Identify files that are not checkpoints of torch or safetensors, and say how to convert them."""

import re
import zipfile
from pathlib import Path

from carryover.configs import UserError
from carryover.core.formats.checkpoint_files import ORBAX

_COMPRESSED = {
    b"\x1f\x8b": "gzip -dk",
    b"BZh": "bzip2 -dk",
    b"\xfd7zXZ": "xz -dk",
    b"\x28\xb5\x2f\xfd": "zstd -dk",
}
_TAR_MAGIC = slice(257, 262)
# The version of its format, then its producer, graph or operators: the first fields of ONNX's ModelProto.
_ONNX = re.compile(rb"\x08[\x03-\x20]([\x12\x1a].[ -~]|\x3a|\x42)", re.DOTALL)
# A map of text, as flax writes its states.
_MSGPACK = re.compile(rb"([\x81-\x8f]|\xde..)[\xa1-\xbf][ -~]", re.DOTALL)
_KERAS = "its weights are in Keras' layout: save them from a port of the network to torch"


def foreign(head: bytes, path: Path) -> str:
    """Return what a file is by its first bytes, and how a checkpoint is made of it where it can be."""
    text = head.lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself (run `git lfs pull`)"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, not a checkpoint (a download that failed?)"
    if path.name in ("manifest.ocdbt", "_METADATA", "_CHECKPOINT_METADATA", "_sharding"):
        return f"a part of {ORBAX.format(path.parent)}"
    if text.startswith((b"{", b"[")):
        return "JSON, not a checkpoint (give the folder that it lies in, or the file of the weights)"
    for magic, command in _COMPRESSED.items():
        if head.startswith(magic):
            unpack = f"tar -xf {path}" if re.search(r"\.(tar\.\w+|tgz)$", path.name) else f"{command} {path}"
            return f"a compressed file (unpack it first: `{unpack}`)"
    if head[_TAR_MAGIC] == b"ustar":
        return _tar(path)
    if head.startswith(b"\x89HDF"):
        return f"an HDF5 file (Keras); {_KERAS}"
    if head.startswith(b"GGUF"):
        return "a GGUF file of llama.cpp, whose values are quantized"
    if path.name.endswith((".onnx.data", ".onnx_data")):
        return "the values of an ONNX graph, without names; take the checkpoint that was exported"
    if path.suffix == ".onnx" or _ONNX.match(head):
        return (
            "an ONNX graph, whose weights may be renamed and folded; take the checkpoint that it was exported"
            " from"
        )
    if head.startswith(b"\x93NUMPY"):
        return "one array of numpy's, without a name; save all of them by name with torch.save"
    if path.suffix == ".msgpack" or _MSGPACK.match(head):
        return (
            "flax's msgpack; load it with transformers' from_pretrained(FOLDER, from_flax=True) (up to 4.x)"
            " and save_pretrained, or, of any other maker, with flax.serialization.msgpack_restore, and save"
            " its arrays under the names of a port to torch"
        )
    if set(head) == {0}:
        return "a file of zeros (an interrupted copy?)"
    return f"not a checkpoint (it begins with {head[:8]!r})"


def not_torch_archive(path: Path) -> str:
    """Return what a zip archive is that torch.save did not write."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if names and all(name.endswith(".npy") for name in names):
        return (
            f"a .npz of arrays ('{names[0].removesuffix('.npy')}', ...): timm reads JAX's weights: `python -c"
            ' "import timm; from safetensors.torch import save_model; save_model(timm.create_model(NAME,'
            f" checkpoint_path='{path}'), 'OUT.safetensors')\"`, NAME as 'vit_base_patch16_224'"
        )
    if "model.weights.h5" in names:
        return f"a Keras 3 archive; {_KERAS}"
    inner = [
        name for name in names if name.endswith((".pth", ".pt", ".ckpt", ".safetensors", ".bin", ".pkl"))
    ]
    held = ", ".join(f"'{name}'" for name in (inner or names)[:3]) or "nothing"
    return f"a zip archive with {held}, not one of torch.save; unpack it first: `unzip {path}`"


def refused_pickle(message: str) -> str:
    """Return why a pickle was not read."""
    if message.startswith("RUNS "):
        return (
            f"its pickle asks for '{message[5:]}' to be run, which no checkpoint needs; do not load it with"
            " anything else either, and ask its maker for the state_dict alone"
        )
    return f"its pickle is not safe to read, or is damaged ({message.partition(chr(10))[0]})"


def in_folder_of_tensorflow(path: Path) -> None:
    """Raise UserError for the files of TensorFlow's checkpoints."""
    if re.search(r"(\.data-\d+-of-\d+|\.ckpt\.(index|meta)|saved_model\.pb)$", path.name):
        raise UserError(
            f"{path}: a file of TensorFlow; its weights need a port of the network to torch: most published"
            " ones are among timm's models (--architecture timm/NAME with a file of timm's)"
        )


def _tar(path: Path) -> str:
    import tarfile

    try:
        with tarfile.open(path) as archive:
            names = archive.getnames()
    except (tarfile.TarError, OSError, EOFError):
        return "a tar archive that is damaged"
    if {"pickle", "storages", "tensors"} <= set(names):
        return (
            "torch's layout of 2016 (a tar archive); write it anew, if you trust it: `python -c \"import"
            f" torch; torch.save(torch.load('{path}', weights_only=False), 'OUT.pth')\"`"
        )
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return f"a tar archive with {shown} (unpack it first: `tar -xf {path}`)"
