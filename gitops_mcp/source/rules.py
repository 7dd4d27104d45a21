"""What a schema cannot say about a server: rules between fields.

Receives the spec and the metadata of one MCPServer, returns findings. The fields that it is given
are of the right type, or absent; nothing else is taken for granted. Pure, and never puts a value
into a message. The rules that a custom resource definition can hold stand there as CEL too (in the
schema), so that kubectl users meet them at once; the others are found here only.

To add a rule: a generator here, its name in ``_RULES``, a case in
``tests/data/manifests/rules.yaml``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gitops_mcp.base import durations, objects, transports
from gitops_mcp.base.names import (
    ANNOTATION_ADOPT,
    ANNOTATION_FILE,
    ANNOTATION_PRUNE,
    ANNOTATION_RECONCILE,
    ANNOTATION_REPLICAS,
    ANNOTATION_SHUTDOWN,
    APP_NAME,
    FIELD_MANAGER,
    GROUP,
    LABEL_COMPONENT,
    LABEL_INSTANCE,
    LABEL_MANAGED_BY,
    LABEL_NAME,
    LABEL_SOURCE,
    LABEL_TRANSPORT,
    JsonObject,
)
from gitops_mcp.source.documents import Finding, Path
from gitops_mcp.source.podrules import (
    escalation,
    expressions,
    never,
    profiles,
    resources_of,
    sysctls,
    times,
    tolerations,
    volumes_of,
)

Rule = Callable[[JsonObject], Iterator[Finding]]
"""A spec → what is wrong with it, with paths below the spec."""


def of_spec(spec: JsonObject) -> list[Finding]:
    """What is wrong between the fields of a spec."""
    findings = [finding for rule in _RULES for finding in rule(spec)]
    return [finding._replace(path=("spec", *finding.path)) for finding in findings]


def of_metadata(metadata: JsonObject, spec: JsonObject) -> list[Finding]:
    """What a manifest's labels and annotations must not say: they are ours to set."""
    return [*_own_labels(metadata, spec), *_own_annotations(metadata, spec)]


def of_place(namespace: str, metadata: JsonObject, spec: JsonObject) -> list[Finding]:
    """What a manifest must not be called where its objects would lie."""
    place = (namespace, metadata.get("name"))
    if place == ("default", "kubernetes") and transports.of_spec(spec).networked:
        message = "the API server's own Service has this name: choose another one"
        return [Finding(("metadata", "name"), message)]
    return []


def unused(own: JsonObject, spec: JsonObject) -> list[Finding]:
    """Fields that mean nothing with the spec's transport, and so are refused rather than ignored.
    Only of ``own``, what the manifest itself says; a default for the whole fleet may name them."""
    transport = transports.of_spec(spec)
    if transport.networked:
        return []
    return [
        Finding(("spec", *path), f"{transport.name} has no network: leave it out", "key")
        for path in _NETWORK_FIELDS
        if objects.at(own, *path) is not None
    ]


def exported(metadata: JsonObject, spec: JsonObject) -> list[Finding]:
    """What an MCPServer that was read from a cluster bears, and no manifest may say: our own marks,
    and the CRD's defaults (or the fleet's) where they mean nothing with its transport."""
    marks = [
        *_own_labels(metadata, spec),
        *(f for f in _own_annotations(metadata, spec) if f.path[-1] in _OUR_ANNOTATIONS),
    ]
    name = transports.of_spec(spec).name
    return [
        finding._replace(message=f"{why}, ignored here", severity="warning")
        for findings, why in (
            (marks, "set by gitops-mcp"),
            (unused(spec, spec), f"{name} has no network"),
        )
        for finding in findings
    ]


# --- ours -----------------------------------------------------------------------------------

RESERVED = frozenset(
    {
        LABEL_NAME,
        LABEL_INSTANCE,
        LABEL_COMPONENT,
        LABEL_MANAGED_BY,
        LABEL_TRANSPORT,
        LABEL_SOURCE,
    }
)
"""Labels that are set on what is rendered."""

_USER_ANNOTATIONS: Mapping[str, tuple[str, ...]] = {
    ANNOTATION_PRUNE: ("disabled",),
    ANNOTATION_ADOPT: ("true", "false"),
    ANNOTATION_REPLICAS: ("external",),
}
"""Annotations of our group that a manifest may carry, and what they may say."""

_OUR_ANNOTATIONS = frozenset({ANNOTATION_SHUTDOWN, ANNOTATION_FILE, ANNOTATION_RECONCILE})

_NETWORK_FIELDS: tuple[Path, ...] = (
    ("port",),
    ("path",),
    ("service",),
    ("health",),
    ("drain", "gauge"),
)


def _own_labels(metadata: JsonObject, spec: JsonObject) -> Iterator[Finding]:
    ours = {
        LABEL_NAME: APP_NAME,
        LABEL_INSTANCE: metadata.get("name"),
        LABEL_COMPONENT: "server",
        LABEL_MANAGED_BY: FIELD_MANAGER,
        LABEL_TRANSPORT: transports.of_spec(spec).name,
    }
    for key, value in metadata.get("labels", {}).items():
        if key in ours:
            if value != ours[key]:
                yield Finding(
                    ("metadata", "labels", key), "reserved: gitops-mcp sets this label", "key"
                )
        elif _is_ours(key):
            yield Finding(
                ("metadata", "labels", key), "reserved: gitops-mcp sets this label", "key"
            )


def _own_annotations(metadata: JsonObject, spec: JsonObject) -> Iterator[Finding]:
    for key, value in metadata.get("annotations", {}).items():
        if not _is_ours(key):
            continue
        path = ("metadata", "annotations", key)
        allowed = _USER_ANNOTATIONS.get(key)
        if allowed is None:
            what = "gitops-mcp sets it" if key in _OUR_ANNOTATIONS else "no such annotation"
            yield Finding(path, f"reserved: {what}", "key")
        elif value not in allowed:
            yield Finding(path, f"must be {' or '.join(allowed)}")
        elif key == ANNOTATION_REPLICAS and "replicas" in spec:
            yield Finding(
                ("spec", "replicas"),
                f"has no effect: {ANNOTATION_REPLICAS} leaves the replicas to others",
                "key",
                "warning",
            )


def _is_ours(key: str) -> bool:
    return key.partition("/")[0] == GROUP


# --- the rules of api.md --------------------------------------------------------------------


def _replicas(spec: JsonObject) -> Iterator[Finding]:
    transport = transports.of_spec(spec)
    limit = transport.max_replicas
    if limit is not None and spec.get("replicas", 0) > limit:
        yield Finding(
            ("replicas",), f"must be at most {limit}: a {transport.name} server is one process"
        )


def _config(spec: JsonObject) -> Iterator[Finding]:
    config = spec.get("config", {})
    timeout = config.get("SESSION_TIMEOUT")
    if timeout is not None and not durations.PATTERN.fullmatch(timeout):
        yield Finding(
            ("config", "SESSION_TIMEOUT"),
            "must be a duration in Go's syntax, such as 90s or 1h30m",
        )
    origins = config.get("CORS_ORIGINS")
    if origins is not None and not origins.strip():
        yield Finding(("config", "CORS_ORIGINS"), "must not be empty")


def _variables(spec: JsonObject) -> Iterator[Finding]:
    config = spec.get("config", {})
    for index, entry in enumerate(spec.get("env", ())):
        if entry.get("name") in config:
            yield Finding(("env", index, "name"), "this variable stands in config already")
        if entry.get("value") and "valueFrom" in entry:
            yield Finding(("env", index, "value"), "a variable has a value or valueFrom, not both")
    for index, entry in enumerate(spec.get("envFrom", ())):
        if ("secretRef" in entry) == ("configMapRef" in entry):
            yield Finding(("envFrom", index), "must have exactly one of secretRef and configMapRef")


_REFERENCE = re.compile(r"\$\$|\$\(([^)]*)\)")
"""Kubernetes' ``$(NAME)``; ``$$`` stands for one ``$``, so ``$$(NAME)`` is no reference."""


def _references(spec: JsonObject) -> Iterator[Finding]:
    """The kubelet replaces ``$(NAME)`` by a variable above it only, and leaves any other as it is.
    The pod's variables are those of env as they stand, then those of config, sorted."""
    entries: list[tuple[str | None, str | None, Path]] = [
        (entry.get("name"), entry.get("value"), ("env", index, "value"))
        for index, entry in enumerate(spec.get("env", ()))
    ]
    entries += [
        (name, value, ("config", name)) for name, value in sorted(spec.get("config", {}).items())
    ]
    later = Counter(name for name, _, _ in entries)
    for name, value, path in entries:
        for other in dict.fromkeys(_REFERENCE.findall(value or "")):
            if later[other]:
                yield Finding(path, _unseen(other, name, path[0], spec), severity="warning")
        # A name that stands there twice is another mistake: the first one is above the rest.
        later.pop(name, None)


def _unseen(name: str, where: str | None, field: str | int, spec: JsonObject) -> str:
    """Why a reference to ``name`` from the variable ``where`` of env or config is not replaced."""
    if name == where:
        return f"$({name}) stays as it is: a variable cannot refer to itself; write out the value"
    in_config = name in spec.get("config", {})
    if field == "config":
        why, remedy = "config is sorted by name", f"move {name} to env"
    elif in_config:
        why, remedy = "config comes after env", f"move {name} to env, above this one"
    else:
        why, remedy = "below this one", f"move {name} above it"
    return f"$({name}) stays as it is: {name} comes later ({why}); {remedy}, or write $$({name})"


_KEYED: Mapping[str, str] = {
    "env": "name",
    "imagePullSecrets": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
}
"""Lists in which no two entries may have the same key: the API refuses them, or answers 500."""


def _duplicates(spec: JsonObject) -> Iterator[Finding]:
    for field, key in _KEYED.items():
        seen: dict[Any, int] = {}
        for index, entry in enumerate(spec.get(field, ())):
            value = entry.get(key)
            if value is not None and seen.setdefault(value, index) != index:
                yield Finding((field, index, key), f"the same {key} as /spec/{field}/{seen[value]}")


def _pod_metadata(spec: JsonObject) -> Iterator[Finding]:
    for field in ("podLabels", "podAnnotations"):
        for key in spec.get(field, {}):
            if key in RESERVED or _is_ours(key):
                yield Finding((field, key), "reserved: gitops-mcp sets this key", "key")


def _mounts(spec: JsonObject) -> Iterator[Finding]:
    volumes = {volume.get("name") for volume in spec.get("volumes", ())}
    for index, mount in enumerate(spec.get("volumeMounts", ())):
        path: Path = ("volumeMounts", index)
        name = mount.get("name")
        if name is not None and name not in volumes:
            yield Finding((*path, "name"), "no volume of this name in volumes")
        if mount.get("subPath") and mount.get("subPathExpr"):
            yield Finding((*path, "subPathExpr"), "subPath and subPathExpr exclude each other")
        for field in ("subPath", "subPathExpr"):
            inside = mount.get(field, "")
            if inside.startswith("/") or ".." in inside.split("/"):
                yield Finding((*path, field), "must be a path inside the volume, without '..'")
        if mount.get("recursiveReadOnly", "Disabled") != "Disabled" and not mount.get("readOnly"):
            yield Finding((*path, "recursiveReadOnly"), "needs readOnly: true")
        privileged = objects.at(spec, "securityContext", "privileged")
        if mount.get("mountPropagation") == "Bidirectional" and not privileged:
            yield Finding((*path, "mountPropagation"), "Bidirectional needs a privileged container")


def _drain(spec: JsonObject) -> Iterator[Finding]:
    drain = spec.get("drain", {})
    if "url" in drain and "gauge" in drain:
        yield Finding(
            ("drain", "gauge"), "url and gauge cannot both count the sessions: choose one", "key"
        )


def _gate(spec: JsonObject) -> Iterator[Finding]:
    health = spec.get("health", {})
    if health.get("gate") and health.get("mode", "handshake") != "handshake":
        yield Finding(("health", "gate"), "only a handshake opens the gate: mode must be handshake")


_OWN_HEADERS = re.compile(
    r"accept|connection|content-length|content-type|host|transfer-encoding|user-agent|mcp-.*", re.I
)
"""What a handshake sends itself."""


def _headers(spec: JsonObject) -> Iterator[Finding]:
    health = spec.get("health", {})
    headers = health.get("headersFrom", ())
    if "headersFrom" in health and health.get("mode", "handshake") != "handshake":
        message = "only a handshake has headers: mode must be handshake"
        yield Finding(("health", "headersFrom"), message, "key")
    seen: set[str] = set()
    for index, header in enumerate(headers):
        path: Path = ("health", "headersFrom", index, "name")
        name = header.get("name", "")
        if name in seen:
            yield Finding(path, "a header that stands here twice")
        elif _OWN_HEADERS.fullmatch(name):
            yield Finding(path, "a header of the handshake's own")
        seen.add(name)


# --- rules of the Kubernetes API ------------------------------------------------------------


_RULES: tuple[Rule, ...] = (
    _replicas,
    _config,
    _variables,
    _references,
    _duplicates,
    _pod_metadata,
    _mounts,
    times,
    _drain,
    _gate,
    _headers,
    resources_of,
    tolerations,
    expressions,
    volumes_of,
    sysctls,
    never,
    profiles,
    escalation,
)


# --- walking --------------------------------------------------------------------------------
