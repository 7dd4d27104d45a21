"""The table of reasons: every word by which a condition or an Event says why.

Whoever sorts reasons asks this table; a reason is written nowhere else. docs/status.md is made
from it. To add one: a row here, a case in ``tests/data/status/conditions.yaml``, ``make tables``.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal, Self

Status = Literal["True", "False", "Unknown"]


class Trait(enum.Flag):
    """What follows from a reason."""

    NONE = 0
    TERMINAL = enum.auto()
    """Waiting does not cure it: a server that is not Ready because of it is Failed."""
    PASSING = enum.auto()
    """Of Synced=False: it does not hold Ready back, the server runs as it is. Every other reason
    of a condition that is False does."""
    WARNING = enum.auto()
    """A person has to look into it: it is a Warning Event. Others are on their way."""
    NORMAL = enum.auto()
    """It is a Normal Event."""
    SOURCE = enum.auto()
    """Its Event is about a source, not about a server."""


_TERMINAL: Final = Trait.TERMINAL | Trait.WARNING
_CONFIGURED: Final[Mapping[str, Status]] = {"ConfigurationValid": "False"}
_DEPLOYED: Final[Mapping[str, Status]] = {"DeploymentReady": "False"}
_SERVED: Final[Mapping[str, Status]] = {"ServiceReady": "False"}
_YES: Final[Mapping[str, Status]] = {"Verified": "True"}
_NO: Final[Mapping[str, Status]] = {"Verified": "False"}
_UNKNOWN: Final[Mapping[str, Status]] = {"Verified": "Unknown"}
_SYNCED: Final[Mapping[str, Status]] = {"Synced": "False"}
_EVENT: Final[Mapping[str, Status]] = {}


class Reason(enum.StrEnum):
    """One row each: the name, the conditions that it comes with and their status, its traits, what
    it means, what helps, and what a server whose Synced condition has it ended a pass with.

    The reasons of Verified stand in the order of their severity, the worst first.
    """

    conditions: Mapping[str, Status]
    traits: Trait
    means: str
    helps: str
    result: Literal["ok", "failed", "blocked", "skipped"]

    # fmt: off
    CONFIGURATION_VALID = "ConfigurationValid", {"ConfigurationValid": "True"}
    CONFIGURATION_INVALID = "ConfigurationInvalid", _CONFIGURED, _TERMINAL

    DEPLOYMENT_READY = "DeploymentReady", {"DeploymentReady": "True"}
    SCALED_TO_ZERO = (
        "ScaledToZero", {"DeploymentReady": "True", "Ready": "True"}, Trait.NORMAL,
        "the server became Ready, with no replica to run",
    )
    DEPLOYMENT_NOT_FOUND = (
        "DeploymentNotFound", _DEPLOYED, Trait.NONE, "the Deployment does not exist (yet)",
        "wait; the next reconcile creates it",
    )
    ROLLOUT_IN_PROGRESS = (
        "RolloutInProgress", {"Synced": "False", "DeploymentReady": "False"}, Trait.PASSING,
        "new pods are starting, an old pod still serves, or the rollout is "
        "[paused](rollouts.md#a-new-pod-that-speaks-no-mcp). Of Synced: the children do not "
        "match yet, or the server waits for its [batch](rollouts.md#in-batches)",
        "wait; the message has the counts", "ok",
    )
    DEPLOYMENT_NOT_READY = (
        "DeploymentNotReady", _DEPLOYED, Trait.NONE,
        "its pods are not available yet, or it is being deleted",
        "wait; the message has the counts",
    )
    IMAGE_PULL_FAILED = (
        "ImagePullFailed", _DEPLOYED, _TERMINAL,
        "the registry does not have the image, refuses access, or cannot be reached",
        "the message says which; check `image` and `imagePullSecrets`",
    )
    CRASH_LOOPING = (
        "CrashLooping", _DEPLOYED, _TERMINAL,
        "the container keeps exiting; the message has the exit code", "see its log: `kubectl logs`",
    )
    CONTAINER_CONFIG_ERROR = (
        "ContainerConfigError", _DEPLOYED, _TERMINAL,
        "a Secret, ConfigMap or key is missing; a root image is refused",
        "create it; set `securityContext.runAsUser`",
    )
    UNSCHEDULABLE = (
        "Unschedulable", _DEPLOYED, Trait.WARNING, "no node fits the pod",
        "check requests, `nodeSelector`, `tolerations`",
    )
    REPLICA_CREATE_FAILED = (
        "ReplicaCreateFailed", _DEPLOYED, _TERMINAL,
        "a quota, pod security or the ServiceAccount forbids the pod",
        "see the message of the API server",
    )
    RESOURCES_EXHAUSTED = (
        "ResourcesExhausted", {"DeploymentReady": "False", "Synced": "False"}, Trait.WARNING,
        "out of memory, evicted, or over quota",
        "raise `resources`, or the namespace's quota",
    )
    PROGRESS_DEADLINE_EXCEEDED = (
        "ProgressDeadlineExceeded", _DEPLOYED, _TERMINAL, "the rollout did not finish in time",
        "see the state of the pods",
    )

    SERVICE_READY = "ServiceReady", {"ServiceReady": "True"}
    SERVICE_NOT_REQUIRED = "ServiceNotRequired", {"ServiceReady": "True"}
    SERVICE_NOT_FOUND = "ServiceNotFound", _SERVED
    SERVICE_NOT_READY = "ServiceNotReady", _SERVED

    HANDSHAKE_FAILED = (
        "HandshakeFailed", _NO, _TERMINAL,
        "the answer on this path is not one that MCP clients can use; the message says why",
    )
    HOST_REJECTED = (
        "HostRejected", _NO, _TERMINAL,
        "the server refuses the Service's host name (421, or a 400 or 403 about the host)",
        "add the name to the server's allow-list",
    )
    CONNECTION_REFUSED = (
        "ConnectionRefused", _NO, _TERMINAL, "nothing listens on `port`", "check `port`",
    )
    UNREACHABLE = (
        "Unreachable", _UNKNOWN, Trait.WARNING,
        "no answer that says anything about the server, although the pod is ready: no route (a"
        " NetworkPolicy, or a probe from outside), silence, a connection that is reset (a mesh "
        "with strict mTLS), TLS on the port, or a server that is too busy",
        "the message says which",
    )
    ACCESS_DENIED = (
        "AccessDenied", _UNKNOWN, Trait.WARNING,
        "the request was refused, without asking for credentials as MCP does (401, 403, 407): "
        "by a policy, a gateway or a login page in front of the server, or for lack of permissions",
        "set `health.headersFrom`",
    )
    NOT_PROBED = (
        "NotProbed", _UNKNOWN, Trait.NONE,
        "no probe (yet): `health.mode` is tcp or none, the transport is stdio, the server is "
        "scaled to zero, probes are off, or a Secret of `health.headersFrom` cannot be read",
    )
    AUTHENTICATION_REQUIRED = (
        "AuthenticationRequired", _YES, Trait.NONE,
        "the server asks for credentials as MCP does (401 with `WWW-Authenticate: Bearer`), which "
        "counts as verified",
    )
    HANDSHAKE_SUCCEEDED = (
        "HandshakeSucceeded", _YES, Trait.NONE,
        "the server answered; `status.serverInfo` has its name, version and protocol",
    )

    SYNCED = "Synced", {"Synced": "True"}, Trait.NONE, "", "", "ok"
    MANIFEST_INVALID = (
        "ManifestInvalid", _SYNCED, _TERMINAL | Trait.SOURCE,
        "the manifest in git is broken, or asks for something that [the operator does not "
        "allow](manifest.md#what-a-manifest-may-ask-for); the last good version keeps running. "
        "Also of a server made with kubectl: its children stay as they are",
        "the message has the mistake; `validate` and `history` have its place",
    )
    APPLY_FAILED = (
        "ApplyFailed", _SYNCED, Trait.WARNING,
        "the API server refused the request, or did not answer",
        "see the message of the API server; the request is retried",
    )
    NOT_OWNED = (
        "NotOwned", _SYNCED, _TERMINAL, "an object of that name has another owner",
        '`mcp.example.com/adopt: "true"` takes it over, if that is possible in place: '
        "[ownership.md](ownership.md)", "blocked",
    )
    PRUNE_BLOCKED = (
        "PruneBlocked", _SYNCED, Trait.WARNING | Trait.PASSING,
        "the server is [not pruned](git.md#pruning-and-what-holds-it-back)",
        "the message says how to release it",
        "blocked",
    )
    SUSPENDED = (
        "Suspended", _SYNCED, Trait.NORMAL | Trait.PASSING, "`spec.suspend` is true", "", "skipped",
    )

    MCPSERVER_READY = "MCPServerReady", {"Ready": "True"}, Trait.NORMAL, "the server became Ready"
    TERMINATING = (
        "Terminating", {"Ready": "False"}, Trait.NORMAL,
        "its [shutdown](shutdown.md) began; the message has the deadline",
    )

    APPLIED = (
        "Applied", _EVENT, Trait.NORMAL,
        "a commit was applied: its id, and the objects that were created, updated, deleted",
    )
    DRIFT_HEALED = (
        "DriftHealed", _EVENT, Trait.NORMAL,
        "a change by another writer was undone: the fields, never their values",
    )
    SCALE_FOLLOWED = (
        "ScaleFollowed", _EVENT, Trait.NORMAL,
        "the Deployment got the replicas that a user set with `kubectl scale mcps/NAME`, since "
        "git does not set them",
    )
    DRAINED = "Drained", _EVENT, Trait.NORMAL, "the drain ended; the message says why"
    STOPPED = (
        "Stopped", _EVENT, Trait.NORMAL,
        "the shutdown is complete; the message says what ended the drain",
    )
    CONTESTED = (
        "Contested", _EVENT, Trait.WARNING,
        "another writer keeps undoing the agent's changes: [ownership.md](ownership.md#fights)",
    )
    SOURCE_NOT_READ = (
        "SourceNotRead", _EVENT, Trait.WARNING | Trait.SOURCE,
        "git cannot be read",
    )
    SOURCE_READ = "SourceRead", _EVENT, Trait.NORMAL | Trait.SOURCE, "git can be read again"
    SERVER_MISSING = (
        "ServerMissing", _EVENT, Trait.WARNING | Trait.SOURCE, "a server could not be created",
    )

    # fmt: on

    def __new__(
        cls,
        name: str,
        conditions: Mapping[str, Status] = _EVENT,
        traits: Trait = Trait.NONE,
        means: str = "",
        helps: str = "",
        result: Literal["ok", "failed", "blocked", "skipped"] = "failed",
    ) -> Self:
        row = str.__new__(cls, name)
        row._value_ = name
        row.conditions = MappingProxyType(dict(conditions))
        row.traits = traits
        row.means = means
        row.helps = helps
        row.result = result
        return row

    @property
    def event(self) -> Literal["", "Normal", "Warning"]:
        """The type of its Event; "" where there is none."""
        if Trait.WARNING in self.traits:
            return "Warning"
        return "Normal" if Trait.NORMAL in self.traits else ""


def _with(trait: Trait) -> frozenset[Reason]:
    return frozenset(row for row in Reason if trait in row.traits)


TERMINAL: Final = _with(Trait.TERMINAL)
PASSING: Final = _with(Trait.PASSING)

VERIFIED: Final = tuple(row for row in Reason if "Verified" in row.conditions)
"""What a handshake may come to, the worst first."""
PROVEN: Final = frozenset(row for row in VERIFIED if row.conditions["Verified"] == "True")
"""What the server answered well."""
DISPROVEN: Final = frozenset(row for row in VERIFIED if row.conditions["Verified"] == "False")
"""What is the server's own fault. No answer at all may be the network's."""
