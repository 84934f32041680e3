"""A pipeline says its data roots once: every recipe finds its own by the data set that it reads."""

from pathlib import Path
from typing import Any

import pytest

from carryover.configs import UserError, load, recipe_names
from carryover.transfer.pipeline.config import PipelineConfig
from carryover.transfer.pipeline.plan import resolved

TEXT = """
roots: {images: /images, scenes: /scenes}
holds: {images: [shapes], scenes: [shapes (voc)]}
pretrain: [{recipe: unigrad_demo}]
evaluate:
  - {recipe: demo_knn}
  - {recipe: demo_faster_fpn}
  - {recipe: demo_tsne, overrides: [data.root=/elsewhere]}
  - {recipe: knn_cifar10}
"""


def pipeline(directory: Path, text: str, *overrides: str) -> PipelineConfig:
    path = directory / "mine.yaml"
    path.write_text(text)
    config = load("pipelines", path, overrides)
    assert isinstance(config, PipelineConfig)
    return config


def roots(config: PipelineConfig) -> dict[str, Any]:
    found = {e.key: resolved(config, "pretrain", e, 0).data.root for e in config.pretrain}
    found |= {e.key: resolved(config, "transfer", e, 0).data.root for e in config.evaluate}
    return {key: root and str(root) for key, root in found.items()}


def test_a_recipe_reads_the_root_that_holds_its_data_set(tmp_path: Path) -> None:
    found = roots(pipeline(tmp_path, TEXT))
    assert found["unigrad_demo"] == found["demo_knn"] == "/images"
    assert found["demo_faster_fpn"] == "/scenes", (
        "a title with its kind of layout goes before the title alone"
    )


def test_a_root_given_for_one_run_reaches_every_recipe_of_its_data_sets(tmp_path: Path) -> None:
    found = roots(pipeline(tmp_path, TEXT, "roots.images=/mine"))
    assert (found["unigrad_demo"], found["demo_knn"], found["demo_faster_fpn"]) == (
        "/mine",
        "/mine",
        "/scenes",
    )


def test_an_entrys_own_root_wins(tmp_path: Path) -> None:
    assert roots(pipeline(tmp_path, TEXT))["demo_tsne"] == "/elsewhere"


def test_a_data_set_that_no_root_holds_is_left_as_its_recipe_has_it(tmp_path: Path) -> None:
    assert roots(pipeline(tmp_path, TEXT))["knn_cifar10"] is None


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "scenes: [shapes (voc)]",
            "scene: [shapes (voc)]",
            "holds: nothing here is called 'scene'; did you mean",
        ),
        ("[shapes (voc)]", "[shapes]", "holds: 'shapes' is under two roots"),
    ],
)
def test_roots_that_contradict_themselves_are_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        pipeline(tmp_path, TEXT.replace(old, new))


def test_no_shipped_pipeline_says_a_root_twice() -> None:
    for name in recipe_names("pipelines"):
        config = load("pipelines", name)
        overrides = [o for e in (*config.pretrain, *config.evaluate) for o in e.overrides]
        assert not [o for o in overrides if o.startswith("data.root")], name
        assert all(r and r != "None" for r in roots(config).values()), name
