"""The agent: the line kept alive by a scheduler, watches and timers, until it is told to end.

Puts the rooms together that live as long as the process: the view and its watches, the controller
and its workers, leadership, the periodic jobs and the HTTP endpoints. What is to be done about a
server is decided elsewhere.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta

from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.background import BackgroundScheduler

from gitops_mcp.agent import jobs, webhook
from gitops_mcp.agent.endpoints import Endpoints
from gitops_mcp.agent.gitreader import GitReader
from gitops_mcp.agent.journal import Journal
from gitops_mcp.agent.metrics import Gauges, Metrics
from gitops_mcp.agent.notes import FleetState
from gitops_mcp.agent.pace import (
    CATCH_UP,
    NOTES,
    POKES,
    SET_BACK,
    STATUS,
    STUCK,
    UNREAD,
    Pace,
    Periods,
    ahead,
)
from gitops_mcp.agent.process import LAST_NOTES, LAST_RELEASE, LAST_WORDS, LOOK, tried, unless
from gitops_mcp.agent.recorder import Recorder
from gitops_mcp.agent.webhook import Verdict
from gitops_mcp.base import masking, objects, times
from gitops_mcp.base.errors import GitOpsError, KindAbsent, KubeError, LeaseLost, Transient
from gitops_mcp.base.source import Problem
from gitops_mcp.cluster import leadership, sourceleases, watches
from gitops_mcp.cluster.kube import Cluster
from gitops_mcp.cluster.leadership import Leadership, Say
from gitops_mcp.cluster.view import View
from gitops_mcp.cluster.watches import Place, Versions, Watches
from gitops_mcp.decide import sourcestatus
from gitops_mcp.decide.books import Books
from gitops_mcp.decide.sourcestatus import SourceStatus, SourceWatch
from gitops_mcp.decide.transitions import Listener
from gitops_mcp.git.gitrepo import Repository
from gitops_mcp.source import manifests
from gitops_mcp.source.settings import SourceOptions
from gitops_mcp.sync import connecting, probes, survey
from gitops_mcp.sync.controller import Controller
from gitops_mcp.sync.fleet import Workers
from gitops_mcp.sync.permissions import Leads
from gitops_mcp.sync.reading import Source
from gitops_mcp.sync.syncoptions import SyncOptions

_log = logging.getLogger(__name__)

WORKERS = 16
"""Servers that are worked on at the same time: requests in flight."""


class Agent:
    """Runs the servers of one source, and those that kubectl made, as long as it leads."""

    def __init__(
        self,
        options: SourceOptions,
        repository: Repository,
        source: Source,
        cluster: Cluster,
        wishes: SyncOptions,
        *,
        cache: manifests.Cache,
        periods: Periods,
        take_over: bool = False,
        listen: str,
        webhook_secret: Callable[[], bytes] = lambda: b"",
        metrics: Metrics,
        warn: Say = lambda _: None,
        say: Say = lambda _: None,
        mended: Callable[[str, Collection[str]], None] = lambda *_: None,
        adopted: Callable[[str, Sequence[Problem]], None] = lambda *_: None,
        notes: str | None = None,
        recorded: bool = True,
        listeners: Sequence[Listener] = (),
    ) -> None:
        self._options = options
        self._repository = repository
        self._source = source
        self._cluster = cluster
        self._wishes = wishes
        self._periods = periods
        self._warn = warn
        self._adopted = adopted
        self._listen = listen
        self._webhook_secret = webhook_secret
        self._metrics = metrics
        self._heartbeat = time.monotonic()
        self._ahead = ahead()
        """Of the wall clock to the monotonic one, when we last looked."""
        self._journal = Journal(
            repository.notes(
                options.cluster, wanted=lambda: connecting.notes_wanted(cluster, notes)
            ),
            cluster=options.cluster,
            source=source.source_id,
            clock=times.utc_now,
            warn=warn,
            count=metrics.noted,
        )
        self._git = GitReader(
            options,
            repository,
            source_id=source.source_id,
            cache=cache,
            warn=warn,
            mended=mended,
        )
        self._view = View()
        self._sees: Callable[[str], bool] = lambda _: False
        self._watches: Watches | None = None
        self._ended = threading.Event()
        self._crash: BaseException | None = None
        self._begun = self._caught_up = 0
        """The term that we were told of, and that in which we know what whoever led before us had
        come to: nothing is written before that."""
        self._behind = 0
        """The term in which we know another commit than whoever led before us enforced; 0: none."""
        self._requested = ""
        """The last reconcile request for the source that was seen."""
        where = sourceleases.home(cluster, options.namespace)
        lease = leadership.source_lease(cluster, where, source.source_id, "agent")
        self._recorder = Recorder(
            cluster,
            instance=lease.identity,
            clock=times.utc_now,
            warn=warn,
            dropped=metrics.event_dropped,
        )
        self._leader = Leadership(
            lease,
            take_over=take_over,
            gained=self._lead,
            lost=self._stand_by,
            say=say,
        )
        # Who sees but a part of the cluster would keep whoever sees all of it from the rest.
        area = leadership.area_of(wishes.watch_namespace, options.limit)
        self._books: Books | None = None
        if recorded:
            self._books = connecting.books(
                cluster,
                source.source_id,
                where,
                area=area,
                take_over=take_over,
                may_write=lambda: self._leader.holds,
            )
        self._status = SourceWatch(clock=times.utc_now)
        self._described: SourceStatus | None = None
        """The status that Events have reported in this term."""
        if self._books is not None:
            self._books.status = lambda: self._status.status
        own, all_of_it = (
            leadership.source_lease(
                cluster, where, leadership.CLUSTER_SOURCE, "agent", area=narrowed
            )
            for narrowed in (area, "")
        )
        self._kubectls = Leadership(
            own,
            above=all_of_it if area else None,
            gained=lambda: self._hurry("check"),
            say=say,
        )
        self._workers = Workers(
            lambda key: self._controller.look(key),
            lambda key, inquiry: self._controller.ask(key, inquiry),
            clock=times.utc_now,
            workers=WORKERS,
            shared=True,
            broken_off=self._broken,
        )
        self._controller = Controller(
            cluster,
            self._view,
            wishes,
            leads=Leads(
                lambda: self._leader.holds and self._leader.term == self._caught_up,
                lambda: self._kubectls.holds,
            ),
            wake=self._workers.wake,
            listeners=(
                *listeners,
                metrics.worked,
                self._journal.heard,
                self._recorder.heard,
                lambda transition: self._status.heard(transition.worked),
            ),
            adopted=self._tell,
            settled=self._settled,
            complete=lambda: self._view.complete,
            ask=probes.asking(lambda: cluster.is_sandbox),
            books=self._books,
            last=lambda: self._leader.revision,
            sees=lambda namespace: self._sees(namespace),
            warn=warn,
        )
        self._pokes = Pace(POKES)
        self._scheduler = self._schedule()

    def run(self, ended: threading.Event) -> None:
        """Keep everything as git says, until ``ended`` is set. Raises GitOpsError where it cannot
        begin, and what a bug raises."""
        self._ended = ended
        with Endpoints(
            self._listen,
            alive=self._alive,
            ready=self._ready,
            metrics=self._metrics.text,
            webhook=self._on_webhook,
        ):
            versions = unless(self._ended, self._surveyed)
            if versions is not None:
                self._keep(versions)
        if self._crash is not None:
            raise self._crash

    def _keep(self, versions: Versions) -> None:
        self._sees = watches.covers(versions)
        self._watches = Watches(
            self._cluster, self._view, versions, heard=self._heard, crashed=self._workers.crash
        )
        self._metrics.enforces(self._source.source_id, self._options.cluster)
        self._metrics.read(self._gauges(self._watches))
        self._view.subscribe(self._workers.hear)
        self._watches.start()
        self._controller.adopt(self._source)
        work = threading.Thread(target=self._work, name="work", daemon=True)
        work.start()
        tell = threading.Thread(
            target=self._recorder.run, args=(self._ended,), name="events", daemon=True
        )
        tell.start()
        self._heartbeat = time.monotonic()
        self._scheduler.start()
        # A signal may come in on another thread, which does not wake this one.
        while not self._ended.wait(LOOK):
            self._mind_the_clock()
        self._end(work, tell)

    def _mind_the_clock(self) -> None:
        """Jobs and timers are for a time of day, as Kubernetes' own times are: where the clock is
        set back they would all wait for as long as that, leases and drains among them."""
        back, self._ahead = self._ahead - (now := ahead()), now
        if back <= SET_BACK:
            return
        self._warn(f"the clock was set back by {back:.0f} s: looking at everything again")
        for room in (self._controller, self._journal, self._recorder):
            room.set_back()
        for job in self._scheduler.get_jobs():  # the full check among them
            self._hurry(job.id)

    def _surveyed(self) -> Versions:
        """An API server that is only starting, or busy, is no reason to end; on somebody's own
        machine one that does not answer at all is."""

        def look() -> Versions:
            if self._books is not None:
                self._books.check(self._source.identity)
            return survey.survey(
                self._cluster, self._view, self._source, self._wishes, warn=self._warn
            )

        def passes(error: Exception) -> bool:
            if not isinstance(error, Transient) or isinstance(error, KindAbsent):
                return False
            if not (error.code or connecting.in_cluster()):
                return False
            self._warn(f"{error.message}; trying again")
            return True

        return tried(look, self._ended, passes)

    def _work(self) -> None:
        # What a bug raises is known by now; what else is under way ends with the process.
        with suppress(BaseException):
            self._workers.run(self._ended.is_set)

    def _broken(self, error: BaseException) -> None:
        """Nothing is to be relied on any more: end at once, with this error."""
        self._crash = self._crash or error
        self._ended.set()

    def _end(self, work: threading.Thread, tell: threading.Thread) -> None:
        """No new work; what runs may end; what was done is told; others may lead."""
        self._scheduler.shutdown(wait=False)
        with self._workers.changed:
            self._workers.changed.notify()
        if self._watches is not None:
            self._watches.stop()
        until = time.monotonic() + LAST_WORDS
        work.join(LAST_WORDS)
        notes = threading.Thread(target=self._journal.flush, kwargs={"last": True}, daemon=True)
        if self._leader.holds:
            notes.start()
            notes.join(max(until - time.monotonic(), LAST_NOTES))
        tell.join(max(until - time.monotonic(), 0.1))
        if work.is_alive():
            return  # what is still under way may be a write: the leases end by themselves
        leaders = (self._kubectls, self._leader)
        releases = [threading.Thread(target=one.release, daemon=True) for one in leaders]
        for each in releases:
            each.start()
        for each in releases:
            each.join(max(until + LAST_RELEASE - time.monotonic(), 0.1))

    # --- jobs ---

    def _schedule(self) -> BackgroundScheduler:
        now = times.utc_now()
        poll, check = self._periods.poll, self._periods.full_check
        every: dict[str, tuple[Callable[[], object], timedelta, datetime]] = {
            "poll": (self._poll, poll, now + poll),
            "check": (self._check, check, now + check),
            "notes": (self._journal.flush, NOTES, now + NOTES),
            "status": (self._describe, STATUS, now + STATUS),
            "lease": (self._renew, timedelta(seconds=sourceleases.STEP), now),
            "kubectl": (self._kubectls.step, timedelta(seconds=sourceleases.STEP), now),
        }
        return jobs.scheduler(
            {name: (self._guarded(job), period, at) for name, (job, period, at) in every.items()},
            again={"poll", "check"},
        )

    def _guarded(self, job: Callable[[], object]) -> Callable[[], None]:
        """A bug in a job ends the agent: half of one would be worse."""

        def run() -> None:
            try:
                job()
            except BaseException as error:
                self._broken(error)

        return run

    def poke(self) -> None:
        """Look at git now, or ``POKES`` seconds after the last look began; while it is looked at,
        once more after that."""
        wait = self._pokes.ask()
        if wait is not None:
            self._hurry("poll", timedelta(seconds=wait))

    def _hurry(self, job: str, within: timedelta = timedelta()) -> None:
        """Run a job now, or so soon; not, where the agent is ending already."""
        with suppress(JobLookupError):
            self._scheduler.modify_job(job, next_run_time=times.utc_now() + within)

    def _poll(self) -> None:
        """Look at git, and adopt what is new. What cannot be read leaves everything as it is."""
        began, behind, request = time.monotonic(), self._behind, self._leader.request
        self._pokes.begin()
        former = self._controller.source or self._source
        result, message = self._git.read(former, lambda new: self._controller.adopt(new))
        self._metrics.polled(result, time.monotonic() - began)
        self._status.read(message)
        if request:
            source = self._controller.source or self._source
            revision = str(source.snapshot.revision)
            if self._controller.trouble:  # then no commit is in force
                result, message = "failed", masking.scrub(self._controller.trouble)
                revision = ""
            self._leader.answer(request, result=result, revision=revision, message=message)
        if result == "failed":
            if self._behind and not self._pokes.asked:
                self._hurry("poll", CATCH_UP)
            return
        if behind == self._behind:  # else this look began before the term, and another one follows
            self._behind = 0
        if not self._behind:
            self._catch_up()

    def _tell(self, source: Source) -> None:
        """The commit is the one that is aimed at from now on."""
        revision, problems = str(source.snapshot.revision), source.loaded.problems
        self._adopted(revision, problems)
        self._metrics.adopted(revision, problems)
        self._journal.adopted(source.snapshot.revision, problems)
        self._status.adopted(revision, source.loaded)

    def _describe(self) -> None:
        """Write the source's status into its record. What cannot be written is tried again."""
        if self._books is None or not self._leader.holds:
            return
        try:
            self._books.describe()
        except GitOpsError as error:
            if not isinstance(error, LeaseLost):
                self._warn(f"the source's status cannot be written: {error.message}")
            return
        source = self._controller.source
        if self._books.is_open and source is not None:
            synced = str(source.snapshot.revision)
            if self._controller.synced == synced:  # before this term, it may be
                self._leader.revision = synced
        if self._books.is_open and self._books.object is not None:
            ref, uid = self._books.object
            found, now = self._books.found, self._books.record.status
            before = self._described or (found.status if found is not None else SourceStatus())
            self._described = now
            for one in sourcestatus.news(before, now):
                self._recorder.about(ref, uid, one.reason, one.message)

    def _settled(self, source: Source) -> None:
        if not self._controller.trouble:  # else nothing is enforced
            self._leader.revision = str(source.snapshot.revision)
        self._journal.settled(source.snapshot.revision)

    def _stand_by(self) -> None:
        if self._books is not None:
            self._books.close()  # whoever leads now writes the record
        self._journal.stand_by()
        self._controller.transitions.stand_by()

    def _lead(self) -> None:
        self._controller.transitions.begin()
        self._described = None
        self._journal.recover(self._standing)
        # What the last agent did not write is best found before much is done.
        self._hurry("notes")
        source, former = self._controller.source, self._leader.revision
        behind = former and source is not None and former != str(source.snapshot.revision)
        self._behind = self._leader.term if behind else 0
        if behind:
            self._warn(f"{former} was enforced last, which is not what was read here: asking git")
        self._begun = self._leader.term
        # Not here: who renews the lease must not wait for a look at the whole fleet.
        self._hurry("poll" if behind else "check")

    def _check(self) -> None:
        if self._begun != self._caught_up and not self._behind:
            self._catch_up()
        else:
            self._controller.look_at_all()

    def _catch_up(self) -> None:
        """We know what git says: enforce it, as far as it has come. An older commit would take back
        what was pushed since, and prune it: rather than that, the source's servers are left as they
        are until git answers."""
        begun = self._begun
        if begun == self._caught_up:
            return
        self._controller.lead()
        self._caught_up = begun
        self._controller.look_at_all()  # what was woken before that was not looked at

    def _standing(self) -> FleetState:
        source = self._controller.source or self._source
        loaded = source.loaded
        return FleetState(
            source.snapshot.revision,
            loaded.servers.keys() | loaded.protected,
            dict(self._view.resources()),
            lambda key: self._view.live(key).cr,
            lambda key: (
                self._wishes.watch_namespace in (None, key.namespace) and source.limit.selects(key)
            ),
        )

    def _renew(self) -> None:
        self._leader.troubled(masking.scrub(self._controller.trouble))
        self._leader.step()
        self._heartbeat = time.monotonic()
        if self._leader.holds and self._leader.request not in ("", self._requested):
            self._requested = self._leader.request
            self._repository.hurry()
            self.poke()

    def _heard(self, place: Place, error: KubeError | None) -> None:
        if error is not None:
            _log.warning("watch of %s: %s", place, error.message)

    # --- what is asked over HTTP ---

    def _alive(self) -> str:
        if self._crash is not None:
            return "a thread has died"
        silent = time.monotonic() - self._heartbeat if self._scheduler.running else 0.0
        return f"no job has run for {silent:.0f} s" if silent > STUCK else ""

    def _ready(self) -> str:
        watches = self._watches
        if watches is None or not watches.complete:
            return "the cluster is not seen whole"
        if not self._leader.asked:
            return "it is not known yet who leads"
        if self._leader.holds and self._controller.trouble:
            return f"nothing is enforced: the source's record: {self._controller.trouble}"
        if self._leader.holds and not self._controller.synced:
            return "not every server was looked at yet"
        if self._git.unread > max(UNREAD, 3 * self._periods.poll.total_seconds()):
            return f"git could not be read for {self._git.unread / 60:.0f} min"
        return ""

    def _on_webhook(self, headers: Mapping[str, str], body: bytes) -> int:
        verdict = webhook.verify(headers, body, self._webhook_secret())
        self._metrics.webhook(verdict.name)
        if verdict is Verdict.PUSH:
            self._repository.nudge()  # and no more: it may be replayed for ever
            self.poke()
        return verdict.value

    def _gauges(self, watches: Watches) -> Gauges:
        return Gauges(
            queue_depth=lambda: self._workers.waiting()[0],
            queue_oldest=lambda: self._workers.waiting()[1].total_seconds(),
            view_age=watches.age,
            phases=self._phases,
            results=self._controller.transitions.results,
            leads=lambda: {
                self._source.source_id: self._leader.holds,
                leadership.CLUSTER_SOURCE: self._kubectls.holds,
            },
        )

    def _phases(self) -> Counter[str]:
        crs = (cr for _, cr in self._view.resources())
        return Counter(objects.text(cr, "status", "phase") for cr in crs)
