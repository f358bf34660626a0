"""Errors that say what a user has to mend, for command lines that show these as one line and others as they are."""

from __future__ import annotations

import traceback


def raised_by(error: Exception, packages: tuple[str, ...]) -> bool:
    """Whether a module whose name begins with one of `packages` raised `error`, and not a library that it calls."""
    *_, (innermost, _) = traceback.walk_tb(error.__traceback__)
    return innermost.f_globals.get("__name__", "").startswith(packages)
