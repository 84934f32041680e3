"""What a stage prints and logs goes into its log files as well as where it went before."""

import io
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# A progress bar redraws its line by moving the cursor; in a file that is only noise.
_DRAWING = re.compile(r"\x1b\[\d*[ABCDFGHJK]|\x1b\[\?25[lh]|\r(?!\n)")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m|\x1b\]8;[^\x1b\x07]*(?:\x1b\\|\x07)")


@contextmanager
def captured(log_file: Path) -> Iterator[TextIO]:
    """Copy log records into `log_file`, and what is written to stdout and stderr into ``<name>.out``.

    Yields the open log file, for what belongs there and nowhere else.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    root = logging.getLogger()
    level, before = root.level, (sys.stdout, sys.stderr)
    with (
        log_file.open("a", encoding="utf-8", errors="replace") as log,
        log_file.with_suffix(".out").open("a", encoding="utf-8", errors="replace") as printed,
    ):
        handlers = [_handler(log, logging.INFO)]
        if not root.handlers:
            # Without a handler of its own Python shows warnings; with ours alone it would not.
            handlers.append(_handler(sys.stderr, logging.WARNING))
        sys.stdout, sys.stderr = _Tee(before[0], printed), _Tee(before[1], printed)
        root.setLevel(min(level, logging.INFO) if level else logging.INFO)
        for handler in handlers:
            root.addHandler(handler)
        try:
            yield log
        finally:
            for handler in handlers:
                root.removeHandler(handler)
            root.setLevel(level)
            sys.stdout, sys.stderr = before


def _handler(stream: TextIO, level: int) -> logging.Handler:
    handler = logging.StreamHandler(stream)
    handler.setLevel(level)
    handler.setFormatter(logging.Formatter(_FORMAT))
    return handler


class _Tee(io.TextIOBase):
    """Writes to a stream, and to a file what is text rather than drawing."""

    def __init__(self, stream: TextIO, copy: TextIO) -> None:
        self._stream, self._copy = stream, copy

    def write(self, text: str) -> int:
        self._stream.write(text)
        if not self._copy.closed and not _DRAWING.search(text):
            self._copy.write(_COLOUR.sub("", text))
            self._copy.flush()
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
