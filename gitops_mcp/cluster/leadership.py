"""Leadership: one writer of each source, and one of the servers that kubectl made.

Receives a connection and the name of a source; holds that source's Lease for as long as somebody
writes, and says at once when it is not ours any more. Never writes anything but Leases (and, where
that is wanted, the namespace that they live in).
"""

from __future__ import annotations

import json
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from gitops_mcp.base import times
from gitops_mcp.base.errors import KubeError, LeaseLost, Permanent, UsageError
from gitops_mcp.base.model import CLUSTER_SOURCE as CLUSTER_SOURCE
from gitops_mcp.base.names import (
    ANNOTATION_RECONCILE,
    API_VERSION,
    FIELD_MANAGER,
    KIND,
    LABEL_MANAGED_BY,
    LABEL_SOURCE,
    JsonObject,
    ObjectRef,
)
from gitops_mcp.cluster.sourceleases import (
    LEASE_READ,
    LEASE_REVISION,
    LEASE_TROUBLE,
    LEASE_WAITS,
    STEP,
    annotated,
    home,
    is_agent,
    source_named,
)
from gitops_mcp.decide.record import PREFIX
from gitops_mcp.decide.record import area_of as area_of
from gitops_mcp.decide.record import lease_name as lease_name

if TYPE_CHECKING:
    from gitops_mcp.cluster.kube import Cluster
    from gitops_mcp.cluster.lease import Lease, LeaseTiming
    from gitops_mcp.cluster.reads import Reader

LEASE_PATIENCE = 15.0
"""Seconds that a sync waits for another sync's lease."""
STALE = timedelta(seconds=30)
"""Of a sign of life: an agent renews its lease every two seconds, and says every 15 seconds what it
waits for."""
WAITS = 300
"""Characters of that message."""

Say = Callable[[str], None]


class Leadership:
    """Whether this process is the one that writes, from term to term.

    ``holds`` is asked right before each write, by any thread. ``step``, called about every ``STEP``
    seconds, does what is due: renews the lease, takes it where it is free or its holder was silent
    for too long, else looks on. It calls ``gained`` when a term begins and ``lost`` when one has
    ended, in turn, whoever held the lease in between. ``holds`` is False before ``lost`` is called,
    and True from right before ``gained``: who looks at everything anew then misses nothing.

    ``take_over`` takes the lease from a living holder, the first time only: two who want it would
    take it from each other for ever. ``again`` False: what was lost stays lost. ``above`` is the
    lease of whoever does all that we do and more: while somebody alive holds it, we hold ours not.
    """

    def __init__(
        self,
        lease: Lease,
        *,
        take_over: bool = False,
        again: bool = True,
        above: Lease | None = None,
        gained: Callable[[], None] = lambda: None,
        lost: Callable[[], None] = lambda: None,
        say: Say = lambda _: None,
    ) -> None:
        self._lease = lease
        self._take_over = take_over
        self._again = again
        self._above = above
        self._gained = gained
        self._lost = lost
        self._say = say
        self._stepping = threading.RLock()
        self._term = 0
        """The lease's term that ``gained`` was called for; 0: none is open."""
        self._transitions = 0
        """Of the lease, when that term began."""
        self._ended = False
        self._failing = False
        self._told = ""
        self.asked = False
        """Has it been found out, at least once, who leads?"""
        lease.initial = {LEASE_TROUBLE: ""}  # what was in another holder's way is not in ours
        lease.annotations.update(lease.initial)

    @property
    def holds(self) -> bool:
        """May we write now? Costs no request."""
        lease = self._lease
        return lease.holds and lease.term == self._term

    @property
    def term(self) -> int:
        """Which of our terms this is, or was last before ``lost`` is called; 0: none."""
        return self._term

    @property
    def holder(self) -> str:
        """Who had the lease when we last looked; empty: nobody."""
        return self._lease.holder

    @property
    def revision(self) -> str:
        """The revision that the lease bears: the last one that its holder, or the one before it,
        enforced. Set it while we hold the lease, and the next renewal tells it to others; what we
        said in a former term never comes back over what the holder in between said."""
        return self._lease.annotation(LEASE_REVISION)

    @revision.setter
    def revision(self, revision: str) -> None:
        if self.holds:
            self._lease.annotations[LEASE_REVISION] = revision

    def troubled(self, trouble: str) -> None:
        """Say with the next renewal why nothing is enforced ("": it is), if we hold the lease."""
        if self.holds:
            self._lease.annotations[LEASE_TROUBLE] = trouble

    @property
    def request(self) -> str:
        """The reconcile request for the source that the lease has, "" without one. A renewal that
        conflicts with it reads it, so it is seen within ``retry_period``."""
        return self._lease.annotation(ANNOTATION_RECONCILE)

    def answer(self, request: str, **answer: str) -> None:
        """Answer a request with the next renewal, if we still hold the lease."""
        if self.holds:
            text = json.dumps({"request": request, **answer})
            self._lease.annotations[LEASE_READ] = text

    def step(self) -> None:
        """Do what is due. Never raises KubeError: what cannot be asked is asked at the next step;
        takes no longer than some seconds."""
        with self._stepping:
            if self._ended:
                return
            self._notice()
            try:
                self._ask()
                self._failing, self.asked = False, True
            except KubeError as error:
                if not self._failing:
                    self._say(f"{self._lease}: {error.message}")
                self._failing = True
            self._notice()

    def release(self) -> None:
        """Give the lease up for good, so that the next holder need not wait. Nothing may be on its
        way any more that was sent under it. Calls nobody, never raises KubeError."""
        with self._stepping:
            self._ended = True
            self._term = 0
            try:
                self._lease.release()
            except KubeError as error:
                self._say(f"{self._lease} could not be released: {error.message}")

    def _ask(self) -> None:
        lease = self._lease
        # Who cannot renew, or does not hold it, tries at each step.
        if lease.holds and not self._failing and lease.age + STEP / 2 < lease.timing.retry_period:
            return
        if self._above is not None and self._above.taken():
            if lease.holder == lease.identity:
                lease.release()
            self._wait_for(self._above)
        elif lease.acquire(take_over=self._take_over):
            self._take_over = False
        elif not self._term:
            self._wait_for(lease)

    def _wait_for(self, lease: Lease) -> None:
        if lease.holder not in ("", self._told):
            self._told = lease.holder
            self._say(f"waiting for {lease.holder}, which holds {lease}")

    def _notice(self) -> None:
        """Tell of the end of a term, and of the beginning of the next."""
        lease = self._lease
        if self._term and not (lease.holds and lease.term == self._term):
            self._term = 0
            self._ended = not self._again
            if lease.holder not in ("", lease.identity):
                self._say(f"{lease} was lost to {lease.holder}")
            elif lease.transitions > self._transitions:
                self._say(f"{lease} was taken by another process, which has given it up since")
            elif lease.holder:
                self._say(f"{lease} was not renewed in time")
            self._lost()
        if lease.holds and not self._term and not self._ended:
            self._term, self._transitions = lease.term, lease.transitions
            self._told = ""
            self._gained()


class Waiting:
    """An agent that waits for the first commit of a source, as it says so in the source's Lease. It
    does not hold it meanwhile: another agent may be able to read a commit."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._said = False

    def say(self, message: str) -> None:
        """Say what is waited for. Say it again at each try: status believes it for some seconds
        only. Never raises KubeError."""
        at = times.rfc3339(times.utc_now())
        self._write(json.dumps({"at": at, "message": message[:WAITS]}))

    def end(self) -> None:
        """Take back what was said."""
        if self._said:
            self._write("")

    def _write(self, text: str) -> None:
        self._lease.annotations[LEASE_WAITS] = text
        with suppress(KubeError):  # the log says it, too
            self._lease.annotate()
            self._said = True


def waiting(cluster: Cluster, given: str | None, source_id: str) -> Waiting:
    """An agent without a commit, of this source; no request yet."""
    return Waiting(source_lease(cluster, home(cluster, given), source_id, "agent"))


def waiting_in(leases: Iterable[JsonObject], *, now: datetime) -> str | None:
    """What an agent waits for that has no commit yet, as one of the Leases says; None where there
    is no such agent, or no sign of it for ``STALE``."""
    for said in (annotated(lease, LEASE_WAITS) for lease in leases):
        with suppress(KeyError, ValueError, TypeError):
            at = times.parse(said["at"])
            if at is not None and abs(now - at) <= STALE:
                return said["message"]
    return None


# --- where the leases are ---------------------------------------------------------------------


def expect_source(cluster: Reader, source_id: str) -> None:
    """Raise UsageError for an id that no Lease and no MCPServer of the cluster bears. Who may not
    list both everywhere cannot know, and is believed."""
    known: set[str] = set()
    try:
        for version, kind, selector in (
            ("coordination.k8s.io/v1", "Lease", f"{LABEL_MANAGED_BY}={FIELD_MANAGER}"),
            (API_VERSION, KIND, LABEL_SOURCE),
        ):
            bodies, _ = cluster.list(version, kind, None, label_selector=selector)
            metadata = [body["metadata"] for body in bodies]
            known |= (
                {each["labels"][LABEL_SOURCE] for each in metadata}
                if kind == KIND
                else {
                    source_named(n) for each in metadata if (n := each["name"]).startswith(PREFIX)
                }
            )
            if source_id in known:
                return
    except Permanent:
        return
    listed = sorted(known - {CLUSTER_SOURCE})
    hint = f"known are: {', '.join(listed)}" if listed else "no source has written to it yet"
    raise UsageError(f"the cluster knows no source {source_id!r}", hint=hint)


def create_namespace(cluster: Cluster, name: str) -> None:
    """Make the namespace that a Lease lives in, where there is none yet."""
    if cluster.get(ObjectRef("v1", "Namespace", "", name)) is None:
        cluster.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}, force=False
        )


def source_lease(
    cluster: Cluster,
    namespace: str,
    source_id: str,
    holder: str,
    *,
    area: str = "",
    timing: LeaseTiming | None = None,
) -> Lease:
    """A source's Lease, for ``holder`` (``sync`` or ``agent``). Keep it: that its holder is gone is
    seen by looking at it for a while."""
    from gitops_mcp.cluster.lease import Lease, LeaseTiming

    identity = f"{holder}-{socket.gethostname()}-{os.getpid()}-{random.getrandbits(32):08x}"
    name = lease_name(source_id, area)
    return Lease(cluster, namespace, name, identity, timing=timing or LeaseTiming())


# --- one pass ---------------------------------------------------------------------------------


@contextmanager
def only_writer(
    lease: Lease, *, take_over: bool = False, say: Say = lambda _: None
) -> Iterator[Leadership]:
    """Lead a source for one pass: what is lost meanwhile stays lost. Waits for another sync, but
    not for an agent: LeaseLost says who has it."""
    until = time.monotonic() + LEASE_PATIENCE
    told = False
    while not lease.acquire():
        hint, holder = "stop it, or use --take-over", lease.holder
        if take_over and lease.acquire(take_over=True):
            say(f"{lease} was taken from {holder}")
            break
        if is_agent(lease.holder):
            raise LeaseLost(f"{lease} is held by {lease.holder}", hint=hint)
        if time.monotonic() >= until:
            raise LeaseLost(f"{lease} is still held by {lease.holder}", hint=hint)
        if not told:
            say(f"waiting for {lease.holder}, which holds {lease}")
            told = True
        time.sleep(STEP / 2)
    with _led(Leadership(lease, again=False, say=say)) as leadership:
        yield leadership


@contextmanager
def kubectl_writer(
    lease: Lease, *, patience: float, say: Say = lambda _: None
) -> Iterator[Leadership]:
    """Stand for the servers that kubectl made for one pass, where nobody else does (see ``holds``).
    ``lease`` is that of CLUSTER_SOURCE; an agent that has it is left alone at once, a sync after
    ``patience`` seconds."""
    until = time.monotonic() + patience
    leadership = Leadership(lease, again=False, say=say)
    while not lease.acquire():
        if is_agent(lease.holder) or time.monotonic() >= until:
            say(f"servers made by kubectl are left to {lease.holder}")
            yield leadership
            return
        time.sleep(STEP / 2)
    with _led(leadership):
        yield leadership


@contextmanager
def _led(leadership: Leadership) -> Iterator[Leadership]:
    """Keep a lease that we have until the end, then give it up."""
    stop = threading.Event()

    def renew() -> None:
        while not stop.wait(STEP):
            leadership.step()

    leadership.step()
    renewal = threading.Thread(target=renew, name="lease", daemon=True)
    renewal.start()
    try:
        yield leadership
    finally:
        stop.set()
        renewal.join()
        leadership.release()
