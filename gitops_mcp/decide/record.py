"""The source record: which repository a source is, what git has held, what was enforced last.

One ConfigMap beside the source's Lease, written by the holder of the Lease only. ``Record`` is the
value, ``Store`` its requests, ``Books`` the record as one process keeps it. What a source may prune
is counted against it, so no pass can change the count by what it creates itself.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import orjson

from gitops_mcp.base.errors import OverLimit, UsageError
from gitops_mcp.base.names import (
    FIELD_MANAGER,
    LABEL_MANAGED_BY,
    LABEL_SOURCE,
    JsonObject,
    ObjectRef,
    ServerKey,
)
from gitops_mcp.base.source import Revision
from gitops_mcp.base.wording import short_sha
from gitops_mcp.decide.sourcestatus import SourceStatus

PREFIX = "gitops-mcp-"
"""Of the names of Leases and records."""
FORMAT = "1"
"""Of the ConfigMap. A later version that breaks it counts up; one that adds keys does not."""
MAX_TEXT = 64 << 20
"""Bytes of the unpacked inventory: more than a million servers."""
ROOTS = 50
"""Root commits that are recorded: the first in order, so that two records of one history share
them."""
ABSENT = "1"
"""A resourceVersion that no object has: an apply that bears it creates, and never overwrites."""
TAKEN_OVER = "0" * 40
"""The revision of a record whose source id another repository took over: git's id of no object."""
BEGUN = "0" * 39 + "1"
"""The revision of a record that was begun beside servers that stood in the cluster already."""
UNKNOWN = {
    TAKEN_OVER: "the source id was taken over from another repository",
    BEGUN: "the source record is new, and what git held before is not known (it was deleted, or "
    "an older version applied the servers)",
}
"""Why what git held before is not known, by the revision that says so."""
MAX_PACKED = 900_000
"""Bytes of the packed inventory: the API server takes 1 MiB of a ConfigMap, the state included."""
_PORTS = {"22", "80", "443"}


# --- names -----------------------------------------------------------------------------------


def lease_name(source_id: str, area: str = "") -> str:
    """The name of a source's Lease, or of that for an ``area`` of it. No source id holds ``--``."""
    return f"{PREFIX}{source_id}" + (f"--{area}" if area else "")


def area_of(namespace: str | None, limit: str = "") -> str:
    """What an agent of one namespace, or with a ``--limit``, is narrowed to, as a part of a name;
    "" is everything."""
    digest = hashlib.sha256(limit.encode()).hexdigest()[:10] if limit else ""
    return ".".join(filter(None, (limit and "limit", digest, namespace)))


# --- which repository -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Which repository a source is read from: its address without credentials, and the root commits
    of what is read (none for a shallow clone or a folder without git)."""

    address: str = ""
    roots: frozenset[str] = frozenset()

    def agrees(self, other: Fingerprint) -> bool:
        """Is it the same repository: a clone of the same history, or the same address?"""
        return not self.roots.isdisjoint(other.roots) or _place(self.address) == _place(
            other.address
        )

    def __str__(self) -> str:
        roots = ", ".join(root[:8] for root in sorted(self.roots)[:2])
        return f"{self.address} (root {roots})" if roots else self.address


def _place(address: str) -> str:
    """An address without what differs between https and ssh to the same repository."""
    found = re.fullmatch(r"(?:[a-z][a-z+]*://)(?:[^@/]*@)?([^/]+)/(.*)", address, re.IGNORECASE)
    scp = re.fullmatch(r"(?:[^@/:]+@)?([^/:@]+):(?!/)(.*)", address) if found is None else None
    if found is None and scp is None:
        return address.rstrip("/").removesuffix("/.git")
    host, path = (found or scp or [""] * 3)[1], (found or scp or [""] * 3)[2]
    name, _, port = host.partition(":")
    host = name if port in _PORTS else host
    return f"{host.lower()}/{path.strip('/').removesuffix('.git')}"


class Identity(NamedTuple):
    """A source as it calls itself. ``named``: the source id comes from the operator, not from the
    source's own file; ``cluster_named``: so does the cluster's name, rather than by default."""

    source: str
    fingerprint: Fingerprint
    cluster: str
    named: bool = True
    cluster_named: bool = True


# --- the value ------------------------------------------------------------------------------


class Entry(NamedTuple):
    """A server that git has held: the file it came from; whether it belongs to the last commit that
    was enforced to its end (else it was added since); whether its prune was released; whether it
    was recreated since that commit, which counts as a prune."""

    file: str
    enforced: bool = False
    released: bool = False
    recreated: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """What the ConfigMap says. ``revision`` is the last commit that was enforced to its end (""
    for none yet), ``at`` when that was (RFC 3339), ``spent`` the last commit whose ``Allow-Prune``
    was used."""

    fingerprint: Fingerprint = Fingerprint()
    cluster: str = ""
    revision: str = ""
    at: str = ""
    spent: str = ""
    servers: Mapping[ServerKey, Entry] = field(default_factory=dict)
    status: SourceStatus = field(default_factory=SourceStatus)

    @property
    def commit(self) -> str:
        """The sha of ``revision``; "" where there is no git, or it is not known."""
        unknown = self.revision in UNKNOWN or self.revision == str(Revision(""))
        return "" if unknown else self.revision.removesuffix("-dirty")

    def ahead(self, held: Mapping[ServerKey, str]) -> Record:
        """The record before a commit is applied that holds these servers (key → file)."""
        new = {
            key: self.servers.get(key, Entry(file))._replace(released=False)
            for key, file in held.items()
            if key not in self.servers or self.servers[key].released
        }
        return replace(self, servers={**self.servers, **new}) if new else self

    def releasing(self, keys: Collection[ServerKey], spent: str) -> Record:
        """The record before released prunes begin."""
        # One that the record lacks was taken out of it by hand, or by another leader.
        entries = {key: self.servers.get(key, Entry("")) for key in keys}
        released = {key: entry._replace(released=True) for key, entry in entries.items()}
        return replace(self, servers={**self.servers, **released}, spent=spent or self.spent)

    def recreating(self, key: ServerKey) -> Record:
        """The record before a server is recreated; unchanged where it lacks the server."""
        if key not in self.servers:
            return self
        recreated = self.servers[key]._replace(recreated=True)
        return replace(self, servers={**self.servers, key: recreated})

    def enforced(
        self,
        held: Mapping[ServerKey, str],
        *,
        reaches: Callable[[ServerKey, str], bool],
        remains: Callable[[ServerKey], bool],
        pending: Collection[ServerKey] = (),
    ) -> Record:
        """The record once a commit that holds ``held`` is enforced to its end. ``reaches`` tells
        whether the run was about a server (from that file): others stay as they were. ``remains``:
        a server that git no longer holds still exists, or may. ``pending``: those of them that
        nobody released, which a pause or a file in git's way keeps. As long as there are any, they
        count on, and new servers do not count yet."""
        servers = {
            key: entry
            if key in pending
            else entry._replace(enforced=entry.enforced and not reaches(key, entry.file))
            for key, entry in self.servers.items()
            if remains(key)
        }
        counted = {key for key, entry in self.servers.items() if entry.enforced}
        servers |= {
            key: Entry(file, enforced=not pending or key in counted) for key, file in held.items()
        }
        # What went since is no reason to write: it counts no longer.
        if all(self.servers.get(key) == entry for key, entry in servers.items()):
            return self
        return replace(self, servers=servers)


def refusal(record: Record, mine: Identity, *, take_over: bool = False) -> UsageError | None:
    """Why this source must not change anything under its id, or None."""
    theirs = record.fingerprint
    if not theirs.agrees(mine.fingerprint) and not (take_over and mine.named):
        last = f", last enforced {short_sha(record.commit)}" if record.commit else ""
        at = f" at {record.at}" if record.at else ""
        hint = "give this source another --source-id; or take the id over with --take-over"
        if not mine.named:
            hint = (
                "give this source another sourceId; or take the id over with "
                f"--source-id {mine.source} --take-over"
            )
        if theirs.roots and not mine.fingerprint.roots:
            hint = f"if it is a shallow clone of that one, fetch its whole history; {hint}"
        return UsageError(
            f"source id {mine.source!r} belongs to another repository in this cluster: "
            f"{theirs}{last}{at}; this one is {mine.fingerprint}",
            hint=hint,
        )
    if record.cluster != mine.cluster and not (take_over and mine.cluster_named):
        return UsageError(
            f"source {mine.source!r} was enforced here with --cluster {record.cluster}, "
            f"not {mine.cluster}",
            hint=f"use --cluster {record.cluster}; to rename it: --cluster NAME --take-over",
        )
    return None


# --- the ConfigMap --------------------------------------------------------------------------


def body(ref: ObjectRef, source: str, record: Record) -> JsonObject:
    """The record as a ConfigMap. Raises OverLimit where the API server would not take it."""
    rows = [
        [key.namespace, key.name, entry.file, _flags(entry)]
        for key, entry in sorted(record.servers.items())
    ]
    packed = gzip.compress(orjson.dumps(rows), compresslevel=6, mtime=0)
    if len(packed) > MAX_PACKED:
        raise OverLimit(
            f"the names and paths of {len(rows)} servers do not fit into the source record: "
            f"{len(packed)} bytes packed, more than {MAX_PACKED}",
            hint="shorten the paths of the manifests, or split the source by --path into several "
            "source ids",
        )
    return {
        "apiVersion": ref.api_version,
        "kind": ref.kind,
        "metadata": {
            "name": ref.name,
            "namespace": ref.namespace,
            "labels": {LABEL_MANAGED_BY: FIELD_MANAGER, LABEL_SOURCE: source},
        },
        "data": {
            "format": FORMAT,
            "address": record.fingerprint.address,
            "roots": " ".join(sorted(record.fingerprint.roots)[:ROOTS]),
            "cluster": record.cluster,
            "revision": record.revision,
            "enforcedAt": record.at,
            "spent": record.spent,
            "status": orjson.dumps(record.status.dump()).decode(),
        },
        "binaryData": {"servers": b64encode(packed).decode()},
    }


def _flags(entry: Entry) -> int:
    return int(entry.enforced) + 2 * int(entry.released) + 4 * int(entry.recreated)


_REVISION = re.compile(r"|none|[0-9a-f]{40}(?:[0-9a-f]{24})?(?:-dirty)?")


def _revision(text: str) -> str:
    if not _REVISION.fullmatch(text):
        raise ValueError("a revision is no commit id")
    return text


def _server(row: object) -> tuple[ServerKey, Entry]:
    match row:
        case [str(namespace), str(name), str(file), int(flags)]:
            entry = Entry(file, bool(flags & 1), bool(flags & 2), bool(flags & 4))
            return ServerKey(namespace, name), entry
    raise ValueError("a server is no namespace, name, file and flags")


def parse(found: JsonObject) -> Record:
    """The record that a ConfigMap holds. Raises UsageError where somebody has changed it."""
    ref = ObjectRef.of(found)
    try:
        data: Mapping[str, str] = found["data"]
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']}")
        unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
        text = unpacker.decompress(b64decode(found["binaryData"]["servers"]), MAX_TEXT)
        return Record(
            Fingerprint(data["address"], frozenset(data["roots"].split())),
            cluster=data["cluster"],
            revision=_revision(data["revision"]),
            at=data["enforcedAt"],
            spent=_revision(data.get("spent", "")),
            status=SourceStatus.load(orjson.loads(data.get("status") or "{}")),
            servers=dict(map(_server, orjson.loads(text))),
        )
    except (AttributeError, KeyError, TypeError, ValueError, zlib.error) as error:
        raise UsageError(
            f"the source record {ref} in namespace {ref.namespace} cannot be read: {error}",
            hint="use a version of gitops-mcp that is as new as the one that wrote it; or delete "
            "it: it is then recreated from the servers in the cluster",
        ) from error


# --- as a process keeps it ------------------------------------------------------------------
