"""Result records of older versions, as records of the next one.

Version 1 (carryover 0.1) lacks what the recipe beside it tells. Version 2 has a metric's settings in its
name.
"""

from functools import cache
from pathlib import Path
from typing import Any

from carryover.configs import UserError, protocol, recipe_hash
from carryover.configs.loading import KINDS


def migrated_from_1(plain: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the content of a version 1 record as one of version 2.

    The protocol is that of the recipe.yaml beside the record, if its hash is the record's; the recipe's hash
    becomes today's, so that old and new results of one recipe stand in one column. A checkpoint that lay in
    the record's run directory is looked for in that directory, wherever it is now.
    """
    from carryover.core.formats.claims import RECIPE_NAME

    content = plain | {"schema_version": 2, "checkpoint": _moved(Path(plain.get("checkpoint", "")), path)}
    beside = path.parent / RECIPE_NAME
    if beside.is_file():
        known = _protocol_of(beside.read_text(encoding="utf-8"), beside)
        if known is not None and known[0] == plain.get("recipe_hash"):
            content |= {"recipe_hash": known[1], "protocol": known[2]}
    return content


def migrated_from_2(plain: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a version 2 record as one of version 3.

    Settings come out of the metrics' names; what was built around the backbone comes out of the facts, which
    keep the names of then.
    """
    facts = dict(plain.get("facts", {}))
    model = facts.pop("detector", None) or facts.pop("segmenter", None)
    metrics = [_metric_from_2(metric) for metric in plain.get("metrics", [])]
    return plain | {"metrics": metrics, "facts": facts, "model": model}


def _metric_from_2(plain: dict[str, Any]) -> dict[str, Any]:
    name, *settings = str(plain.get("name", "")).split(" ")
    params: dict[str, Any] = {}
    if name == "mask" and settings:
        name, params = settings[0], {"of": "mask"}
    elif name == "mAP" and settings[1:] == ["positives"]:
        params = {"positives": int(settings[0])}
    elif settings and all("=" in setting for setting in settings):
        pairs = (setting.split("=", 1) for setting in settings)
        params = {key: int(value) if value.isdigit() else float(value) for key, value in pairs}
    else:
        name = " ".join([name, *settings])
    direction = "higher" if plain.get("higher_is_better", True) else "lower"
    if name == "KL divergence":
        direction = "none"
    kept = {k: v for k, v in plain.items() if k != "higher_is_better"}
    return kept | {"name": name, "params": params, "direction": direction}


@cache
def _protocol_of(text: str, path: Path) -> tuple[str, str, dict[str, Any]] | None:
    """Return a recipe's hash of version 1, its hash of today and its protocol; None if it cannot be read."""
    from carryover.core.formats.claims import hash_of_v1, read_recipe

    try:
        plain, recipe = read_recipe(path, KINDS.get("transfer"))
    except UserError:
        return None
    return hash_of_v1(plain, recipe), recipe_hash(recipe), protocol(recipe)


def _moved(checkpoint: Path, record: Path) -> str:
    """Return the checkpoint's place in the record's run directory, if that is where it lies."""
    if "stages" in checkpoint.parts and "stages" in record.parts:
        at = len(record.parts) - 1 - record.parts[::-1].index("stages")
        tail = checkpoint.parts[len(checkpoint.parts) - 1 - checkpoint.parts[::-1].index("stages") :]
        here = Path(*record.parts[:at], *tail)
        if here.is_file():
            return str(here.absolute())
    return str(checkpoint)
