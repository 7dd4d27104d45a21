"""Server → objects, through the templates.

Receives servers as git wants them and MCPServers as they stand; returns the bodies that are
applied: the custom resource, its Deployment, its Service. Never talks to a cluster, never edits
what it was given, and never lets a value reach the text of a template: Jinja2 writes a
placeholder for each value, the YAML is read, and only then are the values put in. So no value can
break out of its place, and servers of the same structure share one parse.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Mapping
from dataclasses import fields
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import orjson

from gitops_mcp import __version__
from gitops_mcp.base import durations, objects, transports
from gitops_mcp.base.errors import Configuration
from gitops_mcp.base.names import (
    ANNOTATION_FILE,
    ANNOTATION_REPLICAS,
    API_VERSION,
    APP_NAME,
    FIELD_MANAGER,
    GROUP,
    KIND,
    LABEL_COMPONENT,
    LABEL_INSTANCE,
    LABEL_MANAGED_BY,
    LABEL_NAME,
    LABEL_SOURCE,
    LABEL_TRANSPORT,
    JsonObject,
    ServerKey,
)
from gitops_mcp.base.objects import DesiredObject, LiveObject
from gitops_mcp.base.reasons import Reason
from gitops_mcp.base.source import McpServer
from gitops_mcp.source.filling import checked, compile_templates, read_templates, render_template

if TYPE_CHECKING:
    pass

READINESS_GATE = f"{GROUP}/verified"
"""The pod condition that ``spec.health.gate`` waits for; whoever handshakes the pod sets it."""


ABSENT: Mapping[str, Any] = MappingProxyType(
    {
        "image": None,
        "transport": transports.DEFAULT,
        "port": 8080,
        "path": "/mcp",
        "replicas": None,
        "config": {},
        "command": [],
        "args": [],
        "env": [],
        "envFrom": [],
        "resources": {"requests": {}, "limits": {}},
        "securityContext": {},
        "podSecurityContext": {},
        "serviceAccount": None,
        "imagePullSecrets": [],
        "nodeSelector": {},
        "tolerations": [],
        "affinity": {},
        "volumes": [],
        "volumeMounts": [],
        "podLabels": {},
        "podAnnotations": {},
        "service": {"type": "ClusterIP", "annotations": {}, "sessionAffinity": None},
        "health": {
            "mode": "handshake",
            "interval": None,
            "timeout": "5s",
            "gate": False,
            "headersFrom": [],
        },
        "drain": {"timeout": None, "url": None, "gauge": None, "preStop": None},
        "suspend": False,
    }
)
"""``spec`` as templates see it where the MCPServer says nothing: every field, the schema's default
or nothing. None means that the transport table decides."""

_GROUPS = tuple(name for name, value in ABSENT.items() if isinstance(value, dict) and value)

_ROWS = {
    row.name: {field.name: getattr(row, field.name) for field in fields(row)}
    for row in transports.TRANSPORTS.values()
}
"""The transport table as templates see it."""

_TMP = frozenset({"/tmp", "/tmp/"})  # noqa: S108 - of the container, not of this machine

_PROBE_PERIOD = 5
"""Seconds between two TCP readiness probes: a stuck server leaves the endpoints after 15 s."""

_CACHED_SERVERS = 50_000
"""One rendering is kept per server, a hash of what it was made from beside it. Compressed it has a
kilobyte instead of ten, and is back in a tenth of the time that rendering takes. The bound is for
agents that see names come and go for months."""


class Renderer:
    """Renders the objects of one source. Pure: equal input gives equal output; use from several
    threads is safe.

    ``templates`` is the folder, or its files by name. ``source`` is the source id, ``domain`` the
    cluster's DNS name, ``variables`` the template variables of group_vars.

    Raises UsageError, here or on rendering, where a template is wrong.
    """

    def __init__(
        self,
        templates: Mapping[str, str] | Path,
        *,
        source: str,
        domain: str = "cluster.local",
        variables: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        texts = read_templates(templates) if isinstance(templates, Path) else dict(templates)
        self._source = source
        self._domain = domain
        self._variables = variables
        self._templates = compile_templates(texts)
        self._rendered: dict[ServerKey, tuple[bytes, bytes]] = {}
        self.digest: str = hashlib.sha256(
            orjson.dumps(
                [__version__, texts, source, domain, dict(variables)],
                option=orjson.OPT_SORT_KEYS,
            )
        ).hexdigest()
        """A hash of all that rendering depends on besides its argument: a cache key."""

    def custom_resource(self, server: McpServer) -> DesiredObject:
        """The MCPServer as it is applied: metadata, and the spec as git says. Finalizer and
        replicas that are not git's are added by whoever decides."""
        body: JsonObject = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {
                "name": server.key.name,
                "namespace": server.key.namespace,
                "labels": {
                    **server.labels,
                    **_labels(server.key.name, server.spec),
                    LABEL_SOURCE: self._source,
                },
                "annotations": {**server.annotations, ANNOTATION_FILE: server.file},
            },
            "spec": server.spec,
        }
        return DesiredObject(body)

    def children(self, cr: LiveObject | DesiredObject) -> tuple[DesiredObject, ...]:
        """The Deployment and, for a transport with a network, the Service of an MCPServer as it
        stands, kubectl-made ones included.

        They carry an owner reference where ``cr`` has a uid. The Deployment has no
        ``spec.replicas`` where the annotation ``mcp.example.com/replicas: external`` leaves them
        to others. Raises Configuration where the spec cannot be rendered.
        """
        metadata, spec = cr["metadata"], cr["spec"]
        key = ServerKey(metadata["namespace"], metadata["name"])
        uid = metadata.get("uid")
        external = objects.annotations(cr).get(ANNOTATION_REPLICAS) == "external"
        inputs = hashlib.sha256(orjson.dumps([uid, external, spec])).digest()
        known = self._rendered.get(key)
        if known is not None and known[0] == inputs:
            return tuple(orjson.loads(zlib.decompress(known[1])))
        try:
            context = self._context(key, spec, uid=uid, external=external)
        except durations.DurationError:
            raise Configuration(
                f"{key}: a time in spec.drain or spec.health is no duration",
                condition=Reason.CONFIGURATION_INVALID,
                hint="write it as Go does: 90s, 1m30s",
            ) from None
        rendered = tuple(
            DesiredObject(checked(body, template, key))
            for template, compiled in self._templates.items()
            if (body := render_template(template, compiled, context)) is not None
        )
        if len(self._rendered) >= _CACHED_SERVERS:
            self._rendered.clear()
        self._rendered[key] = (inputs, zlib.compress(orjson.dumps(rendered), 1))
        return rendered

    def _context(
        self, key: ServerKey, given: JsonObject, *, uid: str | None, external: bool
    ) -> dict[str, Any]:
        """What the templates see. Values that need more than a line of logic are made here."""
        transport = transports.of_spec(given)
        spec = {**ABSENT, **given}
        for group in _GROUPS:
            spec[group] = {**ABSENT[group], **spec[group]}
        spec["config"] = dict(sorted(spec["config"].items()))
        health, limits = spec["health"], spec["resources"]["limits"]
        timing = transports.timing(given)
        own = spec["drain"]["preStop"]
        pre_stop = _whole(timing.pre_stop) if own is None else _seconds(own)
        replicas = 1 if spec["replicas"] is None else spec["replicas"]
        return {
            "name": key.name,
            "namespace": key.namespace,
            "labels": _labels(key.name, given),
            "selector": _selector(key.name),
            "owners": _owners(key.name, uid),
            "transport": _ROWS[transport.name],
            "spec": spec,
            "replicas": None if external else replicas,
            # The API fills a missing request from its limit: a default beside it may exceed it.
            "requests": {
                **{name: q for name, q in transport.requests.items() if name not in limits},
                **spec["resources"]["requests"],
            },
            "own_home": "HOME" in spec["config"] or _names("HOME", spec["env"]),
            "own_tmp": any(mount.get("mountPath") in _TMP for mount in spec["volumeMounts"]),
            "tmp_volume": "mcp-server-tmp" if _names("tmp", spec["volumes"]) else "tmp",
            "may_escalate": _may_escalate(spec["securityContext"]),
            "pre_stop": pre_stop,
            "grace": pre_stop + _whole(timing.stop),
            # The interval of a handshake is the agent's; that of a plain TCP check is the probe's.
            "probe_period": _seconds(health["interval"])
            if health["mode"] == "tcp" and health["interval"]
            else _PROBE_PERIOD,
            "probe_timeout": _seconds(health["timeout"]),
            # Without a handshake nobody would ever open the gate.
            "gated": health["gate"] and health["mode"] == "handshake" and transport.networked,
            "gate": READINESS_GATE,
            "endpoint": transport.endpoint(
                key.name, key.namespace, self._domain, spec["port"], spec["path"]
            ),
            "vars": self._variables,
        }


# --- the contract's names -------------------------------------------------------------------


def _selector(name: str) -> dict[str, str]:
    """The immutable selector: nothing in it may ever depend on the spec."""
    return {LABEL_NAME: APP_NAME, LABEL_INSTANCE: name, LABEL_MANAGED_BY: FIELD_MANAGER}


def _labels(name: str, spec: JsonObject) -> dict[str, str]:
    return {
        **_selector(name),
        LABEL_COMPONENT: "server",
        LABEL_TRANSPORT: transports.of_spec(spec).name,
    }


def _owners(name: str, uid: str | None) -> list[JsonObject]:
    if uid is None:
        return []
    return [
        {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": name,
            "uid": uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }
    ]


def _names(name: str, items: list[JsonObject]) -> bool:
    return any(item.get("name") == name for item in items)


def _may_escalate(security: JsonObject) -> bool:
    """Whether the API refuses ``allowPrivilegeEscalation: false`` beside these settings."""
    added = objects.part(security, "capabilities").get("add") or ()
    return bool(security.get("privileged")) or "CAP_SYS_ADMIN" in added


# --- values --------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def _seconds(duration: str) -> int:
    """A Go duration in whole seconds."""
    return _whole(durations.parse(duration))


def _whole(time: timedelta) -> int:
    """In whole seconds, rounded up: the API's times have no fraction."""
    return math.ceil(time.total_seconds())


# --- templates ------------------------------------------------------------------------------


# --- structure: the YAML around the values ---------------------------------------------------
