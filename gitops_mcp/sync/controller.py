"""The controller: aims at a commit, and works on one server after the other.

Puts together what is worked towards at a commit (prune guard, rollout, target), keeps the source's
record, and reports to its listeners what each reconcile came to. It starts no thread and reads no
clock but its own. The agent drives it with many threads and never ends, ``sync`` with a few until
its patience ends, a simulation with one.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

from gitops_mcp.base import objects, times
from gitops_mcp.base.errors import GitOpsError, LeaseLost
from gitops_mcp.base.model import Context, Decision, Former, Probe, ReconcileResult
from gitops_mcp.base.names import ServerKey
from gitops_mcp.cluster.view import View
from gitops_mcp.decide import ownership, pruning
from gitops_mcp.decide.books import Books
from gitops_mcp.decide.rollout import Rollout
from gitops_mcp.decide.transitions import Listener, Transitions
from gitops_mcp.source import manifests
from gitops_mcp.sync import probes
from gitops_mcp.sync.engine import Engine, log_bug
from gitops_mcp.sync.fleet import Look
from gitops_mcp.sync.guard import PruneGuard
from gitops_mcp.sync.memory import Ask, DesiredState, Kube
from gitops_mcp.sync.reading import Source
from gitops_mcp.sync.syncoptions import SyncOptions

RECORD_RETRY = timedelta(seconds=2)
"""Between two attempts to read or write the source's record."""
_NEVER = datetime.min.replace(tzinfo=UTC)
_log = logging.getLogger(__name__)


class Controller:
    """Keeps the servers of one source, and those that kubectl made, as they should be.

    ``wake`` is called with the servers that are to be looked at, ``adopted`` with each commit that
    is not refused, before a server is looked at for it, ``settled`` once every server of a commit
    has been looked at since it was adopted. Thread-safe, but for ``look``, which must not be called
    twice for one server at a time.

    ``books`` are the source's record: nothing of the source is changed before its servers are in
    it. ``last`` tells the commit that was enforced last where there is no record, ``sees`` whether
    the view holds a namespace, ``former`` from which other source id a server is to be moved.
    ``leads`` is asked right before each write, with True for a server that kubectl made.
    """

    def __init__(
        self,
        kube: Kube,
        view: View,
        wishes: SyncOptions,
        *,
        leads: Callable[[bool], bool],
        wake: Callable[..., None],
        listeners: Sequence[Listener] = (),
        adopted: Callable[[Source], None] = lambda _: None,
        settled: Callable[[Source], None] = lambda _: None,
        complete: Callable[[], bool] = lambda: True,
        books: Books | None = None,
        last: Callable[[], str] = lambda: "",
        sees: Callable[[str], bool] = lambda _: True,
        former: Callable[[ServerKey], Former | None] = lambda _: None,
        dry_run: bool = True,
        ask: Ask = probes.ask,
        warn: Callable[[str], None] = lambda _: None,
        bug: Callable[[ServerKey, Exception], None] = log_bug,
        clock: Callable[[], datetime] = times.utc_now,
        rng: random.Random | None = None,
    ) -> None:
        self._kube = kube
        self._view = view
        self._wishes = wishes
        self._leads = leads
        self._wake = wake
        self._listeners = listeners
        self.transitions = Transitions(clock=clock)
        self._adopted = adopted
        self._settled = settled
        self._complete = complete
        self._books = books or Books(None, clock=clock)
        self._last = last
        self._sees = sees
        self._former = former
        self._dry_run = dry_run
        self._ahead: Source | None = None
        """What the source's record holds the servers of."""
        self._owed: Source | None = None
        """What was looked at to its end, and is not recorded as enforced."""
        self._asked = _NEVER
        """When the record was last asked for in vain."""
        self._trouble = self._left_over = ""
        self._ask = ask
        self._warn = warn
        self._bug = bug
        self._clock = clock
        self._rng = rng
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._guard: PruneGuard | None = None
        self._context: Context | None = None
        self._rollout: Rollout | None = None
        self._adopting = threading.Lock()
        self._recording = threading.Lock()
        self._open: set[ServerKey] = set()
        """Servers of the adopted commit that have not been looked at since."""
        self._aimed: Source | None = None
        """What looks that begin now are for: ``source``, once it is adopted to the end."""
        self.synced = ""
        """The last commit that every server was looked at for."""
        self.source: Source | None = None
        """What is enforced; None before the first commit."""

    # --- what happens ---

    def adopt(self, source: Source) -> None:
        """Aim at another commit, and wake the servers that it changes. Raises what ``aim`` does."""
        self._wake(*sorted(self.aim(source)))
        self._looked(None, source)
        self._enforced(None)

    def aim(self, source: Source) -> set[ServerKey]:
        """Work towards another commit from now on; returns the servers that it changes. Raises
        UsageError where a template is wrong, KubeError where the record of a leader cannot be
        written: then nothing has changed."""
        _ = source.renderer
        if self._leads(False) and self._books.is_open and not self._wishes.check:
            self._write_ahead(source)
        self._adopted(source)
        with self._adopting:
            former, self.source = self.source, source
            context = self._context = source.context(self._wishes)
            released = self._guard.held if self._guard is not None else frozenset()
            changed = self._changed(former, source) if former is not None else self.servers()
            before = self._rollout
            if before is not None:
                changed |= before.waiting | before.not_ready
            changed = {*changed, *released, *self._take(source, context, changed, after=before)}
            with self._lock:
                self._aimed = self._owed = source
                self._open = set(filter(self.concerns, self._open | changed))
                return set(self._open)

    def _take(
        self,
        source: Source,
        context: Context,
        keys: Collection[ServerKey],
        *,
        after: Rollout | None = None,
    ) -> set[ServerKey]:
        """Put together what is worked towards: the guard, the rollout over ``keys``, the target.
        Returns the servers whose failures are worth another try for it."""
        guard = self._guard = PruneGuard(
            self._view,
            context,
            source.loaded,
            self._books,
            selects=partial(source.is_about, wishes=self._wishes),
            allowed=partial(self._allowance, source),
            unknown=partial(source.astray, self._books),
            strangers=partial(source.is_strangers, books=self._books, view=self._view),
        )
        self._rollout = self._batches(source, context, keys, after=after)
        aim = DesiredState(
            source.loaded,
            source.renderer,
            context,
            prune=guard.prune,
            recreate=guard.recreate,
            strange=guard.strange,
            former=self._former,
            rollout=self._rollout,
        )
        if self._engine is not None:
            return self._engine.aim(aim)
        self._engine = Engine(
            self._kube,
            self._view,
            aim,
            check=self._wishes.check,
            dry_run=self._dry_run,
            may_write=self._leads,
            ask=self._ask,
            cleanup=self._wishes.hooks,
            wake=self._wake,
            complete=self._complete,
            bug=self._bug,
            clock=self._clock,
            rng=self._rng,
        )
        return set()

    @property
    def engine(self) -> Engine:
        """What works on the servers. Only once a commit was adopted."""
        engine = self._engine
        assert engine is not None  # noqa: S101 -- whoever asks has adopted a commit
        return engine

    @property
    def rollout(self) -> Rollout | None:
        """The batches of the commit; None in check mode."""
        return self._rollout

    def lead(self) -> None:
        """We lead now, or lead more: go on in the batches that the cluster tells, as whoever led
        before us may have come further than we heard. They have told of what went: the end of a
        server whose prune we had begun ourselves is no news. Then all are to be looked at."""
        with self._adopting:
            # Whoever led since wrote the record, and released what the guard held.
            self._books.close()
            self._ahead, self._asked = None, _NEVER
            source, context, engine = self.source, self._context, self._engine
            if source is None or context is None or engine is None:
                return
            self._owed = source
            self._take(source, context, self.servers())
            for key in set(engine.known()) - self.servers():
                if self._view.resource(key) is None:
                    engine.forget(key)

    def _batches(
        self,
        source: Source,
        context: Context,
        keys: Collection[ServerKey],
        *,
        after: Rollout | None,
    ) -> Rollout | None:
        """The rollout over ``keys``, without those of kubectl that somebody else leads: nothing
        would ever be heard of them. Of our own a stand-by knows what it would wait for."""
        if self._wishes.check:
            return None
        led = self._leads(True)
        keys = {key for key in keys if led or not self._is_kubectls(key, source)}
        now = self._clock()
        return source.rollout(self._view, keys, context, self._wishes, now=now, after=after)

    def _changed(self, former: Source, source: Source) -> set[ServerKey]:
        """The servers that the step from one commit to the other is about."""
        old, new = former.loaded, source.loaded
        if (
            former.renderer.digest != source.renderer.digest
            or old.unknown != new.unknown
            or former.path != source.path  # what lies outside of it is not ours to prune
        ):
            return self.servers()
        return set(manifests.changed(old, new))

    def _allowance(self, source: Source, count: int, under_way: int) -> pruning.Allowance | None:
        record = self._books.record
        return source.allowance(
            count,
            under_way,
            given=self._wishes.allow_prune,
            since=record.spent or record.commit,
            warn=self._warn,
        )

    def servers(self) -> set[ServerKey]:
        """Every server that is ours to look at: those of git, and those in the cluster."""
        source, context = self.source, self._context
        if source is None or context is None:
            return set()
        return source.servers(self._view, context, self._wishes)

    def concerns(self, key: ServerKey) -> bool:
        """Is the server ours to look at?"""
        source, context = self.source, self._context
        if source is None or context is None:
            return False
        return source.concerns(key, self._view.resource(key), context, self._wishes)

    def look_at_all(self) -> None:
        """Look at every server again, to check that nothing was missed. Also at those that went
        while somebody else led: they are still to be forgotten."""
        with self._lock:
            left = set(self._open)
        known = self._engine.known() if self._engine is not None else ()
        self._wake(*sorted(self.servers().union(left, known)))

    def set_back(self) -> None:
        """The clock was set back: nothing is remembered as of later than now. The timers that stand
        are for a look at all."""
        self.transitions.set_back()
        if self._engine is not None:
            self._engine.set_back()

    # --- the work ---

    def look(self, key: ServerKey) -> Look:
        """Take one server as far as it goes now, and tell the listeners what it came to. An
        unexpected error is that server's alone."""
        try:
            return self._look(key)
        except Exception as error:
            if self._engine is None:
                raise
            self._engine.stumbled(key, error)
            failure = self._engine.memory(key).failure
            return Look(failure.retry_at if failure else None)

    def _look(self, key: ServerKey) -> Look:
        aimed = self._aimed  # first: what is adopted after this was not looked at
        engine, source = self._engine, self.source
        if engine is None or source is None:
            return Look()
        kubectls = self._is_kubectls(key, source)
        if not self.concerns(key) and not engine.knows(key):
            self._looked(key, aimed)
            return Look() if self._enforced(key) else Look(self._clock() + RECORD_RETRY)
        if not self._leads(kubectls):
            if kubectls:  # somebody else's, who may lead these for ever
                self._looked(key, aimed)
            return Look()  # all are looked at once we lead
        if not kubectls and not self._is_recorded(source):
            return Look(self._clock() + RECORD_RETRY)
        began = self._clock()
        server, cr = source.loaded.servers.get(key), self._view.live(key).cr
        applied = ownership.is_applied(server, cr) or engine.contested(key)
        drift = key not in self._open and applied
        scaled = drift and ownership.is_scaled(server, cr)
        try:
            decision = engine.work(key)
        except LeaseLost:
            return Look()
        except Exception as error:  # told like any failure
            decision = engine.stumbled(key, error)
        failure = engine.memory(key).failure
        self._tell(engine, key, decision, began, drift=drift, scaled=scaled)
        if not self.concerns(key):
            engine.forget(key)
        self._looked(key, aimed)
        later = None if self._enforced(key) else self._clock() + RECORD_RETRY
        due = filter(None, (decision.look_again, failure.retry_at if failure else None, later))
        return Look(min(due, default=None), decision.inquiry)

    def ask(self, key: ServerKey, inquiry: Probe) -> None:
        """Have an inquiry about a server answered; it is worth a look after that. Who has stopped
        to lead asks nothing: the hooks of a cleanup are called by whoever leads now."""
        engine, source = self._engine, self.source
        if engine is None or source is None or not self._leads(self._is_kubectls(key, source)):
            return
        try:
            engine.ask(key, inquiry)
        except Exception as error:  # as in ``look``
            engine.stumbled(key, error)

    def _is_kubectls(self, key: ServerKey, source: Source) -> bool:
        cr = self._view.resource(key)
        held = key in source.loaded.servers or key in source.loaded.protected
        return not held and cr is not None and ownership.is_manual(cr, source.source_id)

    def _tell(
        self,
        engine: Engine,
        key: ServerKey,
        decision: Decision,
        began: datetime,
        *,
        drift: bool,
        scaled: bool,
    ) -> None:
        cr = self._view.live(key).cr
        outcome = engine.outcome(key)
        if cr and decision.result == "pruned":
            # It is told once it has gone.
            outcome = replace(outcome, result="ok", changes=(), message=decision.waiting)
        else:
            engine.told(key)
        status = objects.status(cr)
        worked = ReconcileResult(
            server=key,
            outcome=outcome,
            revision=engine.revision,
            commit=objects.text(status, "source", "revision"),
            uid=objects.uid(cr),
            at=self._clock(),
            seconds=(self._clock() - began).total_seconds(),
            status=status,
            failure=engine.memory(key).failure,
            drift=drift,
            scaled=scaled,
        )
        transition = self.transitions.to(worked)
        for listener in self._listeners:
            try:
                listener(transition)
            except Exception:  # what only tells must not stop what works
                _log.exception("%s: a bug of %s", key, listener)

    def _looked(self, key: ServerKey | None, source: Source | None) -> None:
        """A server was looked at for ``source``. Say so, once, when that was the last one."""
        with self._lock:
            if source is None or self._aimed is not source:
                return  # it has still to be looked at for a newer commit
            if key is not None:
                self._open.discard(key)
            if self._open or self.synced == str(source.snapshot.revision):
                return
            self.synced = str(source.snapshot.revision)
        self._settled(source)

    # --- the record ---

    def _is_recorded(self, source: Source) -> bool:
        """May servers of the source be changed: is its record known, and does it hold them?"""
        if self._ahead is source and self._books.is_open:
            return True
        with self._recording:
            now = self._clock()
            if self._ahead is source and self._books.is_open:
                return True
            if self._asked <= now < self._asked + RECORD_RETRY:
                return False
            try:
                self._books.open(
                    source.identity,
                    revision=self._last(),
                    live=partial(source.ours, self._view),
                )
                self._write_ahead(source)
            except GitOpsError as error:
                self._asked = now
                self._tell_trouble(error)
                return False
            self._trouble = ""
            return True

    def _write_ahead(self, source: Source) -> None:
        self._books.ahead(source.held(self._books, self._view, self._wishes))
        self._ahead = source

    def _enforced(self, key: ServerKey | None) -> bool:
        """Record that the commit is enforced to its end, once it is; False: that failed."""
        guard = self._guard
        with self._lock:
            if self._owed is None and guard is not None and guard.recreated:
                self._owed = self._aimed  # what was recreated since counts until this is recorded
            source = self._owed
            ended = source is not None and source is self._aimed and not self._open
        if source is None or guard is None or not ended or not self._leads(False):
            return True
        if not self._books.is_open or self._ahead is not source:
            return True
        if guard.held and key not in guard.held:
            return True
        try:
            left_over = source.left_over(self._books, self._view)
            if not self._record(source, guard):
                return True
        except GitOpsError as error:
            self._tell_trouble(error)
            return False
        with self._lock:
            if self._owed is source:
                self._owed = None
        self._trouble = ""
        if left_over not in ("", self._left_over):
            self._warn(left_over)
        self._left_over = left_over
        return True

    def record(self) -> None:
        """Record that the commit is enforced to its end, unless something is held back. Raises
        GitOpsError."""
        if self.source is not None and self._guard is not None:
            self._record(self.source, self._guard)

    def _record(self, source: Source, guard: PruneGuard) -> bool:
        if guard.holds_back():
            return False
        source.enforced(
            self._books, self._view, self._wishes, sees=self._sees, pending=guard.pending()
        )
        return True

    @property
    def trouble(self) -> str:
        """Why nothing of the source is changed: its record cannot be read or written, or belongs to
        another repository; "" if it can."""
        return self._trouble

    def _tell_trouble(self, error: GitOpsError) -> None:
        text = f"{error.message}; {error.hint}" if error.hint else error.message
        if self._trouble != text and not isinstance(error, LeaseLost):
            self._trouble = text
            self._warn(f"the source's record: {text}")
