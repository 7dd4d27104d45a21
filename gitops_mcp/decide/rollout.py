"""Ansible's ``serial``, for fleets: which servers may take a change now, and which have to wait.

Receives the servers whose running pods a commit would replace, and what each look at one of them
came to; returns whether a server may go, and which may go next. A batch begins when every server
that went before it is Ready; one that failed stops them all. No clock, no request; what is known
here can be told again from the cluster, so a restart loses nothing.
"""

from __future__ import annotations

import enum
import re
import threading
from collections.abc import Collection
from dataclasses import dataclass

from gitops_mcp.base.errors import UsageError
from gitops_mcp.base.model import Decision, Deferral
from gitops_mcp.base.names import ServerKey
from gitops_mcp.base.source import Revision
from gitops_mcp.base.wording import short_sha

THRESHOLD = 10
"""Running servers from which on a change of their workloads is rolled out in batches."""


@dataclass(frozen=True, slots=True)
class Serial:
    """How many servers take a change at the same time: a share, a number, or all of them (0)."""

    amount: int
    percent: bool = False

    @classmethod
    def parse(cls, text: str) -> Serial:
        """From ``20%``, ``5`` or ``off``. Raises UsageError for anything else."""
        if text == "off":
            return ALL
        found = re.fullmatch(r"(\d{1,6})(%?)", text, re.ASCII)
        amount, percent = (int(found[1]), bool(found[2])) if found else (0, False)
        if not amount or (percent and amount > 100):
            raise UsageError(
                f"serial {text!r}: expected a number of servers, a share such as 20%, or off"
            )
        return cls(amount, percent)

    def size(self, total: int) -> int:
        """The size of a batch of ``total`` servers: as Ansible has it, rounded down, at least 1."""
        if not self.amount:
            return max(total, 1)
        return max(total * self.amount // 100, 1) if self.percent else self.amount

    def __str__(self) -> str:
        return f"{self.amount}{'%' if self.percent else ''}" if self.amount else "off"


ALL = Serial(0)
"""Everything at once."""
DEFAULT = Serial(20, percent=True)


class RolloutState(enum.Enum):
    """How a server of a rollout stands."""

    WAITING = "waiting"
    ROLLING = "rolling"
    READY = "ready"
    """Done with the change, or with the rollout: suspended, pruned or somebody else's meanwhile."""
    FAILED = "failed"


def standing(decision: Decision) -> RolloutState:
    """How a server stands after a look at it."""
    if decision.deferred:
        return RolloutState.WAITING
    if decision.phase == "Failed" or (not decision.phase and decision.result == "failed"):
        return RolloutState.FAILED
    if decision.result in ("skipped", "blocked", "pruned"):
        return RolloutState.READY
    # Not before all is written, and its new pods have been asked.
    under_way = decision.actions or decision.inquiry or decision.waiting
    return RolloutState.ROLLING if under_way or decision.ready is False else RolloutState.READY


class Rollout:
    """The batches of one commit. Thread-safe.

    ``rolling``: the running servers whose pods the commit will replace. ``rolled``: those whose
    pods it replaced already, as far as the cluster tells; what became of them will be heard.
    ``under_way``: some of them have been waiting for a batch before. ``in_flight``: those that went
    in the rollout that this one overtakes, and are not Ready yet; ``not_ready``: those, and those
    that failed there.
    """

    def __init__(
        self,
        serial: Serial,
        revision: Revision,
        rolling: Collection[ServerKey] = (),
        rolled: Collection[ServerKey] = (),
        *,
        under_way: bool = False,
        in_flight: Collection[ServerKey] = (),
        not_ready: Collection[ServerKey] = (),
    ) -> None:
        # First what is not Ready anyhow: no more shall be so than belong to a batch.
        members = sorted(
            {*rolling, *rolled, *in_flight}, key=lambda key: (key not in not_ready, key)
        )
        batched = under_way or len(members) >= THRESHOLD
        size = (serial if batched else ALL).size(len(members))
        self._commit = short_sha(revision.sha) or str(revision)
        self._batches = [members[at : at + size] for at in range(0, len(members), size)]
        self._batch_of = {key: at for at, batch in enumerate(self._batches) for key in batch}
        self._opened = 0
        self._waiting = set(rolling)
        self._unready: set[ServerKey] = set(members) - self._waiting
        """Servers that went, and are not Ready."""
        self._failed: dict[ServerKey, str] = {}
        self._stopped = ""
        self._lock = threading.Lock()
        self._open()

    def waits(self, key: ServerKey) -> Deferral | None:
        """Why the server may not take the change yet; None: it may."""
        with self._lock:
            if key not in self._waiting:
                return None
            if self._stopped:
                return Deferral(self._stopped, stopped=True)
            place = f"{self._batch_of[key] + 1} of {len(self._batches)}"
            return Deferral(f"waits for its batch ({place}) of commit {self._commit}")

    def heard(self, key: ServerKey, stands: RolloutState, message: str = "") -> list[ServerKey]:
        """A look at a server came to this; ``message``: why it failed. Returns those that have to
        be looked at now: they may go, or it is no longer the same that they wait for."""
        with self._lock:
            if key not in self._batch_of or stands is RolloutState.WAITING:
                return []
            self._waiting.discard(key)  # if it was: it has the change, or no part in it any more
            if stands is RolloutState.READY:
                self._unready.discard(key)
            else:
                self._unready.add(key)
            if stands is RolloutState.FAILED:
                self._failed.setdefault(key, message)
            else:
                self._failed.pop(key, None)
            before, self._stopped = self._stopped, self._why_stopped()
            fresh = self._open()
            if self._stopped == before:
                return fresh
            return sorted({*fresh, *self._waiting, *self._unready} - {key})

    def holds_up(self, key: ServerKey) -> bool:
        """Do others wait for this server to be Ready?"""
        with self._lock:
            return key in self._unready and bool(self._waiting) and not self._stopped

    @property
    def waiting(self) -> frozenset[ServerKey]:
        """The servers that may not go yet."""
        with self._lock:
            return frozenset(self._waiting)

    @property
    def not_ready(self) -> frozenset[ServerKey]:
        """The servers that went, and are not Ready or failed."""
        with self._lock:
            return frozenset(self._unready)

    @property
    def failed(self) -> frozenset[ServerKey]:
        """Those of them that failed."""
        with self._lock:
            return frozenset(self._failed)

    @property
    def stopped(self) -> str:
        """Why no further batch begins; "" where nothing holds it up, or nobody waits."""
        with self._lock:
            return self._stopped if self._waiting else ""

    def _open(self) -> list[ServerKey]:
        """Let the next batch go, if all that went before are Ready."""
        fresh: list[ServerKey] = []
        while not self._unready and self._opened < len(self._batches):
            fresh = [key for key in self._batches[self._opened] if key in self._waiting]
            self._opened += 1
            self._waiting.difference_update(fresh)
            self._unready.update(fresh)
        return fresh

    def _why_stopped(self) -> str:
        if not self._failed or not self._waiting:
            return ""
        key, message = min(self._failed.items())
        text = f"the rollout of commit {self._commit} stopped: {key} is not Ready"
        return f"{text}: {message}" if message else text
