"""The Pod Security Standards, item by item: a pod template in, what a profile forbids out.

Judges the pod as it is rendered, whatever has put a value there. The rows of ``RULES`` are the
checks of Kubernetes' own PodSecurity admission (its latest version), by their names there, and one
of our own; a test holds them against a real API server. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from gitops_mcp.base import objects
from gitops_mcp.base.model import PodProfile
from gitops_mcp.base.names import JsonObject
from gitops_mcp.source.documents import Finding, Path, pointer

Where = Callable[[JsonObject], Iterator[Path]]
"""A pod template (``metadata`` and ``spec``) → the paths in it that break a rule."""


class Rule(NamedTuple):
    """One item: its name in Kubernetes, the profile that has it first, what it asks for."""

    id: str
    profile: PodProfile
    what: str
    where: Where


class Violation(NamedTuple):
    """A rule that a pod breaks, and the path in the template."""

    rule: Rule
    path: Path


def violations(template: JsonObject, profile: PodProfile) -> list[Violation]:
    """What of a pod template ``profile`` forbids; ``restricted`` has all that ``baseline`` has."""
    profiles = _INCLUDED[profile]
    found: dict[Path, Violation] = {}
    for rule in RULES if profiles else ():
        if rule.profile in profiles:
            for path in rule.where(template):
                found.setdefault(path, Violation(rule, path))
    return list(found.values())


def findings(template: JsonObject, spec: JsonObject, profile: PodProfile) -> list[Finding]:
    """The same, said of the MCPServer that the template was rendered from: each at the field of
    ``spec`` that it comes from, else at the server."""
    found = []
    for violation in violations(template, profile):
        path = _traced(violation.path, template, spec)
        rule = violation.rule
        place = "" if path else f" (the pod's {pointer(violation.path)})"
        found.append(
            Finding(
                path,
                f"must be {rule.what} ({rule.id} of the Pod Security profile {profile}){place}; "
                f"the operator can allow it with {_REMEDY[profile]}",
                "key" if rule.what in ("absent", "unset") else "value",
            )
        )
    return found


_INCLUDED: Mapping[PodProfile, tuple[PodProfile, ...]] = {
    "privileged": (),
    "baseline": ("baseline",),
    "restricted": ("baseline", "restricted"),
}
_REMEDY: Mapping[PodProfile, str] = {
    "privileged": "",
    "baseline": "--allow-privileged",
    "restricted": "--pod-security=baseline",
}


# --- where things are -----------------------------------------------------------------------


def _containers(template: JsonObject) -> Iterator[tuple[Path, JsonObject]]:
    """Every container of every kind."""
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        for index, container in enumerate(_spec(template).get(kind) or ()):
            yield ("spec", kind, index), container


def _contexts(template: JsonObject) -> Iterator[tuple[Path, JsonObject]]:
    """The pod's security context and those of its containers, as far as they are set."""
    for path, holder in ((("spec",), _spec(template)), *_containers(template)):
        context = holder.get("securityContext")
        if context is not None:
            yield (*path, "securityContext"), context


def _spec(template: JsonObject) -> JsonObject:
    return objects.spec(template)


def _is_windows(template: JsonObject) -> bool:
    return bool(objects.at(_spec(template), "os", "name") == "windows")


def _in_user_namespace(template: JsonObject) -> bool:
    return _spec(template).get("hostUsers") is False


# --- baseline -------------------------------------------------------------------------------


def _host_namespaces(template: JsonObject) -> Iterator[Path]:
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if _spec(template).get(name):
            yield ("spec", name)


def _privileged(template: JsonObject) -> Iterator[Path]:
    for path, container in _containers(template):
        if objects.at(container, "securityContext", "privileged"):
            yield (*path, "securityContext", "privileged")


_DEFAULT_CAPABILITIES = frozenset(
    {
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    }
)


def _added(allowed: frozenset[str]) -> Where:
    def where(template: JsonObject) -> Iterator[Path]:
        for path, container in _containers(template):
            for index, name in enumerate(
                objects.at(container, "securityContext", "capabilities", "add") or ()
            ):
                if name not in allowed:
                    yield (*path, "securityContext", "capabilities", "add", index)

    return where


def _volumes_of(template: JsonObject) -> Iterator[tuple[Path, JsonObject]]:
    for index, volume in enumerate(_spec(template).get("volumes") or ()):
        yield ("spec", "volumes", index), volume


def _host_paths(template: JsonObject) -> Iterator[Path]:
    for path, volume in _volumes_of(template):
        if "hostPath" in volume:
            yield (*path, "hostPath")


def _host_ports(template: JsonObject) -> Iterator[Path]:
    for path, container in _containers(template):
        for index, port in enumerate(container.get("ports") or ()):
            if port.get("hostPort"):
                yield (*path, "ports", index, "hostPort")


_HANDLERS = (
    ("livenessProbe",),
    ("readinessProbe",),
    ("startupProbe",),
    ("lifecycle", "postStart"),
    ("lifecycle", "preStop"),
)


def _handler_hosts(template: JsonObject) -> Iterator[Path]:
    for path, container in _containers(template):
        for handler in _HANDLERS:
            for kind in ("httpGet", "tcpSocket"):
                if objects.at(container, *handler, kind, "host"):
                    yield (*path, *handler, kind, "host")


_APPARMOR = "container.apparmor.security.beta.kubernetes.io/"


def _apparmor(template: JsonObject) -> Iterator[Path]:
    for path, context in _contexts(template):
        profile = context.get("appArmorProfile")
        if profile and profile.get("type") not in ("RuntimeDefault", "Localhost"):
            yield (*path, "appArmorProfile", "type")
    for key, value in objects.annotations(template).items():
        allowed = value in ("", "runtime/default") or str(value).startswith("localhost/")
        if key.startswith(_APPARMOR) and not allowed:
            yield ("metadata", "annotations", key)


_SELINUX_TYPES = frozenset(
    {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
)


def _selinux(template: JsonObject) -> Iterator[Path]:
    for path, context in _contexts(template):
        options = objects.part(context, "seLinuxOptions")
        if options.get("type", "") not in _SELINUX_TYPES:
            yield (*path, "seLinuxOptions", "type")
        for name in ("user", "role"):
            if options.get(name):
                yield (*path, "seLinuxOptions", name)


def _proc_mount(template: JsonObject) -> Iterator[Path]:
    for path, container in _containers(template):
        if objects.at(container, "securityContext", "procMount") not in (None, "Default"):
            yield (*path, "securityContext", "procMount")


def _proc_mount_of_the_host(template: JsonObject) -> Iterator[Path]:
    if not _in_user_namespace(template):
        yield from _proc_mount(template)


_SECCOMP = frozenset({"RuntimeDefault", "Localhost"})


def _seccomp(template: JsonObject) -> Iterator[Path]:
    for path, context in _contexts(template):
        profile = context.get("seccompProfile")
        if profile and profile.get("type") not in _SECCOMP:
            yield (*path, "seccompProfile", "type")


_SAFE_SYSCTLS = frozenset(
    {
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.ping_group_range",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_rmem",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.tcp_wmem",
    }
)


def _sysctls(template: JsonObject) -> Iterator[Path]:
    for index, sysctl in enumerate(objects.at(_spec(template), "securityContext", "sysctls") or ()):
        if sysctl.get("name") not in _SAFE_SYSCTLS:
            yield ("spec", "securityContext", "sysctls", index, "name")


def _host_process(template: JsonObject) -> Iterator[Path]:
    for path, context in _contexts(template):
        if objects.at(context, "windowsOptions", "hostProcess"):
            yield (*path, "windowsOptions", "hostProcess")


def _propagation(template: JsonObject) -> Iterator[Path]:
    for path, container in _containers(template):
        for index, mount in enumerate(container.get("volumeMounts") or ()):
            if mount.get("mountPropagation") == "Bidirectional":
                yield (*path, "volumeMounts", index, "mountPropagation")


# --- restricted -----------------------------------------------------------------------------

_VOLUME_KINDS = frozenset(
    {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "image",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
)


def _volumes(template: JsonObject) -> Iterator[Path]:
    for path, volume in _volumes_of(template):
        kinds = volume.keys() - {"name"}  # none at all is an emptyDir
        if kinds and not kinds & _VOLUME_KINDS:
            yield (*path, min(kinds))


def _escalation(template: JsonObject) -> Iterator[Path]:
    if _is_windows(template):
        return
    for path, container in _containers(template):
        if objects.at(container, "securityContext", "allowPrivilegeEscalation") is not False:
            yield (*path, "securityContext", "allowPrivilegeEscalation")


def _non_root(template: JsonObject) -> Iterator[Path]:
    if _in_user_namespace(template):
        return
    of_pod = objects.at(_spec(template), "securityContext", "runAsNonRoot")
    if of_pod is False:
        yield ("spec", "securityContext", "runAsNonRoot")
    for path, container in _containers(template):
        own = objects.at(container, "securityContext", "runAsNonRoot")
        if own is False or (own is None and of_pod is None):
            yield (*path, "securityContext", "runAsNonRoot")


def _user(template: JsonObject) -> Iterator[Path]:
    if _in_user_namespace(template):
        return
    for path, context in _contexts(template):
        if context.get("runAsUser") == 0:
            yield (*path, "runAsUser")


def _any_seccomp(template: JsonObject) -> Iterator[Path]:
    if _is_windows(template):
        return
    yield from _seccomp(template)
    of_pod = objects.at(_spec(template), "securityContext", "seccompProfile", "type")
    for path, container in _containers(template):
        if not objects.at(container, "securityContext", "seccompProfile") and of_pod is None:
            yield (*path, "securityContext", "seccompProfile")


def _drops_all(template: JsonObject) -> Iterator[Path]:
    if _is_windows(template):
        return
    for path, container in _containers(template):
        if "ALL" not in (objects.at(container, "securityContext", "capabilities", "drop") or ()):
            yield (*path, "securityContext", "capabilities", "drop")


RULES: tuple[Rule, ...] = (
    Rule("hostNamespaces", "baseline", "unset", _host_namespaces),
    Rule("privileged", "baseline", "false", _privileged),
    Rule(
        "capabilities_baseline",
        "baseline",
        "of the default set (such as NET_BIND_SERVICE, CHOWN)",
        _added(_DEFAULT_CAPABILITIES),
    ),
    Rule("hostPathVolumes", "baseline", "absent", _host_paths),
    Rule("hostPorts", "baseline", "unset", _host_ports),
    Rule("hostProbesAndHostLifecycle", "baseline", "unset", _handler_hosts),
    Rule("appArmorProfile", "baseline", "RuntimeDefault or Localhost", _apparmor),
    Rule("seLinuxOptions", "baseline", "a container type, without user and role", _selinux),
    Rule("procMount", "baseline", "Default", _proc_mount_of_the_host),
    Rule("seccompProfile_baseline", "baseline", "RuntimeDefault or Localhost", _seccomp),
    Rule("sysctls", "baseline", "one of the safe ones", _sysctls),
    Rule("windowsHostProcess", "baseline", "false", _host_process),
    # Kubernetes leaves this to its validation, which asks for a privileged container.
    Rule("mountPropagation", "baseline", "None or HostToContainer", _propagation),
    Rule(
        "restrictedVolumes",
        "restricted",
        f"one of {', '.join(sorted(_VOLUME_KINDS))}",
        _volumes,
    ),
    Rule("allowPrivilegeEscalation", "restricted", "false", _escalation),
    Rule("runAsNonRoot", "restricted", "true", _non_root),
    Rule("runAsUser", "restricted", "another than 0", _user),
    Rule("seccompProfile_restricted", "restricted", "RuntimeDefault or Localhost", _any_seccomp),
    Rule("capabilities_restricted", "restricted", "ALL in drop", _drops_all),
    Rule(
        "capabilities_restricted",
        "restricted",
        "NET_BIND_SERVICE alone",
        _added(frozenset({"NET_BIND_SERVICE"})),
    ),
    Rule("procMount_restricted", "restricted", "Default", _proc_mount),
)


# --- from the pod to the manifest -----------------------------------------------------------


def outline(spec: JsonObject) -> JsonObject:
    """The pod template that the shipped templates make of a spec, as far as the rules look at it,
    without rendering it (a test holds it against them). ``spec`` keeps to the schema."""
    own = objects.part(spec, "securityContext")
    capabilities = objects.part(own, "capabilities")
    container = {
        "allowPrivilegeEscalation": bool(own.get("privileged"))
        or "CAP_SYS_ADMIN" in (capabilities.get("add") or ()),
        **own,
        "capabilities": {"drop": ["ALL"], **capabilities},
    }
    own = objects.part(spec, "podSecurityContext")
    seccomp = {"type": "RuntimeDefault", **objects.part(own, "seccompProfile")}
    pod = {"runAsNonRoot": True, **own, "seccompProfile": seccomp}
    return {
        "metadata": {"annotations": objects.part(spec, "podAnnotations")},
        "spec": {
            "securityContext": pod,
            "containers": [
                {"securityContext": container, "volumeMounts": spec.get("volumeMounts") or ()}
            ],
            "volumes": spec.get("volumes") or (),
        },
    }


_ORIGINS: tuple[tuple[Path, Path], ...] = (
    (("metadata", "annotations"), ("spec", "podAnnotations")),
    (("spec", "securityContext"), ("spec", "podSecurityContext")),
    (("spec", "containers", 0, "securityContext"), ("spec", "securityContext")),
)
_LISTS: tuple[tuple[Path, str, str], ...] = (
    (("spec", "volumes"), "volumes", "name"),
    (("spec", "containers", 0, "volumeMounts"), "volumeMounts", "mountPath"),
)
"""Lists that the templates add to: where they are, the spec's, and the key of an entry."""


def _traced(path: Path, template: JsonObject, spec: JsonObject) -> Path:
    """The field of the manifest that a path in the pod comes from; (): none of it does."""
    for pod, origin in _ORIGINS:
        if path[: len(pod)] == pod:
            return _known(spec, (*origin, *path[len(pod) :]))
    for pod, field, key in _LISTS:
        if path[: len(pod)] == pod:
            value: Any = template
            for step in path[: len(pod) + 1]:
                value = value[step]
            for index, entry in enumerate(spec.get(field) or ()):
                if entry.get(key) == value.get(key):
                    return _known(spec, ("spec", field, index, *path[len(pod) + 1 :]))
    return ()


def _known(spec: JsonObject, path: Path) -> Path:
    """The part of a manifest's path that it has."""
    value: Any = {"spec": spec}
    for length, step in enumerate(path):
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return path[:length] if length > 1 else ()
    return path
