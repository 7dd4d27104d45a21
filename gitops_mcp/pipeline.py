"""The straight line: source → load → render → decide → execute → report, as the verbs run it.

Each verb is a prefix of it. Here the rooms are put together; what they do stands in them.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

from gitops_mcp import (
    diffing,
    gitrepo,
    leadership,
    manifests,
    planning,
    serverschema,
    settings,
    sourcestatus,
    status,
)
from gitops_mcp.errors import GitOpsError, KindAbsent, LeaseLost, Permanent, UsageError
from gitops_mcp.leadership import Say
from gitops_mcp.model import (
    ANNOTATION_PRUNE,
    API_VERSION,
    CRD_NAME,
    FINALIZER,
    GROUP,
    INSTALL_CRD,
    KIND,
    KUBECTL_MANAGERS,
    LABEL_SOURCE,
    Change,
    ChangeAction,
    Context,
    Facts,
    Former,
    JsonObject,
    Loaded,
    McpServer,
    NoteRecord,
    ObjectRef,
    Outcome,
    Problem,
    Progress,
    Report,
    Result,
    ServerKey,
    Snapshot,
)
from gitops_mcp.options import (
    SOURCE_KEYS,
    ConnectionOptions,
    SourceOptions,
    checked_defaults,
    checked_source_id,
    listed,
    parse_config,
)
from gitops_mcp.record import PREFIX, ROOTS, UNKNOWN, Books, Fingerprint, Identity, Store
from gitops_mcp.rollout import ALL, DEFAULT, Rollout, Serial

if TYPE_CHECKING:
    from gitops_mcp.engine import Engine
    from gitops_mcp.hooks import Hook
    from gitops_mcp.kube import Cluster, Observer
    from gitops_mcp.rendering import Renderer
    from gitops_mcp.view import View
    from gitops_mcp.watches import Versions


class Right(NamedTuple):
    """One permission, in the order of ``Cluster.can``; prints as ``patch mcpservers/status``."""

    verb: str
    group: str
    resource: str
    namespace: str | None = None
    subresource: str = ""

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}" + (f"/{self.subresource}" if self.subresource else "")


NEEDED = (
    *(
        Right(verb, group, resource)
        for group, resource in ((GROUP, "mcpservers"), ("apps", "deployments"), ("", "services"))
        for verb in ("get", "watch", "create", "patch", "delete")
    ),
    Right("patch", GROUP, "mcpservers", subresource="status"),
    Right("watch", "", "pods"),
)
"""What a pass may have to do in the namespaces of its servers, besides the lists that it begins
with."""
OPEN_GATES = Right("patch", "", "pods", subresource="status")
"""Besides, where a pod's readiness gate waits for our handshake."""
MAKE_NAMESPACES = (Right("create", "", "namespaces"), Right("patch", "", "namespaces"))
"""Besides, where a namespace is to be made: an apply of what is not there asks for both."""
OLDEST_KUBERNETES = (1, 30)
"""The first with a native preStop sleep switched on."""
COMMITS = 1024
"""Of how many commits git's answer is kept: servers name them, so they are not all ours."""


# --- source, load, render -------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """A source that was read: what it holds, and how to render it."""

    repository: gitrepo.Repository
    snapshot: Snapshot
    loaded: Loaded
    options: SourceOptions
    source_id: str
    path: str
    limit: Limit
    serial: Serial = DEFAULT
    """How many servers take a change at the same time, as far as the source may say."""
    lent: Renderer | None = field(default=None, compare=False, repr=False)
    named: bool = True
    """The source id comes from the operator, not from the source's own file."""

    @cached_property
    def identity(self) -> Identity:
        """Which repository this is, under which id, for which cluster. Raises SourceError."""
        roots = frozenset(self.repository.roots()[:ROOTS])
        fingerprint = Fingerprint(self.repository.address, roots)
        options = self.options
        return Identity(
            self.source_id, fingerprint, options.cluster, self.named, options.names_cluster
        )

    @cached_property
    def _knows(self) -> Callable[[str], bool]:
        """``Repository.knows``, asked once for each commit: git takes milliseconds to answer."""
        return lru_cache(COMMITS)(self.repository.knows)

    @cached_property
    def _may_hold(self) -> Callable[[str], bool]:
        return lru_cache(COMMITS)(self.repository.may_hold)

    @cached_property
    def renderer(self) -> Renderer:
        """Made when it is first needed: ``validate`` needs none. Or lent by the source before."""
        from gitops_mcp.rendering import Renderer

        return self.lent or Renderer(
            self.options.templates or settings.resource("templates"),
            source=self.source_id,
            domain=self.options.cluster_domain,
            variables=self.loaded.variables,
        )

    def refuse_doubts(self, warn: Say) -> None:
        """Raises UsageError where group_vars would be left out because nobody said which cluster it
        is, or because SOURCE lies below them. Warns as ``doubts`` does."""
        options = self.options
        if above := self._left_out():
            message, hint = above
            raise UsageError(message, hint=hint)
        known = manifests.clusters(self.snapshot.files, path=self.path)
        if known and not options.names_cluster and "default" not in known:
            names = ", ".join(sorted(known))
            raise UsageError(
                f"this source has group_vars for {names}, and no --cluster was given",
                hint="use --cluster NAME, or --cluster default to apply group_vars/all alone",
            )
        self.doubts(warn)

    def _left_out(self) -> tuple[str, str] | None:
        """What is wrong, and what helps, where group_vars lie above SOURCE and nobody said that
        they are to be left out."""
        folder = self.repository.group_vars_above()
        if not folder or (self.options.cluster_given and self.options.cluster == "default"):
            return None
        return (
            f"the group_vars of this repository are in {folder}, above SOURCE, and would not be "
            "read",
            f"use {folder} as SOURCE and --path for the folder below it; or --cluster default to "
            "leave them out",
        )

    def doubts(self, warn: Say) -> None:
        """Tell of group_vars that lie above SOURCE, and of a cluster without group_vars where
        others have theirs: a name may be misspelt."""
        if above := self._left_out():
            warn("; ".join(above))
        known = manifests.clusters(self.snapshot.files, path=self.path)
        cluster = self.options.cluster
        if known and cluster not in {*known, "default"}:
            names = ", ".join(sorted(known))
            warn(f"no group_vars for cluster {cluster!r}: there are some for {names}")

    def context(self, wishes: Wishes) -> Context:
        """What holds for every server."""
        managers = frozenset(listed(self.options.kubectl_managers))
        return Context(
            source=self.source_id,
            cluster=self.options.cluster,
            revision=self.snapshot.revision,
            path=self.path,
            domain=self.options.cluster_domain,
            finalizer=wishes.finalizer,
            create_namespace=wishes.create_namespace,
            policy=self.options.policy,
            probes=wishes.probes and not wishes.check,
            kubectl_managers=managers or KUBECTL_MANAGERS,
        )

    def concerns(
        self, key: ServerKey, cr: JsonObject | None, context: Context, wishes: Wishes
    ) -> bool:
        """Is the server, which git may hold and the cluster may have (``cr``), ours to look at?"""
        if not self.is_about(key, wishes):
            return False
        if key in self.loaded.servers or key in self.loaded.protected:
            return True
        if cr is None:
            return False
        owner = planning.owner_of(cr, context.source)
        if owner is planning.Owner.OURS:
            return planning.in_scope(cr, context)
        return owner is not planning.Owner.OTHER and wishes.kubectl

    def is_about(self, key: ServerKey, wishes: Wishes) -> bool:
        """Is the server within the run's limit and namespace?"""
        return wishes.watch_namespace in (None, key.namespace) and self.limit.selects(key)

    def held(self, books: Books, view: View, wishes: Wishes) -> dict[ServerKey, str]:
        """The servers that git holds and the run is about, with their files; without those of
        another repository under this id. Raises SourceError."""
        return {
            key: server.file
            for key, server in self.loaded.servers.items()
            if self.is_about(key, wishes) and not self.is_strangers(key, books, view)
        }

    def is_strangers(self, key: ServerKey, books: Books, view: View) -> bool:
        """Is the MCPServer another repository's under the same source id, though git holds one of
        its name here? The record of that one may be in another namespace, or of another area: the
        commit that was applied is not known here. Raises SourceError."""
        if books.takes_over or key in books.record.servers:
            return False
        return self.is_others(key, view)

    def is_others(self, key: ServerKey, view: View) -> bool:
        """Was the MCPServer, which bears this source id, applied from a commit of another
        repository? Raises SourceError."""
        cr = view.resource(key)
        if cr is None or planning.owner_of(cr, self.source_id) is not planning.Owner.OURS:
            return False
        return not self.may_hold(cr)

    def former_id(self, key: ServerKey, view: View) -> str:
        """The other source id under which a commit of this repository was applied to the MCPServer;
        "" where there is none. Raises SourceError."""
        cr = view.resource(key)
        if cr is None or planning.owner_of(cr, self.source_id) is not planning.Owner.OTHER:
            return ""
        known = self._knows(_revision(cr).removesuffix("-dirty"))
        return str(cr["metadata"]["labels"][LABEL_SOURCE]) if known else ""

    def may_hold(self, cr: JsonObject) -> bool:
        """May the commit that an MCPServer was applied from be this repository's? Raises
        SourceError."""
        return self._may_hold(_revision(cr).removesuffix("-dirty"))

    def enforced(
        self, books: Books, view: View, wishes: Wishes, *, sees: Callable[[str], bool]
    ) -> None:
        """Record that all that the run is about was carried out. ``sees``: does the view hold a
        namespace? With a limit that somebody gave for once, the commit is not enforced whole.
        Raises GitOpsError."""
        loaded, limit, path = self.loaded, self.limit, self.path

        def reaches(key: ServerKey, file: str) -> bool:
            return (
                self.is_about(key, wishes)
                and key not in loaded.protected
                and planning.within(file, path)
            )

        def remains(key: ServerKey) -> bool:
            known = key in loaded.servers or key in loaded.protected
            return known or view.resource(key) is not None or not sees(key.namespace)

        whole = wishes.lasting or not (limit.wanted or limit.unwanted)
        books.enforced(
            self.identity,
            self.held(books, view, wishes),
            revision=str(self.snapshot.revision) if whole else None,
            reaches=reaches,
            remains=remains,
        )

    def left_over(self, books: Books, view: View) -> str:
        """Names the servers of this source from outside of its path whose manifests git holds no
        longer: a folder was renamed together with the path. They are never pruned for it. "" where
        there is none. Raises SourceError."""
        if self.path.strip("/") in ("", "."):
            return ""
        files = {
            key: entry.file
            for key, entry in books.record.servers.items()
            if entry.file
            and not planning.within(entry.file, self.path)
            and key not in self.loaded.servers
            and key not in self.loaded.protected
            and (cr := view.resource(key)) is not None
            and planning.owner_of(cr, self.source_id) is planning.Owner.OURS
        }
        gone = {file for file in set(files.values()) if not self.repository.has_file(file)}
        left = sorted(key for key, file in files.items() if file in gone)
        if not left:
            return ""
        named = ", ".join(f"{key} ({files[key]})" for key in left[: planning.NAMED])
        more = f" and {len(left) - planning.NAMED} more" if len(left) > planning.NAMED else ""
        return (
            f"{len(left)} server(s) of this source came from outside of --path {self.path}, and "
            f"have no manifest there any more: {named}{more}; they are left as they are; a sync "
            "without --path prunes them"
        )

    def astray(self, books: Books) -> str:
        """Why it is not known what git held before: the commit that was enforced last is not here;
        "" where it is."""
        record = books.record
        if record.revision in UNKNOWN:
            return UNKNOWN[record.revision]
        if not record.commit or self.repository.remembers(record.commit):
            return ""
        at = f" at {record.at}" if record.at else ""
        return (
            f"commit {record.commit[:12]}, which was enforced last{at}, is not in this repository "
            "(a shallow clone needs its whole history: fetch-depth: 0; a force-push may have "
            "dropped it)"
        )

    def rollout(
        self,
        view: View,
        keys: Collection[ServerKey],
        context: Context,
        wishes: Wishes,
        *,
        now: datetime,
        after: Rollout | None = None,
    ) -> Rollout:
        """The batches in which ``keys`` get what this commit and these templates change; ``after``
        is the rollout that is overtaken, of which only ``keys`` count on."""
        serial = wishes.serial or self.serial
        rolling, rolled, under_way = set(), set(), False
        for key in keys if serial != ALL else ():
            live = view.live(key)
            facts = Facts(
                key,
                now,
                desired=self.loaded.servers.get(key),
                protected=key in self.loaded.protected,
                cr=live.cr,
                children=live.children,
            )
            if planning.rolls(facts, context, self.renderer):
                rolling.add(key)
                under_way = under_way or planning.waited(facts.cr or {})
            elif planning.rolled(facts, context):
                rolled.add(key)
        unwell = after.unwell.intersection(keys) if after is not None else frozenset()
        return Rollout(
            serial,
            context.revision,
            rolling,
            rolled,
            under_way=under_way,
            in_flight=unwell - after.failed if after is not None else (),
            unwell=unwell,
        )

    def allowance(
        self,
        count: int,
        under_way: int,
        *,
        given: planning.Allowance | None = None,
        since: str = "",
        warn: Say = lambda _: None,
    ) -> planning.Allowance | None:
        """How many prunes are allowed: what is ``given``, else the ``Allow-Prune`` of a commit that
        was not synced yet, the fitting one (``count``, or with those ``under_way``) or any.
        ``since`` is the commit that was synced last, where somebody knows better than the notes."""
        revision = self.snapshot.revision
        if given is not None or not revision.sha:
            return given
        last = since or self._synced(warn)
        if last == revision.sha:
            return None  # this commit was synced: what it allowed is spent
        commits = self.repository.commits_between(last, revision.sha)
        allowed = [
            planning.Allowance(commit.allow_prune, f"commit {commit.sha[:12]}", commit.sha)
            for commit in commits
            if commit.allow_prune is not None
        ]
        fitting = (one for one in allowed if one.count in (count, count + under_way))
        found = next(fitting, allowed[0] if allowed else None)
        vain = next((commit for commit in commits if commit.ignored), None)
        if vain is None:
            return found
        remark = (
            f"commit {vain.sha[:12]} says {vain.ignored[0]!r}, which does not count: it takes a "
            f"paragraph of trailers with one number, 'Allow-Prune: {count}'"
        )
        return replace(found or planning.Allowance(0, ""), remark=remark)

    def _synced(self, warn: Say) -> str:
        """The commit that was synced last, as the notes say."""
        notes = self.repository.notes(self.options.cluster)
        if warning := notes.fetch():  # who synced from elsewhere has spent its trailer too
            warn(warning)
        synced = (r for r in notes.read() if r.event == "synced" and r.source == self.source_id)
        return next((record.commit for record in synced), "")

    def selected(self) -> frozenset[ServerKey]:
        """The servers within the limit, broken ones among them. Raises UsageError where a limit
        leaves none."""
        known = {*self.loaded.servers, *self.loaded.protected}
        chosen = frozenset(filter(self.limit.selects, known))
        self.limit.refuse_none(chosen)
        return chosen

    def objects(self) -> Iterator[JsonObject]:
        """What ``render`` prints: each server's MCPServer, then its children."""
        self.selected()
        for _, bodies in sorted(self.rendered().items()):
            yield from bodies

    def rendered(self) -> dict[ServerKey, tuple[JsonObject, ...]]:
        """Every valid server's objects, as they would be created."""
        rendered = {}
        for key, server in self.loaded.servers.items():
            if self.limit.selects(key):
                body = self.renderer.custom_resource(server)
                children = self.renderer.children(serverschema.defaulted(body))
                rendered[key] = (body, *children)
        return rendered


@dataclass(frozen=True, slots=True)
class Limit:
    """Ansible's ``--limit``: globs on ``name`` or ``namespace/name``, ``!`` excludes."""

    wanted: tuple[str, ...] = ()
    unwanted: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Limit:
        """From the option's value; "" selects everything."""
        patterns = listed(text)
        unwanted = tuple(part[1:] for part in patterns if part.startswith("!"))
        return cls(tuple(part for part in patterns if not part.startswith("!")), unwanted)

    def selects(self, key: ServerKey) -> bool:
        """Is the server within the limit?"""
        wanted = not self.wanted or _matches(key, self.wanted)
        return wanted and not _matches(key, self.unwanted)

    def refuse_none(self, chosen: Collection[ServerKey]) -> None:
        """Raises UsageError where a limit leaves no server: it is a mistake in writing."""
        if (self.wanted or self.unwanted) and not chosen:
            raise UsageError("--limit matches no server", hint="globs match name or namespace/name")


def _matches(key: ServerKey, patterns: Collection[str]) -> bool:
    return any(
        fnmatch.fnmatchcase(str(key) if "/" in pattern else key.name, pattern)
        for pattern in patterns
    )


def open_repository(
    options: SourceOptions, *, committed: bool = False, history: bool = True
) -> gitrepo.Repository:
    """The repository of a source; nothing is read yet. ``committed``: of a directory only that.
    Without ``history``: of a URL only the commit that is read."""
    credentials = gitrepo.Credentials(
        username=options.git_username,
        password_file=options.git_password_file,
        ssh_key=options.git_ssh_key,
        known_hosts=options.git_known_hosts,
    )
    return gitrepo.open_source(
        options.location,
        ref=options.ref,
        branch=options.branch,
        committed=committed,
        credentials=credentials,
        history=history,
    )


def read(
    options: SourceOptions,
    repository: gitrepo.Repository,
    *,
    base: str | None = None,
    cache: manifests.Cache | None = None,
    former: Source | None = None,
) -> Source:
    """Load a source at its head (or at the merge base with ``base``), ready to render. ``former``,
    read before with the same ``cache``, lends its renderer, and all that this has rendered, where
    a new one would be its equal."""
    # The source's own file may narrow the path, so it is looked for before the path is known.
    given = options.path or ""
    snapshot = repository.base(base, given) if base else repository.snapshot(given)
    own = _own_config(snapshot)
    path = options.path if options.path is not None else own.get("path", "")
    if options.path is None and base is None:  # a change may mend what its base has wrong
        repository.check_own_path(snapshot, path)
    repository.notes(options.cluster)  # a name that git cannot hold is refused before any change
    source_id = options.source_id
    with _named_in_own_file():
        if source_id is None:
            source_id = checked_source_id(own.get("sourceId", "default"))
        defaults = checked_defaults({**own, **options.defaults})
        serial = Serial.parse(own["serial"]) if "serial" in own else DEFAULT
    named = options.source_id is not None or "sourceId" not in own
    loaded = manifests.load(
        snapshot.files,
        cluster=options.cluster,
        namespace=options.namespace or "default",
        path=path,
        policy=options.policy,
        defaults=defaults,
        skipped=snapshot.skipped,
        aside=snapshot.aside,
        cache=cache,
        read=repository.contents,
    )
    limit = Limit.parse(options.limit)
    lent = None
    if former is not None and options.templates is None:  # the operator's own may have changed
        theirs = (former.options, former.source_id, former.loaded.variables)
        if theirs == (options, source_id, loaded.variables):
            lent = former.renderer
    return Source(
        repository, snapshot, loaded, options, source_id, path, limit, serial, lent, named
    )


@contextlib.contextmanager
def _named_in_own_file() -> Iterator[None]:
    """What is wrong here is so in the source's own file: the message names it."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{gitrepo.CONFIG_FILE}: {error.message}", hint=error.hint) from error


def _own_config(snapshot: Snapshot) -> Mapping[str, Any]:
    for file in snapshot.files:
        if file.path == gitrepo.CONFIG_FILE and file.data is not None:
            own = parse_config(file.data, file.path, allowed=SOURCE_KEYS)
            for key in ("path", "sourceId", "serial"):
                if not isinstance(own.get(key, ""), str):
                    raise UsageError(f"{file.path}: {key}: expected one value")
            return own
    return {}


def merging(head: Source, base: Source, cluster: str) -> Report:
    """What merging ``head`` would change against ``base``: both sides rendered, no cluster. The
    base counts as enforced, and as all that is known of the cluster."""
    before, after = base.rendered(), head.rendered()
    broken = {key for key in head.loaded.protected if head.limit.selects(key)} - after.keys()
    head.limit.refuse_none(before.keys() | after.keys() | broken)
    removed = {
        key: base.loaded.servers[key]
        for key in before.keys() - after.keys() - broken
        if head.limit.selects(key)
    }
    kept = {
        key: outcome
        for key, server in removed.items()
        if (outcome := _kept(head, server)) is not None
    }
    held = _held_back(head, base, removed.keys() - kept.keys())
    outcomes = []
    for key in sorted({*removed, *after, *broken}):
        if key in broken:  # it removes nothing
            outcomes.append(Outcome(key, "failed", message=_mistake(head, key)))
        elif key in kept:
            outcomes.append(kept[key])
        elif key in held:
            outcomes.append(_blocked(key, held[key]))
        else:
            old, new = before.get(key, ()), after.get(key, ())
            if _is_suspended(base.loaded.servers.get(key), head.loaded.servers.get(key)):
                changes = tuple(_changes(key, old, _under_suspension(old, new)))
                outcomes.append(Outcome(key, "skipped", None, changes, _SUSPENDED))
                continue
            changes = tuple(_changes(key, old, new))
            outcomes.append(Outcome(key, _merged_result(key, after, changes), None, changes))
    return Report(head.snapshot.revision, cluster, True, tuple(outcomes), head.loaded.problems)


_SUSPENDED = "Suspended: suspended"


def _kept(head: Source, server: McpServer) -> Outcome | None:
    """Why a server that ``head`` does not hold would not be pruned, guard or not; as the planning
    of a pass says it, and in its order."""
    key = server.key
    if server.spec.get("suspend") is True:
        return Outcome(key, "skipped", message=_SUSPENDED)
    if not planning.within(server.file, head.path):
        return Outcome(key, "skipped", message=f"outside of {head.path}")
    if server.annotations.get(ANNOTATION_PRUNE) == "disabled":
        reason = f"{ANNOTATION_PRUNE}: disabled"
        change = Change("update", key, _resource(key), reason=reason)
        return Outcome(key, "changed", None, (change,), "left to kubectl")
    why = head.loaded.remains.keeps(server.file)
    return _blocked(key, why) if why else None


def _blocked(key: ServerKey, why: str) -> Outcome:
    change = Change("blocked", key, _resource(key), reason=f"PruneBlocked: {why}")
    return Outcome(key, "blocked", None, (change,), why)


def _resource(key: ServerKey) -> ObjectRef:
    return ObjectRef(API_VERSION, KIND, key.namespace, key.name)


def _is_suspended(old: McpServer | None, new: McpServer | None) -> bool:
    """Git's word where it has one, else what it said last: leaving it out resumes nothing."""
    said = (server.spec.get("suspend") for server in (new, old) if server is not None)
    return next((word for word in said if word is not None), False) is True


def _under_suspension(
    before: Sequence[JsonObject], after: Sequence[JsonObject]
) -> Sequence[JsonObject]:
    """What comes of ``after`` where the server is suspended: of a new one the MCPServer alone, else
    no more than the suspension."""
    if not before:
        return after[:1]
    resource, *children = before
    wanted = {key: word for key, word in after[0]["spec"].items() if key == "suspend"}
    return ({**resource, "spec": resource["spec"] | wanted}, *children)


def _held_back(head: Source, base: Source, down: Collection[ServerKey]) -> dict[ServerKey, str]:
    """The removals that the prune guard would hold where ``base`` is what was enforced last."""
    if down and head.loaded.unknown:
        return dict.fromkeys(down, "a manifest whose server cannot be told stops all pruning")
    guard = partial(
        planning.prune_guard,
        down,
        ours=len(base.loaded.servers),
        empty=not head.loaded.servers and not head.loaded.protected,
    )
    if not guard(allowed=None):
        return {}
    allowed = head.allowance(len(down), 0, since=base.snapshot.revision.sha)
    reason = guard(allowed=allowed)
    return dict.fromkeys(down, reason) if reason else {}


def _mistake(source: Source, key: ServerKey) -> str:
    """The first mistake of a server's manifest."""
    problems = source.loaded.problems
    return next(
        (one.message for one in problems if one.server == str(key) and one.severity == "error"), ""
    )


def _merged_result(
    key: ServerKey, after: Collection[ServerKey], changes: Collection[Change]
) -> Result:
    if key not in after:
        return "pruned"
    return "changed" if changes else "ok"


def _changes(
    key: ServerKey, before: Iterable[JsonObject], after: Iterable[JsonObject]
) -> Iterator[Change]:
    sides = ({ObjectRef.of(body): body for body in side} for side in (before, after))
    old, new = sides
    for ref in new | old:
        difference = diffing.between(old.get(ref), new.get(ref))
        if not difference.fields:
            continue
        action: ChangeAction = "update"
        if ref not in old or ref not in new:
            action = "create" if ref in new else "delete"
        yield Change(
            action,
            key,
            ref,
            fields=difference.fields,
            before=difference.before,
            after=difference.after,
        )


# --- one pass over a cluster ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wishes:
    """How a pass is made: the options of ``sync`` as values."""

    check: bool = False
    ready_within: timedelta | None = None
    create_namespace: bool = False
    allow_prune: planning.Allowance | None = None
    probes: bool = False
    finalizer: bool = False
    kubectl: bool = True
    """The servers that kubectl made are run, too."""
    hooks: tuple[Hook, ...] = ()
    foreign: bool = False
    """Name what other controllers added and keep."""
    rights: bool = False
    """Ask for every right that the pass may need, before any change."""
    watch_namespace: str | None = None
    """Nothing outside of this namespace is read or written."""
    serial: Serial | None = None
    """How many servers take a change at the same time; None: the source says."""
    move: bool = False
    """Servers that this repository brought under another source id become this one's."""
    lasting: bool = False
    """Each run has the same limit: what it selects is the whole source to the record."""


@dataclass(slots=True)
class Pass:
    """One pass of a source over a cluster."""

    source: Source
    cluster: Cluster
    options: SourceOptions
    wishes: Wishes
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
        from gitops_mcp import fleet, probes, watches
        from gitops_mcp.engine import Aim, Engine, utc_now
        from gitops_mcp.guard import PruneGuard
        from gitops_mcp.view import View
        from gitops_mcp.watches import Watches

        view = View()
        versions = survey(self.cluster, view, self.source, self.wishes, warn=self.warn)
        context = self.source.context(self.wishes)
        keys = self._keys(view, context)
        if self.wishes.rights:
            self._ask_rights(view, keys)
        former = self._former(view, keys)
        books = self._opened(view)
        self._taken = self._tell_taken(books, view, keys, former)
        before = {key for key, cr in view.resources() if _is_ready(cr)}
        refused = {key for key in keys - before if _is_refused(view.live(key).cr)}
        record = books.record
        guard = PruneGuard(
            view,
            context,
            self.source.loaded,
            books,
            selects=keys.__contains__,
            allowed=partial(
                self.source.allowance,
                given=self.wishes.allow_prune,
                since=record.spent or record.commit,
                warn=self.warn,
            ),
            unknown=partial(self.source.astray, books),
            strangers=partial(self.source.is_strangers, books=books, view=view),
        )
        self._warn_of_finalizers(view, keys)
        if left_over := self.source.left_over(books, view):
            self.warn(left_over)
        watching = Watches(self.cluster, view, versions)
        check = self.wishes.check
        batches = (
            None if check else self.source.rollout(view, keys, context, self.wishes, now=utc_now())
        )
        aim = Aim(
            self.source.loaded,
            self.source.renderer,
            context,
            prune=guard.prune,
            recreate=guard.recreate,
            strange=guard.strange,
            former=former.get,
            rollout=batches,
        )
        engine = Engine(
            self.cluster,
            view,
            aim,
            check=self.wishes.check,
            dry_run=not self.wishes.check or self._may_patch(keys),
            may_write=self.may_write,
            ask=probes.asking(lambda: self.cluster.is_sandbox),
            cleanup=self.wishes.hooks,
            wake=lambda key: runner.wake(key),
            bug=self._bug,
        )
        runner = fleet.Fleet(
            engine,
            clock=utc_now,
            watches=None if self.wishes.check else watching,
            rollout=batches,
            progress=self.progress,
        )
        view.subscribe(runner.hear)
        within = self.wishes.ready_within
        patience = fleet.Patience(utc_now() + within if within is not None else None)
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
                if not guard.holds_back():
                    sees = watches.covers(versions)
                    self.source.enforced(books, view, self.wishes, sees=sees)
                books.describe()
            except GitOpsError as error:
                self.warn(f"the source record could not be written: {error.message}")
        if self.wishes.foreign:
            report = self._with_foreign(report, engine, context)
        with contextlib.suppress(GitOpsError):  # the pass is over: a hint is no reason to fail
            self._tell_left(former, view, sees=watches.covers(versions))
        self.ready = {
            outcome.server: (
                "" if outcome.server in refused else _revision(view.resource(outcome.server))
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
        from gitops_mcp.engine import utc_now

        if self.source.limit.wanted or self.source.limit.unwanted:
            return
        state = sourcestatus.of_pass(
            report,
            invalid=self.source.loaded.protected,
            at=utc_now(),
            exists=lambda key: view.resource(key) is not None,
            before=books.record.status,
        )
        books.status = lambda: state

    def _bug(self, key: ServerKey, error: Exception) -> None:
        """An unexpected error of one server. Its traceback is written once, however many servers
        meet the same error."""
        from gitops_mcp.engine import place_of
        from gitops_mcp.terminal import write_traceback

        kind = type(error).__name__, place_of(error)
        if kind not in self._bugs:
            self._bugs.add(kind)
            self.warn(
                f"{key}: unexpected {kind[0]} in {kind[1]}; "
                f"this is a bug, please report it with {write_traceback(error)}"
            )

    def _opened(self, view: View) -> Books:
        """The source's record, read, and written ahead. Raises UsageError where another repository
        has this id."""
        from gitops_mcp.engine import utc_now

        source, books = self.source, self.books or Books(None, clock=utc_now)
        live = partial(ours, view, source)
        try:
            books.open(source.identity, revision=self.last, live=live)
            if not self.wishes.check:
                books.ahead(source.held(books, view, self.wishes))
        except Permanent as error:
            if not self.wishes.check:
                raise UsageError(
                    f"the source record cannot be kept: {error.message}",
                    hint="get, create and patch of that ConfigMap are needed; gitops-mcp install, "
                    "with the same --source-id, prints a fitting role",
                ) from error
            self.warn(f"{error.message}: what the prune guard would hold is a guess")
            books = Books(None, clock=utc_now)
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
                records = leadership.find_records(self.cluster, source_id, areas=areas)
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
        leases = leadership.find_leases(self.cluster, source_id)
        places = {key.namespace for key in moved}
        covering = (
            lease
            for lease in leases.seen
            if any(leadership.covers(lease["metadata"]["name"], source_id, one) for one in places)
        )
        living = leadership.living(self.cluster, covering)
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
            last = f", which enforced {stored.commit[:12]} last" if stored.commit else ""
            self.say(
                f"source id {mine.source!r} {would} taken over from another repository: "
                f"{stored.fingerprint}{last}"
            )
        if stored is not None and stored.cluster != mine.cluster:
            self.say(f"cluster {stored.cluster} {would} renamed to {mine.cluster}")
        for key in keys:
            unknown = other or stored is None or key not in stored.servers
            if unknown and key in source.loaded.servers and source.is_others(key, view):
                commit = _revision(view.resource(key))[:12]
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
        labels = {leadership.source_of(cr) for _, cr in view.resources()}
        for source_id in sorted({one.source for one in former.values()} - labels):
            for ref, record in leadership.find_records(self.cluster, source_id).items():
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
            if planning.owner_of(cr, source) is planning.Owner.OURS
        }
        mine &= set(keys)
        namespaces = sorted({key.namespace for key in mine})
        can = self.cluster.can
        if can("*", "*", "*", None):
            return
        gated = self.wishes.probes and any(
            (loaded.servers[key].spec.get("health") or {}).get("gate")
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

    def _keys(self, view: View, context: Context) -> set[ServerKey]:
        """Every server that this pass is about."""
        loaded = self.source.loaded
        standing = dict(view.resources())
        keys = {*loaded.servers, *loaded.protected, *standing}
        chosen = {
            key
            for key in keys
            if self.source.concerns(key, standing.get(key), context, self.wishes)
        }
        self.source.limit.refuse_none(chosen)
        return chosen

    def _warn_of_finalizers(self, view: View, keys: Collection[ServerKey]) -> None:
        """A finalizer that nobody answers makes kubectl delete wait."""
        if self.wishes.check or self.wishes.finalizer:
            return
        bearing = [
            key
            for key, cr in view.resources()
            if key in keys and FINALIZER in (cr["metadata"].get("finalizers") or ())
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
                found = planning.foreign(facts, context, self.source.renderer)
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
            outcomes=tuple(o for o in outcomes if _worth_telling(o)),
            problems=self.source.loaded.problems,
        )


def ours(view: View, source: Source) -> dict[ServerKey, str]:
    """The MCPServers in the cluster that are provably this source's, with their files. Another
    repository may have the same id, with a record in another namespace or of another area: a server
    counts only if its commit is known here. Raises SourceError."""
    return {
        key: planning.file_of(cr)
        for key, cr in view.resources()
        if planning.owner_of(cr, source.source_id) is planning.Owner.OURS and source.may_hold(cr)
    }


def survey(
    cluster: Cluster, view: View, source: Source, wishes: Wishes, *, warn: Say = lambda _: None
) -> Versions:
    """Fill the view with what the cluster holds; returns where its watches go on from. Raises
    UsageError with the one clear line where the cluster is not fit for us."""
    from gitops_mcp import crd, watches

    refuse_old(cluster)
    try:
        if wishes.watch_namespace is not None:
            # The CRD is outside of it.
            return watches.read(cluster, view, [wishes.watch_namespace])
        versions = _lists(cluster, view, source, warn)
        definition = cluster.get(
            ObjectRef("apiextensions.k8s.io/v1", "CustomResourceDefinition", "", CRD_NAME)
        )
    except Permanent as error:
        if "customresourcedefinitions" not in error.message:
            raise
        definition = None  # without the right to look, the first write will tell
    except KindAbsent as error:
        raise UsageError(
            f"the cluster does not know {KIND} ({API_VERSION})",
            hint=INSTALL_CRD,
        ) from error
    ours = crd.custom_resource_definition(serverschema.schema())
    missing = crd.missing(definition, ours) if definition is not None else ()
    if missing:
        raise UsageError(
            f"the CRD in the cluster is older than this version: it lacks {missing[0]}",
            hint=INSTALL_CRD,
        )
    return versions


def _lists(cluster: Cluster, view: View, source: Source, warn: Say) -> Versions:
    """All namespaces; where that may not be listed, those of the manifests."""
    from gitops_mcp import watches

    try:
        return watches.read(cluster, view, watches.EVERYWHERE)
    except Permanent as error:
        loaded = source.loaded
        keys = filter(source.limit.selects, {*loaded.servers, *loaded.protected})
        namespaces = sorted({key.namespace for key in keys})
        if error.code != 403 or not namespaces:
            raise
        versions = watches.read(cluster, view, namespaces)
        warn(
            "without the right to list mcpservers in all namespaces, only those of the "
            f"manifests are looked at: {', '.join(namespaces)}"
        )
        return versions


def refuse_old(cluster: Cluster) -> None:
    """Raises UsageError for an API server that our objects are too new for."""
    version = cluster.version()
    if version < OLDEST_KUBERNETES:
        raise UsageError(
            f"the API server is {version[0]}.{version[1]}; gitops-mcp needs 1.30 or newer",
            hint="older ones have no native preStop sleep",
        )


def _revision(cr: JsonObject | None) -> str:
    """The revision at which a server's state was first applied."""
    return str((((cr or {}).get("status") or {}).get("source") or {}).get("revision", ""))


def _is_ready(cr: JsonObject) -> bool:
    return status.ready(cr.get("status") or {}).status == "True"


def _is_refused(cr: JsonObject | None) -> bool:
    return cr is not None and status.refused(cr.get("status") or {})


def _worth_telling(outcome: Outcome) -> bool:
    """All but the servers of other sources that this pass only came across."""
    return outcome.message != "belongs to another source"


# --- notes ----------------------------------------------------------------------------------


def notes_wanted(cluster: Cluster, chosen: str | None) -> bool:
    """Are deployment notes written? What happens in a sandbox was never deployed. Raises
    KubeError."""
    return chosen == "on" if chosen is not None else not cluster.is_sandbox


def write_notes(
    source: Source, records: Iterable[NoteRecord], *, cluster: str, push: bool, warn: Say
) -> None:
    """Append what happened to the commits' notes; trouble is a warning, never a stop."""
    revision = source.snapshot.revision
    if not revision.sha or revision.dirty:
        return
    for warning in source.repository.notes(cluster).append(list(records), push=push):
        warn(warning)


def books(
    cluster: Cluster,
    source_id: str,
    namespace: str,
    *,
    area: str = "",
    take_over: bool = False,
    read_only: bool = False,
    may_write: Callable[[], bool] = lambda: True,
) -> Books:
    """The record of a source, beside the Lease of the same name in ``namespace``."""
    from gitops_mcp.engine import utc_now

    name = leadership.lease_name(source_id, area)
    return Books(
        Store(cluster, namespace, name, source_id),
        clock=utc_now,
        may_write=may_write,
        take_over=take_over,
        read_only=read_only,
    )


def connect(
    options: ConnectionOptions,
    *,
    observe: Observer | None = None,
    warn: Say = lambda _: None,
    notice: Say = lambda _: None,
) -> Cluster:
    """The cluster, as kubectl would find it; no request yet. ``observe`` hears of each one,
    ``warn`` of a server that is not verified, ``notice`` of each warning of the API server, once.
    """
    from gitops_mcp.kube import Cluster

    cluster = Cluster(options.kubeconfig, options.context, observe=observe, notice=notice)
    if not cluster.verified:
        warn(
            f"the certificate of {cluster.server} is not verified (insecure-skip-tls-verify): "
            "whoever is between can read the credentials"
        )
    return cluster


def cleanup_hooks(configured: object) -> tuple[Hook, ...]:
    """The operator's hooks, from the configuration's ``hooks``. Raises UsageError."""
    from gitops_mcp import hooks

    return hooks.parse(configured)


def probing(word: str | None) -> bool:
    """Are handshakes made? From inside of a cluster pods can be reached; elsewhere only if told."""
    return word == "on" if word is not None else in_cluster()


def in_cluster() -> bool:
    """Do we run in a pod?"""
    return "KUBERNETES_SERVICE_HOST" in os.environ


def now() -> datetime:
    """The wall clock."""
    from gitops_mcp.engine import utc_now

    return utc_now()
