"""The Lease by which one agent at a time writes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final, Protocol

from gitops_mcp.base import objects, times
from gitops_mcp.base.errors import Conflict, Gone
from gitops_mcp.base.names import FIELD_MANAGER, LABEL_MANAGED_BY, JsonObject, ObjectRef

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True)
class LeaseTiming:
    """The times of a lease in seconds, under the names of client-go's leader election."""

    lease_duration: float = 10.0
    """For how long others must have seen the record unchanged before they take the lease."""
    renew_deadline: float = 6.0
    """For how long a renewal lasts its holder: so much less than for others that no request of its
    is still on its way when they begin, and that clocks may run at different speeds."""
    retry_period: float = 2.0
    """Between two renewals: two may fail before the deadline."""


class LeaseApi(Protocol):
    """The requests that a lease makes; ``Cluster`` is the real one."""

    def get(self, ref: ObjectRef, *, timeout: float | None = None) -> JsonObject | None: ...

    def create(self, body: JsonObject, *, timeout: float | None = None) -> JsonObject: ...

    def update(self, body: JsonObject, *, timeout: float | None = None) -> JsonObject: ...


def _elapsed() -> float:
    """Seconds on a clock that nobody sets, and that goes on while the machine sleeps."""
    return time.clock_gettime(_CLOCK)


_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


_LEAST_TIMEOUT: Final = 0.5


class Lease:
    """The right to be the only writer of something, kept in a coordination.k8s.io Lease.

    Whether another holder is gone is judged by how long *we* have seen its record unchanged, never
    by comparing its clock with ours. ``clock`` is monotonic, in seconds; ``now`` stamps the record.
    ``holds`` and ``term`` may be read by any thread, everything else by one at a time.
    """

    def __init__(
        self,
        api: LeaseApi,
        namespace: str,
        name: str,
        identity: str,
        *,
        timing: LeaseTiming = LeaseTiming(),
        clock: Callable[[], float] = _elapsed,
        now: Callable[[], datetime] = times.utc_now,
    ) -> None:
        self.ref = ObjectRef("coordination.k8s.io/v1", "Lease", namespace, name)
        self.timing = timing
        self.annotations: dict[str, str] = {}
        """What the next write says besides who holds it; "" takes an annotation away."""
        self.initial: dict[str, str] = {}
        """The annotations that a new term begins with: what an earlier one said is dropped as soon
        as another holder is seen, before the lease is taken again."""
        self.term = 0
        """Counts up when we come to hold it, also when nobody held it in between."""
        self._api = api
        self.identity = identity
        self._clock = clock
        self._now = now
        self._live: JsonObject | None = None
        """As last read or written."""
        self._unchanged_since = clock()
        self._sent = self._until = float("-inf")

    def __str__(self) -> str:
        return f"lease {self.ref.namespace}/{self.ref.name}"

    @property
    def holder(self) -> str:
        """Who held it when we last looked; empty: nobody."""
        return str(self._record.get("holderIdentity") or "")

    @property
    def transitions(self) -> int:
        """How often it has changed hands, as of our last read or write."""
        return int(self._record.get("leaseTransitions") or 0)

    @property
    def _record(self) -> JsonObject:
        return objects.spec(self._live)

    @property
    def holds(self) -> bool:
        """Whether nobody else can hold it. False without a request from ``renew_deadline`` after
        the last renewal that succeeded was *sent*."""
        return self._clock() < self._until

    @property
    def age(self) -> float:
        """Seconds since the last renewal that succeeded was sent."""
        return self._clock() - self._sent

    def annotation(self, key: str) -> str:
        """What the lease says of ``key``, or will say with our next write ("": nothing)."""
        known = objects.annotations(self._live)
        return str({**known, **self.annotations}.get(key, ""))

    def look(self) -> None:
        """See who holds it: one GET. Raises KubeError."""
        live = self._api.get(self.ref, timeout=self._timeout())
        record = objects.spec(live)
        if record != self._record:
            # Taken after the answer: what we read may have been written while we waited for it.
            self._unchanged_since = self._clock()
        self._live = live
        if self.holder != self.identity and self._until != float("-inf"):
            self._until = float("-inf")
            self.annotations = dict(self.initial)

    def acquire(self, *, take_over: bool = False) -> bool:
        """Takes the lease, or renews it; False while another holder is alive (see ``holder``).

        A renewal is one PUT of what we wrote last. ``take_over`` takes the lease from a living
        holder, who notices at its next renewal: until then the preconditions of each write alone
        keep the two apart. Raises KubeError where the API server cannot be asked; what was held is
        held on to until the deadline.
        """
        if self.holder == self.identity and self._written(self._claim()):
            return True
        if not self.taken() or take_over:
            return self._written(self._claim()) or self.holds
        return False

    def annotate(self) -> None:
        """Write the annotations alone, whoever holds it: two requests. What somebody else writes in
        between stands. Raises KubeError."""
        self.look()
        self._put(self._record)

    def taken(self) -> bool:
        """Does somebody else hold it who is alive? One GET. Raises KubeError."""
        asked = self._clock()
        self.look()
        # Our own duration counts, as client-go's does: what a record says anybody may have written.
        silent = asked - self._unchanged_since >= self.timing.lease_duration
        return self.holder not in ("", self.identity) and not silent

    def release(self) -> None:
        """Gives the lease up, if it is still ours, so that the next holder need not wait. The
        caller has seen to it that nothing is being written any more. Raises KubeError."""
        self._until = float("-inf")
        freed = {"holderIdentity": "", "renewTime": times.rfc3339_micro(self._now())}
        for _ in range(2):  # once more, where only somebody's annotation stood between
            if self.holder != self.identity or self._put({**self._record, **freed}):
                return
            self.look()

    def _claim(self) -> JsonObject:
        """The record that makes the lease ours, or keeps it so."""
        stamp, old = times.rfc3339_micro(self._now()), self._record
        ours = self.holder == self.identity
        return {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": max(1, round(self.timing.lease_duration)),
            "acquireTime": old.get("acquireTime", stamp) if ours else stamp,
            "renewTime": stamp,
            "leaseTransitions": old.get("leaseTransitions", 0) + (not ours and bool(old)),
        }

    def _written(self, record: JsonObject) -> bool:
        sent = self._clock()
        if not self._put(record):
            return False
        if not self.holds:
            self.term += 1  # first: who sees that it is held again sees that it is another term
        self._sent, self._until = sent, sent + self.timing.renew_deadline
        return True

    def _put(self, record: JsonObject) -> bool:
        """Write the record over the one that we know; False: that one stands no longer."""
        body: JsonObject = self._live or {
            "apiVersion": self.ref.api_version,
            "kind": self.ref.kind,
            "metadata": {
                "name": self.ref.name,
                "namespace": self.ref.namespace,
                "labels": {LABEL_MANAGED_BY: FIELD_MANAGER},
            },
        }
        metadata = body["metadata"]
        merged = {**objects.part(metadata, "annotations"), **self.annotations}
        annotations = {key: text for key, text in merged.items() if text}
        body = {**body, "metadata": {**metadata, "annotations": annotations}, "spec": record}
        write = self._api.create if self._live is None else self._api.update
        try:
            self._live = write(body, timeout=self._timeout())
        except (Conflict, Gone):
            return False
        self._unchanged_since = self._clock()
        return True

    def _timeout(self) -> float:
        """Half of the deadline, so that there is time to try again before it; near it, less."""
        left = self._until - self._clock()
        half = self.timing.renew_deadline / 2
        return max(min(left, half), _LEAST_TIMEOUT) if left > 0 else half
