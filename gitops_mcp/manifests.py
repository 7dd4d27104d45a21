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
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, islice, takewhile
from operator import is_
from typing import Any, NamedTuple

import orjson

from gitops_mcp import literals, podsecurity, policies, rules, serverschema, transports
from gitops_mcp.documents import Document, Finding, Path, Place, decode, parse, pointer, shown
from gitops_mcp.model import (
    API_VERSION,
    GROUP,
    KIND,
    LINK,
    MISPLACED,
    NAMESPACE_NAME,
    SUBMODULE,
    JsonObject,
    Loaded,
    McpServer,
    Policy,
    Problem,
    Remains,
    ServerKey,
    Severity,
    SourceFile,
)

MAX_FILE = 4 * 1024 * 1024
"""Bytes of a file that is read. A fleet of 5,000 servers in one file has about 3 MB."""

MAX_DOCUMENT = 1024 * 1024
"""Bytes of one server's JSON. etcd refuses 1.5 MB, and the spec is stored more than once."""

MAX_PROBLEMS = 100
"""Problems listed of one file; the others are counted."""
MAX_LISTED = 1000
"""Problems listed of all files; the others are counted."""

_SUFFIXES = (".yaml", ".yml", ".json")

CONFIG_FILE = "gitops-mcp.yaml"
"""The source's own settings: not a manifest."""


Read = Callable[[Sequence[SourceFile]], Mapping[str, bytes]]
"""Files to their contents, by blob id. Asked for what is needed, so many files at a time that few
contents are in memory at once; what it raises goes through ``load``."""

AT_A_TIME = 500

_POLICY = Policy()


def load(
    files: Sequence[SourceFile],
    *,
    cluster: str,
    namespace: str = "default",
    path: str = "",
    policy: Policy = _POLICY,
    defaults: JsonObject | None = None,
    skipped: Sequence[tuple[str, str]] = (),
    aside: Sequence[tuple[str, str]] = (),
    cache: Cache | None = None,
    read: Read | None = None,
) -> Loaded:
    """What the source holds.

    ``cluster`` picks ``group_vars/<cluster>.yaml``; ``namespace`` is for manifests that name none;
    ``path`` narrows the source to a folder (group_vars of the root still hold);
    ``policy`` says what a manifest may ask for; ``defaults`` lie under all
    group_vars; ``skipped`` are files that could not be read, with the reason: what may have been a
    manifest is a problem, and its server cannot be told; ``aside`` are files that no rule reads, as
    in a Snapshot. ``read`` is for files that come without
    their content. With a ``cache`` that was given to the load before, only what differs from that
    one is read and put together again; the result is the same as without.
    """
    terms = _Terms(
        cluster=cluster,
        prefix=_prefix(path),
        namespace=namespace,
        policy=policy,
        base=orjson.dumps(defaults or {}, option=orjson.OPT_SORT_KEYS),
    )
    return (cache or Cache()).load(
        terms, tuple(files), tuple(skipped), tuple(aside), read or _no_content
    )


def clusters(files: Iterable[SourceFile], *, path: str = "") -> frozenset[str]:
    """The clusters that have group_vars of their own in a source."""
    own = (_group(file.path, _group_folders(_prefix(path))) for file in files)
    return frozenset(place[1] for place in own if place is not None) - {"all"}


def changed(old: Loaded, new: Loaded) -> frozenset[ServerKey]:
    """The servers that mean something else in ``new``: another digest (or none), another file,
    another protection, or other problems. All of both where the templates' variables differ.

    At the cost of the change where ``new`` is the load after ``old`` with the same cache, else at
    that of the fleet. That nothing may be pruned (``unknown``) and problems that are nobody's are
    not seen here.
    """
    if new.variables != old.variables:
        return frozenset({*old.servers, *old.protected, *new.servers, *new.protected})
    if new.identity is old.identity:
        return frozenset()
    if new.since is not None and new.since[0] is old.identity:
        return new.since[1]
    said = {problem.server for problem in {*old.problems} ^ {*new.problems}}
    keys = {*old.servers, *old.protected, *new.servers, *new.protected}
    return frozenset(key for key in keys if _differs(old, new, key) or str(key) in said)


def check(key: ServerKey, spec: JsonObject, *, policy: Policy = _POLICY) -> tuple[str, ...]:
    """What is wrong with the spec of a live MCPServer, one line each (``/spec/…: message``).

    The CRD has refused most of it before; this finds what was stored before a rule existed, and
    what only the operator may allow.
    """
    findings = _findings(_around(spec), key, policy)
    return tuple(f"{pointer(f.path)}: {f.message}" for f in findings if f.severity == "error")


# --- what is read ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Terms:
    """What a load was asked for besides its files. Under other terms everything is read anew."""

    cluster: str
    prefix: str
    namespace: str
    policy: Policy
    base: bytes

    def may_hold_manifests(self, path: str) -> bool:
        """Whether a file is one to look for manifests in."""
        name = path[len(self.prefix) :]
        if not path.startswith(self.prefix) or not name.endswith(_SUFFIXES):
            return False
        if "/" not in name:
            return name != CONFIG_FILE
        folders = name.split("/")[:-1]
        return not any(f.startswith(".") or f in ("group_vars", "templates") for f in folders)

    def group(self, path: str) -> tuple[str, str] | None:
        """The place of a group_vars file that counts: its folder, and its name without ending."""
        place = _group(path, _group_folders(self.prefix))
        return place if place is not None and place[1] in ("all", self.cluster) else None

    def groups(self, files: Iterable[SourceFile]) -> list[list[SourceFile]]:
        """The group_vars that count, the weakest first."""
        found: dict[tuple[str, str], list[SourceFile]] = {}
        for file in files:
            place = self.group(file.path)
            if place is not None:
                found.setdefault(place, []).append(file)
        # The last wins: what is for one cluster over what is for all, the nearer over the root's.
        stems = dict.fromkeys(("all", self.cluster))
        order = [(folder, stem) for stem in stems for folder in _group_folders(self.prefix)]
        return [found[place] for place in order if place in found]


def _prefix(path: str) -> str:
    """What the names of all files in a folder of the source begin with."""
    folder = posixpath.normpath(path).strip("/")
    return "" if folder == "." else f"{folder}/"


def _group_folders(prefix: str) -> Iterable[str]:
    return dict.fromkeys(("group_vars/", f"{prefix}group_vars/"))


def _group(path: str, folders: Iterable[str]) -> tuple[str, str] | None:
    """The place of a group_vars file, whichever group it is for: ``all.yaml``, or any file below a
    folder ``all/``."""
    for folder in folders:
        if path.startswith(folder) and path.endswith((".yaml", ".yml")):
            head, below, _ = path[len(folder) :].partition("/")
            stem = head if below else head.rpartition(".")[0]
            if stem:
                return folder, stem
    return None


def _is_vars(path: str, terms: _Terms) -> bool:
    """Whether a file that no rule reads was meant to be group_vars that count."""
    meant = path.lower()
    place = _group(meant if "." in meant else f"{meant}.yaml", _group_folders(terms.prefix))
    return place is not None and place[1] in ("all", terms.cluster.lower())


def _no_content(files: Sequence[SourceFile]) -> Mapping[str, bytes]:
    raise ValueError(f"nobody can read {files[0].path}")


def _contents(files: Sequence[SourceFile], read: Read) -> list[tuple[SourceFile, bytes]]:
    """Each file with its content."""
    missing = [file for file in files if file.data is None]
    found = read(missing) if missing else {}
    return [(file, found[file.blob] if file.data is None else file.data) for file in files]


def _difference(
    old: tuple[SourceFile, ...], new: tuple[SourceFile, ...]
) -> tuple[list[SourceFile], list[SourceFile]]:
    """The files that are gone and those that came; one with another content did both.

    What a snapshot has in common with the one before are the same objects at both ends of the two:
    they are stepped over as fast as Python can compare them.
    """
    head = sum(1 for _ in takewhile(bool, map(is_, old, new)))
    room = min(len(old), len(new)) - head
    tail = sum(1 for _ in takewhile(bool, map(is_, reversed(old), islice(reversed(new), room))))
    gone = {file.path: file for file in old[head : len(old) - tail]}
    came = []
    for file in new[head : len(new) - tail]:
        known = gone.get(file.path)
        if known is not None and known.blob == file.blob:
            del gone[file.path]
        else:
            came.append(file)
    return list(gone.values()), came


class _Claim(NamedTuple):
    """One document that says it is ``key``; ``server`` is None where it cannot be applied."""

    key: ServerKey
    file: str
    place: Place
    path: str
    server: McpServer | None


class _Found(NamedTuple):
    """What one file holds."""

    claims: tuple[_Claim, ...] = ()
    problems: tuple[Problem, ...] = ()
    unknown: bool = False
    ignored: tuple[tuple[str, str], ...] = ()
    lost: tuple[int, str] | None = None
    """Why it holds no object at all, and on which line that shows; None: it does."""


def _unread(
    skipped: Sequence[tuple[str, str]], aside: Sequence[tuple[str, str]], terms: _Terms
) -> _Found:
    """Files that nobody could read, as if they had been."""
    problems: list[Problem] = []
    ignored: list[tuple[str, str]] = []
    for path, reason in skipped:
        if terms.may_hold_manifests(path):
            problems.append(Problem(path, 1, 1, None, "", f"not read: {reason}"))
        elif path.startswith(terms.prefix) and _may_be_folder(path, reason):
            message = f"{reason}: manifests in it are not applied"
            problems.append(Problem(path, 1, 1, None, "", message, "warning"))
        else:
            ignored.append((path, reason))
    for path, reason in aside:
        if reason == MISPLACED:
            problems.append(Problem(path, 1, 1, None, "", reason, "warning"))
        elif terms.may_hold_manifests(path.lower()):
            if path.endswith(_SUFFIXES):
                ignored.append((path, reason))
            else:
                problems.append(Problem(path, 1, 1, None, "", reason, "warning"))
        elif _is_vars(path, terms):
            problems.append(Problem(path, 1, 1, None, "", reason, "warning"))
    unknown = any(problem.severity == "error" for problem in problems)
    return _Found((), tuple(problems), unknown, tuple(ignored))


def _may_be_folder(path: str, reason: str) -> bool:
    """Whether what was not read may stand where a folder of manifests was. What a link leads to is
    not looked at: its name says whether it is a file (``AGENTS.md``, ``LICENSE``)."""
    name = path.rpartition("/")[2]
    return reason == SUBMODULE or (reason == LINK and "." not in name and name == name.lower())


# --- what is kept ---------------------------------------------------------------------------


class Cache:
    """What the last load found, so that the next one costs what has changed, not what there is.
    Give the same one to each load of a source. Not for two loads at once."""

    def __init__(self) -> None:
        self._held: _Held | None = None
        self._shared = _Shared()

    def load(
        self,
        terms: _Terms,
        files: tuple[SourceFile, ...],
        skipped: tuple[tuple[str, str], ...],
        aside: tuple[tuple[str, str], ...],
        read: Read,
    ) -> Loaded:
        """See ``load``."""
        held = self._held
        gone, came = _difference(held.files if held else (), files)
        if (
            held is None
            or held.terms != terms
            or any(terms.group(file.path) for file in (*gone, *came))
        ):
            groups = [_contents(group, read) for group in terms.groups(files)]
            held = _Held(terms, _Defaults.read(groups, orjson.loads(terms.base)))
            gone, came = [], list(files)
        found = held.read(came, read, self._shared)
        self._held = None  # one that was left half way would be wrong for ever
        held.take(files, gone, found, skipped, aside)
        self._held = held
        return held.loaded


class _Held:
    """All that was found under the same terms and group_vars, kept so that the files of a change
    can be taken out and put in. Its ``loaded`` is a value: never changed, only replaced."""

    def __init__(self, terms: _Terms, defaults: _Defaults) -> None:
        self.terms = terms
        self.files: tuple[SourceFile, ...] = ()
        self._problems = dict.fromkeys(defaults.problems, 1)
        """Each with the number of its occurrences: what is wrong with a default may be said of one
        server in two files."""
        self.loaded = Loaded({}, problems=_listed(self._problems), variables=defaults.variables)
        self._defaults = defaults
        self._skipped: tuple[tuple[str, str], ...] = ()
        self._aside: tuple[tuple[str, str], ...] = ()
        self._lost: dict[str, tuple[int, str]] = {}
        self._unread = _Found()
        self._found: dict[str, _Found] = {}
        self._claims: dict[ServerKey, tuple[_Claim, ...]] = {}
        self._unknown = 0
        self._ignored: dict[str, tuple[tuple[str, str], ...]] = {}

    def read(self, files: Iterable[SourceFile], read: Read, shared: _Shared) -> dict[str, _Found]:
        """What each of these files holds, by path; nothing is changed by it."""
        wanted = [file for file in files if self.terms.may_hold_manifests(file.path)]
        return {
            file.path: _File(file.path, data, self.terms, self._defaults, shared).read()
            for first in range(0, len(wanted), AT_A_TIME)
            for file, data in _contents(wanted[first : first + AT_A_TIME], read)
        }

    def take(
        self,
        files: tuple[SourceFile, ...],
        gone: Iterable[SourceFile],
        found: Mapping[str, _Found],
        skipped: tuple[tuple[str, str], ...],
        aside: tuple[tuple[str, str], ...],
    ) -> None:
        """Put ``found`` in the place of what was found in the files that are gone."""
        self.files = files
        left = {file.path for file in gone}
        out = [self._found.pop(path) for path in left if path in self._found]
        self._found.update(found)
        into = list(found.values())
        if (skipped, aside) != (self._skipped, self._aside):
            unread = _unread(skipped, aside, self.terms)
            out.append(self._unread)
            into.append(unread)
            self._skipped, self._aside, self._unread = skipped, aside, unread
        if not out and not into:
            return
        touched = {claim.key for each in (*out, *into) for claim in each.claims}
        problems = Counter(self._rivals_among(touched))
        for each in out:
            problems.update(each.problems)
        problems = Counter({problem: -count for problem, count in problems.items()})
        self._move_claims(out, into)
        for each in into:
            problems.update(each.problems)
        problems.update(self._rivals_among(touched))
        self._unknown += sum(each.unknown for each in into) - sum(each.unknown for each in out)
        self._lost = {path: lost for path, lost in self._lost.items() if path not in left}
        self._lost |= {path: each.lost for path, each in found.items() if each.lost is not None}
        self._conclude(touched, self._count(problems), self._all_ignored(gone, found))

    def _move_claims(self, out: Iterable[_Found], into: Iterable[_Found]) -> None:
        left = {id(claim) for each in out for claim in each.claims}
        moved: dict[ServerKey, list[_Claim]] = {}
        for each in (*out, *into):
            for claim in each.claims:
                if claim.key not in moved:
                    known = self._claims.pop(claim.key, ())
                    moved[claim.key] = [one for one in known if id(one) not in left]
                if id(claim) not in left:
                    moved[claim.key].append(claim)
        for key, claims in moved.items():
            if claims:
                self._claims[key] = tuple(
                    sorted(claims, key=lambda claim: (claim.file, claim.place))
                )

    def _rivals_among(self, keys: Iterable[ServerKey]) -> Iterator[Problem]:
        """Two manifests of one server are a problem in each of them."""
        for key in keys:
            claims = self._claims.get(key, ())
            for claim in claims[:MAX_PROBLEMS] if len(claims) > 1 else ():
                other = claims[0] if claim is not claims[0] else claims[1]
                where = f"{other.file}:{other.place.line}"
                message = f"a second manifest of {key}: the other is at {where}"
                yield Problem(claim.file, *claim.place, str(key), claim.path, message)

    def _count(self, change: Mapping[Problem, int]) -> list[Problem]:
        """Add to the numbers of problems; those that are new or gone."""
        turned = []
        for problem, number in change.items():
            before = self._problems.pop(problem, 0)
            if before + number:
                self._problems[problem] = before + number
            if bool(before) != bool(before + number):
                turned.append(problem)
        return turned

    def _all_ignored(
        self, gone: Iterable[SourceFile], found: Mapping[str, _Found]
    ) -> tuple[tuple[str, str], ...]:
        """What is not ours: of the files in their order, then of those that could not be read."""
        for file in gone:
            self._ignored.pop(file.path, None)
        self._ignored.update((path, each.ignored) for path, each in found.items() if each.ignored)
        each = (ignored for _, ignored in sorted(self._ignored.items()))
        return (*chain.from_iterable(each), *self._unread.ignored)

    def _conclude(
        self,
        touched: Collection[ServerKey],
        turned: Collection[Problem],
        ignored: tuple[tuple[str, str], ...],
    ) -> None:
        """Make the next ``loaded`` from the last: ``touched`` are the servers whose claims moved,
        ``turned`` the problems that are new or gone."""
        old = self.loaded
        servers, protected = dict(old.servers), set(old.protected)
        for key in touched:
            claims = self._claims.get(key, ())
            server = claims[0].server if len(claims) == 1 else None
            if server is not None:
                servers[key] = server
            else:
                servers.pop(key, None)
            if claims and server is None:
                protected.add(key)
            else:
                protected.discard(key)
        new = Loaded(
            servers=servers,
            problems=_listed(self._problems) if turned else old.problems,
            protected=frozenset(protected),
            unknown=self._unknown > 0,
            variables=old.variables,
            ignored=ignored,
            remains=Remains(self._lost, self._skipped, self._aside),
        )
        named = {problem.server for problem in turned if problem.server is not None}
        differing = {key for key in touched if _differs(old, new, key)}
        differing.update(ServerKey(*name.split("/", 1)) for name in named)
        self.loaded = replace(new, since=(old.identity, frozenset(differing)))


def _differs(old: Loaded, new: Loaded, key: ServerKey) -> bool:
    """Whether a server has another digest, another file, or another protection."""
    both = (old.servers.get(key), new.servers.get(key))
    meant = {None if server is None else (server.digest, server.file) for server in both}
    return len(meant) > 1 or (key in old.protected) != (key in new.protected)


def _order(problem: Problem) -> tuple[str, int, int, str, str, str, str]:
    return (
        problem.file,
        problem.line,
        problem.column,
        problem.path,
        problem.message,
        problem.server or "",
        problem.severity,
    )


class _Shared:
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

    @classmethod
    def read(
        cls, groups: Iterable[Sequence[tuple[SourceFile, bytes]]], base: JsonObject
    ) -> _Defaults:
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
                if _home(file.path) != _home(first):
                    message = f"the same group_vars stand in {first}: keep one of the two files"
                    problems.append(Problem(file.path, 1, 1, None, "", message))
                    broken = True
                    continue
                document, found, usable = _read_group_vars(file.path, data)
                problems += found
                broken = broken or not usable
                if isinstance(document.value, dict) and usable:
                    sources.insert(0, (file.path, document))
                    spec = _merge(spec, document.value.get("spec") or {})
                    variables |= {k: v for k, v in document.value.items() if k != "spec"}
        return cls(spec, variables, tuple(sources), tuple(problems), broken)


def _home(path: str) -> str:
    """The file or the folder that a group's variables are in."""
    before, _, name = path.rpartition("group_vars/")
    head, below, _ = name.partition("/")
    return f"{before}group_vars/{head}{below}"


_VARIABLE = re.compile("[A-Za-z_][A-Za-z0-9_]*")


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

    documents = list(_documents(path, data))
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
            if len(problems) > MAX_PROBLEMS:
                break  # a place costs a search
    spec = value.get("spec")
    if spec is not None and not isinstance(spec, dict):
        report(document.place(("spec",)), ("spec",), "must be a map")
        return document, problems, False
    # A part of a spec is judged as a whole one, but for what it may leave out. Rules between
    # fields wait for the manifest: either of two fields may still change.
    found = _unknown_nulls({"spec": spec}) if document.nulls else []
    whole = _around({"image": "any", **_without_nulls(spec or {})})
    if document.fractions or not serverschema.accepts(whole):
        found += serverschema.findings(whole)
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


def _fitting(spec: JsonObject, own: JsonObject) -> JsonObject:
    """A completed spec without a default for the fleet that its transport cannot have."""
    most = transports.of_spec(spec).max_replicas
    wanted = spec.get("replicas")
    if "replicas" in own or most is None or not isinstance(wanted, int) or wanted <= most:
        return spec
    return {name: value for name, value in spec.items() if name != "replicas"}


def _without_nulls(value: Any) -> Any:
    """Without the null values of maps; in a list a null is a mistake and stays."""
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_nulls(v) for v in value]
    return value


# --- one file -------------------------------------------------------------------------------


def _documents(path: str, data: bytes) -> Iterable[Document]:
    text = decode(data)
    if isinstance(text, Document):
        return [text]
    return parse(text, json_syntax=path.endswith(".json"))


class _File:
    """Reads one file: what it holds grows while its documents are gone through."""

    def __init__(
        self, path: str, data: bytes, terms: _Terms, defaults: _Defaults, shared: _Shared
    ) -> None:
        self.path = path
        self.data = data
        self.terms = terms
        self.defaults = defaults
        self.shared = shared
        self.claims: list[_Claim] = []
        self.problems: list[Problem] = []
        self.unknown = False
        self.ignored: list[tuple[str, str]] = []
        self.unlisted: list[Problem] = []
        """The first of the problems that are only counted, and the first error among them."""
        self.more = 0
        self.holds_objects = False
        self.lost = (1, _EMPTY)

    def read(self) -> _Found:
        """The one call: all that the file holds."""
        wrapped = next((why for head, why in _WRAPPED.items() if self.data.startswith(head)), "")
        if wrapped:
            self._lose(1, wrapped, warn=True)
        elif len(self.data) > MAX_FILE:
            self._too_large()
        elif not self.data.strip():
            self._lose_all()
        else:
            for document in _documents(self.path, self.data):
                if document.broken:
                    self._broken(document)
                elif document.value is not None:
                    self._object(document, (), document.value)
            found = self.claims or self.ignored or self.problems or self.holds_objects
            if self.lost == (1, _EMPTY) and not found:
                # Comments that do not speak of us are somebody's notes.
                self._lose_all(warn=self._mentions_us or b"#" not in self.data)
        if self.more:
            self.problems.append(_and_more(self.unlisted, self.more, "in this file"))
        kept = self.holds_objects or any(claim.server is not None for claim in self.claims)
        return _Found(
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
        self._lose(1, _EMPTY, warn=warn and not _is_of_another_tool(self.path))

    def _too_large(self) -> None:
        if self._mentions_us:
            message = f"larger than {MAX_FILE // 1024 // 1024} MiB: split it"
            self._list(Problem(self.path, 1, 1, None, "", message))
            self.unknown = True
        else:
            self.ignored.append((self.path, "too large, and names no MCPServer"))

    def _broken(self, document: Document) -> None:
        """Unreadable from some place on: nothing of it is applied. Whose it is may stand in the
        part before."""
        value = document.value if isinstance(document.value, dict) else {}
        if _is_ours(value):
            key = self._key(document, (), value)
            self._claim(document, (), key, None)
            if self._in_conflict:
                document.flaws[-1] = replace(document.flaws[-1], message=_CONFLICT)
            self._flaws(document, (), None if key is None else str(key))
            return
        end = document.flaws[-1]
        message = _CONFLICT if self._in_conflict else end.message
        if not self._mentions_us:
            self._lose(end.place.line, f"{message}; it names no MCPServer")
            return
        self.lost = (end.place.line, message)
        if not _is_foreign(value):
            self.unknown = True
            for index, item in enumerate(_items(value)):
                if _is_ours(item):
                    path: Path = ("items", index)
                    self._claim(document, path, self._key(document, path, item), None)
        self._add(end.place, None, end.path, message)

    @cached_property
    def _in_conflict(self) -> bool:
        return all(b"\n" + sign * 7 + b" " in b"\n" + self.data for sign in (b"<", b">"))

    def _object(self, document: Document, path: Path, value: Any) -> None:
        """One Kubernetes object, or something else."""
        if _is_ours(value):
            self._manifest(document, path, value)
        elif self._mentions_us and _identity(path, value) & {flaw.path for flaw in document.flaws}:
            # It may be ours under another reading: a duplicate kind, an alias for an item.
            self.unknown = True
            self._flaws(document, (), None)
        elif not isinstance(value, dict) or not ("kind" in value or "apiVersion" in value):
            self._no_object(document, value)
        elif value.get("apiVersion") == "v1" and value.get("kind") == "List":
            self.holds_objects = self.holds_objects or not _items(value)
            for index, item in enumerate(_items(value)):
                self._object(document, (*path, "items", index), item)
        else:
            if _is_well_formed(value):
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
        if isinstance(value, list) and any(map(_is_ours, value)):
            why = "a list of objects is none: separate them with ---, or use a v1 List"
            self._lose(line, why, warn=True)
        elif isinstance(value, dict) and _is_ours(_in_small(value)):
            self._lose(line, "its keys must be spelt apiVersion and kind", warn=True)
        elif self._mentions_us and any(map(_is_written_out, _texts(value))):
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
        findings = _misnamed(value)
        server = None
        if not findings:
            manifest, findings = self._completed(value, document, key)
            if document.nulls:
                findings += _unknown_nulls(value)
            if key is not None and all(f.severity == "warning" for f in findings):
                findings += rules.of_place(key.namespace, manifest["metadata"], manifest["spec"])
            broken = self.defaults.broken or any(f.severity == "error" for f in findings)
            if key is not None and not meant and not broken:
                server = self._server(document, path, key, manifest)
        for finding in findings:
            if not _covered(finding.path, meant) and not (
                finding.at == "parent" and self.defaults.broken
            ):
                self._report(document, path, finding, name)
        self._claim(document, path, key, server)

    def _completed(
        self, value: JsonObject, document: Document, key: ServerKey | None
    ) -> tuple[JsonObject, list[Finding]]:
        """The manifest over its defaults and without what only the server sets, and what is wrong
        with it."""
        manifest, findings = _as_written_by_hand(_without_nulls(value) if document.nulls else value)
        own = (_without(value, findings) if findings else value).get("spec")
        if own is None and self.defaults.spec:
            own = {}
        if isinstance(own, dict) and (self.defaults.spec or document.nulls):
            manifest["spec"] = _fitting(_merge(self.defaults.spec, own), own)
        findings += _findings(
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
        if not (isinstance(name, str) and _NAME.fullmatch(name)):
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
        claim = _Claim(key, self.path, place, self.shared(pointer(name)), server)
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
        f"and {count} more problem{'s' if count > 1 else ''} {where}",
        "error" if error else "warning",
    )


def _listed(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Problems in their order, as many as anybody reads."""
    found = sorted(problems, key=_order)
    shown, left = found[:MAX_LISTED], found[MAX_LISTED:]
    return (*shown, _and_more(left, len(left), "in this source")) if left else tuple(shown)


# --- one document ---------------------------------------------------------------------------

_NAME = re.compile("[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?")

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


_EMPTY = "it holds no document"

_OF_ANOTHER_TOOL = re.compile(
    r"(?:.*[-.])?values(?:[-._].*)?|kustomization|chart|requirements|(?:docker-)?compose(?:[-.].*)?"
)
"""Names, without ending, of files that are no manifests and may well be empty."""


def _is_of_another_tool(path: str) -> bool:
    name = path.rpartition("/")[2].lower()
    return _OF_ANOTHER_TOOL.fullmatch(name.rpartition(".")[0]) is not None


def _texts(value: object) -> Iterator[str]:
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


def _is_written_out(text: str) -> bool:
    """Whether a text is a manifest of ours, and not only speaks of one, as a script may."""
    begin = _FIRST_LINES.match(text)
    start = text[begin.end() if begin else 0 :].lstrip(" \n\"'{").lower()
    return start.startswith(("apiversion", "kind", "metadata", "spec")) and bool(
        _NAMES_US.search(text)
    )


_CONFLICT = "a merge conflict is not resolved here"

_WRAPPED: Mapping[bytes, str] = {
    b"version https://git-lfs.github.com/spec/": "a Git LFS pointer, not the file: keep manifests "
    "out of LFS (git lfs untrack)",
    b"$ANSIBLE_VAULT;": "encrypted with Ansible Vault, which gitops-mcp cannot read: keep what is "
    "secret in Secrets",
    b"\0GITCRYPT\0": "encrypted with git-crypt, which gitops-mcp cannot read",
}
"""What a file begins with whose content is elsewhere, or locked."""


def _in_small(value: JsonObject) -> JsonObject:
    """The keys that say what an object is, whichever letters are capitals."""
    names = {"kind": "kind", "apiversion": "apiVersion"}
    return {names[key.lower()]: child for key, child in value.items() if key.lower() in names}


_VERSION = re.compile(r"(?:[a-z0-9][-.a-z0-9]{0,252}/)?v[0-9][a-z0-9]{0,30}")
_KIND = re.compile(r"[A-Z][A-Za-z0-9]{0,62}")


def _is_well_formed(value: JsonObject) -> bool:
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
    findings = [Finding(path, message, "key", "warning") for path in dropped]
    if ("metadata", "uid") in dropped or ("metadata", "resourceVersion") in dropped:
        parts = {
            key: part
            for key, part in manifest["metadata"].items()
            if key == "name" or isinstance(part, dict)
        }
        spec = manifest.get("spec")
        marks = rules.exported(parts, spec if isinstance(spec, dict) else {})
        manifest, findings = _without(manifest, marks), findings + marks
    return manifest, findings


def _covered(path: Path, meant: Iterable[Path]) -> bool:
    """Whether a flaw at or above ``path`` has been reported already."""
    return any(path[: len(flaw)] == flaw for flaw in meant)


def _unknown_nulls(value: Any) -> list[Finding]:
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


def _findings(
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
        manifest = _without(manifest, found)
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
