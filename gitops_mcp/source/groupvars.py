"""group_vars: what lies under every manifest of a cluster."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from gitops_mcp.base import merging, objects, transports
from gitops_mcp.base.names import API_VERSION, KIND, JsonObject
from gitops_mcp.base.source import Problem, SourceFile
from gitops_mcp.source import serverschema
from gitops_mcp.source.documents import Document, Path, Place, pointer
from gitops_mcp.source.recognition import unknown_nulls
from gitops_mcp.source.terms import (
    MAX_PROBLEMS,
    VARIABLE,
    Terms,
    documents_of,
    group_folders,
    group_of,
    home,
)


def is_vars(path: str, terms: Terms) -> bool:
    """Whether a file that no rule reads was meant to be group_vars that count."""
    meant = path.lower()
    place = group_of(meant if "." in meant else f"{meant}.yaml", group_folders(terms.prefix))
    return place is not None and place[1] in ("all", terms.cluster.lower())


class Shared:
    """Keeps equal parts of many servers once: fleets repeat themselves. What was not met for a
    while is forgotten, and is then kept twice."""

    ENTRIES = 2048
    """Of each of the two generations: what was met in this one or the last is known."""
    SIZE = 256
    """Bytes. Larger values are seldom equal, though their parts may be."""

    def __init__(self) -> None:
        self._young: dict[str | bytes, Any] = {}
        self._old: dict[str | bytes, Any] = {}

    def __call__(self, value: Any) -> Any:
        """An equal value, to the order of its maps, which may be a part of other servers, too."""
        if isinstance(value, str):
            key: str | bytes = value
        elif isinstance(value, (dict, list)):
            key = b"\0" + orjson.dumps(value)  # a copy: what orjson gives is a larger buffer
        else:
            return value
        if len(key) > self.SIZE:
            return self._parts(value)
        found = self._young.get(key)
        if found is None:
            found = self._old.get(key)
            if found is None:
                found = self._parts(value)
            if len(self._young) >= self.ENTRIES:
                self._old, self._young = self._young, {}
            self._young[key] = found
        return found

    def _parts(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {self(key): self(child) for key, child in value.items()}
        return [self(child) for child in value] if isinstance(value, list) else value


@dataclass(frozen=True, slots=True)
class Defaults:
    """The merged group_vars. ``broken``: they are not what their author meant, so no server can be
    rendered from them. ``sources`` are their documents, the strongest first."""

    spec: JsonObject = field(default_factory=dict)
    variables: JsonObject = field(default_factory=dict)
    sources: tuple[tuple[str, Document], ...] = ()
    problems: tuple[Problem, ...] = ()
    broken: bool = False

    @classmethod
    def read(
        cls, groups: Iterable[Sequence[tuple[SourceFile, bytes]]], base: JsonObject
    ) -> Defaults:
        """``groups``: the files for one group in one folder each, with their contents, the weakest
        first; ``base`` lies under them. As in Ansible, the files of a folder (``all/``) are merged
        in the order of their names."""
        spec: JsonObject = base
        variables: JsonObject = {}
        sources: list[tuple[str, Document]] = []
        problems: list[Problem] = []
        broken = False
        for group in groups:
            first = group[0][0].path
            for file, data in group:
                if home(file.path) != home(first):
                    message = f"the same group_vars stand in {first}: keep one of the two files"
                    problems.append(Problem(file.path, 1, 1, None, "", message))
                    broken = True
                    continue
                document, found, usable = _read_group_vars(file.path, data)
                problems += found
                broken = broken or not usable
                if isinstance(document.value, dict) and usable:
                    sources.insert(0, (file.path, document))
                    spec = merging.patched(spec, objects.spec(document.value))
                    variables |= {k: v for k, v in document.value.items() if k != "spec"}
        return cls(spec, variables, tuple(sources), tuple(problems), broken)


def _read_group_vars(path: str, data: bytes) -> tuple[Document, list[Problem], bool]:
    """One file: its document, its problems, and whether its values can be used."""
    problems: list[Problem] = []

    def report(place: Place | None, where: Path, message: str) -> None:
        if len(problems) > MAX_PROBLEMS:
            return
        if len(problems) == MAX_PROBLEMS:
            message = "more problems than are listed in this file"
        line, column = place or document.start
        problems.append(Problem(path, line, column, None, pointer(where), message))

    documents = list(documents_of(path, data))
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
        if name != "spec" and not VARIABLE.fullmatch(name):
            message = "must be a name for templates: letters, digits and '_'"
            report(document.place((name,), key=True), (name,), message)
            if len(problems) > MAX_PROBLEMS:
                break  # a place costs a search
    spec = value.get("spec")
    if spec is not None and not isinstance(spec, dict):
        report(document.place(("spec",)), ("spec",), "must be a map")
        return document, problems, False
    # A part of a spec is judged as a whole one, but for what it may leave out. Rules between
    # fields wait for the manifest: either of two fields may still change.
    found = unknown_nulls({"spec": spec}) if document.nulls else []
    whole = around({"image": "any", **merging.without_nulls(spec or {})})
    if document.fractions or not serverschema.accepts(whole):
        found += serverschema.findings(whole)
    for finding in found:
        if finding.at != "parent":
            place = document.place(finding.path, key=finding.at == "key")
            report(place, finding.path, finding.message)
    return document, problems, True


def around(spec: JsonObject) -> JsonObject:
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "any"}, "spec": spec}


def fitting(spec: JsonObject, own: JsonObject) -> JsonObject:
    """A completed spec without a default for the fleet that its transport cannot have."""
    most = transports.of_spec(spec).max_replicas
    wanted = spec.get("replicas")
    if "replicas" in own or most is None or not isinstance(wanted, int) or wanted <= most:
        return spec
    return {name: value for name, value in spec.items() if name != "replicas"}
