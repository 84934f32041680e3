"""How often `carryover verify` names a seeded fault, and how often it names one in a sound file.

    python -m benchmarks.verification CHECKPOINT... --data ROOT --test-split test [--images 400]

Every CHECKPOINT is a sound canonical file. `--other` is another network of the kind (its batch statistics are
put into each), `--weaker` one of worse features here. `--foreign` takes the sound files alone, on images
of another kind than they were trained on. `--only` chooses faults by part of their names.
"""

import argparse
import tempfile
from collections import Counter
from pathlib import Path

import torch

from benchmarks.seeded_faults import Fault, seeded
from carryover.configs.loading import validate
from carryover.transfer.verify.config import VerifyConfig
from carryover.transfer.verify.verify import verify


def main() -> None:
    """Seed, verify and count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--test-split", default="val")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--other", type=Path)
    parser.add_argument("--weaker", type=Path)
    parser.add_argument("--foreign", action="store_true")
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = {"root": given.data, "test_split": given.test_split}
    settings = {"data": data, "train_images": given.images, "test_images": given.images, "device": "cpu"}
    config: VerifyConfig = validate(VerifyConfig, settings, "benchmarks.verification")
    counts: Counter[tuple[str, str]] = Counter()
    for checkpoint in given.checkpoints:
        with tempfile.TemporaryDirectory() as folder:
            for fault in seeded(checkpoint, Path(folder), given.other, given.weaker):
                unwanted = given.only and not any(part in fault.name for part in given.only.split(","))
                if (given.foreign and fault.name != "sound") or unwanted:
                    continue
                counts[_judge(checkpoint, fault, config)] += 1
    for (cause, verdict), n in sorted(counts.items()):
        print(f"{cause}: {verdict}: {n}")


def _judge(checkpoint: Path, fault: Fault, config: VerifyConfig) -> tuple[str, str]:
    found = verify(fault.path, config, stated=fault.stated).named
    named = None if found is None else found.cause
    verdict = "right" if named == fault.cause else f"named {named}"
    why = "" if found is None else f" ({found.words}; {found.why})"
    print(f"{checkpoint.parent.name} | {fault.name} | {fault.cause} | {verdict}{why}", flush=True)
    return fault.cause or "sound", verdict


if __name__ == "__main__":
    main()
