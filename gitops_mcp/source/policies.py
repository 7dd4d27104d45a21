"""What the operator lets a server ask for: namespace, service account, Secrets, hosts.

Receives a server and the ``Policy``; returns findings, with paths from the manifest's root. Pure.
The same rules hold for a manifest in git and for an MCPServer that kubectl made. Pods are judged in
``podsecurity``.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from gitops_mcp.base import addresses, objects
from gitops_mcp.base.model import Policy
from gitops_mcp.base.names import JsonObject, ServerKey
from gitops_mcp.source.documents import Finding, Path

SYSTEM = "kube-"
"""What the names of the cluster's own namespaces begin with."""


def of_server(key: ServerKey, spec: JsonObject, policy: Policy) -> list[Finding]:
    """What a server asks for and may not have. ``spec`` keeps to the schema."""
    return [
        *_namespace(key, policy),
        *_service_account(key, spec, policy),
        *secrets(key, spec, policy),
        *drain_url(key, spec, policy),
    ]


def _namespace(key: ServerKey, policy: Policy) -> Iterator[Finding]:
    name = key.namespace
    wanted = [glob for glob in policy.namespaces if not glob.startswith("!")]
    unwanted = [glob[1:] for glob in policy.namespaces if glob.startswith("!")]
    path: Path = ("metadata", "namespace")
    if name in wanted:
        return
    if name.startswith(SYSTEM):
        yield Finding(path, f"no server may be in the cluster's own namespaces ({SYSTEM}*)")
    elif name in policy.own_namespaces:
        yield Finding(path, "no server may be in the agent's own namespace")
    elif not _matches(name, wanted) or _matches(name, unwanted):
        yield Finding(path, "the operator allows no server in this namespace (--namespaces)")


def _matches(name: str, globs: Collection[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, glob) for glob in globs)


def _service_account(key: ServerKey, spec: JsonObject, policy: Policy) -> Iterator[Finding]:
    account = spec.get("serviceAccount")
    if not account:
        return
    path: Path = ("spec", "serviceAccount")
    if _is_agents(account) and (
        key.namespace in policy.own_namespaces
        or (key.namespace, account) not in policy.service_accounts
    ):
        yield Finding(path, "this is an agent's service account")
        return
    for namespace, glob in policy.service_accounts:
        if fnmatch.fnmatchcase(key.namespace, namespace) and (
            account == key.name
            if glob == "{name}"
            else fnmatch.fnmatchcase(account, glob.replace("{name}", key.name))
        ):
            return
    yield Finding(
        path,
        "the operator does not allow this service account here (--service-accounts); by default a "
        "server may use the one of its own name",
    )


def _is_agents(name: str) -> bool:
    return name == _AGENT or name.startswith(f"{_AGENT}-")


_AGENT = "gitops-mcp"
"""What ``install`` calls an agent's account; more follows where there are several agents. Others
may live anywhere, so such a name is closed in all namespaces, unless it is written out."""

_SECRET_FIELDS = ("secretKeyRef", "secretRef", "secret", "nodePublishSecretRef")
"""Fields that refer to a Secret, wherever they are in a spec."""


def secrets(key: ServerKey, spec: Mapping[str, Any], policy: Policy) -> Iterator[Finding]:
    """References to the agent's Secrets."""
    if key.namespace not in policy.own_namespaces or not policy.own_secrets:
        return
    for path in _references(spec, ("spec",), policy.own_secrets):
        yield Finding(path, "this is a Secret of the agent")


def _references(value: Any, path: Path, names: Collection[str]) -> Iterator[Path]:
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _references(item, (*path, index), names)
    elif isinstance(value, dict):
        for field, child in value.items():
            if field in _SECRET_FIELDS and isinstance(child, dict):
                for name in ("name", "secretName"):
                    if child.get(name) in names:
                        yield (*path, field, name)
            if field == "imagePullSecrets" and isinstance(child, list):
                for index, item in enumerate(child):
                    if isinstance(item, dict) and item.get("name") in names:
                        yield (*path, field, index, "name")
            yield from _references(child, (*path, field), names)


def drain_url(key: ServerKey, spec: Mapping[str, Any], policy: Policy) -> Iterator[Finding]:
    """An address that the agent is to ask and the operator does not allow. Also asked right before
    a request, since a live MCPServer may say anything."""
    url = objects.part(spec, "drain").get("url")
    if not url:
        return
    path: Path = ("spec", "drain", "url")
    try:
        host = (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        yield Finding(path, "must be an http or https address")
        return
    known = addresses.literal(host)
    allowed = _matches(host, policy.drain_hosts)
    if known is not None:
        # Loopback is for the one who asks to judge: pods of the sandbox have such addresses.
        refusal = addresses.foreign(known, loopback=lambda: allowed)
        if refusal:
            yield Finding(path, refusal)
            return
    if _is_api_server(host, policy.domain):
        yield Finding(path, "the API server is not asked")
    elif not allowed and not _is_own_service(host, key.namespace, policy.domain):
        yield Finding(
            path,
            "must be a Service of the server's own namespace (<name>.<namespace>.svc), or a host "
            "that the operator allows (--drain-hosts)",
        )


def _is_own_service(host: str, namespace: str, domain: str) -> bool:
    """Without ``.svc`` a name may be anybody's: ``sessions.ai`` is a domain on the internet."""
    suffixes = (f".{namespace}.svc", f".{namespace}.svc.{domain}")
    return any(host.endswith(suffix) and host != suffix for suffix in suffixes)


def _is_api_server(host: str, domain: str) -> bool:
    names = ("kubernetes.default.svc", f"kubernetes.default.svc.{domain}")
    return host in ("kubernetes", "kubernetes.default", *names)
