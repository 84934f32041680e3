"""The code a run was submitted with: copied, so that the working tree may change while jobs wait."""

import hashlib
import importlib.util
import logging
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from carryover.configs.files import temporary_name, write_atomic
from carryover.slurm.errors import RequestError
from carryover.slurm.ledger import Ledger

log = logging.getLogger(__name__)

_IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")


def take_snapshot(ledger: Ledger, packages: Sequence[str]) -> Path:
    """Copy packages into ``code/<hash>`` of the run directory, once for the same contents; return the copy.

    The diff against the last git revision is kept beside it, as ``code/<hash>.diff``.

    Raises
    ------
    RequestError
        There is no such package, or it is not a directory of files.
    """
    sources = {name: package_directory(name) for name in packages}
    digest = _digest(sources)
    target = ledger.run_dir / "code" / digest
    if target.exists():
        if _digest({name: target / name for name in sources}) == digest:
            return target
        # Jobs import it: it must be what it is called.
        log.warning("%s is not as it was copied; copying it again", target)
        shutil.rmtree(target)
    temporary = temporary_name(target)
    shutil.rmtree(temporary, ignore_errors=True)
    for name, source in sources.items():
        shutil.copytree(source, temporary / name, ignore=_IGNORED)
    write_atomic(target.with_suffix(".diff"), _git_diff(list(sources.values())).encode())
    temporary.rename(target)
    return target


def git_revision(*directories: Path) -> str:
    """Return the git revision of directories, "+changes" behind it if their files differ; "" outside git."""
    revision = _git(directories[0], "rev-parse", "HEAD").strip()
    places = [place for directory in directories for place in _places(directory)]
    changed = any(_git(d, "status", "--porcelain", "--", str(d)).strip() for d in places)
    return revision + ("+changes" if revision and changed else "")


def package_directory(package: str) -> Path:
    """Return where a package lies; raises RequestError when it is not a directory of files."""
    found = importlib.util.find_spec(package)
    places = list(found.submodule_search_locations or []) if found else []
    if not places:
        raise RequestError(f"there is no package {package!r} to take a snapshot of")
    return Path(places[0])


def _places(directory: Path) -> list[Path]:
    """Return where a package's files lie: the directory itself, and those that it links to."""
    return [
        directory.resolve(),
        *(p.resolve() for p in sorted(directory.iterdir()) if p.is_symlink() and p.is_dir()),
    ]


def _files(directory: Path) -> Iterator[Path]:
    found = (Path(at, name) for at, _, names in os.walk(directory, followlinks=True) for name in names)
    for path in sorted(found):
        parts = path.relative_to(directory).parts
        hidden = any(part.startswith(".") or part == "__pycache__" for part in parts)
        if path.is_file() and not hidden and path.suffix != ".pyc":
            yield path


def _digest(sources: dict[str, Path]) -> str:
    digest = hashlib.sha256()
    for name, source in sorted(sources.items()):
        for path in _files(source):
            digest.update(f"{name}/{path.relative_to(source)}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def _git_diff(directories: list[Path]) -> str:
    places = [place for directory in directories for place in _places(directory)]
    return "".join(_git(d, "diff", "HEAD", "--", str(d)) for d in places)


def _git(directory: Path, *words: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *words],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=60,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
