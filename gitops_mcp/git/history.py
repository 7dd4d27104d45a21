"""The history of a repository: commits in, the commits between, behind and around them out."""

from __future__ import annotations

from dataclasses import dataclass

from gitops_mcp.base import limits
from gitops_mcp.git.complaints import printable
from gitops_mcp.git.gitcommand import SHA, Git
from gitops_mcp.git.trailers import allow_prune


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit, as the prune guard asks for it: the number of its ``Allow-Prune`` trailer, and
    ``ignored``, lines that look like that trailer and do not count."""

    sha: str
    subject: str
    allow_prune: int | None = None
    ignored: tuple[str, ...] = ()


def between(git: Git, old: str, new: str) -> tuple[Commit, ...]:
    """The commits after ``old`` up to ``new``, newest first; ``new`` alone where ``old`` is
    not known here or is no ancestor (after a force-push)."""
    if not SHA.fullmatch(new):
        return ()
    known = bool(SHA.fullmatch(old)) and git.is_ancestor(old, new)
    span = (f"{old}..{new}",) if known else ("--no-walk", new)
    listed = git.records(
        *("rev-list", f"--max-count={limits.COMMITS}", "--format=%H%x00%s%x00%B%x00"),
        *span,
        "--",
        most=3 * limits.COMMITS + 1,
        longest=limits.MESSAGE,
        cut=True,
    )
    texts = (text.decode("utf-8", "replace") for text in listed)
    # Before each but the first there is the end of the line before it, and "commit <sha>".
    return tuple(
        Commit(head.rpartition("\n")[2], printable(subject), *allow_prune(message))
        for head, subject, message in zip(texts, texts, texts, strict=False)
    )


def remembers(git: Git, sha: str, head: str) -> bool:
    """Whether a commit is in the history of ``head``, or of a branch or tag."""
    if head and git.is_ancestor(sha, head):
        return True
    refs = ("refs/heads", "refs/tags", "refs/remotes")
    return bool(git.line("for-each-ref", "--count=1", f"--contains={sha}", *refs))


class Roots:
    """The commits without a parent in the history of a head. What the last head holds is not
    walked again."""

    def __init__(self) -> None:
        self._last: tuple[str, tuple[str, ...]] = ("", ())
        """A head, and its roots."""

    def of(self, git: Git, head: str) -> tuple[str, ...]:
        """Sorted. Raises SourceError."""
        old, roots = self._last
        if old == head:
            return roots
        # What the former head holds was walked before: a new commit costs what it adds.
        known = bool(old) and git.is_ancestor(old, head)
        span = (head, f"^{old}") if known else (head,)
        found = git.run("rev-list", "--max-parents=0", f"--max-count={limits.ROOTS}", *span, "--")
        new = {*found.decode().split(), *(roots if known else ())}
        self._last = head, tuple(sorted(new))
        return self._last[1]
