"""Errors as one line that says what to mend."""

from __future__ import annotations

import sys
from typing import Any


def is_expected(error: Exception) -> bool:
    """Say whether an error is the user's to mend: bad input, the system, or one this package defines."""
    return is_ours(error) or isinstance(error, (ValueError, OSError, ModuleNotFoundError))


def is_ours(error: Exception) -> bool:
    """Say whether this package defines the error's class."""
    return type(error).__module__.startswith("audiolm_utils")


def complain(error: Exception) -> None:
    """Print an error to stderr as one line, or one a problem that ours lists; a missing import with its mend."""
    separator = "\n  " if is_ours(error) else " "  # ours list problems line by line
    message = separator.join(line.strip() for line in str(error).splitlines()) or type(error).__name__
    if isinstance(error, ModuleNotFoundError):
        name = error.name or ""
        if name.startswith("audiolm_utils"):
            message = f"this version has no {name}, which the command needs"
        else:
            extra = "cluster" if name == "ray" else "lab,demo,test"
            message = f"the package {name} is not installed: pip install -e '.[{extra}]'"
    print(f"audiolm: {message}", file=sys.stderr)


def show_warning(message: Warning | str, *_: Any) -> None:
    """Print a warning as one line, without the source line Python adds."""
    print(f"audiolm: warning: {message}", file=sys.stderr)
