"""The tables as LaTeX: whole, escaped, and compiled where LaTeX is installed."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from carryover.transfer.report import write_report
from carryover.transfer.results.record import write_record
from tests.transfer.records import record
from tests.transfer.report.demo_run import write_demo_run


def tex_of(run: Path) -> str:
    write_report([run], run / "report", formats=["tex"])
    return (run / "report" / "tables.tex").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo_run(tmp_path_factory.mktemp("demo"), pictures=False)


def test_every_row_has_a_cell_for_every_column(demo: Path) -> None:
    tables = re.findall(r"\\begin\{tabular\}\{(l?r+|lr+)\}(.*?)\\end\{tabular\}", tex_of(demo), re.DOTALL)
    assert [len(spec) for spec, _ in tables] == [5, 13, 5, 4]
    for spec, body in tables:
        rows = [line for line in body.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
        assert len(rows) == 1 + 5
        assert {len(re.split(r"(?<!\\)&", row)) for row in rows} == {len(spec)}


def test_best_and_second_are_marked_and_braces_close(demo: Path) -> None:
    text = tex_of(demo)
    columns = 4 + 12
    assert len(re.findall(r"\\textbf\{[\d.]+( \$\\pm\$ [\d.]+)?\}", text)) == columns
    assert len(re.findall(r"\\underline\{[\d.]+( \$\\pm\$ [\d.]+)?\}", text)) == columns
    assert text.count("{") == text.count("}")


def test_special_characters_are_escaped(tmp_path: Path) -> None:
    write_record(record(method=r"50%_a&b#\x{y}$", dataset="~^"), tmp_path)
    text = tex_of(tmp_path)
    assert r"50\%\_a\&b\#\textbackslash{}x\{y\}\$" in text
    assert r"\textasciitilde{}\textasciicircum{}" in text


def test_it_compiles(demo: Path, tmp_path: Path) -> None:
    compiler = shutil.which("pdflatex")
    if compiler is None:
        pytest.skip("pdflatex is not installed (Debian: texlive-latex-recommended)")
    (tmp_path / "tables.tex").write_text(tex_of(demo), encoding="utf-8")
    command = [compiler, "-interaction=nonstopmode", "-halt-on-error", "tables.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
