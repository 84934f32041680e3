"""A recipe is its bases, itself and its overrides, in that order; anything else is refused by name."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, model_validator

from carryover.configs import (
    Incidental,
    Recipe,
    Section,
    UserError,
    dump,
    header,
    kind_of,
    load,
    recipe_hash,
)
from carryover.configs.loading import KINDS


class Sgd(Section):
    name: Literal["sgd"] = "sgd"
    base_lr: float = 0.1
    nesterov: bool = False


class Lars(Section):
    name: Literal["lars"]
    base_lr: float
    trust: float = 0.001


class Images(Section):
    name: str = ""
    root: str | None = None
    split: str = "train"


class Toy(Recipe):
    epochs: int
    images: Images = Images()
    milestones: tuple[int, ...] = ()
    optimizer: Annotated[Sgd | Lars, Field(discriminator="name")] = Sgd()
    extra: Section | None = None
    root: Annotated[str, Incidental] = "/data"
    seed: Annotated[int, Incidental] = 0

    @model_validator(mode="after")
    def _milestones_inside(self) -> "Toy":
        if any(m >= self.epochs for m in self.milestones):
            raise ValueError(f"milestones {self.milestones} reach past the {self.epochs} epochs")
        return self


KINDS.register("toys", Toy)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_recipe_is_named_after_its_file(tmp_path: Path) -> None:
    assert load("toys", write(tmp_path / "first.yaml", "epochs: 3\n")).name == "first"


def test_overrides_win_over_the_recipe_and_the_recipe_over_its_base(tmp_path: Path) -> None:
    write(tmp_path / "mother.yaml", "epochs: 3\nmilestones: [1, 2]\noptimizer: {base_lr: 0.5}\n")
    path = write(tmp_path / "child.yaml", "base: mother\nmilestones: [1]\noptimizer: {nesterov: true}\n")
    toy = load("toys", path, ["epochs=7"])
    assert (toy.epochs, toy.milestones, toy.optimizer) == (7, (1,), Sgd(base_lr=0.5, nesterov=True))


def test_a_section_whose_name_changes_keeps_nothing_of_the_former(tmp_path: Path) -> None:
    write(tmp_path / "mother.yaml", "epochs: 3\noptimizer: {name: sgd, base_lr: 0.5, nesterov: true}\n")
    path = write(tmp_path / "child.yaml", "base: mother\noptimizer: {name: lars, base_lr: 2}\n")
    assert load("toys", path).optimizer == Lars(name="lars", base_lr=2)


def test_a_section_that_is_only_called_something_else_keeps_its_other_keys(tmp_path: Path) -> None:
    write(tmp_path / "mother.yaml", "epochs: 3\nimages: {name: CIFAR-10, root: /data, split: test}\n")
    path = write(tmp_path / "child.yaml", "base: mother\nimages: {name: mine}\n")
    assert load("toys", path).images == Images(name="mine", root="/data", split="test")
    overridden = load("toys", path, ["images.root=/there", "images.name=ours"]).images
    assert overridden == Images(name="ours", root="/there", split="test")


@pytest.mark.parametrize(
    ("override", "suggestion"),
    [
        ("optimzer.base_lr=1", "optimizer"),
        ("optimizer.bas_lr=1", "base_lr"),
        ("base_lr=1", "optimizer.base_lr"),
        ("epoch=1", "epochs"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_valid_one(
    tmp_path: Path, override: str, suggestion: str
) -> None:
    path = write(tmp_path / "toy.yaml", "epochs: 3\n")
    with pytest.raises(
        UserError, match=f"unknown key '{override.split('=')[0].split('.')[0]}.*'{suggestion}'"
    ):
        load("toys", path, [override])


def test_an_unknown_key_in_the_file_is_refused_as_well(tmp_path: Path) -> None:
    path = write(tmp_path / "toy.yaml", "epochs: 3\noptimizer: {name: sgd, nesterof: true}\n")
    with pytest.raises(UserError, match=r"toy\.yaml.*\n.*'optimizer.nesterof'; did you mean 'nesterov'"):
        load("toys", path)


def test_a_duplicate_key_is_refused_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "toy.yaml", "epochs: 3\nseed: 1\nepochs: 4\n")
    with pytest.raises(UserError, match=r"toy\.yaml: found duplicate key epochs \(line 3\)"):
        load("toys", path)


def test_values_must_fit_their_type(tmp_path: Path) -> None:
    path = write(tmp_path / "toy.yaml", "epochs: 3\n")
    with pytest.raises(UserError, match=r"epochs: a whole number is expected \(got 'many'\)"):
        load("toys", path, ["epochs=many"])
    assert load("toys", path, ["optimizer.base_lr=1e-3"]).optimizer.base_lr == 0.001


def test_every_problem_is_reported_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "toy.yaml", "epochs: x\nsed: 1\n")
    with pytest.raises(UserError) as caught:
        load("toys", path)
    assert "epochs:" in str(caught.value) and "'sed'; did you mean 'seed'" in str(caught.value)


def test_a_rule_of_the_model_is_reported_in_its_own_words(tmp_path: Path) -> None:
    path = write(tmp_path / "toy.yaml", "epochs: 3\nmilestones: [5]\n")
    with pytest.raises(UserError, match=r"milestones \(5,\) reach past the 3 epochs"):
        load("toys", path)


def test_a_missing_base_and_a_circular_one_are_refused(tmp_path: Path) -> None:
    lost = write(tmp_path / "lost.yaml", "base: nowhere\nepochs: 1\n")
    with pytest.raises(UserError, match=r"lost\.yaml: base: no toys recipe is called 'nowhere'"):
        load("toys", lost)
    write(tmp_path / "a.yaml", "base: b\n")
    write(tmp_path / "b.yaml", "base: a\n")
    with pytest.raises(UserError, match="circular base: a -> b -> a"):
        load("toys", tmp_path / "a.yaml")


def test_a_missing_recipe_names_the_nearest() -> None:
    with pytest.raises(UserError, match="'unigrad_dmo'; did you mean 'unigrad_demo'"):
        load("pretrain", "unigrad_dmo")


@pytest.mark.parametrize("text", ["[1, 2]", "epochs: [", "\x00"])
def test_a_file_that_is_no_recipe_is_refused_by_name(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"toy\.yaml"):
        load("toys", write(tmp_path / "toy.yaml", text))


def test_an_override_without_a_value_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dotted\.key=value"):
        load("toys", write(tmp_path / "toy.yaml", "epochs: 3\n"), ["epochs"])


def test_the_hash_says_what_is_done_not_where(tmp_path: Path) -> None:
    path = write(tmp_path / "toy.yaml", "epochs: 3\n")
    plain = recipe_hash(load("toys", path))
    assert plain == recipe_hash(load("toys", path, ["root=/elsewhere", "seed=4"]))
    assert plain == recipe_hash(load("toys", write(tmp_path / "same.yaml", "epochs: 3\nmilestones: []\n")))
    assert plain != recipe_hash(load("toys", path, ["optimizer.base_lr=0.2"]))


def test_a_resolved_recipe_loads_back_equal(tmp_path: Path) -> None:
    toy = load("toys", write(tmp_path / "toy.yaml", "epochs: 3\noptimizer: {name: lars, base_lr: 1}\n"))
    again = load("toys", write(tmp_path / "again.yaml", dump(toy)))
    assert again.model_copy(update={"name": "toy"}) == toy


def test_the_header_comment_is_the_recipes_story(tmp_path: Path) -> None:
    path = write(tmp_path / "toy.yaml", "# Table 7.\n#\n# Expect 70.3.\nepochs: 3 # not this\n")
    assert header("toys", path) == "Table 7.\n\nExpect 70.3."


class Game(Recipe):
    players: int
    epochs: int = 1


KINDS.register("games", Game)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("epochs: 3\nmilestones: [1]\n", "toys"),
        ("players: 2\n", "games"),
        ("players: 2\nepochs: 3\nmilestnes: [1]\n", "games"),
    ],
)
def test_a_files_kind_is_the_one_that_knows_most_of_its_keys(tmp_path: Path, text: str, kind: str) -> None:
    assert kind_of(write(tmp_path / "own.yaml", text)) == kind
    assert kind_of(write(tmp_path / "child.yaml", "base: own\nmilestnes: [1]\n")) == kind


def test_a_file_without_its_base_has_no_kind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"own\.yaml: base: no toys recipe is called 'mother'"):
        kind_of(write(tmp_path / "own.yaml", "base: mother\nepochs: 3\n"))


def test_a_recipe_of_another_command_is_answered_with_that_command() -> None:
    with pytest.raises(UserError, match=r"'demo_knn' is a recipe of `carryover evaluate`"):
        load("pretrain", "demo_knn")
