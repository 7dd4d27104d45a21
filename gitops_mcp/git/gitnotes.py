"""Deployment notes: what was deployed when, kept in git beside what was deployed.

Receives ``NoteRecord`` values, appends them to ``refs/notes/gitops-mcp/<cluster>`` on the commits
that they speak of, pushes that ref and reads it back. Never forces a push, never loses another
writer's line, and never stops a deployment: what goes wrong comes back as a warning.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import orjson

from gitops_mcp.base import limits
from gitops_mcp.base.errors import GitOpsError, OverLimit
from gitops_mcp.base.model import NoteRecord
from gitops_mcp.base.wording import short_sha
from gitops_mcp.git.complaints import Sign, complaint, printable, why
from gitops_mcp.git.gitcommand import FETCH, SHA, Answer, Git

WRITE_ATTEMPTS = 16
"""Rounds against other writers of one notes ref. Each round somebody wins, waits grow to 1.6 s."""

NOTES_AT_ONCE = 200
"""Commits whose notes are read together by ``stream``."""

_KEYS = ("time", "cluster", "source", "event", "server", "result", "message")


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where notes are pushed to: a URL or a remote's name, and who runs git for it."""

    target: str
    talk: Callable[..., Answer]


@dataclass(frozen=True, slots=True)
class Place:
    """Where notes are kept. ``upstream`` is None where there is nobody to push to; ``silent``:
    that is as it should be."""

    git: Git
    upstream: Upstream | None = None
    silent: bool = False


_REFS = "refs/notes/gitops-mcp/"
_THEIR_REFS = "refs/gitops-mcp/notes/"


class Notes:
    """The deployment notes of one cluster, one JSON object a line.

    Lines are only ever added, and two histories of the ref are joined by the union of their lines,
    so writers need no lock and no push is forced. ``place`` says where they are kept, None for
    nowhere (a plain directory); it is asked at each use. Keep the object: its first push looks at
    what others wrote, the next ones only when they have to.
    """

    def __init__(self, cluster: str, place: Callable[[], Place | None]) -> None:
        self.ref = f"{_REFS}{cluster}"
        self._theirs = f"{_THEIR_REFS}{cluster}"
        self._place = place
        self._fetched = False
        self._pushed = ("", "")
        """What was pushed last, and where to."""
        self.left_out = ""
        """What the last ``read`` left out, in a sentence; "" for nothing."""

    def kept(self) -> bool:
        """Whether there is a place for notes, and they are wanted. Raises SourceError and what
        that question raises."""
        return self._place() is not None

    def append(self, records: Sequence[NoteRecord], *, push: bool = False) -> tuple[str, ...]:
        """Write records onto their commits, and push. Returns warnings.

        Records without a commit (a dirty tree, a plain directory) are not written, nor is a fact
        that the commit's note holds already. A bare repository given by its path has no one to
        push to.
        """
        wanted = [record for record in records if SHA.fullmatch(record.commit)]
        warnings: list[str] = []
        try:
            place = self._place() if wanted else None
            if place is None:
                return ()
            if push and not self._fetched:
                warnings += self._fetch(place)
                self._join(place.git)
            unknown = _unknown(place.git, [record.commit for record in wanted])
            known = [record for record in wanted if record.commit not in unknown]
            warnings += self._write(place.git, known)
            if push and not warnings:
                warnings += self._push(place)
            warnings += [
                f"commit {short_sha(commit)} is not in this repository: no note was written"
                for commit in sorted(unknown)
            ]
        except (GitOpsError, OSError) as error:
            warnings.append(f"the deployment notes could not be written: {why(error)}")
        return tuple(warnings)

    def pull(self) -> tuple[str, ...]:
        """Add what other writers pushed to our notes, so that what is appended is held against
        that, too. Returns warnings."""
        try:
            place = self._place()
            warnings = self._fetch(place) if place else []
            if place is not None and not warnings:
                self._join(place.git)
        except (GitOpsError, OSError) as error:
            return (f"the deployment notes could not be fetched: {why(error)}",)
        return tuple(warnings)

    def push(self) -> tuple[str, ...]:
        """Push what was appended and not pushed. Returns warnings."""
        try:
            place = self._place()
            return tuple(self._push(place)) if place else ()
        except (GitOpsError, OSError) as error:
            return (f"the deployment notes were not pushed: {why(error)}",)

    def knows(self, commits: Iterable[str]) -> frozenset[str]:
        """Those of the commits that the repository has. Raises SourceError."""
        asked = {commit for commit in commits if SHA.fullmatch(commit)}
        place = self._place() if asked else None
        return frozenset(asked - _unknown(place.git, asked)) if place else frozenset()

    def fetch(self) -> str:
        """Fetch what other writers pushed, for ``read`` to show. Returns a warning, "" if fine."""
        try:
            place = self._place()
            return "".join(self._fetch(place)) if place else ""
        except (GitOpsError, OSError) as error:
            return f"the deployment notes could not be fetched: {why(error)}"

    def read(self) -> list[NoteRecord]:
        """All records, newest first, those of commits that a force-push removed included; what is
        beyond ``limits.NOTES`` is left out, and ``left_out`` says so. Lines that are not ours are
        left out, too. Raises SourceError."""
        self.left_out = ""
        place = self._place()
        if place is None:
            return []
        tips = dict.fromkeys(place.git.commit(ref) for ref in (self.ref, self._theirs))
        found = {
            (line, commit)
            for tip in tips
            for some in self._newest(place.git, tip)
            for commit, lines in some.items()
            for line in lines
        }
        records = [record for line, commit in found if (record := _parse(line, commit)) is not None]
        return sorted(records, key=lambda record: (record.time, _line(record)), reverse=True)

    def clusters(self) -> frozenset[str]:
        """The clusters that have notes, here or on the server. Raises SourceError."""
        place = self._place()
        if place is None:
            return frozenset()
        own = place.git.run("for-each-ref", "--format=%(refname)", _REFS, _THEIR_REFS).decode()
        found = own.split()
        if place.upstream is not None:
            answer = place.upstream.talk(
                *("ls-remote", "--refs", "--", place.upstream.target, f"{_REFS}*"),
                limit=limits.GIT_NOTES_SECONDS,
            )
            found += [
                line.partition("\t")[2]
                for line in answer.out.decode("utf-8", "replace").splitlines()
            ]
        prefixes = (_REFS, _THEIR_REFS)
        return frozenset(
            ref.removeprefix(prefix)
            for ref in found
            for prefix in prefixes
            if ref.startswith(prefix)
        )

    def stream(self) -> Iterator[NoteRecord]:
        """The records of our own ref in no order, few of them in memory; bounded as by ``read``.
        Raises SourceError."""
        place = self._place()
        if place is None:
            return
        for some in self._newest(place.git, place.git.commit(self.ref)):
            for commit, lines in some.items():
                yield from (r for line in lines if (r := _parse(line, commit)) is not None)

    def _newest(self, git: Git, tip: str) -> Iterator[dict[str, list[str]]]:
        """The lines of a tip's notes by their commits, some commits at a time: all of them, or
        those of the newest commits that fit. Of a note that does not fit, its end: the lines of a
        note are sorted, and begin with the time."""
        tree = _tree(git, tip)
        sizes = git.sizes([blob for _, blob in tree.values()])
        room = limits.NOTES
        commits = list(tree)
        if sum(sizes[blob] for _, blob in tree.values()) > room:
            commits = _by_age(git, tree)
        for start in range(0, len(commits), NOTES_AT_ONCE):
            some = {commit: tree[commit] for commit in commits[start : start + NOTES_AT_ONCE]}
            sized = sum(sizes[blob] for _, blob in some.values())
            for part in [some] if sized <= room else ({c: some[c]} for c in some):
                size = sum(sizes[blob] for _, blob in part.values())
                if room <= 0:
                    break
                yield _texts(git, part, most=room)
                room -= size
        if room < 0:
            whole = sum(sizes[blob] for _, blob in tree.values())
            self.left_out = (
                f"the deployment notes are {whole // limits.MIB} MiB: "
                f"only the newest {limits.NOTES // limits.MIB} MiB were read"
            )

    # -- the local ref

    def _write(self, git: Git, records: Sequence[NoteRecord]) -> list[str]:
        commits = sorted({record.commit for record in records})
        for attempt in range(WRITE_ATTEMPTS):
            tip = git.commit(self.ref)
            present = _lines(git, tip, commits)
            changed: dict[str, list[str]] = {}
            for commit in commits:
                lines = present.get(commit, [])
                said = [known for line in lines if (known := _parse(line, commit)) is not None]
                new = _news(said, [record for record in records if record.commit == commit])
                if new:
                    changed[commit] = [*lines, *map(_line, new)]
            if not changed or self._commit(git, "Record a deployment", changed, tip):
                return []
            _wait(attempt)
        return ["the deployment notes could not be written: other writers were always faster"]

    def _join(self, git: Git) -> None:
        """Add the other writers' lines to ours. Nothing happens when our ref moves meanwhile: the
        push is then refused, and we are back here."""
        ours, theirs = git.commit(self.ref), git.commit(self._theirs)
        if not theirs or (ours and git.is_ancestor(theirs, ours)):
            return
        if not ours or git.is_ancestor(ours, theirs):
            git.ask("update-ref", self.ref, theirs, ours or "0" * len(theirs))
            return
        mine, other = _tree(git, ours), _tree(git, theirs)
        differing = [c for c, (_, blob) in other.items() if c not in mine or mine[c][1] != blob]
        lines = _lines(git, ours, differing)
        for commit, added in _lines(git, theirs, differing).items():
            lines[commit] = [*lines.get(commit, []), *added]
        self._commit(git, "Join deployment notes", lines, ours, theirs)

    def _commit(
        self,
        git: Git,
        message: str,
        notes: Mapping[str, Sequence[str]],
        tip: str,
        merged: str = "",
    ) -> bool:
        """Put a commit onto the ref. False when the ref is not at ``tip`` any more: fast-import
        only moves a ref forward, in one transaction."""
        known = _tree(git, tip)
        parts = [
            f"commit {self.ref}\n".encode(),
            # Its own identity: no user.name is needed.
            f"committer gitops-mcp <gitops-mcp@localhost> {int(time.time())} +0000\n".encode(),
            _data(message),
            f"from {tip}\n".encode() if tip else b"",
            f"merge {merged}\n".encode() if merged else b"",
        ]
        for commit, lines in notes.items():
            path = known[commit][0] if commit in known else f"{commit[:2]}/{commit[2:]}"
            # Sorted and once each, as git's own cat_sort_uniq merge leaves them; the time leads.
            text = "".join(f"{line}\n" for line in sorted(set(lines)))
            parts += [f"M 100644 inline {path}\n".encode(), _data(text)]
        answer = git.ask("fast-import", "--quiet", "--done", stdin=b"".join([*parts, b"done\n"]))
        if answer.status == 0:
            return True
        if Sign.TAKEN.shown_in(answer.err):
            return False
        raise complaint(answer.err, git.root)

    # -- the server

    def _fetch(self, place: Place) -> list[str]:
        if place.upstream is None:
            return []
        talk, target = place.upstream.talk, place.upstream.target
        for attempt in range(WRITE_ATTEMPTS):
            refspec = f"+{self.ref}:{self._theirs}"
            answer = talk("fetch", *FETCH, "--", target, refspec, limit=limits.GIT_NOTES_SECONDS)
            if not (answer.status and Sign.RACE.shown_in(answer.err)):
                break
            _wait(attempt)
        if answer.status and not Sign.NO_REF.shown_in(answer.err):
            cause = complaint(answer.err, place.git.root)
            return [f"the deployment notes could not be fetched: {cause}"]
        self._fetched = True
        return []

    def _push(self, place: Place) -> list[str]:
        """Push without force, joining what others pushed, until it is accepted; nothing where
        nothing was added since the last time."""
        git, root = place.git, place.git.root
        if place.upstream is None:
            lonely = f"the deployment notes were not pushed: {root} has no remote"
            return [] if place.silent else [lonely]
        target = place.upstream.target
        options = ("--porcelain", "--no-verify", "--no-signed", "--no-recurse-submodules")
        command = ("push", *options, "--", target, f"{self.ref}:{self.ref}")
        cause = "other writers were always faster"
        for attempt in range(WRITE_ATTEMPTS):
            tip = git.commit(self.ref)
            if not tip or self._pushed == (tip, target):
                return []
            answer = place.upstream.talk(*command, limit=limits.GIT_NOTES_SECONDS)
            if answer.status == 0:
                self._pushed = tip, target
                return []
            out = answer.out.decode("utf-8", "replace")
            refused = next((line for line in out.splitlines() if line.startswith("!\t")), "")
            if not refused:
                cause = str(complaint(answer.err, root))
                break
            if not Sign.RACE.shown_in(refused + answer.err):
                reason = refused.rpartition("(")[2].rstrip(")")
                cause = f"{root} refused them: {printable(reason)[:300]}"
                break
            _wait(attempt)
            warnings = self._fetch(place)
            if warnings:
                return warnings
            self._join(git)
        return [f"the deployment notes were not pushed: {cause}"]


# --- the notes tree --------------------------------------------------------------------------


def _tree(git: Git, tip: str) -> dict[str, tuple[str, str]]:
    """Commit id to (path in the notes tree, blob); git spreads large trees over folders. Raises
    OverLimit where there are more than ``limits.NOTED``."""
    if not tip:
        return {}
    command = ("ls-tree", "-r", "-z", "--full-tree", tip)
    found = {}
    for entry in git.records(*command, most=limits.NOTED, longest=limits.PATH):
        meta, _, name = entry.decode("utf-8", "replace").partition("\t")
        if SHA.fullmatch(commit := name.replace("/", "")):
            found[commit] = (name, meta.split(" ")[2])
    return found


def _by_age(git: Git, commits: Iterable[str]) -> list[str]:
    """The commits, newest first; those that are not here any more come last."""
    ids = list(commits)
    command = ("rev-list", "--no-walk=sorted", "--ignore-missing", "--stdin")
    stdin = "".join(f"{commit}\n" for commit in ids).encode()
    known = git.ask(*command, stdin=stdin).out.decode().split()
    return list(dict.fromkeys([*(commit for commit in known if SHA.fullmatch(commit)), *ids]))


def _lines(git: Git, tip: str, commits: Iterable[str] | None = None) -> dict[str, list[str]]:
    """The lines of the notes on these commits (None: on all). Raises OverLimit for too long
    ones."""
    tree = _tree(git, tip)
    chosen = tree if commits is None else {c: tree[c] for c in commits if c in tree}
    sizes = git.sizes([blob for _, blob in chosen.values()])
    for commit, (_, blob) in chosen.items():
        if sizes[blob] > limits.NOTE:
            raise OverLimit(
                f"the notes of commit {short_sha(commit)} are larger than "
                f"{limits.NOTE // limits.MIB} MiB"
            )
    return _texts(git, chosen)


def _texts(
    git: Git, chosen: Mapping[str, tuple[str, str]], *, most: int | None = None
) -> dict[str, list[str]]:
    """The lines of these notes of a tree; of each note no more than its last ``most`` bytes."""
    blobs = git.blobs({blob for _, blob in chosen.values()}, most=most)
    return {
        commit: [
            line for line in blobs[blob].decode("utf-8", "surrogateescape").split("\n") if line
        ]
        for commit, (_, blob) in chosen.items()
    }


def _unknown(git: Git, commits: Iterable[str]) -> set[str]:
    """Those of the commits that are not there; asked in one process."""
    return {commit for commit, size in git.sizes(sorted(set(commits))).items() if not size}


def _data(text: str) -> bytes:
    encoded = text.encode("utf-8", "surrogateescape")
    return b"data %d\n" % len(encoded) + encoded + b"\n"


def _wait(attempt: int) -> None:
    """Full jitter, so that writers who met once do not meet again."""
    time.sleep(random.uniform(0, min(1.6, 0.05 * 2**attempt)))  # noqa: S311 - no secret


def _line(record: NoteRecord) -> str:
    """The record as its one line, its keys in the promised order. ASCII: no reader breaks the line
    at a character that it takes for a line's end, and no terminal obeys one."""
    fixed = {key: getattr(record, key) for key in _KEYS}
    return json.dumps({**fixed, **record.extra}, separators=(",", ":"))


def _parse(line: str, commit: str) -> NoteRecord | None:
    """A line as a record; None for what somebody else wrote: whoever may push can write anything,
    and what cannot be printed as JSON again (half a surrogate pair, a huge number) is not ours."""
    try:
        values = json.loads(line)
        orjson.dumps(values)
        fixed = {key: values.pop(key) for key in _KEYS}
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None
    texts = [value for key, value in fixed.items() if key != "server" or value is not None]
    if not all(isinstance(text, str) for text in texts):
        return None
    if fixed["server"] is not None and "/" not in fixed["server"]:
        return None
    return NoteRecord(**fixed, extra=values, commit=commit)


def _news(said: Iterable[NoteRecord], records: Iterable[NoteRecord]) -> list[NoteRecord]:
    """Those records that a commit's note does not hold as its last word.

    What one pass says of an event of a server (a broken file may have several problems) is one
    statement: it is written whole, or not at all where the last one says the same, its time aside.
    Ready is said once for a server and commit. That a pass was made is news where it brought some,
    or ended otherwise than the last.
    """
    before = _statements(said)
    new: list[NoteRecord] = []
    passes: list[NoteRecord] = []
    for subject, statement in _statements(records).items():
        known = before.get(subject, {})
        last = max((record.time for record in known.values()), default="")
        held = statement.keys() == {fact for fact, record in known.items() if record.time == last}
        news = not (known if subject[2] == "ready" else held)
        if subject[2] == "synced" and not news:
            passes += statement.values()
        elif news:
            new += statement.values()
    return [*new, *passes] if new else []


_Subject = tuple[str, str, str, str | None]


def _statements(records: Iterable[NoteRecord]) -> dict[_Subject, dict[str, NoteRecord]]:
    """Records by what they speak of, then by what they say (the latest of each)."""
    found: dict[_Subject, dict[str, NoteRecord]] = {}
    for record in sorted(records, key=lambda record: record.time):
        subject = (record.cluster, record.source, record.event, record.server)
        found.setdefault(subject, {})[_line(replace(record, time=""))] = record
    return found
