"""The package as users install it: one name, nothing outside it, and never somebody else's distribution."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from carryover.transfer.cli import doctor

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    to = tmp_path_factory.mktemp("wheel")
    words = [
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(to),
        str(ROOT),
    ]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return next(to.glob("carryover_eval-*.whl"))


@pytest.mark.slow
def test_a_wheel_holds_one_package_and_all_of_it(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"carryover"}
    for wanted in (
        "py.typed",
        "configs/published/sqrtkl_table1.csv",
        "transfer/report/templates/page.html.j2",
    ):
        assert f"carryover/{wanted}" in names
    for room in ("configs", "slurm", "core", "pretrain", "transfer"):
        ours = {str(p.relative_to(ROOT)) for p in (ROOT / room).rglob("*.py")}
        assert {f"carryover/{path}" for path in ours} <= set(names), room


@pytest.mark.slow
def test_an_installed_wheel_minds_no_configs_of_the_users_own(wheel: Path, tmp_path: Path) -> None:
    installed = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(installed)
    (tmp_path / "work" / "configs").mkdir(parents=True)
    (tmp_path / "work" / "configs" / "__init__.py").touch()
    env = {"PYTHONPATH": f".:{installed}", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "carryover", "recipes"],
        cwd=tmp_path / "work",
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and "sqrtkl_cifar10_r18" in done.stdout, done.stderr


def test_nobody_is_told_to_install_the_other_distribution() -> None:
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True)
    wrong = ("pip install carryover", "carryover" + "[", "force-reinstall carryover")
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix not in (".py", ".md", ".toml", ".yaml", ".j2") or path == Path(__file__).resolve():
            continue
        text = path.read_text(encoding="utf-8").replace("carryover-eval", "ours")
        assert not [w for w in wrong if w in text], name


def test_the_doctor_names_another_distribution_in_our_package(monkeypatch: pytest.MonkeyPatch) -> None:
    (ok, *_) = doctor.examine()
    assert (ok.what, ok.state) == ("carryover", "ok")
    both = {"carryover": ["carryover", "carryover-eval"]}
    monkeypatch.setattr(doctor.metadata, "packages_distributions", lambda: both)
    (broken, *_) = doctor.examine()
    assert broken.state == "broken" and "pip uninstall carryover;" in broken.remedy


def test_the_lowest_versions_are_those_that_the_suite_is_run_with() -> None:
    lowest = {}
    for line in (ROOT / "requirements" / "lowest.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            lowest[name] = Version(version)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    for text in [*project["dependencies"], *extras["timm"], *extras["parquet"]]:
        stated = Requirement(text)
        bounds = [Version(s.version) for s in stated.specifier if s.operator == ">="]
        assert bounds == [lowest[stated.name]], (
            f"{text}: requirements/lowest.txt has {lowest.get(stated.name)}"
        )
