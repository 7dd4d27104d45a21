"""The values that travel the line: git files in, objects and reports out.

Everything here is frozen. Kubernetes objects are plain JSON dictionaries (``objects`` reads them),
shared between threads and caches: nobody edits one that somebody else made.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple

from gitops_mcp.base.errors import Category
from gitops_mcp.base.names import (
    AGENT_NAMESPACE,
    FIELD_MANAGER,
    GROUP,
    KIND,
    KUBECTL_MANAGERS,
    JsonObject,
    ObjectRef,
    ServerKey,
)
from gitops_mcp.base.objects import LiveObject
from gitops_mcp.base.reasons import Reason, Status
from gitops_mcp.base.source import McpServer, Problem, Revision

INSTALL_CRD = "gitops-mcp crd | kubectl apply --server-side -f -"
"""What helps where the cluster lacks the CRD, or has an older one."""
RESOURCE = f"{KIND.lower()}.{GROUP}"
"""What ``kubectl get -o name`` writes before a name."""


CLUSTER_SOURCE = "cluster"
"""The pseudo-source of servers that kubectl made."""


# --- probe ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Handshake:
    """What one address answered. ``reason`` is one of the Verified condition; ``server_info`` has
    name, version, protocolVersion and era, as far as they were told. ``wait``: it answered that it
    is too busy for an answer (429, 503), and how long to wait, as far as it said; None: it did
    answer."""

    reason: Reason
    message: str
    server_info: JsonObject | None = None
    wait: timedelta | None = None


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What the last MCP handshake with a server's pods said.

    ``reason`` is one of ``reasons.VERIFIED``.
    ``pods`` are the uids that it speaks for, ``passed`` those among them that answered well.
    ``asked`` is the request for a fresh look that it answers. ``answers`` has the last word of each
    pod by uid, which outlasts a pod's being too busy; ``wait`` is how long the busiest one asked to
    wait, None where none is busy. ``generation`` is the MCPServer's that was asked,
    ``failures`` how often in a row its pods have failed (see ``inquiries.answered``).
    """

    reason: Reason
    message: str
    at: datetime
    pods: frozenset[str] = frozenset()
    server_info: JsonObject | None = None
    passed: frozenset[str] = frozenset()
    asked: str = ""
    answers: Mapping[str, Handshake] = field(default_factory=dict)
    wait: timedelta | None = None
    generation: int = 0
    failures: int = 0

    def of(self, uid: str) -> Reason:
        """The reason of one pod's answer."""
        answer = self.answers.get(uid)
        return answer.reason if answer is not None else self.reason

    @property
    def wordless(self) -> bool:
        """Whether no pod has said more yet than that it is too busy."""
        told = self.answers.values()
        return bool(told) and all(answer.wait is not None for answer in told)


@dataclass(frozen=True, slots=True)
class SecretHeader:
    """A header whose value is in a Secret of the server's namespace (``health.headersFrom``):
    ``prefix`` and then the value of ``key``."""

    name: str
    secret: str
    key: str
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class Probe:
    """What has to be asked outside of the API server: ``targets`` are (pod uid, URL), ``host`` is
    the Host header of its clients, ``timeout`` is for each answer of a target, ``gauge`` the name
    of a Prometheus gauge that counts sessions ("": the URL answers with the number itself),
    ``match`` the labels of the samples that count. A cleanup has no targets: it calls the
    operator's hooks, ``timeout`` being for all of them. ``asked`` is the request for a fresh look
    that stands (see ``inquiries.requested``), ``uid`` and ``generation`` are those of the MCPServer
    that it is about.

    ``known`` is what the targets last said, by uid. ``headers_from`` are more headers of a
    handshake; ``headers`` their values, which are secret: whoever runs the inquiry fills them in
    right before it is asked, and keeps them nowhere.
    """

    kind: Literal["handshake", "sessions", "cleanup"]
    targets: tuple[tuple[str, str], ...]
    timeout: timedelta
    host: str = ""
    gauge: str = ""
    asked: str = ""
    uid: str = ""
    generation: int = 0
    match: tuple[tuple[str, str], ...] = ()
    known: Mapping[str, Handshake] = field(default_factory=dict)
    headers_from: tuple[SecretHeader, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


# --- decide ---------------------------------------------------------------------------------

ChangeAction = Literal["create", "update", "replace", "delete", "blocked"]


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One field that differs: ``before`` is the live (or base) value, ``after`` the desired one;
    absent is None. Secret-like values are masked already. ``item``: the name of the list's item
    that the field belongs to, such as that of a variable."""

    path: str
    before: Any
    after: Any
    item: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Change:
    """One object that differs. ``before``/``after`` are masked bodies for a unified diff: of the
    live and of the desired object, both narrowed to the fields that we mean (None: absent).
    ``foreign`` are fields of other managers that stay, shown by ``diff -v``."""

    action: ChangeAction
    server: ServerKey
    ref: ObjectRef
    fields: tuple[FieldChange, ...] = ()
    reason: str = ""
    before: JsonObject | None = None
    after: JsonObject | None = None
    foreign: tuple[FieldChange, ...] = ()


class Verb(enum.Enum):
    """What an action asks of the API server; the executor has one request for each."""

    APPLY = "apply"
    """Forced server-side apply of ``body``."""
    JSON_PATCH = "json-patch"
    """``body`` is ``{"patch": [...]}``: only for moving ownership in managedFields."""
    DELETE = "delete"


Propagation = Literal["Background", "Foreground", "Orphan"]


@dataclass(frozen=True, slots=True)
class Action:
    """One request. ``uid`` and ``resource_version`` are its preconditions (written into the body
    of an apply); ``why`` is for logs and reports: a verb phrase such as ``withdraw endpoints``.

    Whatever is done to an object that we have seen carries its uid and its version: what was
    decided on what is no longer so is refused, whoever sends it. An apply of it is forced; one
    without a uid creates, unforced and with a version that no object has, so that an object that we
    did not know of answers with a conflict.
    ``change`` is what people are shown of it; ``key`` names (wanted, live at the differing paths):
    should the request turn out to change nothing, that key is noise from then on.
    """

    verb: Verb
    ref: ObjectRef
    why: str
    body: JsonObject = field(default_factory=dict)
    subresource: Literal["", "status"] = ""
    manager: str = FIELD_MANAGER
    uid: str | None = None
    resource_version: str | None = None
    propagation: Propagation = "Background"
    change: Change | None = None
    key: str = ""
    claims: bool = False
    """It is made for the ownership alone: that no value changes makes it no noise."""
    wanted: str = ""
    """A hash of what an apply means, whatever is live: to apply the same again undoes somebody."""
    by: tuple[str, ...] = ()
    """Field managers that wrote what it changes."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One metav1.Condition, without its times (``status.merge`` keeps those)."""

    type: str
    status: Status
    reason: Reason
    message: str

    @classmethod
    def of(cls, reason: Reason, message: str, kind: str = "") -> Condition:
        """The condition that ``reason`` comes with: the first of its row, or that of type
        ``kind``."""
        kind = kind or next(iter(reason.conditions))
        return cls(kind, reason.conditions[kind], reason, message)


Result = Literal["ok", "changed", "pruned", "failed", "blocked", "skipped"]


@dataclass(frozen=True, slots=True)
class Deferral:
    """Why a server does not take a change yet: it waits for its batch of a rollout, or that was
    ``stopped``."""

    message: str
    stopped: bool = False


class Wait(enum.Enum):
    """What has to be over before a server can be as git says."""

    SHUTDOWN = enum.auto()
    RECREATE = enum.auto()
    DELETION = enum.auto()
    CACHES = enum.auto()
    """The cluster has to be seen whole again before anything is taken away."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What ``planning.decide`` makes of the facts.

    ``actions`` are carried out in order, up to the first that fails; then it is decided again.
    None left: the server is where it can be for now. ``changes`` is what people are shown besides
    the actions' own changes: what is blocked, and all that a prune will take. ``look_again``: when
    the answer may differ without any event. ``waiting``: what for, in words (empty: for nothing),
    ``wait``: its kind where it is not to be Ready; ``reason``: what ``message`` begins with;
    ``deadline``: when a shutdown should have ended. ``ready``: is it serving; None where nobody
    can say. ``inquiry``: what to ask of the server itself before it is decided again. ``phase``:
    that of the status ("" where none is said). ``deferred``: it does not take the change yet.
    ``elsewhere``: it is another source's, and git does not mean it.
    """

    result: Result = "ok"
    actions: tuple[Action, ...] = ()
    changes: tuple[Change, ...] = ()
    message: str = ""
    look_again: datetime | None = None
    waiting: str = ""
    deadline: datetime | None = None
    ready: bool | None = None
    inquiry: Probe | None = None
    phase: str = ""
    deferred: bool = False
    wait: Wait | None = None
    reason: Reason | None = None
    elsewhere: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """An error that a server's last request ended with, kept until it is retried or overtaken.

    ``category`` and ``reason`` are the error's; ``retry_at`` when to try again,
    unless somebody asks for a fresh look before (``asked`` is the request that stood by then), or
    changes the MCPServer (``generation`` is what was refused, 0: there was none).
    """

    category: Category
    reason: Reason
    message: str
    attempts: int
    retry_at: datetime
    immutable: bool = False
    """Only a recreate can carry the change out."""
    asked: str = ""
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Contest:
    """Somebody undoes what we apply to an object. ``wanted`` is the hash of that
    (``Action.wanted``), ``undone`` how often in a row it was undone, ``at`` when we applied it
    last, ``until`` when we do so again, unless somebody asks for a fresh look before (``asked`` is
    the request that stood by then), ``by`` the field managers that undid it (empty: nobody can
    tell)."""

    wanted: str
    undone: int
    at: datetime
    until: datetime
    asked: str = ""
    by: tuple[str, ...] = ()


Namespace = Literal["Active", "Terminating", "Absent"]


class Former(NamedTuple):
    """The source id under which a commit of this repository was applied to a server that is now to
    be moved. ``holder`` is the other repository that holds the server there by now ("": none)."""

    source: str
    holder: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """All that ``planning.decide`` is told about one server: values, never handles.

    ``desired`` is what git wants (None: nothing, or nothing that can be applied); ``protected``:
    a manifest exists but is broken, ``problems`` are its mistakes; ``held``: why the guard keeps
    a server that git no longer holds; ``strange``: it bears the source's label, but this
    repository's git never held it; ``former``: the source id that it is to be moved from, where it
    bears another one; ``deferred``: why its pods are not replaced yet. ``cr``,
    ``children`` (by kind: Deployment, Service) and ``pods`` are the live objects, found by the
    names and labels of the server whoever made them; ``namespace`` is the phase of their namespace.
    ``probe`` is the last handshake, ``failure`` what the last request ended with,
    ``status_written_at`` our last status write (this process only), ``noise`` the apply keys that a
    dry-run showed to change nothing, ``sessions`` what the drain gauge said at ``sessions_at``
    (None: it did not), ``cleanup`` what the cleanup hooks said ("": there are none; None: they have
    not been called), ``contests`` what was applied to each object last, ``now`` is UTC.
    """

    key: ServerKey
    now: datetime
    desired: McpServer | None = None
    protected: bool = False
    problems: tuple[Problem, ...] = ()
    held: str = ""
    strange: bool = False
    former: Former | None = None
    deferred: Deferral | None = None
    cr: LiveObject | None = None
    children: Mapping[str, LiveObject] = field(default_factory=dict)
    pods: tuple[LiveObject, ...] = ()
    namespace: Namespace = "Active"
    probe: ProbeResult | None = None
    failure: Failure | None = None
    status_written_at: datetime | None = None
    noise: frozenset[str] = frozenset()
    sessions: int | None = None
    sessions_at: datetime | None = None
    cleanup: str | None = ""
    contests: Mapping[ObjectRef, Contest] = field(default_factory=dict)


PodProfile = Literal["privileged", "baseline", "restricted"]
"""A profile of the Pod Security Standards; ``privileged`` forbids nothing."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What the operator lets a server ask for, whoever wrote it.

    ``namespaces``: globs, ``!`` excludes. A glob never matches ``kube-*`` or a namespace of
    ``own_namespaces`` (the agent's); a name written out does. ``service_accounts``: pairs of globs,
    of the namespace and of the account; ``{name}`` in the latter is the server's name.
    ``own_secrets``: Secrets of the agent, in its own namespaces. ``pods``: the profile that pods
    must keep. ``drain_hosts``: globs of hosts that ``drain.url`` may name besides the Services of
    the server's own namespace, below the DNS name ``domain``. ``manual``: servers that kubectl made
    are run.
    """

    namespaces: tuple[str, ...] = ("*",)
    service_accounts: tuple[tuple[str, str], ...] = (("*", "{name}"),)
    own_namespaces: frozenset[str] = frozenset({AGENT_NAMESPACE})
    own_secrets: frozenset[str] = frozenset()
    pods: PodProfile = "baseline"
    drain_hosts: tuple[str, ...] = ()
    domain: str = "cluster.local"
    manual: bool = True


@dataclass(frozen=True, slots=True)
class Context:
    """What holds for every server of a pass.

    ``source`` is the source id, ``path`` the run's ``--path``, ``domain`` the cluster's DNS name.
    ``finalizer``: we place ours (the agent does, a single sync does not). ``probes``: handshakes
    are made. ``create_namespace``: a missing namespace is made. ``policy``: what servers may ask
    for. ``kubectl_managers``: whose fields count as drift.
    """

    source: str
    cluster: str
    revision: Revision
    path: str = ""
    domain: str = "cluster.local"
    finalizer: bool = False
    create_namespace: bool = False
    policy: Policy = Policy()
    probes: bool = True
    kubectl_managers: frozenset[str] = KUBECTL_MANAGERS


# --- report ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one server ended a pass."""

    server: ServerKey
    result: Result
    ready: bool | None = None
    changes: tuple[Change, ...] = ()
    message: str = ""
    shutdown: JsonObject | None = None
    """The last ``status.shutdown`` of a server that was shut down."""
    foreign: tuple[tuple[ObjectRef, FieldChange], ...] = ()
    """Fields of other controllers that stay, where they were asked for."""
    reason: Reason | None = None
    """What ``message`` begins with."""
    elsewhere: bool = False
    """It is another source's, and git does not mean it."""


class Progress(NamedTuple):
    """How far a pass has come."""

    total: int
    """How many servers the pass is about."""
    waiting: dict[ServerKey, str]
    """Those that it is not done with, and what each waits for ("": for its turn)."""
    left: timedelta | None = None
    """For how long it goes on waiting for servers to be Ready; None: it does not."""


@dataclass(frozen=True, slots=True)
class ReconcileResult:
    """What one look of the agent at a server came to.

    ``outcome.changes`` are those made since the last such value of this server only. ``revision``
    is the commit that is enforced, ``commit`` the one at which the server's present state was first
    applied ("" where nobody knows), ``uid`` the MCPServer's ("": there is none). ``at`` is UTC,
    ``seconds`` is how long the work took, its requests included. ``status`` is the MCPServer's as
    it stands after the look, ``failure`` what the last request ended with; ``drift``: git's word
    for the server had been applied before, so the changes undid what others did; ``scaled``: git
    leaves the replicas to the cluster, and somebody has set those of the MCPServer.
    """

    server: ServerKey
    outcome: Outcome
    revision: Revision
    commit: str
    uid: str
    at: datetime
    seconds: float
    status: JsonObject = field(default_factory=dict)
    failure: Failure | None = None
    drift: bool = False
    scaled: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """One pass over the fleet."""

    revision: Revision
    cluster: str
    check: bool
    outcomes: tuple[Outcome, ...]
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class NoteRecord:
    """One line of a git note. ``extra`` is appended after the fixed keys, in its own order."""

    time: str
    cluster: str
    source: str
    event: Literal["synced", "applied", "ready", "failed", "pruned", "blocked"]
    server: str | None
    result: str
    message: str
    extra: Mapping[str, Any] = field(default_factory=dict)
    commit: str = ""
    """The commit that the note hangs on; not part of the line."""
