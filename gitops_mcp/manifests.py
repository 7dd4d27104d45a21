"""Text of a source → servers, and every problem at its place.

Receives the files of one snapshot, returns :class:`~gitops_mcp.model.Loaded`. Pure: it reads
nothing but the shipped schema, decides nothing about the cluster, and raises for nothing that a
file can hold. A broken manifest is a problem of its own server only, and never an excuse to prune
it: where its server can be told that one is ``protected``, else the whole source is ``unknown``.

The steps, for each file: bytes → documents (``documents``) → those of our group, ``v1 List`` items
included → group_vars defaults laid under → the schema → rules between fields (``rules``). The
schema is asked twice: first whether there is anything to say at all, by a fast validator; the
exact one, which is slow to import and to run, speaks only then.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from gitops_mcp import rules, schemas
from gitops_mcp.documents import Document, Finding, Path, Place, decode, parse, pointer, shown
from gitops_mcp.model import (
    API_VERSION,
    GROUP,
    KIND,
    JsonObject,
    Loaded,
    McpServer,
    Problem,
    ServerKey,
    Severity,
    SourceFile,
)

MAX_FILE = 4 * 1024 * 1024
"""Bytes of a file that is read. A fleet of 5,000 servers in one file has about 3 MB."""

MAX_DOCUMENT = 1024 * 1024
"""Bytes of one server's JSON. etcd refuses 1.5 MB, and the spec is stored more than once."""

CONFIG_FILE = "gitops-mcp.yaml"
"""The source's own settings: not a manifest."""


class Cache:
    """What earlier loads found, by content. Give the same one to each load of a source; what no
    recent load asked for is forgotten. Not for two loads at once."""

    def __init__(self) -> None:
        self._results: dict[_CacheKey, _FileResult] = {}

    def __len__(self) -> int:
        return len(self._results)

    def get(self, key: _CacheKey) -> _FileResult | None:
        """What was put under ``key``."""
        return self._results.get(key)

    def put(self, key: _CacheKey, result: _FileResult) -> None:
        """Remember ``result``."""
        self._results[key] = result

    def trim(self, used: Sequence[_CacheKey]) -> None:
        """Forget what this load did not use, once that is the larger part. Two loads in turn (both
        sides of a diff) keep each other's."""
        if len(self._results) > 3 * len(used) + 100:
            self._results = {key: self._results[key] for key in used}


def load(
    files: Sequence[SourceFile],
    *,
    cluster: str,
    namespace: str = "default",
    path: str = "",
    allow_privileged: bool = False,
    defaults: JsonObject | None = None,
    skipped: Sequence[tuple[str, str]] = (),
    cache: Cache | None = None,
) -> Loaded:
    """What the source holds.

    ``cluster`` picks ``group_vars/<cluster>.yaml``; ``namespace`` is for manifests that name none;
    ``path`` narrows the source to a folder (group_vars of the root still hold);
    ``allow_privileged`` lets manifests reach out of their container; ``defaults`` lie under all
    group_vars; ``skipped`` are files that could not be read, with the reason: what may have been a
    manifest is a problem, and its server cannot be told.
    """
    if cache is None:
        cache = Cache()
    folder = posixpath.normpath(path).strip("/")
    prefix = "" if folder == "." else f"{folder}/"
    groups, candidates = _sort(files, cluster, prefix)
    merged = _Defaults.read(groups, defaults or {})
    options = (namespace, allow_privileged, merged.digest)
    keys: list[_CacheKey] = []
    results: list[_FileResult] = []
    for file in candidates:
        key = (file.path, file.blob, options)
        result = cache.get(key)
        if result is None:
            result = _File(file, namespace, allow_privileged, merged).read()
            cache.put(key, result)
        keys.append(key)
        results.append(result)
    cache.trim(keys)
    return _assemble([*results, _unread(skipped, prefix)], merged)


def check(spec: JsonObject, *, allow_privileged: bool = False) -> tuple[str, ...]:
    """What is wrong with the spec of a live MCPServer, one line each (``/spec/…: message``).

    The CRD has refused most of it before; this finds what was stored before a rule existed, and
    what only the operator may allow.
    """
    findings = _findings(_around(spec), allow_privileged=allow_privileged)
    return tuple(f"{pointer(f.path)}: {f.message}" for f in findings if f.severity == "error")


# --- files ----------------------------------------------------------------------------------

_CacheKey = tuple[str, str, tuple[str, bool, str]]


class _Claim(NamedTuple):
    """One document that says it is ``key``; ``server`` is None where it cannot be applied."""

    key: ServerKey
    file: str
    place: Place
    path: str
    server: McpServer | None


@dataclass(slots=True)
class _FileResult:
    claims: list[_Claim] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    unknown: bool = False
    ignored: list[tuple[str, str]] = field(default_factory=list)


def _sort(
    files: Sequence[SourceFile], cluster: str, prefix: str
) -> tuple[list[list[SourceFile]], list[SourceFile]]:
    """The chosen group_vars, the weakest first, and the files that may hold manifests."""
    candidates: list[SourceFile] = []
    group_vars: dict[tuple[str, str], list[SourceFile]] = {}
    for file in files:
        inside = file.path.startswith(prefix)
        name = file.path[len(prefix) :] if inside else file.path
        if "group_vars/" in name:
            for folder in dict.fromkeys(("group_vars/", f"{prefix}group_vars/")):
                if file.path.startswith(folder):
                    stem, dot, extension = file.path[len(folder) :].rpartition(".")
                    if dot and extension in ("yaml", "yml") and stem in ("all", cluster):
                        group_vars.setdefault((folder, stem), []).append(file)
        if inside and _may_hold_manifests(name):
            candidates.append(file)
    # The last wins: what is for one cluster over what is for all, what is nearer over the root's.
    order = [
        (folder, stem)
        for stem in dict.fromkeys(("all", cluster))
        for folder in dict.fromkeys(("group_vars/", f"{prefix}group_vars/"))
    ]
    return [group_vars[place] for place in order if place in group_vars], candidates


def _unread(skipped: Sequence[tuple[str, str]], prefix: str) -> _FileResult:
    """Files that nobody could read, as if they had been."""
    result = _FileResult()
    for path, reason in skipped:
        inside = path.startswith(prefix)
        if inside and _may_hold_manifests(path[len(prefix) :]):
            result.problems.append(Problem(path, 1, 1, None, "", f"not read: {reason}"))
            result.unknown = True
        else:
            result.ignored.append((path, reason))
    return result


def _may_hold_manifests(name: str) -> bool:
    if not name.endswith((".yaml", ".yml", ".json")) or name == CONFIG_FILE:
        return False
    if "/" not in name:
        return True
    folders = name.split("/")[:-1]
    return not any(f.startswith(".") or f in ("group_vars", "templates") for f in folders)


def _assemble(results: Sequence[_FileResult], defaults: _Defaults) -> Loaded:
    claims: dict[ServerKey, _Claim] = {}
    rivals: dict[ServerKey, list[_Claim]] = {}
    problems = list(defaults.problems)
    ignored: list[tuple[str, str]] = []
    unknown = False
    for result in results:
        problems += result.problems
        ignored += result.ignored
        unknown = unknown or result.unknown
        for claim in result.claims:
            first = claims.setdefault(claim.key, claim)
            if first is not claim:
                rivals.setdefault(claim.key, [first]).append(claim)
    for key, group in rivals.items():
        for claim in group:
            other = group[0] if claim is not group[0] else group[1]
            problems.append(
                Problem(
                    claim.file,
                    *claim.place,
                    str(key),
                    claim.path,
                    f"a second manifest of {key}: the other is at {other.file}:{other.place.line}",
                )
            )
    servers = {
        key: claim.server
        for key, claim in claims.items()
        if claim.server is not None and key not in rivals
    }
    return Loaded(
        servers=servers,
        problems=tuple(sorted(set(problems), key=_by_place)),
        protected=frozenset(claims.keys() - servers.keys()),
        unknown=unknown,
        variables=defaults.variables,
        ignored=tuple(ignored),
    )


def _by_place(problem: Problem) -> tuple[str, int, int, str, str]:
    return (problem.file, problem.line, problem.column, problem.path, problem.message)


# --- group_vars -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Defaults:
    """The merged group_vars. ``broken``: they are not what their author meant, so no server can be
    rendered from them. ``sources`` are their documents, the strongest first."""

    spec: JsonObject = field(default_factory=dict)
    variables: JsonObject = field(default_factory=dict)
    sources: tuple[tuple[str, Document], ...] = ()
    problems: tuple[Problem, ...] = ()
    broken: bool = False
    digest: str = ""

    @classmethod
    def read(cls, groups: Sequence[Sequence[SourceFile]], base: JsonObject) -> _Defaults:
        """``groups``: the files for one group in one folder each, the weakest first; ``base`` lies
        under them."""
        spec: JsonObject = base
        variables: JsonObject = {}
        sources: list[tuple[str, Document]] = []
        problems: list[Problem] = []
        broken = False
        for group in groups:
            for other in group[1:]:
                message = f"the same group_vars stand in {group[0].path}: keep one of the two files"
                problems.append(Problem(other.path, 1, 1, None, "", message))
                broken = True
            document, found, usable = _read_group_vars(group[0])
            problems += found
            broken = broken or not usable
            if isinstance(document.value, dict) and usable:
                sources.insert(0, (group[0].path, document))
                spec = _merge(spec, document.value.get("spec") or {})
                variables |= {k: v for k, v in document.value.items() if k != "spec"}
        named = "".join(f"{file.path}\0{file.blob}\0" for group in groups for file in group)
        laid = orjson.dumps(base, option=orjson.OPT_SORT_KEYS)
        digest = hashlib.sha256(laid + b"\0" + named.encode()).hexdigest()
        return cls(spec, variables, tuple(sources), tuple(problems), broken, digest)


_VARIABLE = re.compile("[A-Za-z_][A-Za-z0-9_]*")


def _read_group_vars(file: SourceFile) -> tuple[Document, list[Problem], bool]:
    """One file: its document, its problems, and whether its values can be used."""
    problems: list[Problem] = []

    def report(place: Place | None, path: Path, message: str) -> None:
        line, column = place or document.start
        problems.append(Problem(file.path, line, column, None, pointer(path), message))

    documents = _documents(file)
    document = documents[0] if documents else Document(1, {})
    for extra in documents[1:]:
        report(extra.start, (), "group_vars are one document a file")
    for flaw in document.flaws:
        if not flaw.silent:
            report(flaw.place, flaw.path, flaw.message)
    value = {} if document.value is None else document.value
    if document.broken or problems:
        return document, problems, False
    if not isinstance(value, dict):
        report(document.start, (), "must be a map")
        return document, problems, False
    for name in value:
        if name != "spec" and not _VARIABLE.fullmatch(name):
            message = "must be a name for templates: letters, digits and '_'"
            report(document.place((name,), key=True), (name,), message)
    spec = value.get("spec")
    if spec is not None and not isinstance(spec, dict):
        report(document.place(("spec",)), ("spec",), "must be a map")
        return document, problems, False
    # A part of a spec is judged as a whole one, but for what it may leave out. Rules between
    # fields wait for the manifest: either of two fields may still change.
    found = _unknown_nulls({"spec": spec}) if document.nulls else []
    whole = _around({"image": "any", **_without_nulls(spec or {})})
    if document.fractions or not schemas.accepts(whole):
        found += schemas.findings(whole)
    for finding in found:
        if finding.at != "parent":
            place = document.place(finding.path, key=finding.at == "key")
            report(place, finding.path, finding.message)
    return document, problems, True


def _around(spec: JsonObject) -> JsonObject:
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "any"}, "spec": spec}


def _merge(base: JsonObject, over: JsonObject) -> JsonObject:
    """``over`` laid over ``base``: maps key by key, anything else replaced, null removes."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            merged[key] = _merge(below if isinstance(below, dict) else {}, value)
        else:
            merged[key] = _without_nulls(value)
    return merged


def _without_nulls(value: Any) -> Any:
    """Without the null values of maps; in a list a null is a mistake and stays."""
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_nulls(v) for v in value]
    return value


# --- one file -------------------------------------------------------------------------------


def _documents(file: SourceFile) -> list[Document]:
    text = decode(file.data)
    if isinstance(text, Document):
        return [text]
    return parse(text, json_syntax=file.path.endswith(".json"))


class _File:
    """Reads one file: the result grows while its documents are gone through."""

    def __init__(
        self, file: SourceFile, namespace: str, allow_privileged: bool, defaults: _Defaults
    ) -> None:
        self.file = file
        self.namespace = namespace
        self.allow_privileged = allow_privileged
        self.defaults = defaults
        self.result = _FileResult()

    def read(self) -> _FileResult:
        """The one call: all that the file holds."""
        if len(self.file.data) > MAX_FILE:
            self._too_large()
            return self.result
        documents = _documents(self.file)
        for document in documents:
            if document.broken:
                self._broken(document)
            elif document.value is not None:
                self._object(document, (), document.value)
        return self.result

    def _too_large(self) -> None:
        if KIND.encode() in self.file.data or GROUP.encode() in self.file.data:
            message = f"larger than {MAX_FILE // 1024 // 1024} MiB: split it"
            self.result.problems.append(Problem(self.file.path, 1, 1, None, "", message))
            self.result.unknown = True
        else:
            self.result.ignored.append((self.file.path, "too large, and names no MCPServer"))

    def _broken(self, document: Document) -> None:
        """Unreadable from some place on: nothing of it is applied. Whose it is may stand in the
        part before."""
        value = document.value if isinstance(document.value, dict) else {}
        if _is_ours(value):
            key = self._key(document, (), value)
            self._claim(document, (), key, None)
            self._flaws(document, (), None if key is None else str(key))
            return
        if not _is_foreign(value):
            self.result.unknown = True
            for index, item in enumerate(_items(value)):
                if _is_ours(item):
                    path: Path = ("items", index)
                    self._claim(document, path, self._key(document, path, item), None)
        end = document.flaws[-1]
        self._add(end.place, None, end.path, end.message)

    def _object(self, document: Document, path: Path, value: Any) -> None:
        """One Kubernetes object, or something else."""
        if _is_ours(value):
            self._manifest(document, path, value)
        elif _identity(path, value) & {flaw.path for flaw in document.flaws}:
            # It may be ours under another reading: a duplicate kind, an alias for an item.
            self.result.unknown = True
            self._flaws(document, (), None)
        elif not isinstance(value, dict) or not ("kind" in value or "apiVersion" in value):
            self.result.ignored.append((self.file.path, "no Kubernetes object"))
        elif value.get("apiVersion") == "v1" and value.get("kind") == "List":
            for index, item in enumerate(_items(value)):
                self._object(document, (*path, "items", index), item)
        else:
            kind = f"{value.get('apiVersion', '?')} {value.get('kind', '?')}"
            self.result.ignored.append((self.file.path, shown(kind)))

    def _manifest(self, document: Document, path: Path, value: JsonObject) -> None:
        """One document of ours: a server, or problems."""
        key = self._key(document, path, value)
        name = None if key is None else str(key)
        meant = self._flaws(document, path, name)
        findings = _misnamed(value)
        server = None
        if not findings:
            manifest, findings = self._completed(value, document)
            own = value.get("spec")
            if isinstance(own, dict):
                findings += rules.unused(own, manifest["spec"])
            if document.nulls:
                findings += _unknown_nulls(value)
            broken = self.defaults.broken or any(f.severity == "error" for f in findings)
            if key is not None and not meant and not broken:
                server = self._server(document, path, key, manifest)
        for finding in findings:
            if not _covered(finding.path, meant) and not (
                finding.at == "parent" and self.defaults.broken
            ):
                self._report(document, path, finding, name)
        self._claim(document, path, key, server)

    def _completed(self, value: JsonObject, document: Document) -> tuple[JsonObject, list[Finding]]:
        """The manifest over its defaults and without what only the server sets, and what is wrong
        with it."""
        manifest, findings = _as_written_by_hand(_without_nulls(value) if document.nulls else value)
        own = value.get("spec")
        if own is None and self.defaults.spec:
            own = {}
        if isinstance(own, dict) and (self.defaults.spec or document.nulls):
            manifest["spec"] = _merge(self.defaults.spec, own)
        return manifest, findings + _findings(
            manifest, allow_privileged=self.allow_privileged, closely=document.fractions
        )

    def _server(
        self, document: Document, path: Path, key: ServerKey, manifest: JsonObject
    ) -> McpServer | None:
        metadata, spec = manifest["metadata"], manifest["spec"]
        labels, annotations = metadata.get("labels", {}), metadata.get("annotations", {})
        content = orjson.dumps(
            [key.namespace, key.name, spec, labels, annotations, self.file.path],
            option=orjson.OPT_SORT_KEYS,
        )
        if len(content) > MAX_DOCUMENT:
            message = f"larger than {MAX_DOCUMENT // 1024} KiB: the API server would refuse it"
            self._report(document, path, Finding((), message), str(key))
            return None
        place = document.place(path) or document.start
        digest = hashlib.sha256(content).hexdigest()
        return McpServer(key, spec, labels, annotations, self.file.path, place.line, digest)

    def _key(self, document: Document, path: Path, value: JsonObject) -> ServerKey | None:
        """The server that a document is about; None unless it is beyond doubt."""
        metadata = value.get("metadata")
        if not isinstance(metadata, dict):
            return None
        where = (*path, "metadata")
        if document.broken and document.open[: len(where)] == where:
            return None
        places = (where, (*where, "name"), (*where, "namespace"))
        if any(flaw.path in places for flaw in document.flaws):
            return None
        name, namespace = metadata.get("name"), metadata.get("namespace")
        if namespace is None:
            namespace = self.namespace
        if not (isinstance(name, str) and _NAME.fullmatch(name)):
            return None
        if not (isinstance(namespace, str) and _NAMESPACE.fullmatch(namespace)):
            return None
        return ServerKey(namespace, name)

    def _claim(
        self, document: Document, path: Path, key: ServerKey | None, server: McpServer | None
    ) -> None:
        if key is None:
            self.result.unknown = True
            return
        name = (*path, "metadata", "name")
        place = document.place(name) or document.start
        self.result.claims.append(_Claim(key, self.file.path, place, pointer(name), server))

    def _flaws(self, document: Document, path: Path, server: str | None) -> frozenset[Path]:
        """Reports the flaws at or below ``path``. Returns where they are: what else is wrong there
        is the same mistake."""
        found = [flaw for flaw in document.flaws if flaw.path[: len(path)] == path]
        for flaw in found:
            if not flaw.silent:
                self._add(flaw.place, server, flaw.path, flaw.message)
        return frozenset(flaw.path[len(path) :] for flaw in found)

    def _report(self, document: Document, path: Path, finding: Finding, server: str | None) -> None:
        """At its place: in the manifest, or in the group_vars that its value comes from."""
        wanted = finding.path[:-1] if finding.at == "parent" else finding.path
        key = finding.at != "value"
        if finding.at == "parent" and document.has((*path, *finding.path)):
            wanted, key = finding.path, False  # it is there, and null
        while True:
            if document.has((*path, *wanted)):
                place = document.place((*path, *wanted), key=key) or document.start
                full = (*path, *finding.path)
                self._add(place, server, full, finding.message, finding.severity)
                return
            for name, defaults in self.defaults.sources:
                if wanted and defaults.has(wanted):
                    self._add_default(name, defaults.place(wanted, key=key), finding, server)
                    return
            wanted, key = wanted[:-1], True

    def _add_default(
        self, name: str, place: Place | None, finding: Finding, server: str | None
    ) -> None:
        line, column = place or Place(1, 1)
        path, message = pointer(finding.path), finding.message
        if Problem(name, line, column, None, path, message) not in self.defaults.problems:
            self.result.problems.append(
                Problem(name, line, column, server, path, message, finding.severity)
            )

    def _add(
        self,
        place: Place,
        server: str | None,
        path: Path,
        message: str,
        severity: Severity = "error",
    ) -> None:
        self.result.problems.append(
            Problem(self.file.path, *place, server, pointer(path), message, severity)
        )


# --- one document ---------------------------------------------------------------------------

_NAME = re.compile("[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?")
_NAMESPACE = re.compile("[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")

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


def _is_ours(value: object) -> bool:
    """Whether a document means to be an MCPServer, or anything else of our group: one that only
    misnames itself must not pass for somebody else's."""
    if not isinstance(value, dict):
        return False
    kind, version = value.get("kind"), value.get("apiVersion")
    return (isinstance(kind, str) and kind.lower() == KIND.lower()) or (
        isinstance(version, str) and version.partition("/")[0] == GROUP
    )


def _identity(path: Path, value: object) -> set[Path]:
    """The places that say whose an object is, where it is a Kubernetes object at all."""
    if not isinstance(value, dict):
        return {path} if path else set()
    if not ("kind" in value and "apiVersion" in value):
        return set()
    return {(*path, name) for name in ("kind", "apiVersion", "items")}


def _is_foreign(value: JsonObject) -> bool:
    """Whether a document that is not ours is one object of somebody else for certain."""
    kind, version = value.get("kind"), value.get("apiVersion")
    return isinstance(kind, str) and isinstance(version, str) and kind != "List"


def _items(value: JsonObject) -> list[Any]:
    items = value.get("items")
    return items if isinstance(items, list) else []


def _misnamed(value: JsonObject) -> list[Finding]:
    """What is wrong with apiVersion and kind; the rest is only judged by the right ones."""
    return [
        Finding((name,), f"{name} is missing", "parent")
        if value.get(name) is None
        else Finding((name,), f"must be {wanted}")
        for name, wanted in (("apiVersion", API_VERSION), ("kind", KIND))
        if value.get(name) != wanted
    ]


def _as_written_by_hand(value: JsonObject) -> tuple[JsonObject, list[Finding]]:
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
    return manifest, [Finding(path, message, "key", "warning") for path in dropped]


def _covered(path: Path, meant: Iterable[Path]) -> bool:
    """Whether a flaw at or above ``path`` has been reported already."""
    return any(path[: len(flaw)] == flaw for flaw in meant)


def _unknown_nulls(value: Any, path: Path = ()) -> list[Finding]:
    """Misspelt keys without a value: dropping their nulls has hidden them."""
    if isinstance(value, dict):
        steps: Iterable[tuple[str | int, Any]] = value.items()
    elif isinstance(value, list):
        steps = enumerate(value)
    else:
        return []
    found: list[Finding] = []
    for step, child in steps:
        if child is None:
            unknown = schemas.unknown_field((*path, step))
            found += [unknown] if unknown else []
        else:
            found += _unknown_nulls(child, (*path, step))
    return found


def _findings(
    manifest: JsonObject, *, allow_privileged: bool, closely: bool = False
) -> list[Finding]:
    """All that is wrong with a completed manifest. ``closely``: not by the fast validator, which
    takes 1.0 for a whole number."""
    found: list[Finding] = []
    if closely or not schemas.accepts(manifest):
        found = schemas.findings(manifest)
        manifest = _without(manifest, found)
    metadata, spec = manifest.get("metadata"), manifest.get("spec")
    if isinstance(spec, dict):
        found += rules.of_spec(spec, allow_privileged=allow_privileged)
        if isinstance(metadata, dict):
            found += rules.of_metadata(metadata, spec)
    return found


def _without(manifest: JsonObject, findings: Sequence[Finding]) -> JsonObject:
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
