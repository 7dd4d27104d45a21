"""The kinds that the sandbox serves: the built-in table, and what CRDs add to it.

Receives nothing but CRD objects; returns `Kind` values, which say how a kind is named and which
rules its writes follow. It stores no object and checks none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gitops_mcp.sandbox.storage import KindKey

if TYPE_CHECKING:
    from gitops_mcp.sandbox.crds import Definition

VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


@dataclass(frozen=True)
class Kind:
    """A served kind in one version.

    `generation`: a spec change counts in metadata.generation. `unconditional`: a PUT may come
    without resourceVersion. `creates`: a PUT may create. `definition` is set for custom kinds.
    """

    group: str
    version: str
    plural: str
    name: str
    namespaced: bool = True
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    subresources: tuple[str, ...] = ()
    generation: bool = False
    unconditional: bool = True
    creates: bool = False
    singular: str = ""
    definition: Definition | None = field(default=None, compare=False)

    @property
    def key(self) -> KindKey:
        return self.group, self.plural

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def resource(self) -> str:
        """The name in messages: `deployments.apps`, `pods`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


STATUS = ("status",)
SCALED = ("status", "scale")
ALL = ("all",)
RBAC = "rbac.authorization.k8s.io"
ADMISSION = "admissionregistration.k8s.io"

BUILT_IN = (
    Kind("", "v1", "namespaces", "Namespace", False, ("ns",), (), STATUS),
    Kind("", "v1", "pods", "Pod", True, ("po",), ALL, STATUS, generation=True),
    Kind("", "v1", "services", "Service", True, ("svc",), ALL, STATUS, creates=True),
    Kind("", "v1", "endpoints", "Endpoints", True, ("ep",), creates=True),
    Kind("", "v1", "events", "Event", True, ("ev",), creates=True),
    Kind("", "v1", "configmaps", "ConfigMap", True, ("cm",)),
    Kind("", "v1", "secrets", "Secret"),
    Kind("", "v1", "serviceaccounts", "ServiceAccount", True, ("sa",)),
    Kind("", "v1", "nodes", "Node", False, ("no",), (), STATUS),
    Kind("apps", "v1", "deployments", "Deployment", True, ("deploy",), ALL, SCALED, True),
    Kind("apps", "v1", "replicasets", "ReplicaSet", True, ("rs",), ALL, SCALED, True),
    Kind("autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler",
         True, ("hpa",), ALL, STATUS),
    Kind("coordination.k8s.io", "v1", "leases", "Lease", unconditional=False, creates=True),
    Kind("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", generation=True),
    Kind("events.k8s.io", "v1", "events", "Event", True, ("ev",), creates=True),
    Kind("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", True, ("netpol",),
         generation=True),
    Kind("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget", True, ("pdb",), (),
         STATUS, generation=True),
    Kind(RBAC, "v1", "roles", "Role"),
    Kind(RBAC, "v1", "rolebindings", "RoleBinding"),
    Kind(RBAC, "v1", "clusterroles", "ClusterRole", False),
    Kind(RBAC, "v1", "clusterrolebindings", "ClusterRoleBinding", False),
    Kind(ADMISSION, "v1", "validatingadmissionpolicies", "ValidatingAdmissionPolicy", False,
         (), ("api-extensions",), STATUS, generation=True),
    Kind(ADMISSION, "v1", "validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding",
         False, (), ("api-extensions",), generation=True),
    Kind("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition",
         False, ("crd", "crds"), ("api-extensions",), STATUS, generation=True),
)  # fmt: skip

NAMESPACES: KindKey = ("", "namespaces")
PODS: KindKey = ("", "pods")
SERVICES: KindKey = ("", "services")
DEPLOYMENTS: KindKey = ("apps", "deployments")
REPLICA_SETS: KindKey = ("apps", "replicasets")
ENDPOINTS: KindKey = ("", "endpoints")
SLICES: KindKey = ("discovery.k8s.io", "endpointslices")
CRDS: KindKey = ("apiextensions.k8s.io", "customresourcedefinitions")


class Registry:
    """The kinds served at the moment."""

    def __init__(self) -> None:
        self._served: dict[tuple[str, str, str], Kind] = {}
        self._stored: dict[KindKey, Kind] = {}
        for kind in BUILT_IN:
            self._served[kind.group, kind.version, kind.plural] = kind
            self._stored[kind.key] = kind

    def __iter__(self) -> Iterator[Kind]:
        return iter(self._served.values())

    def find(self, group: str, version: str, plural: str) -> Kind | None:
        """The kind of a URL, or None."""
        return self._served.get((group, version, plural))

    def stored(self, key: KindKey) -> Kind:
        """The kind in the version in which its objects are stored; KeyError if not served."""
        return self._stored[key]

    def has(self, key: KindKey) -> bool:
        return key in self._stored

    def named(self, api_version: str, name: str) -> Kind | None:
        """The kind of an owner reference, or None."""
        for kind in self._served.values():
            if kind.api_version == api_version and kind.name == name:
                return kind
        return None

    def replace(self, key: KindKey, served: Iterable[Kind], stored: Kind | None) -> None:
        """Serve these versions of a custom kind from now on (none: serve it no more)."""
        for kind in [kind for kind in self._served.values() if kind.key == key]:
            del self._served[kind.group, kind.version, kind.plural]
        self._stored.pop(key, None)
        for kind in served:
            self._served[kind.group, kind.version, kind.plural] = kind
        if stored is not None:
            self._stored[key] = stored
