"""Every recipe's name still means the same protocol, and every recipe says what to expect of it."""

import json

import pytest

from carryover.configs import header, load, protocol, recipe_hash, recipe_names
from tests.configs.golden_recipes import GOLDEN, KINDS, digest, entries

RECORDED = json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", ["pretrain", "transfer", "clusters"])
def test_every_recorded_name_has_its_recorded_protocol(kind: str) -> None:
    assert set(RECORDED[kind]) <= set(recipe_names(kind))
    keys = RECORDED[f"{kind} keys"]
    recipes = {name: load(kind, name) for name in RECORDED[kind]}
    found = {name: [recipe_hash(r)[:16], digest(protocol(r), keys)] for name, r in recipes.items()}
    changed = [name for name in found if found[name] != RECORDED[kind][name]]
    assert not changed


def test_every_recorded_pipeline_runs_its_recorded_recipes_on_its_recorded_roots() -> None:
    for name, recorded in RECORDED["pipelines"].items():
        found = entries(load("pipelines", name))
        assert found.keys() == recorded.keys(), name
        for entry, (recipe, root) in recorded.items():
            # A random initialization reads no data: some of its entries had no root.
            assert found[entry] == [recipe, root or found[entry][1]], f"{name}: {entry}"


@pytest.mark.parametrize("kind", KINDS[:3])
def test_every_recipes_header_says_what_to_expect_and_what_it_cost(kind: str) -> None:
    for name in recipe_names(kind):
        story = header(kind, name)
        assert "Expected" in story and "ardware and cost" in story, name
        assert len(story.splitlines()[0]) > 20, name
