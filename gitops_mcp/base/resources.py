"""Find the shipped files: schemas, templates, the example."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Resource = Literal["schemas", "templates", "repo-example"]

_PACKAGE = Path(__file__).parents[1]


def folder(kind: Resource) -> Path:
    """The folder of a shipped resource: inside the installed package, or at the top of the
    checkout."""
    packaged = _PACKAGE / kind
    return packaged if packaged.is_dir() else _PACKAGE.parent / kind
