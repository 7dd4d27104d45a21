"""What a schema cannot say about a server: rules between fields.

Receives the spec and the metadata of one MCPServer, returns findings. The fields that it is given
are of the right type, or absent; nothing else is taken for granted. Pure, and never puts a value
into a message. The rules that a custom resource definition can hold stand there as CEL too (in the
schema), so that kubectl users meet them at once; the others are found here only.

To add a rule: a generator here, its name in ``_RULES``, a case in ``tests/data/manifests/rules/``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from decimal import Decimal
from typing import Any

import durationpy

from gitops_mcp import transports
from gitops_mcp.documents import Finding, Path
from gitops_mcp.model import (
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
        if _get(own, path) is not None
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
    if timeout is not None and not DURATION.fullmatch(timeout):
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
        privileged = _get(spec, ("securityContext", "privileged"))
        if mount.get("mountPropagation") == "Bidirectional" and not privileged:
            yield Finding((*path, "mountPropagation"), "Bidirectional needs a privileged container")


DURATION = re.compile(r"0|(?:(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:ns|us|µs|μs|ms|s|m|h))+")
"""Go's syntax, without a sign."""

_DAY = timedelta(days=1)
_HOUR = timedelta(hours=1)
_HALF = timedelta(seconds=30)
_SECOND = timedelta(seconds=1)
_LIMITS: tuple[tuple[Path, timedelta, timedelta, str], ...] = (
    (("drain", "timeout"), timedelta(0), _DAY, "must be at most 24h"),
    (("drain", "preStop"), timedelta(0), _HOUR, "must be at most 1h"),
    (("health", "interval"), _SECOND, _DAY, "must be between 1s and 24h"),
    (("health", "timeout"), timedelta(microseconds=1), _HALF, "must be more than 0, at most 30s"),
)


def _times(spec: JsonObject) -> Iterator[Finding]:
    for path, least, most, message in _LIMITS:
        text = _get(spec, path)
        if text is not None and not least <= _duration(text) <= most:
            yield Finding(path, message)


def _duration(text: str) -> timedelta:
    try:
        return durationpy.from_str(text)
    except (OverflowError, durationpy.DurationError):
        return timedelta.max  # its syntax is right, so it is too long to be held


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

_SUFFIXES: Mapping[str, Decimal] = {
    **{s: Decimal(1000) ** n for n, s in enumerate(("n", "u", "m", "", "k", "M", "G", "T"), -3)},
    "P": Decimal(10) ** 15,
    "E": Decimal(10) ** 18,
    **{f"{s}i": Decimal(1024) ** n for n, s in enumerate("KMGTPE", 1)},
}
_QUANTITY = re.compile(r"([-+.0-9]+(?:[eE][-+]?[0-9]{1,3})?)([numkKMGTPE]?i?)")
_NATIVE = frozenset({"cpu", "memory", "ephemeral-storage"})


def _quantity(value: str | int) -> Decimal | None:
    match = _QUANTITY.fullmatch(str(value))
    return Decimal(match[1]) * _SUFFIXES[match[2]] if match else None


def _resources(spec: JsonObject) -> Iterator[Finding]:
    resources = spec.get("resources", {})
    requests, limits = resources.get("requests", {}), resources.get("limits", {})
    for kind, quantities in (("requests", requests), ("limits", limits)):
        for name in quantities:
            if name not in _NATIVE and not _is_extended(name):
                yield Finding(
                    ("resources", kind, name),
                    "no resource of a container: cpu, memory, ephemeral-storage, hugepages-…, or "
                    "with a domain",
                    "key",
                )
    for name, request in requests.items():
        path: Path = ("resources", "requests", name)
        asked, most = _quantity(request), _quantity(limits.get(name, ""))
        if _is_extended(name):
            if asked != most:
                yield Finding(path, "must equal the limit: this resource is not shared")
        elif asked is not None and most is not None and asked > most:
            yield Finding(path, f"must be at most the limit of {name}")


def _is_extended(name: str) -> bool:
    return name.startswith("hugepages-") or "/" in name


def _tolerations(spec: JsonObject) -> Iterator[Finding]:
    for index, toleration in enumerate(spec.get("tolerations", ())):
        path: Path = ("tolerations", index)
        exists = toleration.get("operator", "Equal") == "Exists"
        if exists and toleration.get("value"):
            yield Finding((*path, "value"), "must be left out where the operator is Exists")
        if not exists and not toleration.get("key"):
            yield Finding(path, "without a key the operator must be Exists")
        if "tolerationSeconds" in toleration and toleration.get("effect") != "NoExecute":
            yield Finding((*path, "tolerationSeconds"), "needs the effect NoExecute")


def _expressions(spec: JsonObject) -> Iterator[Finding]:
    for path, expression in _walk({field: spec.get(field) for field in ("affinity", "volumes")}):
        keys = [key for key in ("matchLabelKeys", "mismatchLabelKeys") if expression.get(key)]
        if keys and "labelSelector" not in expression:
            yield Finding((*path, keys[0]), "needs a labelSelector beside it", "key")
        operator = expression.get("operator")
        if operator is None or "key" not in expression:
            continue
        count = len(expression.get("values", ()))
        if operator in ("In", "NotIn") and not count:
            yield Finding((*path, "operator"), f"{operator} needs values")
        elif operator in ("Exists", "DoesNotExist") and count:
            yield Finding((*path, "values"), f"must be left out where the operator is {operator}")
        elif operator in ("Gt", "Lt") and count != 1:
            yield Finding((*path, "operator"), f"{operator} needs exactly one value")


_FILE_FIELDS = re.compile(
    r"metadata\.(name|namespace|uid|labels|annotations|(labels|annotations)\['[^']+'\])"
)
"""What a file of the downward API may show."""


def _volumes(spec: JsonObject) -> Iterator[Finding]:
    for index, volume in enumerate(spec.get("volumes", ())):
        path: Path = ("volumes", index)
        yield from _downward(volume, (*path, "downwardAPI"))
        seen: set[str] = set()
        for number, source in enumerate(_get(volume, ("projected", "sources")) or ()):
            below: Path = (*path, "projected", "sources", number)
            yield from _downward(source, (*below, "downwardAPI"))
            for kind in ("configMap", "secret", "downwardAPI"):
                for place, item in enumerate(_get(source, (kind, "items")) or ()):
                    if item.get("path") in seen:
                        twice: Path = (*below, kind, "items", place, "path")
                        yield Finding(twice, "this file stands in the volume already")
                    seen.add(item.get("path"))
        yield from _claim(volume, (*path, "ephemeral", "volumeClaimTemplate", "spec"))


def _downward(holder: JsonObject, path: Path) -> Iterator[Finding]:
    for index, item in enumerate(_get(holder, ("downwardAPI", "items")) or ()):
        below: Path = (*path, "items", index)
        if ("fieldRef" in item) == ("resourceFieldRef" in item):
            yield Finding(below, "must have exactly one of fieldRef and resourceFieldRef")
        field = _get(item, ("fieldRef", "fieldPath"))
        if field is not None and not _FILE_FIELDS.fullmatch(field):
            yield Finding(
                (*below, "fieldRef", "fieldPath"),
                "a file can show metadata only: name, namespace, uid, labels, annotations",
            )
        resource = item.get("resourceFieldRef")
        if resource is not None and not resource.get("containerName"):
            yield Finding((*below, "resourceFieldRef"), "needs containerName in a volume", "key")


def _claim(volume: JsonObject, path: Path) -> Iterator[Finding]:
    claim = _get(volume, path[2:])
    if claim is None:
        return
    requests = _get(claim, ("resources", "requests"))
    if requests is not None and "storage" not in requests:
        yield Finding((*path, "resources", "requests"), "needs storage", "key")
    source = claim.get("dataSource", {})
    if source and not source.get("apiGroup") and source.get("kind") != "PersistentVolumeClaim":
        yield Finding((*path, "dataSource"), "needs the apiGroup of its kind", "key")


def _sysctls(spec: JsonObject) -> Iterator[Finding]:
    seen: set[str] = set()
    for index, sysctl in enumerate(_get(spec, ("podSecurityContext", "sysctls")) or ()):
        name = sysctl.get("name")
        if name in seen:
            path: Path = ("podSecurityContext", "sysctls", index, "name")
            yield Finding(path, "this name stands in the list already")
        seen.add(name)


_NEVER: tuple[tuple[Path, object, str], ...] = (
    (("securityContext", "procMount"), "Unmasked", "hostUsers: false"),
    (("securityContext", "windowsOptions", "hostProcess"), True, "hostNetwork"),
    (("podSecurityContext", "windowsOptions", "hostProcess"), True, "hostNetwork"),
)
"""Values that need a field which no server has, and that field."""


def _never(spec: JsonObject) -> Iterator[Finding]:
    for path, value, needed in _NEVER:
        if _get(spec, path) == value:
            yield Finding(path, f"needs {needed}, which an MCPServer cannot have")


def _profiles(spec: JsonObject) -> Iterator[Finding]:
    for context in ("securityContext", "podSecurityContext"):
        for profile in ("seccompProfile", "appArmorProfile"):
            value = _get(spec, (context, profile))
            if value and (value.get("type") == "Localhost") != ("localhostProfile" in value):
                yield Finding(
                    (context, profile),
                    "the type Localhost needs localhostProfile, and no other has it",
                )


def _escalation(spec: JsonObject) -> Iterator[Finding]:
    context = spec.get("securityContext", {})
    added = _get(context, ("capabilities", "add")) or ()
    if context.get("allowPrivilegeEscalation") is False and (
        context.get("privileged") or any(_capability(name) == "SYS_ADMIN" for name in added)
    ):
        yield Finding(
            ("securityContext", "allowPrivilegeEscalation"),
            "cannot be false for a privileged container or with SYS_ADMIN",
        )


_RULES: tuple[Rule, ...] = (
    _replicas,
    _config,
    _variables,
    _references,
    _duplicates,
    _pod_metadata,
    _mounts,
    _times,
    _drain,
    _gate,
    _headers,
    _resources,
    _tolerations,
    _expressions,
    _volumes,
    _sysctls,
    _never,
    _profiles,
    _escalation,
)


def _capability(name: str) -> str:
    return name.upper().removeprefix("CAP_")


# --- walking --------------------------------------------------------------------------------


def _get(value: Any, path: Iterable[str | int]) -> Any:
    """The value at a path of maps; None where there is none."""
    for step in path:
        if not isinstance(value, dict):
            return None
        value = value.get(step)
    return value


def _walk(value: Any, path: Path = ()) -> Iterator[tuple[Path, JsonObject]]:
    """Every map in a value."""
    if isinstance(value, dict):
        yield path, value
        for key, child in value.items():
            yield from _walk(child, (*path, key))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from _walk(child, (*path, index))
