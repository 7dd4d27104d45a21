"""The straight line: source → load → render → decide → execute → report, as the verbs run it.

Each verb is a prefix of it. Here the rooms are put together; what they do stands in them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from gitops_mcp.base import objects, times
from gitops_mcp.base.errors import GitOpsError, LeaseLost, Permanent, UsageError
from gitops_mcp.base.model import Context, Former, NoteRecord, Outcome, Progress, Report
from gitops_mcp.base.names import FINALIZER, GROUP, ObjectRef, ServerKey
from gitops_mcp.base.objects import LiveObject, Outline
from gitops_mcp.base.source import Problem
from gitops_mcp.base.wording import short_sha
from gitops_mcp.cluster import leadership, sourceleases
from gitops_mcp.cluster.leadership import Say
from gitops_mcp.decide import ownership, sourcestatus, status
from gitops_mcp.decide.books import Books
from gitops_mcp.decide.record import PREFIX
from gitops_mcp.source.settings import SourceOptions
from gitops_mcp.sync.permissions import MAKE_NAMESPACES, NEEDED, OPEN_GATES
from gitops_mcp.sync.reading import Source, applied_revision
from gitops_mcp.sync.survey import survey
from gitops_mcp.sync.syncoptions import SyncOptions

if TYPE_CHECKING:
    from gitops_mcp.cluster.kube import Cluster
    from gitops_mcp.cluster.view import View
    from gitops_mcp.sync.engine import Engine


# --- source, load, render -------------------------------------------------------------------


# --- one pass over a cluster ----------------------------------------------------------------


@dataclass(slots=True)
class Pass:
    """One pass of a source over a cluster."""

    source: Source
    cluster: Cluster
    options: SourceOptions
    wishes: SyncOptions
    warn: Say = lambda _: None
    progress: Callable[[Progress], None] = lambda _: None
    say: Say = lambda _: None
    may_write: Callable[[bool], bool] = lambda _: True
    """Asked right before each write, with True for a server that kubectl made."""
    ready: dict[ServerKey, str] = field(default_factory=dict)
    """Servers that turned Ready in this pass, each with the commit that brought what is Ready; "":
    the commit of this pass took away what was in the way."""
    foreseen: frozenset[str] = frozenset()
    """Namespaces that a check found missing, and went on as if they were made."""
    unready: dict[ServerKey, str] = field(default_factory=dict)
    """Servers that nothing went wrong with and that are not Ready, each with the reason."""
    _taken: dict[ServerKey, str] = field(default_factory=dict)
    """From whom servers are taken over, as it is told of each."""
    _bugs: set[tuple[str, str]] = field(default_factory=set)
    """The unexpected errors that were reported, each by its type and place."""
    books: Books | None = None
    """The source's record; None: it is not known, and begun from the cluster."""
    last: str = ""
    """The commit that was enforced last, as the Lease says, where there is no record yet."""
    unfinished: Report | None = None
    """What a pass had done that was interrupted, or lost its lease."""

    def run(self) -> Report:
        """Read the cluster, decide, act, report. Raises GitOpsError where it cannot be run."""
        from gitops_mcp.cluster import watches
        from gitops_mcp.cluster.view import View
        from gitops_mcp.cluster.watches import Watches
        from gitops_mcp.sync import fleet, probes
        from gitops_mcp.sync.controller import Controller

        view, check = View(), self.wishes.check
        versions = survey(self.cluster, view, self.source, self.wishes, warn=self.warn)
        context = self.source.context(self.wishes)
        keys = self.source.servers(view, context, self.wishes)
        self.source.limit.refuse_none(keys)
        if self.wishes.rights:
            self._ask_rights(view, keys)
        former = self._former(view, keys)
        books = self._opened(view)
        controller = Controller(
            self.cluster,
            view,
            self.wishes,
            leads=self.may_write,
            wake=lambda *woken: runner.wake(*woken),
            books=books,
            sees=watches.covers(versions),
            former=former.get,
            dry_run=not check or self._may_patch(keys),
            ask=probes.asking(lambda: self.cluster.is_sandbox),
            warn=self.warn,
            bug=self._bug,
        )
        try:
            controller.aim(self.source)
        except Permanent as error:
            raise _unkept(error) from error
        engine = controller.engine
        self._taken = self._tell_taken(books, view, keys, former)
        before = {key for key, cr in view.resources() if _is_ready(cr)}
        refused = {key for key in keys - before if _is_refused(view.live(key).cr)}
        self._warn_of_finalizers(view, keys)
        if left_over := self.source.left_over(books, view):
            self.warn(left_over)
        watching = Watches(self.cluster, view, versions)
        runner = fleet.Fleet(
            engine,
            clock=times.utc_now,
            watches=None if check else watching,
            rollout=controller.rollout,
            progress=self.progress,
        )
        view.subscribe(runner.hear)
        within = self.wishes.ready_within
        patience = fleet.Patience(times.utc_now() + within if within is not None else None)
        try:
            runner.run(keys, patience)
        except BaseException:
            self.unfinished = self._report(engine, engine.finished(keys))
            raise
        finally:
            watching.stop()
            view.subscribe(lambda _: None)  # else each holds the other until a collection
        if engine.refused_dry_runs:
            self.warn(
                "without the right to sync mcpservers the comparison is local, not a dry-run: an "
                "admission policy refuses it"
            )
        report = self._report(engine, keys)
        self.foreseen = frozenset(engine.foreseen)
        if not check:
            try:
                self._describe(books, report, view)
                controller.record()
                books.describe()
            except GitOpsError as error:
                self.warn(f"the source record could not be written: {error.message}")
        if self.wishes.foreign:
            report = self._with_foreign(report, engine, context)
        with contextlib.suppress(GitOpsError):  # the pass is over: a hint is no reason to fail
            self._tell_left(former, view, sees=watches.covers(versions))
        self.ready = {
            outcome.server: (
                "" if outcome.server in refused else applied_revision(view.resource(outcome.server))
            )
            for outcome in report.outcomes
            if outcome.ready
            and outcome.result in ("ok", "changed")
            and outcome.server not in before
        }
        self.unready = {
            outcome.server: engine.memory(outcome.server).decision.waiting
            for outcome in report.outcomes
            if outcome.ready is False and outcome.result in ("ok", "changed")
        }
        return report

    def _describe(self, books: Books, report: Report, view: View) -> None:
        """Have the record say what the cluster lacks. A pass with a limit does not know all."""
        if self.source.limit.narrows:
            return
        state = sourcestatus.of_pass(
            report,
            invalid=self.source.loaded.protected,
            at=times.utc_now(),
            exists=lambda key: view.resource(key) is not None,
            before=books.record.status,
        )
        books.status = lambda: state

    def _bug(self, key: ServerKey, error: Exception) -> None:
        """An unexpected error of one server. Its traceback is written once, however many servers
        meet the same error."""
        from gitops_mcp.base.bugs import place_of, write_traceback

        kind = type(error).__name__, place_of(error)
        if kind not in self._bugs:
            self._bugs.add(kind)
            self.warn(
                f"{key}: unexpected {kind[0]} in {kind[1]}; "
                f"this is a bug, please report it with {write_traceback(error)}"
            )

    def _opened(self, view: View) -> Books:
        """The source's record, read. Raises UsageError where another repository has this id."""
        source, books = self.source, self.books or Books(None, clock=times.utc_now)
        live = partial(source.ours, view)
        try:
            books.open(source.identity, revision=self.last, live=live)
        except Permanent as error:
            if not self.wishes.check:
                raise _unkept(error) from error
            self.warn(f"{error.message}: what the prune guard would hold is a guess")
            books = Books(None, clock=times.utc_now)
            books.open(source.identity, revision=self.last, live=live)
        return books

    def _former(self, view: View, keys: Collection[ServerKey]) -> dict[ServerKey, Former]:
        """The servers that bear another source id of this repository, where they are to be moved.
        Raises LeaseLost while that id's agent is alive, UsageError where its record is no help."""
        if not self.wishes.move:
            return {}
        held = self.source.loaded.servers
        ids = {key: self.source.former_id(key, view) for key in keys if key in held}
        found: dict[ServerKey, Former] = {}
        for source_id in sorted(filter(None, set(ids.values()))):
            theirs = {key for key, each in ids.items() if each == source_id}
            areas = sorted({leadership.area_of(key.namespace) for key in theirs})
            try:
                records = sourceleases.find_records(self.cluster, source_id, areas=areas)
            except Permanent as error:
                raise UsageError(
                    f"it is not known whether source {source_id!r} is another repository's by now: "
                    f"{error.message}",
                    hint=f"permission to get its record, the ConfigMap {PREFIX}{source_id}, tells",
                ) from error
            others = {
                ref: record
                for ref, record in records.items()
                if not record.fingerprint.agrees(self.source.identity.fingerprint)
            }
            for key in theirs:
                holders = (
                    f"{record.fingerprint}, as {ref} in namespace {ref.namespace} says"
                    for ref, record in others.items()
                    if key in record.servers
                )
                found[key] = Former(source_id, next(holders, ""))
            if moved := {key for key in theirs if not found[key].holder}:
                self._refuse_living(source_id, moved)
        return found

    def _refuse_living(self, source_id: str, moved: Collection[ServerKey]) -> None:
        """Raises LeaseLost while somebody else writes for the source id that servers move from."""
        leases = sourceleases.find_leases(self.cluster, source_id)
        places = {key.namespace for key in moved}
        covering = (
            lease
            for lease in leases.seen
            if any(sourceleases.covers(lease["metadata"]["name"], source_id, one) for one in places)
        )
        living = sourceleases.living(self.cluster, covering)
        if living is not None:
            ref, holder = living
            message = (
                f"{len(moved)} server(s) cannot be moved from source {source_id!r} while {holder} "
                f"holds lease {ref.namespace}/{ref.name}"
            )
            hint = "stop it first, or start it with another --source-id"
            if not self.wishes.check:
                raise LeaseLost(message, hint=hint)
            self.warn(f"{message}; {hint}")
        elif not leases.everywhere:
            self.warn(
                "no permission to list leases: an agent of source "
                f"{source_id!r}, or its record, may not have been seen"
            )

    def _tell_taken(
        self,
        books: Books,
        view: View,
        keys: Collection[ServerKey],
        former: Mapping[ServerKey, Former],
    ) -> dict[ServerKey, str]:
        """From whom each server is taken over; says so of the source id itself."""
        taken = {key: f"moved from source {one.source!r}" for key, one in former.items()}
        if not self.wishes.move:
            return taken
        source, stored = self.source, books.found
        would = "would be" if self.wishes.check else "was"
        mine = source.identity
        other = stored is not None and not stored.fingerprint.agrees(mine.fingerprint)
        if stored is not None and other:
            last = f", which enforced {short_sha(stored.commit)} last" if stored.commit else ""
            self.say(
                f"source id {mine.source!r} {would} taken over from another repository: "
                f"{stored.fingerprint}{last}"
            )
        if stored is not None and stored.cluster != mine.cluster:
            self.say(f"cluster {stored.cluster} {would} renamed to {mine.cluster}")
        for key in keys:
            unknown = other or stored is None or key not in stored.servers
            if unknown and key in source.loaded.servers and source.is_others(key, view):
                commit = short_sha(applied_revision(view.resource(key)))
                taken[key] = f"taken over from another repository, applied from commit {commit}"
        return taken

    def _with_taken(self, outcome: Outcome) -> Outcome:
        """What is said of a server names whom it was taken from."""
        if outcome.server not in self._taken or outcome.result not in ("ok", "changed"):
            return outcome
        told = filter(None, (self._taken[outcome.server], outcome.message))
        return replace(outcome, message="; ".join(told))

    def _tell_left(
        self, former: Mapping[ServerKey, Former], view: View, *, sees: Callable[[str], bool]
    ) -> None:
        """Say which source ids of this repository have no server any more, and what is left of
        them."""
        mine = self.source.identity.fingerprint
        labels = {sourceleases.source_of(cr) for _, cr in view.resources()}
        for source_id in sorted({one.source for one in former.values()} - labels):
            for ref, record in sourceleases.find_records(self.cluster, source_id).items():
                seen = all(sees(key.namespace) for key in record.servers)
                if seen and record.fingerprint.agrees(mine):
                    self.say(
                        f"source {source_id!r} has no servers any more; to forget it: kubectl "
                        f"delete configmap,lease -n {ref.namespace} {ref.name} --ignore-not-found"
                    )

    def _ask_rights(self, view: View, keys: Collection[ServerKey]) -> None:
        """Refuse, in one line, a pass that would stop half-way for want of a right. Servers that
        kubectl made in namespaces of others are none of this source's business."""
        from concurrent.futures import ThreadPoolExecutor

        loaded, source = self.source.loaded, self.source.source_id
        mine = {*loaded.servers, *loaded.protected} | {
            key
            for key, cr in view.resources()
            if ownership.owner_of(cr, source) is ownership.Owner.OURS
        }
        mine &= set(keys)
        namespaces = sorted({key.namespace for key in mine})
        can = self.cluster.can
        if can("*", "*", "*", None):
            return
        gated = self.wishes.probes and any(
            objects.part(loaded.servers[key].spec, "health").get("gate")
            for key in mine & loaded.servers.keys()
        )
        needed = [*NEEDED, *([OPEN_GATES] if gated else [])]
        needed += MAKE_NAMESPACES if self.wishes.create_namespace else ()
        with ThreadPoolExecutor(len(needed)) as pool:
            mays = pool.map(lambda right: can(*right), needed)
            refused = [r for r, may in zip(needed, mays, strict=True) if not may]
            makes = not set(refused).isdisjoint(MAKE_NAMESPACES)
            absent = [name for name in namespaces if makes and self._is_absent(name)]
            places = [
                (right, name)
                for right in refused
                for name in (absent if right in MAKE_NAMESPACES else namespaces)
            ]
            answers = pool.map(lambda place: can(*place[0]._replace(namespace=place[1])), places)
            missing = [place for place, may in zip(places, answers, strict=True) if not may]
        if missing:
            listed = ", ".join(f"{right} in namespace {name}" for right, name in missing[:8])
            more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
            raise UsageError(
                f"missing rights: {listed}{more}",
                hint="kubectl auth can-i --list shows what you may; gitops-mcp install prints a "
                "fitting role",
            )

    def _is_absent(self, namespace: str) -> bool:
        try:
            return self.cluster.get(ObjectRef("v1", "Namespace", "", namespace)) is None
        except Permanent:
            return False  # who may not look makes none

    def _warn_of_finalizers(self, view: View, keys: Collection[ServerKey]) -> None:
        """A finalizer that nobody answers makes kubectl delete wait."""
        if self.wishes.check or self.wishes.finalizer:
            return
        bearing = [
            key
            for key, cr in view.resources()
            if key in keys and FINALIZER in objects.finalizers(cr)
        ]
        if bearing:
            self.warn(
                f"{len(bearing)} server(s) bear the agent's finalizer: deleting them by hand waits "
                "for an agent of this source, or for its next sync"
            )

    def _may_patch(self, keys: Collection[ServerKey]) -> bool:
        """May dry-runs be asked for? Without that right the comparison is local, and says so."""
        if self.cluster.can("patch", GROUP, "mcpservers", None):
            return True
        namespaces = {key.namespace for key in keys}
        if all(self.cluster.can("patch", GROUP, "mcpservers", name) for name in namespaces):
            return True
        self.warn("without the right to patch mcpservers the comparison is local, not a dry-run")
        return False

    def _with_foreign(self, report: Report, engine: Engine, context: Context) -> Report:
        def told(outcome: Outcome) -> Outcome:
            try:
                facts = engine.facts(outcome.server)
                found = ownership.foreign(facts, context, self.source.renderer)
            except Exception as error:
                engine.stumbled(outcome.server, error)
                return engine.outcome(outcome.server)
            return replace(outcome, foreign=tuple(found))

        return replace(report, outcomes=tuple(map(told, report.outcomes)))

    def homeless(self) -> Iterator[Problem]:
        """A warning for each namespace that is missing, at the first server that is to be in it."""
        for namespace in sorted(self.foreseen):
            server = next(
                one
                for key, one in sorted(self.source.loaded.servers.items())
                if key.namespace == namespace
            )
            yield Problem(
                server.file,
                server.line,
                1,
                str(server.key),
                "/metadata/namespace",
                f'namespace "{namespace}" not found: create it, or sync with --create-namespace',
                "warning",
            )

    def _report(self, engine: Engine, keys: Collection[ServerKey]) -> Report:
        outcomes = [self._with_taken(engine.outcome(key)) for key in sorted(keys)]
        return Report(
            revision=self.source.snapshot.revision,
            cluster=self.options.cluster,
            check=self.wishes.check,
            outcomes=tuple(one for one in outcomes if not one.elsewhere),
            problems=self.source.loaded.problems,
        )


def _unkept(error: Permanent) -> UsageError:
    return UsageError(
        f"the source record cannot be kept: {error.message}",
        hint="get, create and patch of that ConfigMap are needed; gitops-mcp install, "
        "with the same --source-id, prints a fitting role",
    )


def _is_ready(cr: Outline) -> bool:
    return status.is_ready(objects.status(cr))


def _is_refused(cr: LiveObject | None) -> bool:
    return cr is not None and status.refused(objects.status(cr))


# --- notes ----------------------------------------------------------------------------------


def write_notes(
    source: Source, records: Iterable[NoteRecord], *, cluster: str, push: bool, warn: Say
) -> None:
    """Append what happened to the commits' notes; trouble is a warning, never a stop."""
    revision = source.snapshot.revision
    if not revision.sha or revision.dirty:
        return
    for warning in source.repository.notes(cluster).append(list(records), push=push):
        warn(warning)
