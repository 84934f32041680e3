"""Every shipped recipe's name with digests of its protocol, as they were before recipes became tables.

``python -m tests.configs.golden_recipes`` writes the file anew. It is for a release that changes protocols on
purpose; a recipe that only moves to another file keeps its line.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from carryover.configs import load, protocol, recipe_hash, recipe_names
from carryover.configs.identity import leaves

GOLDEN = Path(__file__).with_name("golden_recipes.json")
KINDS = ("pretrain", "transfer", "pipelines", "clusters")


def digest(stated: dict[str, Any], keys: list[str]) -> str:
    """Hash the values of those keys that the golden file knows: a key added since then changes nothing."""
    known = set(keys)
    text = json.dumps({k: v for k, v in leaves(stated).items() if k in known}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def entries(pipeline: Any) -> dict[str, list[str | None]]:
    """Return the recipe hash and the data root of every entry of a pipeline, as its plan has them."""
    from carryover.transfer.pipeline.plan import resolved

    return {
        f"{kind}/{entry.key}": [recipe_hash(recipe)[:16], None if root is None else str(root)]
        for kind, of in (("pretrain", "pretrain"), ("evaluate", "transfer"))
        for entry in getattr(pipeline, kind)
        for recipe in [resolved(pipeline, of, entry, entry.seeds[0])]
        for root in [recipe.data.root]
    }


def made() -> dict[str, Any]:
    """Return what the golden file says, from the recipes as they are now."""
    golden: dict[str, Any] = {}
    for kind in KINDS:
        recipes = {name: load(kind, name) for name in recipe_names(kind)}
        if kind == "pipelines":
            golden[kind] = {name: entries(recipe) for name, recipe in recipes.items()}
            continue
        keys = sorted({key for recipe in recipes.values() for key in leaves(protocol(recipe))})
        golden[f"{kind} keys"] = keys
        golden[kind] = {n: [recipe_hash(r)[:16], digest(protocol(r), keys)] for n, r in recipes.items()}
    return golden


def as_text(golden: dict[str, Any]) -> str:
    """Return the golden file's text: JSON with one recipe a line."""
    kinds = []
    for kind, body in golden.items():
        if isinstance(body, list):
            kinds.append(f"{json.dumps(kind)}: {json.dumps(body)}")
            continue
        lines = [f"{json.dumps(name)}: {json.dumps(line)}" for name, line in body.items()]
        kinds.append(f"{json.dumps(kind)}: {{\n  " + ",\n  ".join(lines) + "\n}")
    return "{\n" + ",\n".join(kinds) + "\n}\n"


if __name__ == "__main__":
    GOLDEN.write_text(as_text(made()), encoding="utf-8")
