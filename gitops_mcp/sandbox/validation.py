"""The value rules of metadata and of built-in kinds.

Receives decoded objects (and what they were before); returns field errors as `Cause`s. Custom
kinds have their schema instead (`structural`), and share the rules of metadata.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from gitops_mcp.sandbox import quantity
from gitops_mcp.sandbox.errors import Cause
from gitops_mcp.sandbox.kinds import CRDS, Kind
from gitops_mcp.sandbox.storage import KindKey, Object, dumps
from gitops_mcp.sandbox.structural import quoted

Causes = Iterator[Cause]

LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
NAME_PART = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
CONFIG_KEY = re.compile(r"[-._a-zA-Z0-9]+")
SUBDOMAIN_TEXT = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or "
    "'.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used "
    r"for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
LABEL_TEXT = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and "
    "must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used "
    "for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
NAME_PART_TEXT = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end "
    "with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for "
    "validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)
LABEL_VALUE_TEXT = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or "
    "'.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  "
    "or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)


def required(path: str, why: str = "") -> Cause:
    return Cause("FieldValueRequired", f"Required value: {why}" if why else "Required value", path)


def invalid(path: str, value: Any, why: str) -> Cause:
    return Cause("FieldValueInvalid", f"Invalid value: {quoted(value)}: {why}", path)


def unsupported(path: str, value: Any, allowed: tuple[str, ...]) -> Cause:
    listed = ", ".join(quoted(one) for one in allowed)
    return Cause(
        "FieldValueNotSupported",
        f"Unsupported value: {quoted(value)}: supported values: {listed}",
        path,
    )


def forbidden(path: str, why: str) -> Cause:
    return Cause("FieldValueForbidden", f"Forbidden: {why}", path)


def duplicate(path: str, value: Any) -> Cause:
    return Cause("FieldValueDuplicate", f"Duplicate value: {quoted(value)}", path)


IMMUTABLE = "field is immutable"
MAX_ANNOTATIONS = 256 * 1024
MAX_DATA = 1024 * 1024
"""Bytes of all values of a ConfigMap or Secret."""

# --- metadata -----------------------------------------------------------------------------------

NAMES: dict[KindKey, tuple[re.Pattern[str], str, int]] = {
    ("", "services"): (LABEL, LABEL_TEXT, 63),
    ("", "namespaces"): (LABEL, LABEL_TEXT, 63),
}
PATH_NAMED = "rbac.authorization.k8s.io"
"""The group whose names may be anything that fits into a path."""


def metadata(kind: Kind, new: Object, old: Object | None) -> Causes:
    """The rules of every object's metadata."""
    meta = new["metadata"]
    if old is None and kind.group != PATH_NAMED:
        pattern, text, longest = NAMES.get(kind.key, (SUBDOMAIN, SUBDOMAIN_TEXT, 253))
        name = meta.get("name", "")
        if len(name) > longest:
            yield invalid("metadata.name", name, f"must be no more than {longest} bytes")
        if not pattern.fullmatch(name):
            yield invalid("metadata.name", name, text)
    yield from labels(meta.get("labels", {}), "metadata.labels")
    annotations = meta.get("annotations", {})
    for key in annotations:
        yield from qualified_name(key.lower(), "metadata.annotations")
    if sum(len(key) + len(value) for key, value in annotations.items()) > MAX_ANNOTATIONS:
        yield Cause(
            "FieldValueTooLong",
            f"Too long: may not be more than {MAX_ANNOTATIONS} bytes",
            "metadata.annotations",
        )
    domains = kind.definition is None and kind.key != CRDS  # theirs may be any name
    for index, finalizer in enumerate(meta.get("finalizers", [])):
        if domains and "/" not in finalizer and finalizer not in STANDARD:
            yield invalid(
                f"metadata.finalizers[{index}]",
                finalizer,
                "name is neither a standard finalizer name nor is it fully qualified",
            )
    yield from _owner_references(meta.get("ownerReferences", []))
    if old is None:
        return
    before = old["metadata"]
    if meta.get("uid") not in (None, "", before["uid"]):
        yield invalid("metadata.uid", meta["uid"], IMMUTABLE)
    if "deletionTimestamp" in before:
        added = sorted(set(meta.get("finalizers", [])) - set(before.get("finalizers", [])))
        if added:
            listed = ", ".join(quoted(one) for one in added)
            why = (
                "no new finalizers can be added if the object is being deleted, found new"
                f" finalizers []string{{{listed}}}"
            )
            yield forbidden("metadata.finalizers", why)


REFERENCE = ("apiVersion", "kind", "name", "uid", "controller", "blockOwnerDeletion")


def _owner_references(references: list[Object]) -> Causes:
    path = "metadata.ownerReferences"
    for reference in references:
        for field in ("apiVersion", "kind", "name", "uid"):
            if not reference.get(field):
                prefix = "version " if field == "apiVersion" else ""
                yield invalid(f"{path}.{field}", "", f"{prefix}must not be empty")
    controllers = [one for one in references if one.get("controller")]
    for other in controllers[1:]:
        shown = [{key: one[key] for key in REFERENCE if key in one} for one in references]
        names = [f"{one.get('kind')}/{one.get('name')}" for one in (controllers[0], other)]
        yield Cause(
            "FieldValueInvalid",
            f"Invalid value: {dumps(shown).decode()}: Only one reference can have Controller set to"
            f' true. Found "true" in references for {names[0]} and {names[1]}',
            path,
        )


STANDARD = frozenset({"orphan", "foregroundDeletion", "kubernetes"})


def qualified_name(key: str, path: str) -> Causes:
    prefix, slash, name = key.rpartition("/")
    if slash and not SUBDOMAIN.fullmatch(prefix):
        yield invalid(path, key, f"prefix part {SUBDOMAIN_TEXT}")
    if len(name) > 63:
        yield invalid(path, key, "name part must be no more than 63 bytes")
    if not NAME_PART.fullmatch(name):
        yield invalid(path, key, NAME_PART_TEXT)


def labels(values: dict[str, str], path: str) -> Causes:
    for key, value in values.items():
        yield from qualified_name(key, path)
        if len(value) > 63:
            yield invalid(path, value, "must be no more than 63 bytes")
        if not LABEL_VALUE.fullmatch(value):
            yield invalid(path, value, LABEL_VALUE_TEXT)


# --- pods ---------------------------------------------------------------------------------------


def pod_spec(spec: Object, path: str) -> Causes:
    volumes = {volume.get("name", "") for volume in spec.get("volumes", [])}
    grace = spec.get("terminationGracePeriodSeconds", 0)
    if not spec.get("containers"):
        yield required(f"{path}.containers")
    seen: set[str] = set()
    for field in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(field, [])):
            at = f"{path}.{field}[{index}]"
            name = container.get("name", "")
            if not name:
                yield required(f"{at}.name")
            elif not LABEL.fullmatch(name):
                yield invalid(f"{at}.name", name, LABEL_TEXT)
            if name in seen:
                yield duplicate(f"{at}.name", name)
            seen.add(name)
            yield from _container(container, at, volumes)
            sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {})
            if not 0 <= sleep.get("seconds", 0) <= grace:
                yield invalid(
                    f"{at}.lifecycle.preStop.sleep",
                    sleep["seconds"],
                    f"must be non-negative and less than terminationGracePeriodSeconds ({grace})",
                )
    if spec.get("restartPolicy") not in ("Always", "OnFailure", "Never"):
        allowed = ("Always", "OnFailure", "Never")
        yield unsupported(f"{path}.restartPolicy", spec.get("restartPolicy"), allowed)
    if grace < 0:
        at = f"{path}.terminationGracePeriodSeconds"
        yield invalid(at, grace, "must be greater than or equal to 0")


PULL_POLICIES = ("Always", "IfNotPresent", "Never")


def _container(container: Object, path: str, volumes: set[str]) -> Causes:
    if not container.get("image"):
        yield required(f"{path}.image")
    for index, port in enumerate(container.get("ports", [])):
        number = port.get("containerPort", 0)
        if not 0 < number < 65536:
            at = f"{path}.ports[{index}].containerPort"
            yield required(at) if not number else invalid(at, number, PORT_TEXT)
    for index, variable in enumerate(container.get("env", [])):
        if not variable.get("name"):
            yield required(f"{path}.env[{index}].name")
        if variable.get("value") and variable.get("valueFrom"):
            yield invalid(
                f"{path}.env[{index}].valueFrom",
                "",
                "may not be specified when `value` is not empty",
            )
    for index, mount in enumerate(container.get("volumeMounts", [])):
        if mount.get("name") not in volumes:
            yield Cause(
                "FieldValueNotFound",
                f"Not found: {quoted(mount.get('name', ''))}",
                f"{path}.volumeMounts[{index}].name",
            )
    if container.get("imagePullPolicy") not in PULL_POLICIES:
        policy = container.get("imagePullPolicy")
        yield unsupported(f"{path}.imagePullPolicy", policy, PULL_POLICIES)
    resources = container.get("resources", {})
    limits = resources.get("limits", {})
    for name, requested in resources.get("requests", {}).items():
        if name in limits and quantity.amount(requested) > quantity.amount(limits[name]):
            yield invalid(
                f"{path}.resources.requests",
                requested,
                f"must be less than or equal to {name} limit of {limits[name]}",
            )


PORT_TEXT = "must be between 1 and 65535, inclusive"


def _pod(new: Object, old: Object | None) -> Causes:
    yield from pod_spec(new.get("spec", {}), "spec")
    if old is None:
        return
    changed = {
        key
        for key in {**new["spec"], **old["spec"]}
        if new["spec"].get(key) != old["spec"].get(key)
    } - {"activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds", "nodeName"}
    if changed == {"containers"} and len(new["spec"]["containers"]) == len(
        old["spec"]["containers"]
    ):
        pairs = zip(new["spec"]["containers"], old["spec"]["containers"], strict=True)
        if all({**one, "image": ""} == {**other, "image": ""} for one, other in pairs):
            return
    if changed:
        yield forbidden(
            "spec",
            "pod updates may not change fields other than `spec.containers[*].image`,"
            "`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only"
            " additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to"
            " be set to 1 if it was previously negative)",
        )


# --- workloads ----------------------------------------------------------------------------------


def _workload(new: Object, old: Object | None) -> Causes:
    spec = new.get("spec", {})
    if spec.get("replicas", 0) < 0:
        yield invalid("spec.replicas", spec["replicas"], "must be greater than or equal to 0")
    selector = spec.get("selector")
    template = spec.get("template", {})
    if selector is None:
        yield required("spec.selector")
    elif not selector.get("matchLabels") and not selector.get("matchExpressions"):
        why = f"empty selector is invalid for {new['kind'].lower()}"
        yield invalid("spec.selector", selector, why)
    found = template.get("metadata", {}).get("labels")
    if selector is None or not matches(selector, found or {}):
        why = "`selector` does not match template `labels`"
        yield invalid("spec.template.metadata.labels", found, why)
    if old is not None and selector != old["spec"]["selector"]:
        yield invalid("spec.selector", selector, IMMUTABLE)
    yield from labels(template.get("metadata", {}).get("labels", {}), "spec.template.labels")
    yield from pod_spec(template.get("spec", {}), "spec.template.spec")
    policy = template.get("spec", {}).get("restartPolicy")
    if policy in ("OnFailure", "Never"):
        yield unsupported("spec.template.spec.restartPolicy", policy, ("Always",))


def _deployment(new: Object, old: Object | None) -> Causes:
    yield from _workload(new, old)
    spec = new.get("spec", {})
    strategy = spec.get("strategy", {})
    kinds = ("Recreate", "RollingUpdate")
    if strategy.get("type") not in kinds:
        yield unsupported("spec.strategy.type", strategy.get("type"), kinds)
    rolling = strategy.get("rollingUpdate")
    if strategy.get("type") == "Recreate" and rolling is not None:
        yield forbidden(
            "spec.strategy.rollingUpdate",
            "may not be specified when strategy `type` is 'Recreate'",
        )
    zero = (0, "0%")
    if rolling and rolling.get("maxSurge") in zero and rolling.get("maxUnavailable") in zero:
        yield invalid(
            "spec.strategy.rollingUpdate.maxUnavailable",
            rolling["maxUnavailable"],
            "may not be 0 when `maxSurge` is 0",
        )
    ready, deadline = spec.get("minReadySeconds", 0), spec.get("progressDeadlineSeconds", 600)
    if deadline <= ready:
        yield invalid(
            "spec.progressDeadlineSeconds", deadline, "must be greater than minReadySeconds"
        )


def matches(selector: Object, found: dict[str, str]) -> bool:
    """True if a `metav1.LabelSelector` selects these labels."""
    for key, value in selector.get("matchLabels", {}).items():
        if found.get(key) != value:
            return False
    for term in selector.get("matchExpressions", []):
        present, value = term["key"] in found, found.get(term["key"])
        fits = {
            "In": present and value in term.get("values", []),
            "NotIn": not present or value not in term.get("values", []),
            "Exists": present,
            "DoesNotExist": not present,
        }
        if not fits.get(term["operator"], False):
            return False
    return True


# --- services and the rest ----------------------------------------------------------------------

SERVICE_TYPES = ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")


def _service(new: Object, old: Object | None) -> Causes:
    spec = new.get("spec", {})
    kind = spec.get("type")
    ports = spec.get("ports", [])
    if not ports and kind != "ExternalName" and spec.get("clusterIP") != "None":
        yield required("spec.ports")
    if spec.get("sessionAffinity") not in ("ClientIP", "None"):
        yield unsupported("spec.sessionAffinity", spec.get("sessionAffinity"), ("ClientIP", "None"))
    seen: set[tuple[Any, ...]] = set()
    names: set[str] = set()
    for index, port in enumerate(ports):
        at = f"spec.ports[{index}]"
        number = port.get("port", 0)
        if not 0 < number < 65536:
            yield invalid(f"{at}.port", number, PORT_TEXT)
        name = port.get("name", "")
        if len(ports) > 1 and not name:
            yield required(f"{at}.name")
        if name and name in names:
            yield duplicate(f"{at}.name", name)
        names.add(name)
        pair = (number, port.get("protocol"))
        if pair in seen:
            yield duplicate(at, {"port": number, "protocol": port.get("protocol")})
        seen.add(pair)
        target = port.get("targetPort", 1)
        if isinstance(target, int) and not 0 < target < 65536:
            yield invalid(f"{at}.targetPort", target, PORT_TEXT)
        if "nodePort" in port and kind == "ClusterIP":
            yield forbidden(f"{at}.nodePort", "may not be used when `type` is 'ClusterIP'")
    if kind not in SERVICE_TYPES:
        yield unsupported("spec.type", kind, SERVICE_TYPES)
    if old is not None and kind != "ExternalName" and old["spec"].get("type") != "ExternalName":
        before = old["spec"].get("clusterIPs", [])
        if before and spec.get("clusterIPs") != before:
            value = spec.get("clusterIPs", [])
            yield invalid("spec.clusterIPs[0]", value, "may not change once set")


def _lease(new: Object, _old: Object | None) -> Causes:
    spec = new.get("spec", {})
    if spec.get("leaseDurationSeconds", 1) <= 0:
        value = spec["leaseDurationSeconds"]
        yield invalid("spec.leaseDurationSeconds", value, "must be greater than 0")


def _config_map(new: Object, old: Object | None) -> Causes:
    yield from _data(new, old)
    size = sum(len(text.encode()) for text in new.get("data", {}).values())
    if size + sum(map(_bytes, new.get("binaryData", {}).values())) > MAX_DATA:
        yield Cause("FieldValueTooLong", f"Too long: may not be more than {MAX_DATA} bytes", "[]")


def _secret(new: Object, old: Object | None) -> Causes:
    yield from _data(new, old)
    if sum(map(_bytes, new.get("data", {}).values())) > MAX_DATA:
        yield Cause("FieldValueTooLong", f"Too long: may not be more than {MAX_DATA} bytes", "data")


def _bytes(base64: str) -> int:
    return len(base64) * 3 // 4 - base64.count("=")


def _data(new: Object, old: Object | None) -> Causes:
    for field in ("data", "binaryData"):
        for key in new.get(field, {}):
            if not CONFIG_KEY.fullmatch(key) or key in (".", ".."):
                yield invalid(
                    f"{field}[{key}]",
                    key,
                    "a valid config key must consist of alphanumeric characters, '-', '_' or '.'"
                    " (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation"
                    " is '[-._a-zA-Z0-9]+')",
                )
    if old is None:
        return
    if new.get("type") != old.get("type"):
        yield invalid("type", new.get("type"), IMMUTABLE)
    if old.get("immutable") and new.get("data") != old.get("data"):
        yield forbidden("data", "field is immutable when `immutable` is set")


def _event(new: Object, _old: Object | None) -> Causes:
    """An Event of either group; one with an eventTime is held to the newer rules."""
    newer = new.get("eventTime")
    involved = (new.get("involvedObject") or new.get("regarding") or {}).get("namespace", "")
    namespace = new["metadata"].get("namespace", "")
    if involved != namespace and (involved or namespace != "default"):
        yield invalid("involvedObject.namespace", involved, "does not match event.namespace")
    if newer:
        for field in ("reportingController", "reportingInstance", "action", "reason"):
            older = "reportingComponent" if field == "reportingController" else ""
            if not new.get(field) and not new.get(older):
                yield required(field)
    elif new["apiVersion"] != "v1":
        yield required("eventTime")
    if (newer or new["apiVersion"] != "v1") and new.get("type") not in ("Normal", "Warning"):
        kind = new.get("type", "")
        yield invalid("type", kind, f"has invalid value: {kind}")


KINDS: dict[KindKey, Callable[[Object, Object | None], Causes]] = {
    ("", "configmaps"): _config_map,
    ("", "events"): _event,
    ("", "pods"): _pod,
    ("", "secrets"): _secret,
    ("", "services"): _service,
    ("apps", "deployments"): _deployment,
    ("apps", "replicasets"): _workload,
    ("coordination.k8s.io", "leases"): _lease,
    ("events.k8s.io", "events"): _event,
}
"""The rules of one kind each; a kind without an entry has only its structure and its metadata."""
