"""Tasks by name: what is registered, what is refused, and how."""

from typing import Any, ClassVar, Literal

import pytest

from carryover.configs import UserError
from carryover.configs.registry import Registry
from carryover.transfer.tasks import FrozenRecipe, FrozenTask
from carryover.transfer.tasks.config import TASKS, implementation_of, register_task

HERE = "tests.transfer.tasks.test_registry"


class Recipe(FrozenRecipe):
    task: Literal["mine"] = "mine"
    data: Any = None


class Whole(FrozenTask[Recipe]):
    def test(self, run: Any, model: Any) -> Any:
        raise AssertionError("not run here")


class WithoutTest(FrozenTask[Recipe]):
    """Lacks what every task has to write."""


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("", "Recipe must say what carries it out, implementation: ClassVar"),
        ("no_colon", "got 'no_colon'"),
        ("nowhere_at_all:Task", "nowhere_at_all:Task: No module named 'nowhere_at_all'"),
        (f"{HERE}:Absent", "has no attribute 'Absent'"),
        (f"{HERE}:Recipe", f"{HERE}:Recipe is no Task"),
        (f"{HERE}:WithoutTest", f"{HERE}:WithoutTest lacks the method test"),
    ],
)
def test_what_carries_no_task_out_is_named(where: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recipe, "implementation", where)
    with pytest.raises(UserError, match=r"task 'mine': implementation: ") as refused:
        implementation_of(Recipe())
    assert message in str(refused.value)


def test_a_registered_task_is_found_and_its_name_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recipe, "implementation", f"{HERE}:Whole")
    monkeypatch.setattr(TASKS, "_entries", dict(TASKS._entries))
    assert register_task(Recipe) is Recipe and TASKS.get("mine") is Recipe
    assert type(implementation_of(Recipe())).__name__ == "Whole"
    register_task(Recipe)

    class Other(FrozenRecipe):
        implementation: ClassVar[str] = f"{HERE}:Whole"
        task: Literal["mine"] = "mine"

    with pytest.raises(UserError, match="task 'mine' is registered already"):
        register_task(Other)


@pytest.mark.parametrize("wrong", [Whole, FrozenRecipe, "mine"])
def test_only_a_class_of_recipes_with_a_name_is_registered(wrong: Any) -> None:
    with pytest.raises(UserError, match="registered by the class of its recipes"):
        register_task(wrong)


def test_an_entry_is_imported_when_it_is_asked_for_and_a_bad_one_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    things: Registry[type] = Registry("thing", "carryover.nothing_registers_here")
    things.register("good", f"{HERE}:Recipe")
    things.register("bad", "nowhere_at_all:Thing")
    assert things.names() == ["good", "bad"] and "good" in things and "ugly" not in things
    for _ in range(2):
        assert [found.__name__ for found in things.values()] == ["Recipe"]
    assert sum("importing nowhere_at_all:Thing fails" in line for line in caplog.messages) == 1
    with pytest.raises(UserError, match="no thing is called 'god'; did you mean 'good'"):
        things.get("god")
    with pytest.raises(UserError, match="thing 'good' is registered already"):
        things.register("good", f"{HERE}:Whole")
