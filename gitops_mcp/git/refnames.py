"""Names of branches and commits: a user's text in, the same text out where git can read it."""

from __future__ import annotations

import re

from gitops_mcp.base.errors import UsageError
from gitops_mcp.git.gitcommand import Git

_EXPRESSION = re.compile(r"[~^:]|@\{")
"""Where the name in an expression ends: ``main~2``, ``v1^{commit}``, ``main@{1}``."""


def checked_branch(name: str) -> str:
    """A branch's name, unchanged. Raises UsageError for one that git would not take."""
    if name.startswith(("-", "refs/heads/")) or not _is_ref(name):
        raise UsageError(f"{name!r} is no branch name", hint="--ref takes expressions")
    return name


def checked_ref(text: str) -> str:
    """A ref, a commit id or an expression that names one commit, unchanged. Raises UsageError for
    what git could not read as one."""
    name = _EXPRESSION.split(text, maxsplit=1)[0]
    if name.startswith("-") or not text.isprintable() or not (_is_ref(name) if name else text):
        raise UsageError(f"{text!r} names no commit", hint="use a branch, a tag or a commit id")
    return text


def _is_ref(name: str) -> bool:
    """Git's own rule for the names of refs."""
    return not Git("", "-C", "/").ask("check-ref-format", f"refs/heads/{name}").status
