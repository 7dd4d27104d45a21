"""How the API server reads the fields of each kind: lists with keys, sets, quantities, defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gitops_mcp.base import quantities
from gitops_mcp.base.names import ANNOTATION_RECONCILE, KIND


@dataclass(frozen=True, slots=True)
class Shape:
    """What has to be known of a field to compare it."""

    children: Mapping[str, Shape] = field(default_factory=dict)
    """The fields of a structure, or of the items of a list that is one value."""
    each: Shape | None = None
    """A map with free keys, its values of this shape; the server drops it when empty."""
    item: Shape | None = None
    """A list whose items have an identity; any other list is one value."""
    identity: tuple[str, ...] = ()
    """The fields by which an item of a list is known."""
    ordered: bool = False
    """Another order of such a list is a change: it rolls the pods."""
    exclusive: bool = False
    """Such a list is ours alone: a foreign item in it is drift."""
    members: bool = False
    """A list that is a set."""
    atomic: bool = False
    """A map that is one value: nobody else may add to it."""
    quantity: bool = False
    zero: bool = False
    """False and 0 are stored as absent."""
    default: Any = None
    shared: bool = False
    """People may add to it as controllers may."""
    kept: bool = False
    """Not git's where git leaves it out, whoever wrote it."""
    only_with: tuple[str, str] | None = None
    """A field beside it and its value, without which the API refuses this one: it goes with that
    value, whoever wrote it."""

    @property
    def nothing(self) -> Any:
        """What an absent one is compared as, so that its parts differ one by one."""
        if self.item or self.members:
            return []
        return {} if self.each and not self.atomic else None

    def child(self, name: str) -> Shape:
        return self.children.get(name) or self.each or _PLAIN


_PLAIN = Shape()


SET = Shape(members=True, shared=True)


MEMBER = Shape(shared=True)


_ZERO = Shape(zero=True)


_ATOMIC = Shape(atomic=True)


_KEPT = Shape(kept=True)


_QUANTITY = Shape(quantity=True)


_QUANTITIES = Shape(each=_QUANTITY)


_MAP = Shape(each=_PLAIN)


_PROTOCOL = Shape(default="TCP")


_LABEL_SELECTOR = Shape(atomic=True, children={"matchLabels": _MAP})


_FIELD_REF = Shape(atomic=True, children={"apiVersion": Shape(default="v1")})


_RESOURCE_REF = Shape(atomic=True, children={"divisor": Shape(quantity=True, default="0")})


def _keyed(
    *identity: str,
    children: Mapping[str, Shape] | None = None,
    ordered: bool = False,
    exclusive: bool = False,
    shared: bool = False,
) -> Shape:
    item = Shape(children=children or {}, identity=identity, shared=shared)
    return Shape(item=item, ordered=ordered, exclusive=exclusive, shared=shared)


_RESOURCES = Shape(
    children={"requests": _QUANTITIES, "limits": _QUANTITIES, "claims": _keyed("name")}
)


_ENV = _keyed(
    "name",
    ordered=True,
    children={
        "valueFrom": Shape(
            children={
                "configMapKeyRef": _ATOMIC,
                "fieldRef": _FIELD_REF,
                "fileKeyRef": _ATOMIC,
                "resourceFieldRef": _RESOURCE_REF,
                "secretKeyRef": _ATOMIC,
            }
        )
    },
)


_CONTAINERS = _keyed(
    "name",
    ordered=True,
    children={
        "env": _ENV,
        "ports": _keyed(
            "containerPort",
            "protocol",
            ordered=True,
            exclusive=True,
            children={"protocol": _PROTOCOL},
        ),
        "resources": _RESOURCES,
        "stdin": _ZERO,
        "stdinOnce": _ZERO,
        "tty": _ZERO,
        "volumeDevices": _keyed("devicePath", ordered=True),
        "volumeMounts": _keyed("mountPath", ordered=True, children={"readOnly": _ZERO}),
        **{
            probe: Shape(children={"initialDelaySeconds": _ZERO})
            for probe in ("livenessProbe", "readinessProbe", "startupProbe")
        },
    },
)


_DOWNWARD = Shape(children={"fieldRef": _FIELD_REF, "resourceFieldRef": _RESOURCE_REF})


_VOLUME = {
    "downwardAPI": Shape(children={"items": _DOWNWARD}),
    "emptyDir": Shape(children={"sizeLimit": _QUANTITY}),
    "ephemeral": Shape(
        children={
            "volumeClaimTemplate": Shape(
                children={
                    "metadata": Shape(children={"annotations": _MAP, "labels": _MAP}),
                    "spec": Shape(children={"resources": _RESOURCES, "selector": _LABEL_SELECTOR}),
                }
            )
        }
    ),
    "nfs": Shape(children={"readOnly": _ZERO}),
    "persistentVolumeClaim": Shape(children={"readOnly": _ZERO}),
    "projected": Shape(
        children={
            "sources": Shape(
                children={
                    "clusterTrustBundle": Shape(children={"labelSelector": _LABEL_SELECTOR}),
                    "downwardAPI": Shape(children={"items": _DOWNWARD}),
                    "serviceAccountToken": Shape(
                        children={"expirationSeconds": Shape(default=3600)}
                    ),
                }
            )
        }
    ),
    **{
        name: Shape(
            children={
                "secretRef": _ATOMIC,
                "nodePublishSecretRef": _ATOMIC,
                "volumeAttributes": _MAP,
            }
        )
        for name in (
            "cephfs",
            "cinder",
            "csi",
            "flexVolume",
            "iscsi",
            "rbd",
            "scaleIO",
            "storageos",
        )
    },
}


_TERM = Shape(children={"labelSelector": _LABEL_SELECTOR, "namespaceSelector": _LABEL_SELECTOR})


_POD_AFFINITY = Shape(
    children={
        "requiredDuringSchedulingIgnoredDuringExecution": _TERM,
        "preferredDuringSchedulingIgnoredDuringExecution": Shape(
            children={"podAffinityTerm": _TERM}
        ),
    }
)


_AFFINITY = Shape(
    children={
        "nodeAffinity": Shape(children={"requiredDuringSchedulingIgnoredDuringExecution": _ATOMIC}),
        "podAffinity": _POD_AFFINITY,
        "podAntiAffinity": _POD_AFFINITY,
    }
)


_POD = Shape(
    children={
        "affinity": _AFFINITY,
        "containers": _CONTAINERS,
        "hostAliases": _keyed("ip", ordered=True),
        "hostIPC": _ZERO,
        "hostNetwork": _ZERO,
        "hostPID": _ZERO,
        "imagePullSecrets": _keyed("name", ordered=True),
        "initContainers": _CONTAINERS,
        "nodeSelector": Shape(atomic=True, each=_PLAIN),
        "resourceClaims": _keyed("name", ordered=True),
        "resources": _RESOURCES,
        "schedulingGates": _keyed("name", ordered=True),
        "topologySpreadConstraints": _keyed(
            "topologyKey",
            "whenUnsatisfiable",
            ordered=True,
            children={"labelSelector": _LABEL_SELECTOR},
        ),
        "volumes": _keyed("name", ordered=True, children=_VOLUME),
    }
)


_ANNOTATIONS = Shape(
    each=_PLAIN,
    children={
        "deployment.kubernetes.io/revision": _KEPT,
        "kubectl.kubernetes.io/last-applied-configuration": _KEPT,
        "kubectl.kubernetes.io/restartedAt": _KEPT,
        ANNOTATION_RECONCILE: _KEPT,
    },
)


_METADATA = Shape(
    children={
        "annotations": _ANNOTATIONS,
        "finalizers": SET,
        "labels": _MAP,
        "ownerReferences": _keyed("uid", shared=True, children={}),
    }
)


SHAPES: Mapping[str, Shape] = {
    "Deployment": Shape(
        children={
            "metadata": _METADATA,
            "spec": Shape(
                children={
                    "minReadySeconds": _ZERO,
                    "paused": _ZERO,
                    "selector": _LABEL_SELECTOR,
                    "strategy": Shape(
                        children={"rollingUpdate": Shape(only_with=("type", "RollingUpdate"))}
                    ),
                    "template": Shape(children={"metadata": _METADATA, "spec": _POD}),
                }
            ),
        }
    ),
    "Service": Shape(
        children={
            "metadata": _METADATA,
            "spec": Shape(
                children={
                    "loadBalancerSourceRanges": Shape(only_with=("type", "LoadBalancer")),
                    "ports": _keyed(
                        "port", "protocol", exclusive=True, children={"protocol": _PROTOCOL}
                    ),
                    "publishNotReadyAddresses": _ZERO,
                    "selector": Shape(atomic=True, each=_PLAIN),
                }
            ),
        }
    ),
    KIND: Shape(
        children={
            "metadata": _METADATA,
            "spec": Shape(
                children={
                    "config": _MAP,
                    "env": _keyed("name", ordered=True),
                    "nodeSelector": _MAP,
                    "path": Shape(default="/mcp"),
                    "podAnnotations": _MAP,
                    "podLabels": _MAP,
                    "port": Shape(default=8080),
                    "replicas": _KEPT,
                    "resources": _RESOURCES,
                    "suspend": _KEPT,
                    "transport": Shape(default="streamable-http"),
                }
            ),
        }
    ),
}
"""By kind: what the API server's own schemas say of its lists and maps (list-type, list-map-keys,
map-type, quantities), for the kinds that we render. Any other kind is compared field by field."""


OTHER_KIND = Shape(children={"metadata": _METADATA})


METADATA_WE_MEAN = ("labels", "annotations", "finalizers", "ownerReferences")


ItemKey = tuple[Any, ...]


def is_empty(value: Any, shape: Shape) -> bool:
    """What the server stores as absent. An empty structure is something: ``emptyDir: {}``."""
    if isinstance(value, bool | int):
        return shape.zero and not value
    return value is None or value in ("", []) or (value == {} and shape.each is not None)


def canonical(value: Any, shape: Shape) -> Any:
    """Equal for values that the server takes for equal."""
    if isinstance(value, dict):
        return {
            name: canonical(inner, child)
            for name, inner in value.items()
            if not (is_empty(inner, child := shape.child(name)) or is_default(inner, child))
        }
    if isinstance(value, list):
        return [canonical(item, shape.item or shape) for item in value]
    if isinstance(value, bool):
        return (value,)  # or it would equal a number
    number = quantities.parse(value) if shape.quantity else None
    return (
        value if number is None else number
    )  # the API server will say of no quantity that it is none


def is_default(value: Any, shape: Shape) -> bool:
    if shape.default is None:
        return False
    return bool(canonical(value, shape) == canonical(shape.default, shape))
