"""What the API server refuses of a pod's spec, as rules on the manifest's fields."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from gitops_mcp.base import durations, objects, quantities
from gitops_mcp.base.names import JsonObject
from gitops_mcp.source.documents import Finding, Path

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


def times(spec: JsonObject) -> Iterator[Finding]:
    for path, least, most, message in _LIMITS:
        text = objects.at(spec, *path)
        if text is not None and not least <= durations.parse(text) <= most:
            yield Finding(path, message)


_NATIVE = frozenset({"cpu", "memory", "ephemeral-storage"})


def resources_of(spec: JsonObject) -> Iterator[Finding]:
    resources = spec.get("resources", {})
    requests, limits = resources.get("requests", {}), resources.get("limits", {})
    for kind, named in (("requests", requests), ("limits", limits)):
        for name in named:
            if name not in _NATIVE and not _is_extended(name):
                yield Finding(
                    ("resources", kind, name),
                    "no resource of a container: cpu, memory, ephemeral-storage, hugepages-…, or "
                    "with a domain",
                    "key",
                )
    for name, request in requests.items():
        path: Path = ("resources", "requests", name)
        asked, most = quantities.parse(request), quantities.parse(limits.get(name, ""))
        if _is_extended(name):
            if asked != most:
                yield Finding(path, "must equal the limit: this resource is not shared")
        elif asked is not None and most is not None and asked > most:
            yield Finding(path, f"must be at most the limit of {name}")


def _is_extended(name: str) -> bool:
    return name.startswith("hugepages-") or "/" in name


def tolerations(spec: JsonObject) -> Iterator[Finding]:
    for index, toleration in enumerate(spec.get("tolerations", ())):
        path: Path = ("tolerations", index)
        exists = toleration.get("operator", "Equal") == "Exists"
        if exists and toleration.get("value"):
            yield Finding((*path, "value"), "must be left out where the operator is Exists")
        if not exists and not toleration.get("key"):
            yield Finding(path, "without a key the operator must be Exists")
        if "tolerationSeconds" in toleration and toleration.get("effect") != "NoExecute":
            yield Finding((*path, "tolerationSeconds"), "needs the effect NoExecute")


def expressions(spec: JsonObject) -> Iterator[Finding]:
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


def volumes_of(spec: JsonObject) -> Iterator[Finding]:
    for index, volume in enumerate(spec.get("volumes", ())):
        path: Path = ("volumes", index)
        yield from _downward(volume, (*path, "downwardAPI"))
        seen: set[str] = set()
        for number, source in enumerate(objects.at(volume, "projected", "sources") or ()):
            below: Path = (*path, "projected", "sources", number)
            yield from _downward(source, (*below, "downwardAPI"))
            for kind in ("configMap", "secret", "downwardAPI"):
                for place, item in enumerate(objects.at(source, kind, "items") or ()):
                    if item.get("path") in seen:
                        twice: Path = (*below, kind, "items", place, "path")
                        yield Finding(twice, "this file stands in the volume already")
                    seen.add(item.get("path"))
        yield from _claim(volume, (*path, "ephemeral", "volumeClaimTemplate", "spec"))


def _downward(holder: JsonObject, path: Path) -> Iterator[Finding]:
    for index, item in enumerate(objects.at(holder, "downwardAPI", "items") or ()):
        below: Path = (*path, "items", index)
        if ("fieldRef" in item) == ("resourceFieldRef" in item):
            yield Finding(below, "must have exactly one of fieldRef and resourceFieldRef")
        field = objects.at(item, "fieldRef", "fieldPath")
        if field is not None and not _FILE_FIELDS.fullmatch(field):
            yield Finding(
                (*below, "fieldRef", "fieldPath"),
                "a file can show metadata only: name, namespace, uid, labels, annotations",
            )
        resource = item.get("resourceFieldRef")
        if resource is not None and not resource.get("containerName"):
            yield Finding((*below, "resourceFieldRef"), "needs containerName in a volume", "key")


def _claim(volume: JsonObject, path: Path) -> Iterator[Finding]:
    claim = objects.at(volume, *path[2:])
    if claim is None:
        return
    requests = objects.at(claim, "resources", "requests")
    if requests is not None and "storage" not in requests:
        yield Finding((*path, "resources", "requests"), "needs storage", "key")
    source = claim.get("dataSource", {})
    if source and not source.get("apiGroup") and source.get("kind") != "PersistentVolumeClaim":
        yield Finding((*path, "dataSource"), "needs the apiGroup of its kind", "key")


def sysctls(spec: JsonObject) -> Iterator[Finding]:
    seen: set[str] = set()
    for index, sysctl in enumerate(objects.at(spec, "podSecurityContext", "sysctls") or ()):
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


def never(spec: JsonObject) -> Iterator[Finding]:
    for path, value, needed in _NEVER:
        if objects.at(spec, *path) == value:
            yield Finding(path, f"needs {needed}, which an MCPServer cannot have")


def profiles(spec: JsonObject) -> Iterator[Finding]:
    for context in ("securityContext", "podSecurityContext"):
        for profile in ("seccompProfile", "appArmorProfile"):
            value = objects.at(spec, context, profile)
            if value and (value.get("type") == "Localhost") != ("localhostProfile" in value):
                yield Finding(
                    (context, profile),
                    "the type Localhost needs localhostProfile, and no other has it",
                )


def escalation(spec: JsonObject) -> Iterator[Finding]:
    context = spec.get("securityContext", {})
    added = objects.at(context, "capabilities", "add") or ()
    if context.get("allowPrivilegeEscalation") is False and (
        context.get("privileged") or any(_capability(name) == "SYS_ADMIN" for name in added)
    ):
        yield Finding(
            ("securityContext", "allowPrivilegeEscalation"),
            "cannot be false for a privileged container or with SYS_ADMIN",
        )


def _capability(name: str) -> str:
    return name.upper().removeprefix("CAP_")


def _walk(value: Any, path: Path = ()) -> Iterator[tuple[Path, JsonObject]]:
    """Every map in a value."""
    if isinstance(value, dict):
        yield path, value
        for key, child in value.items():
            yield from _walk(child, (*path, key))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from _walk(child, (*path, index))
