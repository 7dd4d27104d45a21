"""What people and controllers do to an object: one field changed, in every way that an API offers.

Receives a live object, a place in it and a new value (or GONE); returns the request that makes the
change: by PUT, by a patch of each type, or by the scale subresource.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

import urllib3
import yaml

from gitops_mcp.base.names import KIND, JsonObject

Place = tuple[str | int, ...]
"""Keys and indices, from the object down."""

GONE: Any = object()
"""The new value of a field that is taken away."""

COLLECTIONS = {
    KIND: "/apis/mcp.example.com/v1alpha1/namespaces/{}/mcpservers",
    "Deployment": "/apis/apps/v1/namespaces/{}/deployments",
    "Service": "/api/v1/namespaces/{}/services",
}
TYPES = {
    "apply": "application/apply-patch+yaml",
    "json": "application/json-patch+json",
    "merge": "application/merge-patch+json",
    "scale": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
}
WAYS = ("put", "merge", "strategic", "json", "apply", "scale")

_KEYS: Mapping[str, tuple[str, ...]] = {
    "containers": ("name",),
    "env": ("name",),
    "imagePullSecrets": ("name",),
    "initContainers": ("name",),
    "ports": ("containerPort", "port", "protocol"),
    "volumeMounts": ("mountPath",),
    "volumes": ("name",),
}
"""Lists of pods and Services whose items have a key; of an MCPServer's, only `env`."""

_ATOMIC = frozenset(
    {
        "configMapKeyRef",
        "fieldRef",
        "labelSelector",
        "namespaceSelector",
        "nodePublishSecretRef",
        "nodeSelector",
        "requiredDuringSchedulingIgnoredDuringExecution",
        "resourceFieldRef",
        "secretKeyRef",
        "selector",
    }
)
"""Maps of pods and Services that an apply owns as one value."""


class Api:
    """Raw requests to the API server of a kubeconfig."""

    def __init__(self, kubeconfig: str) -> None:
        config = yaml.safe_load(Path(kubeconfig).read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self.url = cluster["server"]
        self.headers = {"Authorization": f"Bearer {user['token']}"} if user.get("token") else {}
        self.http = urllib3.PoolManager(
            ca_certs=cluster.get("certificate-authority"), retries=False
        )

    def ask(self, method: str, path: str, body: object, kind: str) -> tuple[int, JsonObject]:
        """One request with a JSON body: status and answer."""
        headers = {**self.headers, "Content-Type": kind}
        answer = self.http.request(
            method, self.url + path, body=json.dumps(body).encode(), headers=headers
        )
        return answer.status, json.loads(answer.data)

    def change(
        self, live: JsonObject, place: Place, value: Any, *, way: str, manager: str
    ) -> tuple[int, JsonObject]:
        """Let `manager` change one field of an object."""
        metadata = live["metadata"]
        url = f"{COLLECTIONS[live['kind']].format(metadata['namespace'])}/{metadata['name']}"
        url += f"/scale?fieldManager={manager}" if way == "scale" else f"?fieldManager={manager}"
        if way == "put":
            return self.ask("PUT", url, changed(live, place, value), "application/json")
        if way == "apply":
            url += "&force=true"
        return self.ask("PATCH", url, patch(live, place, value, way), TYPES[way])


def fits(live: JsonObject, place: Place, value: Any, way: str) -> bool:
    """Can a change be made that way at all?"""
    if way == "scale":
        return place == ("spec", "replicas") and live["kind"] != "Service" and value is not GONE
    if way == "strategic":
        return bool(live["kind"] != KIND)  # 415
    return not (way == "apply" and value is GONE)


def patch(live: JsonObject, place: Place, value: Any, way: str) -> Any:
    """The body of the request."""
    if way == "json":
        pointer = "".join(f"/{str(k).replace('~', '~0').replace('/', '~1')}" for k in place)
        if value is GONE:
            return [{"op": "remove", "path": pointer}]
        return (
            [*_parents(live, place), {"op": "add", "path": pointer, "value": value}]
            if at(live, place) is None
            else [{"op": "replace", "path": pointer, "value": value}]
        )
    if way == "scale":
        return {"spec": {"replicas": value}}
    body: JsonObject = _partial(live, place, value, way, live["kind"], "")
    if way == "apply":
        name = {"name": live["metadata"]["name"]}
        body["metadata"] = {**body.get("metadata", {}), **name}
        body |= {"apiVersion": live["apiVersion"], "kind": live["kind"]}
    return body


def pointer(place: Place) -> str:
    """A place as a JSON pointer, which is how diff writes it."""
    return "".join(f"/{str(key).replace('~', '~0').replace('/', '~1')}" for key in place)


def _parents(live: JsonObject, place: Place) -> Iterator[JsonObject]:
    """The maps and lists that a json patch has to make first."""
    for depth in range(1, len(place)):
        if at(live, place[:depth]) is None:
            empty: Any = [] if place[depth] == "-" else {}
            yield {"op": "add", "path": pointer(place[:depth]), "value": empty}


def _partial(node: Any, place: Place, value: Any, way: str, kind: str, name: str) -> Any:
    """The part of a patch that says one field, below a node of the live object."""
    if not place:
        return None if value is GONE else value
    head, rest = place[0], place[1:]
    atomic = way == "apply" and kind != KIND and name in _ATOMIC
    if isinstance(node, dict) and not atomic:
        below = _partial(node.get(str(head)), rest, value, way, kind, str(head))
        return {head: below}
    keys = _KEYS.get(name) if kind != KIND or name == "env" else None
    if way == "merge" or keys is None or isinstance(node, dict):
        empty: Any = [] if head == "-" else {}
        return changed(empty if node is None else node, place, value)
    if way == "strategic":
        keys = keys[:1] if kind != "Service" else ("port",) if name == "ports" else keys
    if head == "-" or head == len(node or ()):
        return [value]
    item = node[head]
    return [
        {key: item[key] for key in keys if key in item} | _partial(item, rest, value, way, kind, "")
    ]


def changed(node: Any, place: Place, value: Any) -> Any:
    """A copy of a value in which one field is another."""
    result = copy.deepcopy(node)
    *parents, last = place
    below = result
    for key, following in zip(parents, place[1:], strict=True):
        if isinstance(below, dict):
            below = below.setdefault(key, [] if following == "-" else {})
        else:
            below = below[key]
    if value is GONE:
        del below[last]
    elif last == "-":
        below.append(value)
    else:
        below[last] = value
    return result


def at(node: Any, place: Place) -> Any:
    """What stands at a place; None: nothing."""
    for key in place:
        if isinstance(node, list):
            node = node[key] if isinstance(key, int) and key < len(node) else None
        else:
            node = node.get(key) if isinstance(node, dict) else None
    return node


def leaves(node: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every scalar of a body."""
    if isinstance(node, dict):
        for key, below in node.items():
            yield from leaves(below, (*place, key))
    elif isinstance(node, list):
        for index, below in enumerate(node):
            yield from leaves(below, (*place, index))
    else:
        yield place, node


_WORDS: Mapping[str, tuple[str, ...]] = {
    "cpu": ("3", "1500m"),
    "effect": ("NoSchedule", "NoExecute"),
    "memory": ("3Gi", "5M"),
    "ephemeral-storage": ("3Gi", "5M"),
    "sessionAffinity": ("None", "ClientIP"),
    "mode": ("none", "tcp"),
    "storage": ("9Gi",),
    "transport": ("http", "streamable-http"),
    "type": ("ClusterIP", "NodePort", "LoadBalancer", "Recreate"),
    "timeout": ("77s",),
    "interval": ("77s",),
    "preStop": ("77s",),
}


def other(rng: Random, key: str | int, value: Any) -> Any:
    """Another value of the same kind; an API server may still refuse it."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int) and key not in _WORDS:
        return value + rng.choice((1, 2))
    words = [word for word in _WORDS.get(str(key), ()) if word != str(value)]
    return rng.choice(words) if words else f"{value}x"
