"""Makers' files in every target library, against the features of the makers' own networks.

    PYTHONPATH=path/to/detectron2 python benchmarks/makers_by_targets.py --makers CODE

CODE is a folder of the makers' public repositories, and of packages installed with `pip install --target`, by
the names that `benchmarks/makers_own_code.py` lists under `checkouts`. A maker's own code writes a file of
random weights; `carryover inspect FILE --reference-script` prints a script, which runs in the maker's
environment, its line `model = ...` completed where it does not run as it is printed; the file is then
converted with `--against`. A cell is "verified" only where the receipt says so, with the largest difference
to the maker's own features, divided by the largest of them. Writes a dated table to benchmarks/results/.
"""

import argparse
import datetime
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import timm
import torch
import torchvision

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.makers_own_code import MAKERS, Maker, make_file, missing, write_patches, write_reference
from benchmarks.measuring import write_table
from carryover.configs import CarryoverError
from carryover.core.backbones.against import RELATIVE, Reference, prove_against, read_reference
from carryover.core.formats.receipt import MakerProof, Receipt, read_receipt
from carryover.transfer.cli.commands import stated
from carryover.transfer.convert import TARGETS, convert

SUFFIXES = {
    "torchvision": ".pth",
    "detectron2": ".pkl",
    "mmseg": ".pth",
    "timm": ".safetensors",
    "canonical": ".safetensors",
}
CARRYOVER = "import sys; from carryover.transfer.cli.main import main; sys.exit(main())"
VERIFIED = "verified against the maker"


def printed_script(path: Path, maker: Maker) -> str:
    """Return what `carryover inspect FILE --reference-script` prints."""
    told = [word for key, value in maker.told.items() for word in (f"--{key}", value)]
    asked = [sys.executable, "-c", CARRYOVER, "inspect", str(path), "--reference-script", *told]
    done = subprocess.run(asked, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"inspect --reference-script: {done.stderr.strip()[-500:]}")
    return done.stdout


def relative(proof: MakerProof, reference: Reference) -> float:
    """Return the largest difference of a feature, divided by the largest of the maker's."""
    return max(entry.largest / float(reference.features[entry.stage].abs().max()) for entry in proof.features)


def cell(path: Path, maker: Maker, target: str, npz: Path, code: Path) -> str:
    """Convert for one target with `--against`; return what is proven."""
    reference, told = read_reference(npz), dict(maker.told)
    encoder = told.pop("encoder", None)
    out = path.parent / f"{target}{SUFFIXES[target]}"
    try:
        receipt = convert(path, target, out, encoder, None, stated(**told), npz)
    except CarryoverError as error:
        refused = short(error, path)
        if "verify the file with --to timm" not in str(error) or not maker.patches:
            return f"refused: {refused}"
        receipt = convert(path, target, out, encoder, None, stated(**told))
        return f"{receipt.proof} (without its class token; {without_token(receipt, out, maker, code, path)})"
    if receipt.proof != VERIFIED or receipt.against is None:
        return receipt.proof
    found = relative(receipt.against, reference)
    assert found <= RELATIVE or receipt.against.largest <= RELATIVE
    return f"verified, {found:.1e}"


def without_token(receipt: Receipt, out: Path, maker: Maker, code: Path, path: Path) -> str:
    """Compare Detectron2's own ViT with the maker's blocks on the patches alone, which `convert` does not."""
    about = receipt.metadata
    npz = write_patches(maker, code, path, about.pixel_mean, about.pixel_std)
    reference = read_reference(npz)
    found = []
    for model in TARGETS.get("detectron2").load(out, read_receipt(out).metadata.backbone):
        last = list(model.stages(reference.images[:1]))[-1]
        theirs = replace(reference, features={last: reference.features["found"]})
        try:
            found.append(relative(prove_against(theirs, model, about), theirs))
        except CarryoverError as error:
            return f"the maker's blocks on the patches alone: {short(error, path)}"
    return f"{max(found):.1e} to the maker's blocks on the patches alone"


def short(error: Exception, path: Path) -> str:
    """Return the beginning of an error, without paths."""
    return str(error).replace(f"{path}: ", "").replace(f"{path.parent}/", "").replace("|", "/")[:160]


def row(name: str, maker: Maker, code: Path, targets: Sequence[str]) -> str:
    """Return a maker's row."""
    if absent := missing(maker, code):
        return f"| {name} | not run: {', '.join(absent)} not there |" + " |" * len(targets)
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = make_file(maker, code, Path(folder))
            npz = write_reference(maker, code, path, printed_script(path, maker))
        except RuntimeError as error:
            said = str(error).splitlines()[-1][:200].replace("|", "/")
            return f"| {name} | not run: {said} |" + " |" * len(targets)
        cells = [cell(path, maker, target, npz, code) for target in targets]
    how = "completed" if maker.completed else "as printed"
    return f"| {name} | {how} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--makers", type=Path, required=True, help="the folder of the makers' code")
    parser.add_argument("--only", nargs="*", default=list(MAKERS), help="makers, by their names in the table")
    parser.add_argument("--targets", nargs="*", default=list(SUFFIXES))
    options = parser.parse_args()
    lines = [
        "# Makers' files in every target, against the makers' own networks",
        "",
        f"`python benchmarks/makers_by_targets.py`, {datetime.date.today().isoformat()}, torch"
        f" {torch.__version__}, torchvision {torchvision.__version__}, timm {timm.__version__}. Random"
        " weights, statistics of all norms included. Differences are the largest of a feature, divided by the"
        " largest of the maker's.",
        "",
        f"| maker | script | {' | '.join(options.targets)} |",
        "|---|---|" + "---|" * len(options.targets),
    ]
    for name in options.only:
        lines.append(row(name, MAKERS[name], options.makers, options.targets))
        print(lines[-1], flush=True)
    write_table("makers-by-targets", lines)


if __name__ == "__main__":
    main()
