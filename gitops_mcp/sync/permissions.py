"""What the account may do in the cluster, asked before anything is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from gitops_mcp.base.errors import UsageError
from gitops_mcp.base.names import GROUP

if TYPE_CHECKING:
    from gitops_mcp.cluster.reads import Reader


class Right(NamedTuple):
    """One permission, in the order of ``Reader.can``; prints as ``patch mcpservers/status``."""

    verb: str
    group: str
    resource: str
    namespace: str | None = None
    subresource: str = ""

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}" + (f"/{self.subresource}" if self.subresource else "")


NEEDED = (
    *(
        Right(verb, group, resource)
        for group, resource in ((GROUP, "mcpservers"), ("apps", "deployments"), ("", "services"))
        for verb in ("get", "watch", "create", "patch", "delete")
    ),
    Right("patch", GROUP, "mcpservers", subresource="status"),
    Right("watch", "", "pods"),
)
"""What a pass may have to do in the namespaces of its servers, besides the lists that it begins
with."""


OPEN_GATES = Right("patch", "", "pods", subresource="status")
"""Besides, where a pod's readiness gate waits for our handshake."""


MAKE_NAMESPACES = (Right("create", "", "namespaces"), Right("patch", "", "namespaces"))
"""Besides, where a namespace is to be made: an apply of what is not there asks for both."""


OLDEST_KUBERNETES = (1, 30)
"""The first with a native preStop sleep switched on."""


def require_min_version(cluster: Reader) -> None:
    """Raises UsageError for an API server that our objects are too new for."""
    version = cluster.version()
    if version < OLDEST_KUBERNETES:
        raise UsageError(
            f"the API server is {version[0]}.{version[1]}; gitops-mcp needs 1.30 or newer",
            hint="older ones have no native preStop sleep",
        )


@dataclass(frozen=True, slots=True)
class Leads:
    """What we may write: the servers of our source, and those that kubectl made. Both are asked
    right before each write."""

    source: Callable[[], bool]
    kubectl: Callable[[], bool]

    def __call__(self, kubectls: bool) -> bool:
        return self.kubectl() if kubectls else self.source()
