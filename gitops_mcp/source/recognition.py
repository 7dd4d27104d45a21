"""What a document is: one of ours, another tool's, or one that tells us less than it should."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import orjson

from gitops_mcp.base.model import Policy
from gitops_mcp.base.names import API_VERSION, GROUP, KIND, JsonObject, ServerKey
from gitops_mcp.source import literals, podsecurity, policies, rules, serverschema
from gitops_mcp.source.documents import Finding, Path

NAME = re.compile("[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?")


_SERVER_FIELDS = (
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generation",
    "managedFields",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
)
"""Metadata that ``kubectl get -o yaml`` shows and nobody writes: dropped with a warning."""


_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


def is_ours(value: object) -> bool:
    """Whether a document means to be an MCPServer, or anything else of our group: one that only
    misnames itself must not pass for somebody else's."""
    if not isinstance(value, dict):
        return False
    kind, version = value.get("kind"), value.get("apiVersion")
    return (isinstance(kind, str) and kind.lower() == KIND.lower()) or (
        isinstance(version, str) and version.partition("/")[0] == GROUP
    )


EMPTY = "it holds no document"


_OF_ANOTHER_TOOL = re.compile(
    r"(?:.*[-.])?values(?:[-._].*)?|kustomization|chart|requirements|(?:docker-)?compose(?:[-.].*)?"
)
"""Names, without ending, of files that are no manifests and may well be empty."""


def is_of_another_tool(path: str) -> bool:
    name = path.rpartition("/")[2].lower()
    return _OF_ANOTHER_TOOL.fullmatch(name.rpartition(".")[0]) is not None


def texts(value: object) -> Iterator[str]:
    """A document that is one text, or those that it has at its top."""
    values = value.values() if isinstance(value, dict) else value
    for one in values if not isinstance(values, str) and isinstance(values, Iterable) else [values]:
        if isinstance(one, str):
            yield one


_FIRST_LINES = re.compile(r"(?:[ \t]*(?:#[^\n]*|---[ \t]*)?\n)*")


_NAMES_US = re.compile(
    rf"""^ *["']?(?:kind["']?: ?["']?{KIND}\b|apiVersion["']?: ?["']?{GROUP}/)""",
    re.IGNORECASE | re.MULTILINE,
)


def is_written_out(text: str) -> bool:
    """Whether a text is a manifest of ours, and not only speaks of one, as a script may."""
    begin = _FIRST_LINES.match(text)
    start = text[begin.end() if begin else 0 :].lstrip(" \n\"'{").lower()
    return start.startswith(("apiversion", "kind", "metadata", "spec")) and bool(
        _NAMES_US.search(text)
    )


CONFLICT = "a merge conflict is not resolved here"


WRAPPED: Mapping[bytes, str] = {
    b"version https://git-lfs.github.com/spec/": "a Git LFS pointer, not the file: keep manifests "
    "out of LFS (git lfs untrack)",
    b"$ANSIBLE_VAULT;": "encrypted with Ansible Vault, which gitops-mcp cannot read: keep what is "
    "secret in Secrets",
    b"\0GITCRYPT\0": "encrypted with git-crypt, which gitops-mcp cannot read",
}
"""What a file begins with whose content is elsewhere, or locked."""


def in_small(value: JsonObject) -> JsonObject:
    """The keys that say what an object is, whichever letters are capitals."""
    names = {"kind": "kind", "apiversion": "apiVersion"}
    return {names[key.lower()]: child for key, child in value.items() if key.lower() in names}


_VERSION = re.compile(r"(?:[a-z0-9][-.a-z0-9]{0,252}/)?v[0-9][a-z0-9]{0,30}")


_KIND = re.compile(r"[A-Z][A-Za-z0-9]{0,62}")


def is_well_formed(value: JsonObject) -> bool:
    """Whether this is somebody else's object beyond doubt."""
    version, kind, metadata = (value.get(key) for key in ("apiVersion", "kind", "metadata"))
    return (
        isinstance(version, str)
        and isinstance(kind, str)
        and isinstance(metadata, dict)
        and isinstance(metadata.get("name"), str)
        and _VERSION.fullmatch(version) is not None
        and _KIND.fullmatch(kind) is not None
    )


def identity(path: Path, value: object) -> set[Path]:
    """The places that say whose an object is, where it is a Kubernetes object at all."""
    if not isinstance(value, dict):
        return {path} if path else set()
    if not ("kind" in value and "apiVersion" in value):
        return set()
    return {(*path, name) for name in ("kind", "apiVersion", "items")}


def is_foreign(value: JsonObject) -> bool:
    """Whether a document that is not ours is one object of somebody else for certain."""
    kind, version = value.get("kind"), value.get("apiVersion")
    return isinstance(kind, str) and isinstance(version, str) and kind != "List"


def items_of(value: JsonObject) -> list[Any]:
    items = value.get("items")
    return items if isinstance(items, list) else []


def misnamed(value: JsonObject) -> list[Finding]:
    """What is wrong with apiVersion and kind; the rest is only judged by the right ones."""
    return [
        Finding((name,), f"{name} is missing", "parent")
        if value.get(name) is None
        else Finding((name,), f"must be {wanted}")
        for name, wanted in (("apiVersion", API_VERSION), ("kind", KIND))
        if value.get(name) != wanted
    ]


def as_written_by_hand(value: JsonObject) -> tuple[JsonObject, list[Finding]]:
    """A copy without what only the server sets, and a warning for each such field."""
    manifest = dict(value)
    dropped: list[Path] = []
    if "status" in manifest:
        del manifest["status"]
        dropped.append(("status",))
    metadata = manifest.get("metadata")
    if isinstance(metadata, dict):
        names = [name for name in _SERVER_FIELDS if name in metadata]
        if names:
            metadata = {k: v for k, v in metadata.items() if k not in names}
            dropped += [("metadata", name) for name in names]
        annotations = metadata.get("annotations")
        if isinstance(annotations, dict) and _LAST_APPLIED in annotations:
            kept = {k: v for k, v in annotations.items() if k != _LAST_APPLIED}
            metadata = {**metadata, "annotations": kept}
            dropped.append(("metadata", "annotations", _LAST_APPLIED))
        manifest["metadata"] = metadata
    message = "set by the server, ignored here"
    findings = [Finding(path, message, "key", "warning") for path in dropped]
    if ("metadata", "uid") in dropped or ("metadata", "resourceVersion") in dropped:
        parts = {
            key: part
            for key, part in manifest["metadata"].items()
            if key == "name" or isinstance(part, dict)
        }
        spec = manifest.get("spec")
        marks = rules.exported(parts, spec if isinstance(spec, dict) else {})
        manifest, findings = without(manifest, marks), findings + marks
    return manifest, findings


def covered(path: Path, meant: Iterable[Path]) -> bool:
    """Whether a flaw at or above ``path`` has been reported already."""
    return any(path[: len(flaw)] == flaw for flaw in meant)


def unknown_nulls(value: Any) -> list[Finding]:
    """Misspelt keys without a value: dropping their nulls has hidden them."""
    unknown = filter(None, map(serverschema.unknown_field, _nulls(value, ())))
    return list(islice(unknown, serverschema.MAX_FINDINGS))


def _nulls(value: Any, path: Path) -> Iterator[Path]:
    if isinstance(value, dict):
        steps: Iterable[tuple[str | int, Any]] = value.items()
    elif isinstance(value, list):
        steps = enumerate(value)
    else:
        return
    for step, child in steps:
        if child is None:
            yield (*path, step)
        else:
            yield from _nulls(child, (*path, step))


def findings_of(
    manifest: JsonObject,
    key: ServerKey | None,
    policy: Policy,
    *,
    closely: bool = False,
    briefly: bool = False,
) -> list[Finding]:
    """All that is wrong with a completed manifest. ``closely``: not by the fast validator, which
    takes 1.0 for a whole number. ``briefly``: nobody reads it, only whether there is anything."""
    found: list[Finding] = []
    if briefly and not serverschema.accepts(manifest):
        return [Finding((), "not valid")]
    if closely or not serverschema.accepts(manifest):
        found = serverschema.findings(manifest)
        if len(found) > serverschema.MAX_FINDINGS:
            return found  # what is left of it is more than the rules may meet
        manifest = without(manifest, found)
    metadata, spec = manifest.get("metadata"), manifest.get("spec")
    if isinstance(spec, dict):
        found += rules.of_spec(spec)
        wrong = {finding.path for finding in found if finding.severity == "error"}
        found += _forbidden(spec, key, policy, wrong)
        if isinstance(metadata, dict):
            found += rules.of_metadata(metadata, spec)
            found += literals.of_manifest(metadata, spec)
    return found


def _forbidden(
    spec: JsonObject, key: ServerKey | None, policy: Policy, known: Collection[Path]
) -> Iterator[Finding]:
    """What the operator does not allow, but for fields that something else is wrong with."""
    found = policies.of_server(key, spec, policy) if key is not None else []
    found += podsecurity.findings(podsecurity.outline(spec), spec, policy.pods)
    yield from (finding for finding in found if finding.path not in known)


def without(manifest: JsonObject, findings: Sequence[Finding]) -> JsonObject:
    """A copy without what the schema refuses, so that rules meet only what they expect. A list
    with a wrong item goes as a whole: the others keep their indices nowhere else."""
    copy: JsonObject = orjson.loads(orjson.dumps(manifest))
    for finding in findings:
        if finding.at == "parent":
            continue
        parents: list[Any] = [copy]
        for step in finding.path[:-1]:
            parent = parents[-1]
            try:
                parents.append(parent[step])
            except (KeyError, IndexError, TypeError):
                break
        else:
            for step, parent in zip(reversed(finding.path), reversed(parents), strict=True):
                if isinstance(parent, dict):
                    parent.pop(step, None)
                    break
    return copy
