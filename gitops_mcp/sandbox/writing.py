"""How a write is done: what its request says, beside the object itself."""

from __future__ import annotations

from dataclasses import dataclass

from gitops_mcp.sandbox.apply import Manager
from gitops_mcp.sandbox.kinds import Kind
from gitops_mcp.sandbox.schema import Decoding


@dataclass(frozen=True)
class Writing:
    """How one write is done: by whom, on which subresource, for real or not."""

    manager: str
    subresource: str = ""
    dry_run: bool = False
    decoding: Decoding | None = None

    def as_manager(self, kind: Kind, operation: str = "Update") -> Manager:
        version = kind.api_version if operation == "Update" else ""
        return Manager(self.manager[:128], operation, version, self.subresource)

    def reader(self) -> Decoding:
        return self.decoding or Decoding()
