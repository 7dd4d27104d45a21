"""The source record as it is kept in the cluster, one write at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Protocol

from gitops_mcp.base import times
from gitops_mcp.base.errors import Conflict, Gone, LeaseLost
from gitops_mcp.base.names import JsonObject, ObjectRef, ServerKey
from gitops_mcp.decide.record import (
    ABSENT,
    BEGUN,
    TAKEN_OVER,
    Entry,
    Identity,
    Record,
    body,
    parse,
    refusal,
)
from gitops_mcp.decide.sourcestatus import SourceStatus


class Api(Protocol):
    """The requests of a store; ``kube.Cluster`` is the real one."""

    def get(self, ref: ObjectRef) -> JsonObject | None: ...

    def apply(
        self, body: JsonObject, *, uid: str | None = ..., resource_version: str | None = ...
    ) -> JsonObject: ...


class Store:
    """The ConfigMap of one source, ``name`` in ``namespace``. Not thread-safe."""

    def __init__(self, api: Api, namespace: str, name: str, source: str) -> None:
        self.ref = ObjectRef("v1", "ConfigMap", namespace, name)
        self._api = api
        self._source = source
        self._live: JsonObject | None = None

    @property
    def object(self) -> tuple[ObjectRef, str] | None:
        """Its reference and uid, once it was read or written."""
        return (self.ref, self._live["metadata"]["uid"]) if self._live is not None else None

    def read(self) -> Record | None:
        """What it says; None where there is none. One GET. Raises KubeError, UsageError."""
        self._live = self._api.get(self.ref)
        return parse(self._live) if self._live is not None else None

    def write(self, record: Record) -> None:
        """One PATCH over what was read or written last. Raises KubeError; Conflict or Gone where
        somebody else wrote or deleted it since."""
        metadata = self._live["metadata"] if self._live is not None else {}
        self._live = self._api.apply(
            body(self.ref, self._source, record),
            uid=metadata.get("uid"),
            resource_version=metadata.get("resourceVersion", ABSENT),
        )


class Books:
    """One source's record in this process. Thread-safe.

    ``open`` it in each term of the Lease before anything is changed. ``may_write`` is asked right
    before each write. Without ``store`` the record is of this process only, and nothing is written:
    for check mode, and where there is no source.
    """

    def __init__(
        self,
        store: Store | None,
        *,
        clock: Callable[[], datetime],
        may_write: Callable[[], bool] = lambda: True,
        take_over: bool = False,
        read_only: bool = False,
    ) -> None:
        self.status: Callable[[], SourceStatus] | None = None
        """What each write says of the source; None: what was known before."""
        self._found: Record | None = None
        self._store = store
        self._clock = clock
        self._may_write = may_write
        self._take_over = take_over
        self._read_only = read_only
        self._lock = threading.RLock()
        self._record: Record | None = None
        self._term, self._opened = 0, -1
        self._stored: Record | None = None

    @property
    def record(self) -> Record:
        """The record as it is known. Only once it was opened."""
        record = self._record
        assert record is not None  # noqa: S101 -- whoever asks has opened the books
        return record

    @property
    def found(self) -> Record | None:
        """The record as it was stored when it was opened; None: there was none."""
        return self._found

    @property
    def object(self) -> tuple[ObjectRef, str] | None:
        """The ConfigMap and its uid; None before the first write."""
        return self._store.object if self._store is not None else None

    @property
    def is_open(self) -> bool:
        """Is the record known, and written by nobody else?"""
        return self._opened == self._term

    @property
    def takes_over(self) -> bool:
        """Is it to take over what another repository applied under this source id?"""
        return self._take_over

    def close(self) -> None:
        """Somebody else may have written the record: it is read again before it is relied on."""
        self._term += 1

    def check(self, mine: Identity) -> None:
        """Raises UsageError where this source must not change anything: early, before anything
        else is asked of the cluster. One GET. Raises KubeError."""
        with self._lock:
            stored = self._store.read() if self._store is not None else None
            self._stored = stored
            if stored is not None and (error := refusal(stored, mine, take_over=self._take_over)):
                raise error

    def open(
        self, mine: Identity, *, revision: str, live: Callable[[], Mapping[ServerKey, str]]
    ) -> Record:
        """Read the record, or begin one: from the servers that are provably this source's
        (``live``, key → file) and the commit that was enforced last as far as is known
        (``revision``). One that is stored and begun beside such servers knows no commit: the loss
        of a record releases nothing that it held back. Raises UsageError, KubeError."""
        with self._lock:
            if not self.is_open:
                term = self._term
                self.check(mine)
                record = self._found = self._stored
                if record is None:
                    enforced = {key: Entry(file, enforced=True) for key, file in live().items()}
                    begun = BEGUN if enforced and self._store is not None else revision
                    record = Record(mine.fingerprint, mine.cluster, begun, servers=enforced)
                elif not record.fingerprint.agrees(mine.fingerprint):
                    # What the former repository had is not what this one has dropped.
                    record = replace(
                        record, fingerprint=mine.fingerprint, revision=TAKEN_OVER, spent=""
                    )
                self._record = replace(record, cluster=mine.cluster)
                self._opened = term
            return self.record

    def ahead(self, held: Mapping[ServerKey, str]) -> None:
        """Record the servers of a commit before it is applied. Raises KubeError."""
        with self._lock:
            self._write(self.record.ahead(held))

    def release(self, keys: Collection[ServerKey], spent: str) -> None:
        """Record that these prunes were released, before they begin. Raises KubeError."""
        with self._lock:
            self._write(self.record.releasing(keys, spent))

    @property
    def recreates(self) -> bool:
        """Does the record count recreates? Once nothing is held back they count no longer."""
        return self._record is not None and any(
            entry.recreated for entry in self._record.servers.values()
        )

    def recreate(self, key: ServerKey) -> None:
        """Record that a server is recreated, before it is. Raises KubeError."""
        with self._lock:
            self._write(self.record.recreating(key))

    def enforced(
        self,
        mine: Identity,
        held: Mapping[ServerKey, str],
        *,
        revision: str | None,
        reaches: Callable[[ServerKey, str], bool],
        remains: Callable[[ServerKey], bool],
        pending: Collection[ServerKey] = (),
    ) -> None:
        """Record that a commit was enforced to its end; ``revision`` None: in parts only. Writes
        nothing where that is known already. Raises KubeError."""
        with self._lock:
            record = self.record.enforced(held, reaches=reaches, remains=remains, pending=pending)
            if revision is not None and revision != record.revision:
                at = times.rfc3339(self._clock())
                record = replace(record, revision=revision, at=at, spent="")
            if record is not self.record:
                # A shallow clone does not know the root commits that tell a mirror from a stranger.
                roots = mine.fingerprint.roots or record.fingerprint.roots
                record = replace(record, fingerprint=replace(mine.fingerprint, roots=roots))
            self._write(record)

    def describe(self) -> None:
        """Record the ``status`` of the source if it has changed. Raises KubeError."""
        with self._lock:
            if self.is_open:
                self._write(self.record)

    def _write(self, record: Record) -> None:
        if self.status is not None:
            record = replace(record, status=self.status())
        if not (self._read_only or self._store is None or record == self._stored):
            self._put(self._store, record)
            self._stored = record
            self._take_over = False  # two who want it would take it from each other for ever
        self._record = record

    def _put(self, store: Store, record: Record) -> None:
        for attempt in (1, 2):
            # What another leader wrote since is not overwritten with what was known before.
            if not (self.is_open and self._may_write()):
                raise LeaseLost("the lease for this source is not held any more")
            try:
                store.write(record)
            except (Conflict, Gone):
                # We hold the Lease, so it was no agent: ours stands.
                if attempt == 2:
                    raise
                store.read()
            else:
                return
