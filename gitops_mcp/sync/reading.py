"""The line's first half: a repository at a commit, read, checked and rendered."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from gitops_mcp.base import objects, resources
from gitops_mcp.base.errors import UsageError
from gitops_mcp.base.model import Context, Facts
from gitops_mcp.base.names import KUBECTL_MANAGERS, LABEL_SOURCE, JsonObject, ServerKey
from gitops_mcp.base.objects import DesiredObject, LiveObject, Outline
from gitops_mcp.base.source import Loaded, Snapshot
from gitops_mcp.base.wording import short_sha
from gitops_mcp.cluster.leadership import Say
from gitops_mcp.decide import ownership, pruning, turns
from gitops_mcp.decide.books import Books
from gitops_mcp.decide.record import ROOTS, UNKNOWN, Fingerprint, Identity
from gitops_mcp.decide.rollout import ALL, DEFAULT, Rollout, Serial
from gitops_mcp.git import gitrepo, trees
from gitops_mcp.source import manifests, serverschema
from gitops_mcp.source.settings import (
    SOURCE_KEYS,
    SourceOptions,
    checked_defaults,
    checked_source_id,
    listed,
    parse_config,
)
from gitops_mcp.sync.syncoptions import Limit, SyncOptions

if TYPE_CHECKING:
    from gitops_mcp.cluster.view import View
    from gitops_mcp.source.rendering import Renderer


COMMITS = 1024
"""Of how many commits git's answer is kept: servers name them, so they are not all ours."""


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
        from gitops_mcp.source.rendering import Renderer

        return self.lent or Renderer(
            self.options.templates or resources.folder("templates"),
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

    def context(self, wishes: SyncOptions) -> Context:
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
        self, key: ServerKey, cr: Outline | None, context: Context, wishes: SyncOptions
    ) -> bool:
        """Is the server, which git may hold and the cluster may have (``cr``), ours to look at?"""
        if not self.is_about(key, wishes):
            return False
        if key in self.loaded.servers or key in self.loaded.protected:
            return True
        if cr is None:
            return False
        owner = ownership.owner_of(cr, context.source)
        if owner is ownership.Owner.OURS:
            return ownership.in_scope(cr, context)
        return owner is not ownership.Owner.OTHER and wishes.kubectl

    def servers(self, view: View, context: Context, wishes: SyncOptions) -> set[ServerKey]:
        """Every server that is ours to reconcile: those of git, and those in the cluster."""
        live = dict(view.resources())
        keys = {*self.loaded.servers, *self.loaded.protected, *live}
        return {key for key in keys if self.concerns(key, live.get(key), context, wishes)}

    def ours(self, view: View) -> dict[ServerKey, str]:
        """The MCPServers in the cluster that are provably this source's, with their files. Another
        repository may have the same id, with a record in another namespace or of another area: a
        server counts only if its commit is known here. Raises SourceError."""
        return {
            key: ownership.file_of(cr)
            for key, cr in view.resources()
            if ownership.owner_of(cr, self.source_id) is ownership.Owner.OURS and self.may_hold(cr)
        }

    def is_about(self, key: ServerKey, wishes: SyncOptions) -> bool:
        """Is the server within the run's limit and namespace?"""
        return wishes.watch_namespace in (None, key.namespace) and self.limit.selects(key)

    def held(self, books: Books, view: View, wishes: SyncOptions) -> dict[ServerKey, str]:
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
        if cr is None or ownership.owner_of(cr, self.source_id) is not ownership.Owner.OURS:
            return False
        return not self.may_hold(cr)

    def former_id(self, key: ServerKey, view: View) -> str:
        """The other source id under which a commit of this repository was applied to the MCPServer;
        "" where there is none. Raises SourceError."""
        cr = view.resource(key)
        if cr is None or ownership.owner_of(cr, self.source_id) is not ownership.Owner.OTHER:
            return ""
        known = self._knows(applied_revision(cr).removesuffix("-dirty"))
        return str(cr["metadata"]["labels"][LABEL_SOURCE]) if known else ""

    def may_hold(self, cr: Outline) -> bool:
        """May the commit that an MCPServer was applied from be this repository's? Raises
        SourceError."""
        return self._may_hold(applied_revision(cr).removesuffix("-dirty"))

    def enforced(
        self,
        books: Books,
        view: View,
        wishes: SyncOptions,
        *,
        sees: Callable[[str], bool],
        pending: Collection[ServerKey],
    ) -> None:
        """Record that what the run is about was carried out; in parts only, with a limit that a
        user gave for once. ``sees``: does the view hold a namespace? ``pending``: see
        ``Record.enforced``. Raises GitOpsError."""
        loaded, path = self.loaded, self.path

        def reaches(key: ServerKey, file: str) -> bool:
            return (
                self.is_about(key, wishes)
                and key not in loaded.protected
                and ownership.within(file, path)
            )

        def remains(key: ServerKey) -> bool:
            known = key in loaded.servers or key in loaded.protected
            return known or view.resource(key) is not None or not sees(key.namespace)

        whole = wishes.lasting or not self.limit.narrows
        books.enforced(
            self.identity,
            self.held(books, view, wishes),
            revision=str(self.snapshot.revision) if whole else None,
            reaches=reaches,
            remains=remains,
            pending=pending,
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
            and not ownership.within(entry.file, self.path)
            and key not in self.loaded.servers
            and key not in self.loaded.protected
            and (cr := view.resource(key)) is not None
            and ownership.owner_of(cr, self.source_id) is ownership.Owner.OURS
        }
        gone = {file for file in set(files.values()) if not self.repository.has_file(file)}
        left = sorted(key for key, file in files.items() if file in gone)
        if not left:
            return ""
        named = ", ".join(f"{key} ({files[key]})" for key in left[: pruning.NAMED])
        more = f" and {len(left) - pruning.NAMED} more" if len(left) > pruning.NAMED else ""
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
            f"commit {short_sha(record.commit)}, which was enforced last{at}, is not in this "
            "repository (a shallow clone needs its whole history: fetch-depth: 0; a force-push may "
            "have dropped it)"
        )

    def rollout(
        self,
        view: View,
        keys: Collection[ServerKey],
        context: Context,
        wishes: SyncOptions,
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
            if turns.rolls(facts, context, self.renderer):
                rolling.add(key)
                under_way = under_way or turns.waited(facts.cr)
            elif turns.rolled(facts, context):
                rolled.add(key)
        not_ready = after.not_ready.intersection(keys) if after is not None else frozenset()
        return Rollout(
            serial,
            context.revision,
            rolling,
            rolled,
            under_way=under_way,
            in_flight=not_ready - after.failed if after is not None else (),
            not_ready=not_ready,
        )

    def allowance(
        self,
        count: int,
        under_way: int,
        *,
        given: pruning.Allowance | None = None,
        since: str = "",
        warn: Say = lambda _: None,
    ) -> pruning.Allowance | None:
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
            pruning.Allowance(commit.allow_prune, f"commit {short_sha(commit.sha)}", commit.sha)
            for commit in commits
            if commit.allow_prune is not None
        ]
        fitting = (one for one in allowed if one.count in (count, count + under_way))
        found = next(fitting, allowed[0] if allowed else None)
        vain = next((commit for commit in commits if commit.ignored), None)
        if vain is None:
            return found
        remark = (
            f"commit {short_sha(vain.sha)} says {vain.ignored[0]!r}, which does not count: it "
            f"takes a paragraph of trailers with one number, 'Allow-Prune: {count}'"
        )
        return replace(found or pruning.Allowance(0, ""), remark=remark)

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

    def rendered(self) -> dict[ServerKey, tuple[DesiredObject, ...]]:
        """Every valid server's objects, as they would be created."""
        rendered = {}
        for key, server in self.loaded.servers.items():
            if self.limit.selects(key):
                body = self.renderer.custom_resource(server)
                children = self.renderer.children(serverschema.defaulted(body))
                rendered[key] = (body, *children)
        return rendered


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
        raise UsageError(f"{trees.CONFIG_FILE}: {error.message}", hint=error.hint) from error


def _own_config(snapshot: Snapshot) -> Mapping[str, Any]:
    for file in snapshot.files:
        if file.path == trees.CONFIG_FILE and file.data is not None:
            own = parse_config(file.data, file.path, allowed=SOURCE_KEYS)
            for key in ("path", "sourceId", "serial"):
                if not isinstance(own.get(key, ""), str):
                    raise UsageError(f"{file.path}: {key}: expected one value")
            return own
    return {}


def applied_revision(cr: LiveObject | Outline | None) -> str:
    """The revision at which a server's state was first applied."""
    return objects.text(cr, "status", "source", "revision")
