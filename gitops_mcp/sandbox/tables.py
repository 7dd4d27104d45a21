"""Objects as the rows that `kubectl get` prints.

Receives a kind and its objects; returns a `meta.k8s.io/v1` Table. Columns of built-in kinds stand
in a table here, those of custom kinds in their CRD.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from gitops_mcp.sandbox.kinds import Kind
from gitops_mcp.sandbox.storage import KindKey, Object

Cell = Callable[[Object, datetime], Any]


@dataclass(frozen=True)
class Column:
    """One column: its title, how a cell is found, and whether only `-o wide` shows it."""

    name: str
    cell: Cell
    wide: bool = False
    type: str = "string"
    format: str = ""
    description: str = ""

    def definition(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "type": self.type,
            "format": self.format,
            "description": self.description,
            "priority": int(self.wide),
        }


def table(
    kind: Kind, objects: Iterable[Object], rv: str, now: datetime, *, whole: bool = False
) -> dict[str, Any]:
    """The Table of these objects; each row carries its object's metadata, or the ``whole`` object
    (by which kubectl sorts)."""
    columns = _columns(kind)
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {"resourceVersion": rv},
        "columnDefinitions": [column.definition() for column in columns],
        "rows": [
            {
                "cells": [column.cell(obj, now) for column in columns],
                "object": obj if whole else partial(obj),
            }
            for obj in objects
        ],
    }


def partial(obj: Object) -> Object:
    """The object's metadata alone."""
    return {
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": obj["metadata"],
    }


def _columns(kind: Kind) -> list[Column]:
    name = Column("Name", lambda obj, _: obj["metadata"]["name"], format="name")
    if kind.plural == "events":
        return [*BUILT_IN[kind.key], replace(name, wide=True)]
    if kind.definition is None:
        return [name, *BUILT_IN.get(kind.key, (AGE,))]
    return [
        name,
        *(
            Column(
                column["name"],
                _custom_cell(column),
                bool(column.get("priority")),
                column["type"],
                column.get("format", ""),
                column.get("description")
                or f"Custom resource definition column (in JSONPath format): {column['jsonPath']}",
            )
            for column in kind.definition.columns
        ),
    ]


def _custom_cell(column: dict[str, Any]) -> Cell:
    steps = re.findall(r"[^.\[\]]+|\[[^\]]*\]", column["jsonPath"].lstrip("."))

    def cell(obj: Object, now: datetime) -> Any:
        found = _json_path([obj], steps)
        if not found:
            return None
        value = found[0]
        if column["type"] == "date":
            return age(value, now)
        if column["type"] == "string" and not isinstance(value, str):
            return str(value)
        return value

    return cell


CONDITION = re.compile(r"\[\?\(@\.(\w+)\s*==\s*[\"']([^\"']*)[\"']\)\]")


def _json_path(values: list[Any], steps: list[str]) -> list[Any]:
    """The part of JSONPath that printer columns use: fields, indices, `[?(@.a=="b")]`."""
    for step in steps:
        following: list[Any] = []
        for value in values:
            if step.startswith("[") and isinstance(value, list):
                if match := CONDITION.fullmatch(step):
                    following += [one for one in value if one.get(match[1]) == match[2]]
                elif step == "[*]":
                    following += value
                elif step[1:-1].isdigit():
                    following += value[int(step[1:-1]) :][:1]
            elif isinstance(value, dict) and step.strip("[]'\"") in value:
                following.append(value[step.strip("[]'\"")])
        values = following
    return values


def age(moment: str | None, now: datetime) -> str:
    """A time span in kubectl's short form: `7m11s`, `3h4m`, `5d`."""
    if not moment:
        return "<unknown>"
    then = datetime.fromisoformat(moment.replace("Z", "+00:00")).astimezone(UTC)
    seconds = int((now - then).total_seconds())
    if seconds < 0:
        return "0s" if seconds > -2 else "<invalid>"
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if seconds < 120:
        return f"{seconds}s"
    if minutes < 10:
        return f"{minutes}m{seconds % 60}s" if seconds % 60 else f"{minutes}m"
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"
    if hours < 48:
        return f"{hours}h"
    if days < 8:
        return f"{days}d{hours % 24}h" if hours % 24 else f"{days}d"
    if days < 730:
        return f"{days}d"
    return f"{days // 365}y"


def _age_of(*path: str) -> Cell:
    def cell(obj: Object, now: datetime) -> str:
        value: Any = obj
        for part in path:
            value = value.get(part) if isinstance(value, dict) else None
        return age(value, now)

    return cell


def _at(path: str, absent: Any = "<none>") -> Cell:
    parts = path.split(".")

    def cell(obj: Object, _now: datetime) -> Any:
        value: Any = obj
        for part in parts:
            value = value.get(part) if isinstance(value, dict) else None
        return absent if value is None else value

    return cell


def _ratio(obj: Object, _now: datetime) -> str:
    return f"{obj['status'].get('readyReplicas', 0)}/{obj['spec'].get('replicas', 0)}"


def _containers(obj: Object) -> list[Any]:
    spec = obj["spec"]
    found: list[Any] = spec.get("template", {}).get("spec", spec).get("containers", [])
    return found


def _selector(obj: Object, _now: datetime) -> str:
    selector = obj["spec"].get("selector") or {}
    pairs = selector.get("matchLabels", selector)
    return ",".join(f"{key}={value}" for key, value in sorted(pairs.items())) or "<none>"


def _node_status(obj: Object, _now: datetime) -> str:
    conditions = obj.get("status", {}).get("conditions", [])
    ready = any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
    return "Ready" if ready else "NotReady"


def _pod_status(obj: Object, _now: datetime) -> str:
    status = obj.get("status", {})
    if "deletionTimestamp" in obj["metadata"]:
        return "Terminating"
    for container in status.get("containerStatuses", []):
        state = container.get("state", {})
        for kind in ("waiting", "terminated"):
            if reason := state.get(kind, {}).get("reason"):
                return str(reason)
    return str(status.get("reason") or status.get("phase", "Unknown"))


def _pod_ready(obj: Object, _now: datetime) -> str:
    statuses = obj.get("status", {}).get("containerStatuses", [])
    ready = sum(bool(one.get("ready")) for one in statuses)
    return f"{ready}/{len(obj['spec'].get('containers', []))}"


def _restarts(obj: Object, _now: datetime) -> str:
    statuses = obj.get("status", {}).get("containerStatuses", [])
    return str(sum(one.get("restartCount", 0) for one in statuses))


def _external(obj: Object, _now: datetime) -> str:
    ingress = obj.get("status", {}).get("loadBalancer", {}).get("ingress", [])
    if obj["spec"].get("type") == "LoadBalancer" and not ingress:
        return "<pending>"
    found = [one.get("ip") or one.get("hostname", "") for one in ingress]
    return ",".join(found + obj["spec"].get("externalIPs", [])) or "<none>"


def _service_ports(obj: Object, _now: datetime) -> str:
    shown = []
    for port in obj["spec"].get("ports", []):
        node_port = f":{port['nodePort']}" if "nodePort" in port else ""
        shown.append(f"{port['port']}{node_port}/{port['protocol']}")
    return ",".join(shown) or "<none>"


def _endpoints(obj: Object, _now: datetime) -> str:
    found = [
        f"{address['ip']}:{port['port']}"
        for subset in obj.get("subsets", [])
        for port in subset.get("ports", [])
        for address in subset.get("addresses", [])
    ]
    more = f" + {len(found) - 3} more..." if len(found) > 3 else ""
    return ",".join(found[:3]) + more or "<none>"


def _slice_endpoints(obj: Object, _now: datetime) -> str:
    found = [one for endpoint in obj.get("endpoints", []) for one in endpoint.get("addresses", [])]
    more = f" + {len(found) - 3} more..." if len(found) > 3 else ""
    return ",".join(found[:3]) + more or "<unset>"


def _slice_ports(obj: Object, _now: datetime) -> str:
    ports = obj.get("ports") or []
    return ",".join(str(port.get("port", "*")) for port in ports) or "<unset>"


def _count(field: str) -> Cell:
    return lambda obj, _now: len(obj.get(field, {}))


def _event_object(obj: Object, _now: datetime) -> str:
    involved = obj.get("involvedObject") or obj.get("regarding") or {}
    return f"{involved.get('kind', '').lower()}/{involved.get('name', '')}"


def _event_seen(obj: Object, now: datetime) -> str:
    fields = ("lastTimestamp", "deprecatedLastTimestamp", "eventTime")
    moment = next((obj[field] for field in fields if obj.get(field)), None)
    return age(moment, now)


AGE = Column("Age", _age_of("metadata", "creationTimestamp"))
CONTAINERS = Column(
    "Containers", lambda obj, _: ",".join(one["name"] for one in _containers(obj)), wide=True
)
IMAGES = Column(
    "Images", lambda obj, _: ",".join(one.get("image", "") for one in _containers(obj)), wide=True
)

BUILT_IN: dict[KindKey, tuple[Column, ...]] = {
    ("", "configmaps"): (Column("Data", _count("data"), type="integer"), AGE),
    ("", "secrets"): (
        Column("Type", _at("type")),
        Column("Data", _count("data"), type="integer"),
        AGE,
    ),
    ("", "namespaces"): (Column("Status", _at("status.phase", "")), AGE),
    ("", "nodes"): (
        Column("Status", _node_status),
        Column("Roles", lambda _obj, _now: "<none>"),
        AGE,
        Column("Version", _at("status.nodeInfo.kubeletVersion", "")),
    ),
    ("", "pods"): (
        Column("Ready", _pod_ready),
        Column("Status", _pod_status),
        Column("Restarts", _restarts),
        AGE,
        Column("IP", _at("status.podIP"), wide=True),
        Column("Node", _at("spec.nodeName"), wide=True),
        Column("Nominated Node", _at("status.nominatedNodeName"), wide=True),
        Column("Readiness Gates", lambda _obj, _now: "<none>", wide=True),
    ),
    ("", "services"): (
        Column("Type", _at("spec.type")),
        Column("Cluster-IP", _at("spec.clusterIP")),
        Column("External-IP", _external),
        Column("Port(s)", _service_ports),
        AGE,
        Column("Selector", _selector, wide=True),
    ),
    ("", "endpoints"): (Column("Endpoints", _endpoints), AGE),
    ("", "events"): (
        Column("Last Seen", _event_seen),
        Column("Type", _at("type", "")),
        Column("Reason", _at("reason", "")),
        Column("Object", _event_object),
        Column("Message", _at("message", "")),
    ),
    ("events.k8s.io", "events"): (
        Column("Last Seen", _event_seen),
        Column("Type", _at("type", "")),
        Column("Reason", _at("reason", "")),
        Column("Object", _event_object),
        Column("Message", _at("note", "")),
    ),
    ("apps", "deployments"): (
        Column("Ready", _ratio),
        Column("Up-to-date", _at("status.updatedReplicas", 0), type="integer"),
        Column("Available", _at("status.availableReplicas", 0), type="integer"),
        AGE,
        CONTAINERS,
        IMAGES,
        Column("Selector", _selector, wide=True),
    ),
    ("apps", "replicasets"): (
        Column("Desired", _at("spec.replicas", 0), type="integer"),
        Column("Current", _at("status.replicas", 0), type="integer"),
        Column("Ready", _at("status.readyReplicas", 0), type="integer"),
        AGE,
        CONTAINERS,
        IMAGES,
        Column("Selector", _selector, wide=True),
    ),
    ("apiextensions.k8s.io", "customresourcedefinitions"): (
        Column("Created At", _at("metadata.creationTimestamp")),
    ),
    ("coordination.k8s.io", "leases"): (Column("Holder", _at("spec.holderIdentity", "")), AGE),
    ("discovery.k8s.io", "endpointslices"): (
        Column("AddressType", _at("addressType")),
        Column("Ports", _slice_ports),
        Column("Endpoints", _slice_endpoints),
        AGE,
    ),
}
