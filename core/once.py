"""Log what several evaluations of one file would repeat once per command."""

import logging

_logged: set[str] = set()


def log_once(log: logging.Logger, level: int, message: str, *arguments: object) -> None:
    """Log `message` unless it was already logged with the same `arguments` since `forget`."""
    line = f"{log.name}: {message % arguments}"
    if line not in _logged:
        _logged.add(line)
        log.log(level, message, *arguments)


def forget() -> None:
    """Forget what was logged, for a new command."""
    _logged.clear()
