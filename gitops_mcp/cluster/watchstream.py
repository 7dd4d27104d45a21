"""The list-and-watch stream: a list and a watch in, all of a kind, kept current, out."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, Final, Literal, Protocol

from gitops_mcp.base import limits
from gitops_mcp.base.errors import Expired, KubeError, Silent
from gitops_mcp.base.objects import LiveObject

Event = tuple[str, LiveObject]
"""ADDED, MODIFIED, DELETED or BOOKMARK, and the object (of a bookmark: only its version)."""
Listing = tuple[list[Any], str]
"""All objects, and the resourceVersion of the list."""
News = tuple[Literal["SYNC", "RESET"], Listing] | tuple[Literal["EVENT"], Event]
"""Replaces all that was known, or changes one object of it."""

WATCH_SECONDS: Final = 300
"""How long the server keeps a watch open before we ask anew."""
WATCH_SILENCE: Final = limits.WATCH_SILENCE_SECONDS
"""Seconds without a byte after which a watch counts as broken: bookmarks come every minute, and a
server that was stopped leaves its watches silently open."""
CHECK_SECONDS: Final = limits.VIEW_CHECK_SECONDS
"""From one list to the next, whatever the watch says: drawn anew each time, so that the lists of
many kinds and agents do not come together."""
RECHECK_SECONDS: Final = limits.VIEW_RECHECK_SECONDS
"""From the loss of a stream to the next list, at the latest."""
PROOF_SECONDS: Final = limits.WATCH_PROOF_SECONDS
"""In which the first watch after a loss must bring something: else all is listed."""

WATCH_BACKOFF_CAP: Final = 5.0
"""The longest wait, in seconds, before a broken watch is tried again: so much later than the API
server itself we are back after its restart."""


class Watch(Protocol):
    """Opens one watch from a version. ``opened`` is called when the server has taken it;
    ``seconds`` is how long the server keeps it, ``silence`` how long it may bring nothing."""

    def __call__(
        self, version: str, *, opened: Callable[[], None], seconds: int, silence: float
    ) -> Iterator[Event]: ...


class WatchStream:
    """Everything of a kind, kept current until ``ended``.

    Never raises KubeError. A broken stream goes on where it ended, a version that is too old
    (410) lists again; both after a wait that doubles, with jitter, up to WATCH_BACKOFF_CAP, or
    that the server asks for. ``pause`` takes the seconds of each.
    A watch alone does not prove that nothing was missed: an API server whose etcd was restored
    takes a watch from a version that it has yet to reach, and stays silent. So all is listed
    again each CHECK_SECONDS, in a time drawn from RECHECK_SECONDS after a stream was lost, and
    where the first watch after that brings nothing within PROOF_SECONDS. A list that is older
    than what was seen before comes as ``("RESET", (objects, version))``: it replaces what was
    known, newer versions included.
    ``state`` takes each trouble (Expired: all is listed again), and None each time that the
    server lets us know that the stream is whole: with each bookmark, when it is opened, and
    after a loss not before something has come.
    """

    def __init__(
        self,
        listed: Callable[[], Listing],
        watched: Watch,
        *,
        ended: Callable[[], bool],
        pause: Callable[[float], object],
        state: Callable[[KubeError | None], None],
        clock: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self._listed = listed
        self._watched = watched
        self._ended = ended
        self._pause = pause
        self._state = state
        self._clock = clock
        self._rng = rng
        self._backoff = _Backoff(rng)
        self._version = ""
        """Where the next watch begins; "": with a list."""
        self._fresh = False
        """Whether nothing has come since the last list."""
        self._seen = 0
        """The newest version that came, whatever became of the stream."""
        self._proven = True
        """Whether nothing can have been missed since the stream was lost last."""
        self._opened = False
        """Whether the server has taken the watch of this round."""
        self._check = 0.0
        """When all is listed next, by ``clock``."""

    def events(self, version: str = "") -> Iterator[News]:
        """The stream, from the ``version`` of a list that was read before; "": from a list."""
        self._version, self._seen = version, _number(version)
        self._check = self._clock() + self._rng.uniform(*CHECK_SECONDS)
        while not self._ended():
            began, asked, self._opened = self._clock(), None, False
            checks = bool(self._version) and self._proven and began >= self._check
            seconds = (
                min(WATCH_SECONDS, max(self._check - began, 1)) if self._proven else PROOF_SECONDS
            )
            try:
                if not self._version or checks:
                    yield self._list()
                    if checks:
                        continue
                yield from self._watch(round(seconds))
                if not self._proven:
                    self._version = ""  # nothing came: only a list shows what is there
                    continue
                if self._clock() - began < seconds - 1.0:  # before its time: the server is going
                    self._lose()
                if self._clock() - began > 1.0:
                    continue  # at once would be a loop without a pause
            except KubeError as error:
                asked = error.retry_after
                if checks:  # the watch goes on; the list is tried again soon
                    self._check = self._clock() + self._rng.uniform(*RECHECK_SECONDS)
                    self._state(error)
                else:
                    self._broken(error)
            self._pause(self._backoff.next(asked))

    def _list(self) -> News:
        items, self._version = self._listed()
        version = _number(self._version)
        rewound, self._seen = version < self._seen, version
        self._fresh, self._proven = True, True
        self._check = self._clock() + self._rng.uniform(*CHECK_SECONDS)
        return "RESET" if rewound else "SYNC", (items, self._version)

    def _watch(self, seconds: int) -> Iterator[News]:
        silence = WATCH_SILENCE if self._proven else PROOF_SECONDS + 1
        events = self._watched(self._version, opened=self._taken, seconds=seconds, silence=silence)
        for name, item in events:
            self._version, self._fresh = item["metadata"]["resourceVersion"], False
            self._seen = max(self._seen, _number(self._version))
            self._backoff.reset()
            if name == "BOOKMARK" or not self._proven:
                self._state(None)
            if name != "BOOKMARK":
                yield "EVENT", (name, item)
            self._proven = True

    def _taken(self) -> None:
        self._opened = True
        if self._proven:
            self._state(None)

    def _broken(self, error: KubeError) -> None:
        """A list or a watch was refused, or ended in the middle."""
        if (
            self._version
            and not self._proven
            and (self._opened or error.code or isinstance(error, Silent))
        ):
            self._version = ""  # it answers, and brings nothing
        if not isinstance(error, Silent) or self._proven:
            self._state(error)
        self._lose()
        if isinstance(error, Expired):
            self._version = ""
            if not self._fresh:  # the server is back; else it answers our every list so
                self._backoff.reset()

    def _lose(self) -> None:
        """The stream is lost: what it would have brought is proven by the next one, or listed."""
        if self._proven:
            self._proven = False
            self._check = min(self._check, self._clock() + self._rng.uniform(*RECHECK_SECONDS))


def _number(version: str) -> int:
    """The versions of one etcd are ordered numbers; 0: none."""
    return int(version) if version.isdigit() else 0


class _Backoff:
    """Waits in seconds: 0.2, 0.4 … WATCH_BACKOFF_CAP, each shortened at random by up to half."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.reset()

    def reset(self) -> None:
        self._next = 0.2

    def next(self, asked: timedelta | None = None) -> float:
        """``asked``: what the server asks for instead, prolonged at random by up to half."""
        if asked is not None:
            return asked.total_seconds() * self._rng.uniform(1.0, 1.5)
        wait, self._next = self._next, min(self._next * 2, WATCH_BACKOFF_CAP)
        return wait * self._rng.uniform(0.5, 1.0)
