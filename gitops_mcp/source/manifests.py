"""Text of a source → servers, and every problem at its place.

Receives the files of one snapshot, returns :class:`~gitops_mcp.base.model.Loaded`. Pure: it reads
nothing but the shipped schema, decides nothing about the cluster, and raises for nothing that a
file can hold. A broken manifest is a problem of its own server only, and never an excuse to prune
it: where its server can be told that one is ``protected``, else the whole source is ``unknown``.

The steps, for each file: bytes → documents (``documents``) → those of our group, ``v1 List`` items
included → group_vars defaults laid under → the schema → rules between fields (``rules``). The
schema is asked twice: first whether there is anything to say at all, by a fast validator; the
exact one, which is slow to import and to run, speaks only then.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice, takewhile
from operator import is_

import orjson

from gitops_mcp.base.model import Policy
from gitops_mcp.base.names import JsonObject, ServerKey
from gitops_mcp.base.source import Loaded, Problem, Remains, SourceFile, Unread
from gitops_mcp.source.documents import pointer
from gitops_mcp.source.file import File, list_some
from gitops_mcp.source.groupvars import Defaults, Shared, around, is_vars
from gitops_mcp.source.recognition import findings_of
from gitops_mcp.source.terms import (
    MAX_PROBLEMS,
    SUFFIXES,
    Claim,
    Found,
    Terms,
    group_folders,
    group_of,
)

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
    terms = Terms(
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
    own = (group_of(file.path, group_folders(_prefix(path))) for file in files)
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
    findings = findings_of(around(spec), key, policy)
    return tuple(f"{pointer(f.path)}: {f.message}" for f in findings if f.severity == "error")


# --- what is read ---------------------------------------------------------------------------


def _prefix(path: str) -> str:
    """What the names of all files in a folder of the source begin with."""
    folder = posixpath.normpath(path).strip("/")
    return "" if folder == "." else f"{folder}/"


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


def _unread(
    skipped: Sequence[tuple[str, str]], aside: Sequence[tuple[str, str]], terms: Terms
) -> Found:
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
            ignored.append((path, str(reason)))
    for path, reason in aside:
        if reason == Unread.MISPLACED:
            problems.append(Problem(path, 1, 1, None, "", str(reason), "warning"))
        elif terms.may_hold_manifests(path.lower()):
            if path.endswith(SUFFIXES):
                ignored.append((path, str(reason)))
            else:
                problems.append(Problem(path, 1, 1, None, "", str(reason), "warning"))
        elif is_vars(path, terms):
            problems.append(Problem(path, 1, 1, None, "", str(reason), "warning"))
    unknown = any(problem.severity == "error" for problem in problems)
    return Found((), tuple(problems), unknown, tuple(ignored))


def _may_be_folder(path: str, reason: str) -> bool:
    """Whether what was not read may stand where a folder of manifests was. What a link leads to is
    not looked at: its name says whether it is a file (``AGENTS.md``, ``LICENSE``)."""
    name = path.rpartition("/")[2]
    if reason == Unread.SUBMODULE:
        return True
    return reason == Unread.LINK and "." not in name and name == name.lower()


# --- what is kept ---------------------------------------------------------------------------


class Cache:
    """What the last load found, so that the next one costs what has changed, not what there is.
    Give the same one to each load of a source. Not for two loads at once."""

    def __init__(self) -> None:
        self._held: _Held | None = None
        self._shared = Shared()

    def load(
        self,
        terms: Terms,
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
            held = _Held(terms, Defaults.read(groups, orjson.loads(terms.base)))
            gone, came = [], list(files)
        found = held.read(came, read, self._shared)
        self._held = None  # one that was left half way would be wrong for ever
        held.take(files, gone, found, skipped, aside)
        self._held = held
        return held.loaded


class _Held:
    """All that was found under the same terms and group_vars, kept so that the files of a change
    can be taken out and put in. Its ``loaded`` is a value: never changed, only replaced."""

    def __init__(self, terms: Terms, defaults: Defaults) -> None:
        self.terms = terms
        self.files: tuple[SourceFile, ...] = ()
        self._problems = dict.fromkeys(defaults.problems, 1)
        """Each with the number of its occurrences: what is wrong with a default may be said of one
        server in two files."""
        self.loaded = Loaded({}, problems=list_some(self._problems), variables=defaults.variables)
        self._defaults = defaults
        self._skipped: tuple[tuple[str, str], ...] = ()
        self._aside: tuple[tuple[str, str], ...] = ()
        self._lost: dict[str, tuple[int, str]] = {}
        self._unread = Found()
        self._found: dict[str, Found] = {}
        self._claims: dict[ServerKey, tuple[Claim, ...]] = {}
        self._unknown = 0
        self._ignored: dict[str, tuple[tuple[str, str], ...]] = {}

    def read(self, files: Iterable[SourceFile], read: Read, shared: Shared) -> dict[str, Found]:
        """What each of these files holds, by path; nothing is changed by it."""
        wanted = [file for file in files if self.terms.may_hold_manifests(file.path)]
        return {
            file.path: File(file.path, data, self.terms, self._defaults, shared).read()
            for first in range(0, len(wanted), AT_A_TIME)
            for file, data in _contents(wanted[first : first + AT_A_TIME], read)
        }

    def take(
        self,
        files: tuple[SourceFile, ...],
        gone: Iterable[SourceFile],
        found: Mapping[str, Found],
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

    def _move_claims(self, out: Iterable[Found], into: Iterable[Found]) -> None:
        left = {id(claim) for each in out for claim in each.claims}
        moved: dict[ServerKey, list[Claim]] = {}
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
        self, gone: Iterable[SourceFile], found: Mapping[str, Found]
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
            problems=list_some(self._problems) if turned else old.problems,
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


# --- group_vars -----------------------------------------------------------------------------


# --- one file -------------------------------------------------------------------------------


# --- one document ---------------------------------------------------------------------------
