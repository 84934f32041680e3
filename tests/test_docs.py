"""What the documentation tells people to type: it runs, or at least names what exists."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from carryover.transfer.cli.main import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.slow
def test_getting_started_is_what_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "getting-started.md").read_text(encoding="utf-8")
    commands = re.findall(r"^\$ carryover (.+)$", page, flags=re.MULTILINE)
    assert len(commands) >= 9
    for command in commands:
        done = CliRunner().invoke(app, shlex.split(command))
        assert done.exit_code == 0, f"carryover {command}\n{done.output}\n{done.exception!r}"
    for written in re.findall(r"`((?:report/|random\.pth\.)[\w./]+)`", page):
        assert Path(written).exists(), written


def test_every_command_line_names_commands_and_options_that_exist() -> None:
    root = typer.main.get_command(app)
    found = 0
    for page, line in _command_lines():
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


def _command_lines() -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        for block in re.findall(r"^```(?:console|bash|sh)?\n(.*?)^```", page.read_text("utf-8"), re.M | re.S):
            for line in block.splitlines():
                line = re.sub(
                    r"^\$ ", "", line.replace("[--follow]", "--follow").replace("[--failed]", "--failed")
                )
                # A column of words stands behind a command where two blanks do.
                if line.startswith("carryover "):
                    yield page, re.split(r"\s{2,}(?![-\[])", line)[0]
