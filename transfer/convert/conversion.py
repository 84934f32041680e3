"""Carry one checkpoint to one library: write, let the library load it, compare, and only then keep it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from carryover.configs import CarryoverError, UserError, WorkError
from carryover.configs.files import temporary_folder
from carryover.configs.leftovers import no_empty_folder, remove_abandoned
from carryover.core.backbones.against import Reference, prove_against, read_reference
from carryover.core.backbones.architecture import expected_tensors
from carryover.core.backbones.imported import Imported, live_backbone, require_trained
from carryover.core.backbones.importers import take_backbone
from carryover.core.backbones.inspected import in_words, with_said
from carryover.core.backbones.stated import Stated
from carryover.core.backbones.verify import TOLERANCE, prove_model, prove_tensors, tensor_digest
from carryover.core.formats.backbone import AttentionConfig
from carryover.core.formats.receipt import (
    STRUCTURE_ONLY,
    CarriedTensor,
    Fate,
    MakerProof,
    ModelProof,
    Receipt,
    file_record,
    receipt_path,
    write_receipt,
)
from carryover.core.formats.said import Said
from carryover.core.training.device import random_states_kept
from carryover.core.training.provenance import git_revision, library_versions
from carryover.transfer.convert.held import Held
from carryover.transfer.convert.target import Target
from carryover.transfer.convert.targets import TARGETS


def convert(
    checkpoint: Path,
    to: str,
    out: Path,
    encoder: str | None = None,
    said: Said | None = None,
    stated: Stated | None = None,
    against: Path | None = None,
    attention: AttentionConfig | None = None,
) -> Receipt:
    """Convert any maker's checkpoint for a library and write `out` with `out`.receipt.json beside it.

    Both files appear, or neither. Where the library is installed it loads the file itself, and every backbone
    tensor and every stage's feature maps are compared; where it is not, names, shapes and values are, and the
    receipt says "structure only".

    Parameters
    ----------
    to
        "detectron2", "mmseg", "torchvision", "timm", "canonical", or what a user's package registered.
    encoder
        Which encoder of the file to take (see `import_checkpoint`).
    said
        What is known of a file that does not say it itself: label, method, data set, epochs, input size.
    stated
        What is known of its network and pixels.
    against
        A .npz of features that the maker's own network gives for some images (`core.backbones.against`).
        Every model of the target must give them; without it the receipt says "consistent" only, but where the
        file or its user names a model of timm: that is run here, and compared.
    attention
        Windows and relative positions of a plain transformer in a detector: the receipt says how the library
        uses them, and that network is verified. The file stays the same.

    Raises
    ------
    UserError
        For a checkpoint that is not whole, a backbone that the library has no place for, a bad `to` or `out`.
    WorkError
        If the verification fails; it names the tensor or the stage, and no file is left behind.
    """
    target = TARGETS.get(to)
    _require_out(checkpoint, out, target)
    reference = None if against is None else read_reference(against)
    imported = take_backbone(checkpoint, encoder, stated)
    about = with_said(imported.metadata, said or Said(), checkpoint)
    attending = about.backbone.model_copy(update={"attention": attention})
    imported = replace(imported, metadata=about.model_copy(update={"backbone": attending}))
    require_trained(imported, about.method, checkpoint)
    try:
        target.require(imported.metadata.backbone)
    except UserError as error:
        raise UserError(f"{checkpoint}: {error}") from None
    remove_abandoned(out.parent, out.name)
    with no_empty_folder(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(out) as scratch:
            written = scratch / out.name
            held = target.hold(imported)
            rename = held.rename or target.rename
            renamed = {rename(name): value for name, value in held.tensors.items()}
            target.write(written, renamed, about)
            proven = _prove(written, target, imported, held, reference)
            receipt = _receipt(checkpoint, written, target, imported, held, proven)
            write_receipt(receipt_path(written), receipt)
            # The receipt goes first: a converted file that is there always has its receipt.
            receipt_path(written).replace(receipt_path(out))
            try:
                written.replace(out)
            except OSError:
                receipt_path(out).unlink()
                raise
    return receipt


def _require_out(checkpoint: Path, out: Path, target: Target) -> None:
    if out.is_dir():
        raise UserError(f"{out}: a directory; expected the name of the file to write")
    if out.suffix not in target.suffixes:
        raise UserError(
            f"{out}: {target.name} knows its files by their suffix; expected {' or '.join(target.suffixes)}"
        )
    if out.exists() and checkpoint.exists() and out.samefile(checkpoint):
        raise UserError(f"{out}: is the checkpoint itself; give another name")


@dataclass(frozen=True)
class _Proven:
    """Verification of a written file: the library, its models, and the reference."""

    proofs: tuple[ModelProof, ...]
    verified_in: str
    notes: tuple[str, ...] = ()
    against: MakerProof | None = None


def _prove(
    written: Path, target: Target, imported: Imported, held: Held, reference: Reference | None
) -> _Proven:
    """Structure first (fast, and names the tensor), then the library itself."""
    _prove_structure(written, target, held)
    version, reason = target.version()
    if version is None:
        if reference is not None:
            raise UserError(f"--against: {target.name} could not be imported here: {reason}")
        return _Proven((), STRUCTURE_ONLY, (f"{target.name} could not be imported here: {reason}",))
    if reference is not None and held.imported is not imported:
        raise UserError(
            f"--against: {target.name} runs {imported.metadata.backbone.label} without tensors that the"
            f" maker's network has ({held.notes[0]}), so its features differ; verify the file with --to"
            f" timm, then convert it for {target.name} without --against"
        )
    whole = held.imported is imported and imported.metadata.backbone.attention is None
    if reference is None and imported.own is not None and whole:
        reference = imported.own.reference(imported.metadata)
    proofs, against = _load(written, target, imported, held, reference)
    return _Proven(proofs, version, (), against)


def _prove_structure(written: Path, target: Target, held: Held) -> None:
    where = f"{target.name} file"
    rename_back = held.rename_back or target.rename_back
    read_back: dict[str, Tensor] = {}
    for name, value in target.read(written).items():
        source = rename_back(name)
        if source is None or source in read_back:
            raise WorkError(f"{where}: '{name}' is no tensor of {held.imported.metadata.backbone.label}")
        read_back[source] = value
    prove_tensors(held.tensors, read_back, where)


def _load(
    written: Path, target: Target, imported: Imported, held: Held, reference: Reference | None
) -> tuple[tuple[ModelProof, ...], MakerProof | None]:
    proofs, against = [], None
    source = live_backbone(held.imported)
    attention = imported.metadata.backbone.attention
    tensors = None if held.imported is imported and attention is None else held.tensors
    # Building the library's models draws random weights; the caller's random state is none of their business.
    with random_states_kept():
        try:
            for model in target.load(written, imported.metadata.backbone):
                proofs.append(prove_model(source, model, tensors))
                if reference is not None:
                    against = prove_against(reference, model, imported.metadata)
            return tuple(proofs), against
        except CarryoverError:
            raise
        except (
            RuntimeError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            AssertionError,
            OSError,
        ) as error:
            raise WorkError(
                f"{target.name} could not load the converted file: {type(error).__name__}: {error}"
            ) from error


def _receipt(
    checkpoint: Path,
    written: Path,
    target: Target,
    imported: Imported,
    held: Held,
    proven: _Proven,
) -> Receipt:
    source = file_record(checkpoint)
    rename = held.rename or target.rename
    tensors = tuple(
        CarriedTensor(
            name=rename(name),
            source=name,
            shape=tuple(value.shape),
            dtype=str(value.dtype).removeprefix("torch."),
            sha256=tensor_digest(value),
        )
        for name, value in held.tensors.items()
    )
    return Receipt(
        to=target.name,
        source=source,
        target=file_record(written),
        metadata=imported.metadata,
        fates=tuple(_named(fate, rename) for fate in held.fates),
        tensors=tensors,
        expected=_expected(imported, held),
        verified_in=proven.verified_in,
        proofs=proven.proofs,
        tolerance=TOLERANCE,
        settings=target.settings(imported.metadata),
        notes=(*imported.notes, *held.notes, *proven.notes, *in_words(imported.metadata.assumed)),
        git_revision=git_revision(),
        library_versions=dict(library_versions()),
        against=proven.against,
    )


def _expected(imported: Imported, held: Held) -> int:
    """Return how many tensors a library must have: the network's, or those of them that it holds."""
    if held.imported is imported:
        return len(expected_tensors(imported.metadata.backbone))
    return len(held.tensors)


def _named(fate: Fate, rename: Callable[[str], str]) -> Fate:
    return fate if fate.target is None else Fate(fate.source, fate.fate, rename(fate.target))
