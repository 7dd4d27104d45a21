"""Looking up what a repository has: a ref in, its commit out, or why there is none."""

from __future__ import annotations

from gitops_mcp.base.errors import SourceError
from gitops_mcp.git.gitcommand import Git
from gitops_mcp.git.gitmirror import Absent, Empty


def find(git: Git, root: str, ref: str) -> str:
    """A commit by branch, tag or id; "" for none. A branch that only the remote has counts (CI
    checks out no local ``main``). Raises SourceError for a name that is a branch and a tag."""
    names = {f"refs/{kind}/{ref}" for kind in ("heads", "tags")}
    named = git.line("for-each-ref", "--format=%(refname)", "--", *names).split("\n")
    if names <= set(named):
        raise SourceError(
            f"{root}: {ref} is the name of a branch and of a tag",
            hint=f"say heads/{ref} or tags/{ref}",
        )
    return git.commit(ref) or git.commit(f"refs/remotes/{remote(git) or 'origin'}/{ref}")


def absent(git: Git, root: str, what: str) -> SourceError:
    """Why a commit was not found: with what there is instead."""
    names = git.line("for-each-ref", "--format=%(refname:short)", "--count=20", "refs/heads").split(
        "\n"
    )
    if not any(names) and not git.line("rev-list", "--all", "--max-count=1"):
        return Empty(f"{root}: there is no commit yet", hint="push a first commit")
    shallow = git.line("rev-parse", "--is-shallow-repository") == "true"
    return Absent(
        f"{root}: {what}",
        hint="this clone is shallow: git fetch --unshallow"
        if shallow
        else f"branches: {', '.join(names)}",
    )


def remote(git: Git) -> str:
    """The remote of the current branch, else origin, else the only one; "" for none."""
    names = git.line("remote").split("\n")
    branch = git.branch()
    configured = git.line("config", "--get", f"branch.{branch}.remote") if branch else ""
    for name in (configured, "origin", names[0] if len(names) == 1 else ""):
        if name and name in names:
            return name
    return ""
