"""The API's names: groups, kinds, labels, annotations, field managers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

JsonObject = dict[str, Any]
"""A decoded JSON object. Immutable by convention: copy before changing."""


GROUP = "mcp.example.com"


VERSION = "v1alpha1"


API_VERSION = f"{GROUP}/{VERSION}"


KIND = "MCPServer"


PLURAL = "mcpservers"


CRD_NAME = f"{PLURAL}.{GROUP}"


FIELD_MANAGER = "gitops-mcp"


SHUTDOWN_MANAGER = "gitops-mcp-shutdown"
"""Field manager of a shutdown's writes: they take single fields and must not give up the rest."""


PAUSE_MANAGER = "gitops-mcp-rollout"
"""Field manager of a paused rollout: so it can be given up, and the template's fields stay."""


FINALIZER = f"{GROUP}/finalizer"


OWNERSHIP_POLICY = f"ownership.{GROUP}"
"""The ValidatingAdmissionPolicy that lets only some write as ``gitops-mcp``."""


LABEL_NAME = "app.kubernetes.io/name"


LABEL_INSTANCE = "app.kubernetes.io/instance"


LABEL_COMPONENT = "app.kubernetes.io/component"


LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"


LABEL_TRANSPORT = f"{GROUP}/transport"


LABEL_SOURCE = f"{GROUP}/source"


APP_NAME = "mcp-server"


AGENT_NAMESPACE = "gitops-mcp"
"""Where ``install`` puts an agent, unless it is told otherwise."""


ANNOTATION_SHUTDOWN = f"{GROUP}/graceful-shutdown"


ANNOTATION_FILE = f"{GROUP}/file"


ANNOTATION_PRUNE = f"{GROUP}/prune"


ANNOTATION_ADOPT = f"{GROUP}/adopt"


ANNOTATION_REPLICAS = f"{GROUP}/replicas"


ANNOTATION_RECONCILE = f"{GROUP}/reconcile-requested-at"


NAMESPACE_NAME = re.compile("[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
"""What Kubernetes takes for the name of a namespace: RFC 1123's label."""


CLUSTER_NAME = re.compile(r"(?!.*\.lock$)[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?=[A-Za-z0-9]))*")
"""What git takes for a part of a ref, and every file system for the name of a file."""


@dataclass(frozen=True, order=True, slots=True)
class ServerKey:
    """Names one MCP server; prints as ``namespace/name``."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, order=True, slots=True)
class ObjectRef:
    """Names one Kubernetes object; prints as kubectl does: ``deployment/web``."""

    api_version: str
    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind.lower()}/{self.name}"

    @classmethod
    def of(cls, body: JsonObject) -> ObjectRef:
        """The reference of an object body that carries apiVersion, kind and metadata."""
        metadata = body["metadata"]
        return cls(
            body["apiVersion"], body["kind"], metadata.get("namespace", ""), metadata["name"]
        )


KUBECTL_MANAGERS = frozenset(
    {
        "kubectl",
        "kubectl-edit",
        "kubectl-patch",
        "kubectl-set",
        "kubectl-replace",
        "kubectl-label",
        "kubectl-annotate",
        "kubectl-client-side-apply",
    }
)
"""Field managers that are people at work, by default: what kubectl calls itself. A restart
(``kubectl-rollout``) is not undone."""
