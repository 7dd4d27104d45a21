"""One file of a source: its documents, the servers and the problems in them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import orjson

from gitops_mcp.base import merging
from gitops_mcp.base.names import GROUP, KIND, NAMESPACE_NAME, JsonObject, ServerKey
from gitops_mcp.base.source import McpServer, Problem, Severity
from gitops_mcp.base.wording import plural
from gitops_mcp.source import rules
from gitops_mcp.source.documents import Document, Finding, Path, Place, pointer, shown
from gitops_mcp.source.groupvars import Defaults, Shared, fitting
from gitops_mcp.source.recognition import (
    CONFLICT,
    EMPTY,
    NAME,
    WRAPPED,
    as_written_by_hand,
    covered,
    findings_of,
    identity,
    in_small,
    is_foreign,
    is_of_another_tool,
    is_ours,
    is_well_formed,
    is_written_out,
    items_of,
    misnamed,
    texts,
    unknown_nulls,
    without,
)
from gitops_mcp.source.terms import (
    MAX_DOCUMENT,
    MAX_LISTED,
    MAX_PROBLEMS,
    Claim,
    Found,
    Terms,
    documents_of,
    problem_order,
)


class File:
    """Reads one file: what it holds grows while its documents are gone through."""

    def __init__(
        self, path: str, data: bytes, terms: Terms, defaults: Defaults, shared: Shared
    ) -> None:
        self.path = path
        self.data = data
        self.terms = terms
        self.defaults = defaults
        self.shared = shared
        self.claims: list[Claim] = []
        self.problems: list[Problem] = []
        self.unknown = False
        self.ignored: list[tuple[str, str]] = []
        self.unlisted: list[Problem] = []
        """The first of the problems that are only counted, and the first error among them."""
        self.more = 0
        self.holds_objects = False
        self.lost = (1, EMPTY)

    def read(self) -> Found:
        """The one call: all that the file holds."""
        wrapped = next((why for head, why in WRAPPED.items() if self.data.startswith(head)), "")
        if wrapped:
            self._lose(1, wrapped, warn=True)
        elif not self.data.strip():
            self._lose_all()
        else:
            for document in documents_of(self.path, self.data):
                if document.broken:
                    self._broken(document)
                elif document.value is not None:
                    self._object(document, (), document.value)
            found = self.claims or self.ignored or self.problems or self.holds_objects
            if self.lost == (1, EMPTY) and not found:
                # Comments that do not speak of us are somebody's notes.
                self._lose_all(warn=self._mentions_us or b"#" not in self.data)
        if self.more:
            self.problems.append(_and_more(self.unlisted, self.more, "in this file"))
        kept = self.holds_objects or any(claim.server is not None for claim in self.claims)
        return Found(
            tuple(self.claims),
            tuple(self.problems),
            self.unknown,
            tuple(self.ignored),
            None if kept else self.lost,
        )

    @cached_property
    def _mentions_us(self) -> bool:
        """Whether our group or kind is anywhere in the file, in UTF-16 too. What cannot be read and
        has neither is no manifest."""
        text = self.data.replace(b"\0", b"").lower()
        return KIND.lower().encode() in text or GROUP.encode() in text

    def _lose(self, line: int, why: str, *, warn: bool = False) -> None:
        """Note why the file gives no object. ``warn``: it looks as if it was meant to."""
        self.lost = (line, why)
        if warn:
            self._list(Problem(self.path, line, 1, None, "", why, "warning"))
        self.ignored.append((self.path, why))

    def _lose_all(self, *, warn: bool = True) -> None:
        self._lose(1, EMPTY, warn=warn and not is_of_another_tool(self.path))

    def _broken(self, document: Document) -> None:
        """Unreadable from some place on: nothing of it is applied. Whose it is may stand in the
        part before."""
        value = document.value if isinstance(document.value, dict) else {}
        if is_ours(value):
            key = self._key(document, (), value)
            self._claim(document, (), key, None)
            if self._in_conflict:
                document.flaws[-1] = replace(document.flaws[-1], message=CONFLICT)
            self._flaws(document, (), None if key is None else str(key))
            return
        end = document.flaws[-1]
        message = CONFLICT if self._in_conflict else end.message
        if not self._mentions_us:
            self._lose(end.place.line, f"{message}; it names no MCPServer")
            return
        self.lost = (end.place.line, message)
        if not is_foreign(value):
            self.unknown = True
            for index, item in enumerate(items_of(value)):
                if is_ours(item):
                    path: Path = ("items", index)
                    self._claim(document, path, self._key(document, path, item), None)
        self._add(end.place, None, end.path, message)

    @cached_property
    def _in_conflict(self) -> bool:
        return all(b"\n" + sign * 7 + b" " in b"\n" + self.data for sign in (b"<", b">"))

    def _object(self, document: Document, path: Path, value: Any) -> None:
        """One Kubernetes object, or something else."""
        if is_ours(value):
            self._manifest(document, path, value)
        elif self._mentions_us and identity(path, value) & {flaw.path for flaw in document.flaws}:
            # It may be ours under another reading: a duplicate kind, an alias for an item.
            self.unknown = True
            self._flaws(document, (), None)
        elif not isinstance(value, dict) or not ("kind" in value or "apiVersion" in value):
            self._no_object(document, value)
        elif value.get("apiVersion") == "v1" and value.get("kind") == "List":
            self.holds_objects = self.holds_objects or not items_of(value)
            for index, item in enumerate(items_of(value)):
                self._object(document, (*path, "items", index), item)
        else:
            if is_well_formed(value):
                self.holds_objects = True
            elif "sops" in value:
                self._lose(1, "encrypted with SOPS, which gitops-mcp cannot read", warn=True)
                return
            kind = f"{value.get('apiVersion', '?')} {value.get('kind', '?')}"
            self.ignored.append((self.path, shown(kind)))
            self.lost = (document.start.line, f"it holds no object but {shown(kind)}")

    def _no_object(self, document: Document, value: Any) -> None:
        """Neither a manifest nor anybody's object, though it may have been meant to be one."""
        line = document.start.line
        if isinstance(value, list) and any(map(is_ours, value)):
            why = "a list of objects is none: separate them with ---, or use a v1 List"
            self._lose(line, why, warn=True)
        elif isinstance(value, dict) and is_ours(in_small(value)):
            self._lose(line, "its keys must be spelt apiVersion and kind", warn=True)
        elif self._mentions_us and any(map(is_written_out, texts(value))):
            why = "a manifest inside a block of text is none: take it out of the block"
            self._lose(line, why, warn=True)
        elif "host_vars" in self.path.split("/")[:-1]:
            self._lose(line, "not read: there are no host_vars, only group_vars", warn=True)
        else:
            self._lose(line, "no Kubernetes object")

    def _manifest(self, document: Document, path: Path, value: JsonObject) -> None:
        """One document of ours: a server, or problems."""
        key = self._key(document, path, value)
        name = None if key is None else str(key)
        meant = self._flaws(document, path, name)
        findings = misnamed(value)
        server = None
        if not findings:
            manifest, findings = self._completed(value, document, key)
            if document.nulls:
                findings += unknown_nulls(value)
            if key is not None and all(f.severity == "warning" for f in findings):
                findings += rules.of_place(key.namespace, manifest["metadata"], manifest["spec"])
            broken = self.defaults.broken or any(f.severity == "error" for f in findings)
            if key is not None and not meant and not broken:
                server = self._server(document, path, key, manifest)
        for finding in findings:
            if not covered(finding.path, meant) and not (
                finding.at == "parent" and self.defaults.broken
            ):
                self._report(document, path, finding, name)
        self._claim(document, path, key, server)

    def _completed(
        self, value: JsonObject, document: Document, key: ServerKey | None
    ) -> tuple[JsonObject, list[Finding]]:
        """The manifest over its defaults and without what only the server sets, and what is wrong
        with it."""
        manifest, findings = as_written_by_hand(
            merging.without_nulls(value) if document.nulls else value
        )
        own = (without(value, findings) if findings else value).get("spec")
        if own is None and self.defaults.spec:
            own = {}
        if isinstance(own, dict) and (self.defaults.spec or document.nulls):
            manifest["spec"] = fitting(merging.patched(self.defaults.spec, own), own)
        findings += findings_of(
            manifest,
            key,
            self.terms.policy,
            closely=document.fractions,
            briefly=self._is_full,
        )
        if isinstance(own, dict):
            findings += rules.unused(own, manifest["spec"])
        return manifest, findings

    def _server(
        self, document: Document, path: Path, key: ServerKey, manifest: JsonObject
    ) -> McpServer | None:
        metadata, spec = manifest["metadata"], manifest["spec"]
        labels, annotations = metadata.get("labels", {}), metadata.get("annotations", {})
        content = orjson.dumps(
            [key.namespace, key.name, spec, labels, annotations, self.path],
            option=orjson.OPT_SORT_KEYS,
        )
        if len(content) > MAX_DOCUMENT:
            message = f"larger than {MAX_DOCUMENT // 1024} KiB: the API server would refuse it"
            self._report(document, path, Finding((), message), str(key))
            return None
        place = document.place(path) or document.start
        digest = hashlib.sha256(content).hexdigest()
        share = self.shared
        return McpServer(
            key, share(spec), share(labels), share(annotations), self.path, place.line, digest
        )

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
            namespace = self.terms.namespace
        if not (isinstance(name, str) and NAME.fullmatch(name)):
            return None
        if not (isinstance(namespace, str) and NAMESPACE_NAME.fullmatch(namespace)):
            return None
        return ServerKey(self.shared(namespace), name)

    def _claim(
        self, document: Document, path: Path, key: ServerKey | None, server: McpServer | None
    ) -> None:
        if key is None:
            self.unknown = True
            return
        name = (*path, "metadata", "name")
        place = document.place(name) or document.start
        claim = Claim(key, self.path, place, self.shared(pointer(name)), server)
        self.claims.append(claim)

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
        if self._is_full:  # nobody will see the place
            self._add(document.start, server, (), finding.message, finding.severity)
            return
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
        """An error is of each server that it breaks; a warning is the same one for all of them."""
        line, column = place or Place(1, 1)
        if finding.severity == "warning":
            server = None
        path, message = pointer(finding.path), finding.message
        if Problem(name, line, column, None, path, message) not in self.defaults.problems:
            self._list(Problem(name, line, column, server, path, message, finding.severity))

    def _add(
        self,
        place: Place,
        server: str | None,
        path: Path,
        message: str,
        severity: Severity = "error",
    ) -> None:
        self._list(Problem(self.path, *place, server, pointer(path), message, severity))

    @property
    def _is_full(self) -> bool:
        return len(self.problems) >= MAX_PROBLEMS

    def _list(self, problem: Problem) -> None:
        """Add a problem, or count it once there are enough."""
        if not self._is_full:
            self.problems.append(problem)
            return
        self.more += 1
        known = [one.severity for one in self.unlisted]
        if not known or (problem.severity == "error" and "error" not in known):
            self.unlisted.append(problem)


def _and_more(unlisted: Sequence[Problem], count: int, where: str) -> Problem:
    """What stands for ``count`` problems that are not listed, at the place of the first one."""
    first = unlisted[0]
    error = any(problem.severity == "error" for problem in unlisted)
    return Problem(
        first.file,
        first.line,
        first.column,
        None,
        "",
        f"and {plural(count, 'more problem')} {where}",
        "error" if error else "warning",
    )


def list_some(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Problems in their order, as many as anybody reads."""
    found = sorted(problems, key=problem_order)
    shown, left = found[:MAX_LISTED], found[MAX_LISTED:]
    return (*shown, _and_more(left, len(left), "in this source")) if left else tuple(shown)
