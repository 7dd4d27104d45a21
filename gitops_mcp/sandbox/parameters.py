"""What a request asks for: its method, query and body in, checked values out.

ApiError for what the real server refuses before it reads the object that is meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gitops_mcp.sandbox import bodies, errors, selectors, validation
from gitops_mcp.sandbox.kinds import Kind
from gitops_mcp.sandbox.schema import Decoding
from gitops_mcp.sandbox.storage import Object, dumps
from gitops_mcp.sandbox.writing import Writing


@dataclass(frozen=True)
class Target:
    """What a URL names."""

    kind: Kind
    namespace: str | None
    name: str = ""
    subresource: str = ""


def verb_of(method: str, target: Target, query: Mapping[str, str]) -> str:
    """What a request does, by the name that RBAC has for it; "" for what nothing does."""
    if method == "GET" and not target.name:
        return "watch" if query.get("watch") in ("true", "1") else "list"
    verbs = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
    verb = verbs.get(method, "")
    if method == "DELETE" and not target.name:
        return "deletecollection"
    if (verb == "create") is bool(target.name):
        return ""
    return verb


def writing(query: Mapping[str, str], user_agent: str, target: Target, options: str) -> Writing:
    """How a write is done, as its query says; `options` is the kind that the real server reads it
    as. ApiError 422 for what it does not know."""
    dry_run = query.get("dryRun", "")
    causes = []
    if dry_run not in ("", "All"):
        causes.append(validation.unsupported("dryRun", [dry_run], ("All",)))
    strictness = query.get("fieldValidation", "")
    allowed = ("", "Ignore", "Strict", "Warn")
    if strictness not in allowed:
        causes.append(validation.unsupported("fieldValidation", strictness, allowed))
    manager = query.get("fieldManager", "")
    if len(manager) > 128:
        text = "Too long: may not be more than 128 bytes"
        causes.append(errors.Cause("FieldValueTooLong", text, "fieldManager"))
    if causes:
        raise errors.invalid("meta.k8s.io", options, "", causes)
    agent = user_agent.partition("/")[0]
    return Writing(
        manager or agent or "unknown",
        target.subresource,
        dry_run == "All",
        Decoding(strictness or "Warn"),
    )


def delete_options(raw: bytes, query: Mapping[str, str]) -> dict[str, Any]:
    """The DeleteOptions of a body and a query."""
    options = bodies.parse(raw, bodies.JSON, (bodies.JSON,), Decoding()) if raw else {}
    if not isinstance(options, dict):
        raise errors.bad_request("DeleteOptions: the body is not an object")
    for key in ("propagationPolicy", "dryRun"):
        if key in query:
            options[key] = query[key]
    if "gracePeriodSeconds" in query:
        options["gracePeriodSeconds"] = selectors.number(query["gracePeriodSeconds"])
    orphans = options.get("orphanDependents")
    if orphans is not None:
        options["propagationPolicy"] = "Orphan" if orphans else "Background"
    policies = ("Foreground", "Background", "Orphan", "nil")
    policy = options.get("propagationPolicy")
    causes = []
    if policy is not None and policy not in policies:
        causes.append(validation.unsupported("propagationPolicy", policy, policies))
    if options.get("dryRun") not in (None, "All", ["All"], []):
        causes.append(validation.unsupported("dryRun", options["dryRun"], ("All",)))
    if causes:
        raise errors.invalid("meta.k8s.io", "DeleteOptions", "", causes)
    return options


def strictness(kind: Kind, writing: Writing, patched: Object | None = None) -> list[str]:
    """The warnings for unknown fields; an error if the client wants it so."""
    decoding = writing.reader()
    if decoding.validation == "Ignore" or not decoding.problems:
        return []
    problems = sorted(set(decoding.problems))
    if decoding.validation == "Warn":
        return problems
    joined = ", ".join(problems)
    if patched is not None:
        cause = validation.invalid(
            "patch", dumps(patched).decode(), f"strict decoding error: {joined}"
        )
        raise errors.invalid("", "", "", [cause])
    what = f'{kind.name} in version "{kind.version}"'
    raise errors.bad_request(
        f"{what} cannot be handled as a {kind.name}: strict decoding error: {joined}"
    )


def finalizer_warnings(kind: Kind, obj: Object) -> list[str]:
    """What a custom object is told where a built-in one is refused."""
    if kind.definition is None:
        return []
    advice = "prefer a domain-qualified finalizer name to avoid accidental conflicts"
    return [
        f'metadata.finalizers: "{one}": {advice} with other finalizer writers'
        for one in obj["metadata"].get("finalizers", ())
        if "/" not in one and one not in validation.STANDARD
    ]


def object_of(body: Any, kind: Kind) -> Object:
    """The body of a create or update, checked to be an object of the URL's kind."""
    if not isinstance(body, dict):
        raise errors.bad_request("couldn't get version/kind; json parse error: not an object")
    version, name = body.get("apiVersion"), body.get("kind")
    for key, given in (("apiVersion", version), ("kind", name)):
        if kind.definition is not None and not given:
            raise errors.bad_request(f"Object '{key[0].upper()}{key[1:]}' is missing")
    if version not in (None, "", kind.api_version) or name not in (None, "", kind.name):
        raise errors.bad_request(
            f'{name} in version "{str(version or "").rpartition("/")[2]}" cannot be handled as a'
            f' {kind.name}: no kind "{name}" is registered for version "{version}"'
        )
    metadata = body.get("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        raise errors.bad_request("metadata must be an object")
    return {**body, "metadata": dict(metadata or {})}


def place_in(body: Object, target: Target) -> None:
    """Put a body into the namespace of the URL. ApiError 400 where it names another one."""
    metadata = body["metadata"]
    check_namespace(metadata, target)
    if target.namespace is not None:
        metadata["namespace"] = target.namespace


def check_namespace(metadata: Object, target: Target) -> None:
    """ApiError 400 where a body names another namespace than the URL."""
    given = metadata.get("namespace")
    if given and given != (target.namespace or ""):
        raise errors.bad_request(
            "the namespace of the provided object does not match the namespace sent on the request"
        )
