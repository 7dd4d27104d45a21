"""Unexpected errors: where they were raised, and their tracebacks in a file."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

from gitops_mcp import __version__


def write_traceback(error: BaseException) -> str:
    """Write an unexpected error's traceback to a file that only its owner may read; returns the
    file's name."""
    import tempfile
    import traceback

    descriptor, name = tempfile.mkstemp(prefix="gitops-mcp-", suffix=".log")
    with os.fdopen(descriptor, "w", encoding="utf-8") as log:
        told = "".join(traceback.format_exception(error))
        log.write(f"gitops-mcp {__version__}, Python {sys.version}\n\n{told}")
    return name


_PACKAGE = Path(__file__).parents[1]


def place_of(error: BaseException) -> str:
    """Where an error was raised, as ``file.py:line`` of this package's innermost frame. An error's
    text is not repeated in a status: it may quote a value."""
    frames = list(traceback.walk_tb(error.__traceback__))
    ours = [one for one in frames if Path(one[0].f_code.co_filename).is_relative_to(_PACKAGE)]
    frame, line = (ours or frames)[-1] if frames else (None, 0)
    return f"{Path(frame.f_code.co_filename).name}:{line}" if frame is not None else "no frame"
