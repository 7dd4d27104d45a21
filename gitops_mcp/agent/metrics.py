"""What the agent counts, for Prometheus: names, labels and their bounds.

Receives what happened (a look at a server, a request, a poll) from whichever thread it happened in,
and functions that tell how things stand; returns the text of ``/metrics``. No label names a server
or an object: the number of series follows the code, not the fleet. Never decides, never waits.
"""

from __future__ import annotations

import math
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, get_args

import prometheus_client as prometheus
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gitops_mcp import __version__
from gitops_mcp.base import times
from gitops_mcp.base.model import Result
from gitops_mcp.base.names import ObjectRef
from gitops_mcp.base.source import Problem, Severity
from gitops_mcp.cluster.kinds import PLURALS
from gitops_mcp.decide.transitions import Kind, Transition

PREFIX: Final = "gitops_mcp_"
OTHER: Final = "other"
"""The value of a label for whatever we did not expect."""

VERBS: Final[Mapping[str, str]] = {
    "get": "get",
    "list": "list",
    "watch": "watch",
    "create": "create",
    "update": "update",
    "patch": "patch",
    "apply": "patch",
    "delete": "delete",
}
"""The first word of one of ``kube``'s operations → what Kubernetes calls it."""
KINDS: Final = frozenset(kind for _, kind in PLURALS)
DRIFTING: Final = ("MCPServer", "Deployment", "Service")
HEALING: Final = ("create", "update", "replace")
PHASES: Final = ("Pending", "Ready", "Failed", "Terminating")
RESULTS: Final[tuple[Result, ...]] = get_args(Result)
POLLS: Final = ("unchanged", "moved", "failed")
ENDS: Final = ("SessionsClosed", "NoPods", "Timeout", "Deadline", "ForegroundDeletion")
"""What a shutdown's ``endedBy`` may say."""
VERDICTS: Final = ("push", "ignored", "refused", "absent", "too_large")

_QUICK: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SLOW: Final = (1, 2.5, 5, 10, 15, 20, 30, 45, 60, 120, 300, 600)


@dataclass(frozen=True, slots=True)
class Gauges:
    """How things stand, asked at each scrape: every function answers at once, from memory.

    ``queue_depth`` servers are due, the oldest for ``queue_oldest`` seconds (0: none is);
    ``view_age`` seconds ago the view was last known to be current; ``phases`` counts servers by
    phase, ``results`` those that we reconciled by what that came to; ``leads`` says for each source
    whose Lease we want whether we hold it.
    """

    queue_depth: Callable[[], float] = lambda: 0
    queue_oldest: Callable[[], float] = lambda: 0
    view_age: Callable[[], float] = lambda: math.inf
    phases: Callable[[], Mapping[str, int]] = dict
    results: Callable[[], Mapping[Result, int]] = dict
    leads: Callable[[], Mapping[str, bool]] = dict


class Metrics(Collector):
    """The agent's metrics, in a registry of their own. Thread-safe. It collects the gauges itself:
    nothing of them is kept, they are asked."""

    def __init__(self) -> None:
        self.registry = prometheus.CollectorRegistry()
        # A counter's beginning is the process's, which stands among the metrics already.
        prometheus.disable_created_metrics()  # type: ignore[no-untyped-call]
        self._gauges = Gauges()
        self.registry.register(self)
        prometheus.ProcessCollector(registry=self.registry)
        info = partial(prometheus.Info, registry=self.registry)
        gauge = partial(prometheus.Gauge, registry=self.registry)
        build = info(f"{PREFIX}build", "The version that runs.")
        build.info({"version": __version__, "python": platform.python_version()})

        self._reconciled = self._histogram(
            "reconcile_duration_seconds",
            "How long a look at a server took, its requests included.",
            {"result": RESULTS},
        )
        self._changed = self._counter(
            "changes_total", "Objects that were changed.", ("action", "kind")
        )
        self._healed = self._counter(
            "drift_healed_total",
            "Objects that were brought back to what had been applied before.",
            ("kind",),
        )
        for kind in DRIFTING:
            self._healed.labels(kind)
        self._pruned = self._counter("prunes_total", "Servers that git no longer held.")
        self._shut_down = self._histogram(
            "shutdown_duration_seconds",
            "How long servers took from the start of their shutdown until they were gone.",
            {"ended_by": ENDS},
            buckets=_SLOW,
        )
        self._requests = self._counter(
            "api_requests_total",
            "Requests to the API server; code 0 is no answer.",
            ("verb", "kind", "code"),
        )
        self._polls = self._histogram(
            "git_poll_duration_seconds",
            "How long a look at the git server took.",
            {"result": POLLS},
        )
        self._polled = gauge(
            f"{PREFIX}git_last_success_timestamp_seconds", "When git was last asked, and answered."
        )
        self._revision = info(f"{PREFIX}revision", "The commit that is enforced.")
        self._source = info(
            f"{PREFIX}source",
            "The source that is enforced, and the name of the cluster that it is read for.",
        )
        self._problems = gauge(
            f"{PREFIX}source_problems",
            "Mistakes in the manifests of the commit that is enforced.",
            ("severity",),
        )
        self._notes = {
            "pushed": self._counter("notes_pushed_total", "Deployment notes that were pushed."),
            "failed": self._counter(
                "notes_push_failures_total", "Attempts to push deployment notes that failed."
            ),
            "dropped": self._counter("notes_dropped_total", "Deployment notes that were given up."),
        }
        self._events = self._counter(
            "events_dropped_total", "Kubernetes Events that were not written."
        )
        self._webhooks = self._counter(
            "webhook_requests_total", "Requests to /webhook.", ("verdict",)
        )
        for verdict in VERDICTS:
            self._webhooks.labels(verdict)

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> prometheus.Counter:
        return prometheus.Counter(f"{PREFIX}{name}", text, labels, registry=self.registry)

    def _histogram(
        self,
        name: str,
        text: str,
        labels: Mapping[str, Iterable[str]],
        *,
        buckets: tuple[float, ...] = _QUICK,
    ) -> prometheus.Histogram:
        """With one label, whose values are there from the start: a rate needs its zero."""
        ((label, values),) = labels.items()
        made = prometheus.Histogram(
            f"{PREFIX}{name}", text, (label,), registry=self.registry, buckets=buckets
        )
        for value in values:
            made.labels(value)
        return made

    def enforces(self, source: str, cluster: str) -> None:
        """The agent's source id, and its ``--cluster``."""
        self._source.info({"source": source, "cluster": cluster})

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return prometheus.generate_latest(self.registry)

    def read(self, gauges: Gauges) -> None:
        """Ask these from now on."""
        self._gauges = gauges

    # --- what happened ---

    def worked(self, transition: Transition) -> None:
        """A look at a server has ended: a listener."""
        worked, outcome = transition.worked, transition.worked.outcome
        self._reconciled.labels(outcome.result).observe(worked.seconds)
        for change in transition.made:
            self._changed.labels(change.action, _kind(change.ref)).inc()
        for change in transition.healed:
            if change.action in HEALING:
                self._healed.labels(_kind(change.ref)).inc()
        if outcome.result == "pruned":
            self._pruned.inc()
        if Kind.ENDED in transition.kinds and outcome.shutdown is not None:
            by = outcome.shutdown.get("endedBy", OTHER)
            began = times.parse(outcome.shutdown["startedAt"]) or worked.at
            ended = self._shut_down.labels(by if by in ENDS else OTHER)
            ended.observe(max((worked.at - began).total_seconds(), 0.0))

    def requested(self, operation: str, kind: str, status: int) -> None:
        """A request to the API server has ended: ``kube.Cluster``'s observer."""
        verb, _, rest = operation.partition(" ")
        named = kind if kind in KINDS else OTHER
        if rest == "status of":
            named += "/status"
        code = str(status) if 0 <= status < 600 else OTHER
        self._requests.labels(VERBS.get(verb, OTHER), named, code).inc()

    def polled(self, result: str, seconds: float) -> None:
        """Git was asked: ``unchanged``, ``moved`` or ``failed``."""
        self._polls.labels(result if result in POLLS else OTHER).observe(seconds)
        if result != "failed":
            self._polled.set_to_current_time()

    def adopted(self, revision: str, problems: Iterable[Problem] = ()) -> None:
        """Another commit is enforced from now on, with these mistakes in it."""
        self._revision.info({"revision": revision})
        found = Counter(problem.severity for problem in problems)
        for severity in get_args(Severity):
            self._problems.labels(severity).set(found[severity])

    def noted(self, what: str, count: int = 1) -> None:
        """Deployment notes were ``pushed`` or ``dropped``, or a push of them has ``failed``."""
        if (counter := self._notes.get(what)) is not None:
            counter.inc(count)

    def event_dropped(self, count: int = 1) -> None:
        """Kubernetes Events were not written."""
        self._events.inc(count)

    def webhook(self, verdict: str) -> None:
        """A request to ``/webhook`` was judged: a name of ``webhook.Verdict``, in any case."""
        known = verdict.lower()
        self._webhooks.labels(known if known in VERDICTS else OTHER).inc()

    def collect(self) -> Iterable[Metric]:
        now = self._gauges
        results, phases = now.results(), now.phases()
        yield _gauge("queue_depth", "Servers that wait to be looked at.", now.queue_depth())
        waited = "How long the one that has waited longest has waited."
        yield _gauge("queue_oldest_age_seconds", waited, now.queue_oldest())
        age = "Time since our view of the cluster was last known to be current."
        yield _gauge("view_age_seconds", age, now.view_age())
        by_phase = {phase: phases.get(phase, 0) for phase in PHASES}
        yield _gauge("servers", "Servers in the cluster by phase.", phase=by_phase)
        by_result = {result: results.get(result, 0) for result in RESULTS}
        came_to = "Servers by what the last look at them came to."
        yield _gauge("servers_by_result", came_to, result=by_result)
        writes = "Whether this agent is the one that writes, by source."
        yield _gauge("leader", writes, source=now.leads())


def _gauge(name: str, text: str, value: float | None = None, **by: Mapping[Any, float]) -> Metric:
    """One value, or one for each value of a label."""
    family = GaugeMetricFamily(f"{PREFIX}{name}", text, value=value, labels=tuple(by) or None)
    for values in by.values():
        for label, number in values.items():
            family.add_metric((label,), number)
    return family


def _kind(ref: ObjectRef) -> str:
    return ref.kind if ref.kind in KINDS else OTHER
