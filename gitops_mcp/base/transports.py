"""The transport table: everything that differs between stdio, http and streamable-http.

Whoever needs a per-transport fact asks this table; nothing else compares transport names. To add a
transport: a row here, its name in the schema's enum, and a case in ``test_transports.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import Any, Literal

from gitops_mcp.base import durations, objects


@dataclass(frozen=True, slots=True)
class Transport:
    """One row. Times are what stands in the pod template from creation."""

    name: str
    networked: bool
    """Has a Service, a port and an HTTP endpoint; else the server is one process on stdin."""
    sessions: bool
    """Clients hold sessions: affinity and the longer drain follow."""
    pre_stop: timedelta
    """How long a pod goes on serving before SIGTERM, while endpoints are withdrawn."""
    stop: timedelta
    """From SIGTERM to SIGKILL."""
    strategy: Literal["Recreate", "RollingUpdate"]
    max_replicas: int | None
    min_ready_seconds: int
    requests: Mapping[str, str]
    session_affinity: Literal["ClientIP", "None"]

    @property
    def grace(self) -> timedelta:
        """terminationGracePeriodSeconds: it includes the preStop sleep."""
        return self.pre_stop + self.stop

    @property
    def drain_timeout(self) -> timedelta:
        """The default of ``spec.drain.timeout``."""
        return self.pre_stop

    def endpoint(self, name: str, namespace: str, domain: str, port: int, path: str) -> str:
        """Where clients find the server, e.g. ``http://web.ai.svc.cluster.local:8080/mcp``."""
        host = f"{name}.{namespace}.svc.{domain}"
        return f"http://{host}:{port}{path}" if self.networked else f"{self.name}://{host}"


def _row(
    name: str,
    *,
    networked: bool,
    sessions: bool,
    pre_stop: int,
    stop: int,
    cpu: str,
    memory: str,
) -> Transport:
    return Transport(
        name=name,
        networked=networked,
        sessions=sessions,
        pre_stop=timedelta(seconds=pre_stop),
        stop=timedelta(seconds=stop),
        # One process on stdin cannot run twice: the old one must have gone first.
        strategy="RollingUpdate" if networked else "Recreate",
        max_replicas=None if networked else 1,
        min_ready_seconds=10 if networked else 0,
        requests=MappingProxyType({"cpu": cpu, "memory": memory}),
        session_affinity="ClientIP" if sessions else "None",
    )


_ROWS = (
    _row("stdio", networked=False, sessions=False, pre_stop=0, stop=5, cpu="50m", memory="64Mi"),
    _row("http", networked=True, sessions=False, pre_stop=10, stop=5, cpu="100m", memory="128Mi"),
    _row(
        "streamable-http",
        networked=True,
        sessions=True,
        pre_stop=20,
        stop=10,
        cpu="200m",
        memory="256Mi",
    ),
)

TRANSPORTS: Mapping[str, Transport] = MappingProxyType({row.name: row for row in _ROWS})
"""By ``spec.transport``."""

DEFAULT = "streamable-http"


def of_spec(spec: Mapping[str, object]) -> Transport:
    """The row of a spec; the default's row where it names none that we know."""
    return TRANSPORTS.get(str(spec.get("transport", DEFAULT)), TRANSPORTS[DEFAULT])


@dataclass(frozen=True, slots=True)
class Timing:
    """How long one server's pods are given, after ``spec.drain`` had its say."""

    pre_stop: timedelta
    stop: timedelta
    drain_timeout: timedelta

    @property
    def grace(self) -> timedelta:
        """terminationGracePeriodSeconds."""
        return self.pre_stop + self.stop


def timing(spec: Mapping[str, Any]) -> Timing:
    """The times of a spec: the transport's, or ``drain.preStop`` and ``drain.timeout`` instead.

    The drain wait follows the preStop sleep unless it is set: both answer the question how long
    clients need to leave.
    """
    row = of_spec(spec)
    drain = objects.part(spec, "drain")
    pre_stop = duration(drain.get("preStop"), row.pre_stop)
    return Timing(
        pre_stop=pre_stop,
        stop=row.stop,
        drain_timeout=duration(drain.get("timeout"), pre_stop if row.networked else timedelta()),
    )


LONGEST = timedelta(hours=24)
"""What an object may hold that no rule of ours has seen is bounded by this, as the rules bound it:
no server's spec may throw the work on all the others over."""


def duration(text: object, default: timedelta) -> timedelta:
    """A time of a spec as it stands in the cluster; the default where there is none that can be
    read."""
    try:
        return default if text is None else min(durations.parse(str(text)), LONGEST)
    except durations.DurationError:
        return default
