"""Every name in the documentation exists: commands, options, recipes and their keys."""

import re
import shlex
from pathlib import Path
from typing import Any

import typer.main
import yaml

from carryover.configs import load
from carryover.transfer.cli.main import app
from tests.docs_commands import PAGES, carryover_lines


def test_every_recipe_of_a_command_exists_and_has_the_keys_that_it_is_given() -> None:
    kinds = {"evaluate": "transfer", "pretrain": "pretrain", "run": "pipelines"}
    found = 0
    for page, line in carryover_lines():
        words = shlex.split(line, comments=True)[1:]
        if len(words) < 2 or words[0] not in kinds or words[1].endswith(".yaml"):
            continue
        overrides = [word for word in words[2:] if re.match(r"[a-z_.]+=", word)]
        assert load(kinds[words[0]], words[1], overrides), f"{page.name}: {line}"
        found += 1
    assert found >= 12


def test_every_block_of_yaml_that_has_a_base_is_a_recipe(tmp_path: Path) -> None:
    found = 0
    for page in PAGES:
        for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text("utf-8"), re.M | re.S):
            if "base:" in block:
                (tmp_path / "mine.yaml").write_text(block, encoding="utf-8")
                assert load("transfer", tmp_path / "mine.yaml"), page.name
                found += 1
            else:
                yaml.safe_load(block)
    assert found >= 5


def test_every_command_line_names_commands_and_options_that_exist() -> None:
    root = typer.main.get_command(app)
    found = 0
    for page, line in carryover_lines():
        words = shlex.split(line, comments=True)[1:]
        command: Any = root
        while words and hasattr(command, "commands") and not words[0].startswith("-"):
            known = command.commands
            if not re.fullmatch(r"[a-z-]+", words[0]):
                break
            assert words[0] in known, f"{page.name}: {line}: no command {words[0]!r}"
            command, words = known[words[0]], words[1:]
            found += 1
        options = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
        for word in words:
            if re.match(r"-{1,2}[a-zA-Z]", word):
                assert word.partition("=")[0] in options, f"{page.name}: {line}: no option {word!r}"
    assert found >= 40
