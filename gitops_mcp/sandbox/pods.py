"""What the scheduler and the kubelet would write about a pod that runs no process.

Receives a pod and how long it has been in its present stage (simulated seconds); returns the next
status, or how long nothing happens. It never reads the store or a clock.

A pod is placed at once, is ready a moment later, and ends as a well-behaved process does: after its
preStop sleep, soon after the signal, at the latest when the grace period is over. Annotations on
the pod (usually on a Deployment's pod template) change that:

    sandbox.mcp.example.com/start-delay: 2s    from placed to running
    sandbox.mcp.example.com/stop-delay: 1s     from deletion to gone, preStop included
    sandbox.mcp.example.com/simulate: crash-loop | image-pull-failure | config-error
                                      | never-ready | unschedulable | create-failure
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import durationpy

from gitops_mcp.sandbox.deployments import Object, condition, stamp

PREFIX = "sandbox.mcp.example.com/"
NODE = "sandbox"

START_DELAY = 0.3
"""Seconds from placed to running: an image that is on the node already."""
STOP_DELAY = 0.1
"""Seconds from the signal to the exit of a process that handles it."""
CRASH_AFTER = 1.0
"""Seconds that a crashing process lives."""
PULL_RETRY = 20.0
"""Seconds between two attempts to pull an image; the kubelet's grow from 10 to 300."""
CRASH_BACKOFF = 10.0
CRASH_BACKOFF_LIMIT = 300.0


@dataclass(frozen=True)
class Step:
    """What happens to a pod next. All fields empty: nothing, until the pod itself changes."""

    status: Object | None = None
    """The status to write now"""
    event: tuple[str, str, str] | None = None
    """type, reason and message of the Event that goes with it"""
    placed: bool = False
    """The scheduler found a node"""
    gone: bool = False
    """The processes have ended: after `status`, the object goes too"""
    wait: float | None = None
    """Nothing before so many simulated seconds have passed"""


def simulated(pod: Object) -> str:
    """What the pod's annotation asks to simulate; empty for a healthy pod."""
    return str(_annotation(pod, "simulate") or "")


def seconds(text: str | None, default: float) -> float:
    """A Go duration (`1.5s`, `200ms`) in seconds; the default for none, or one that is none."""
    try:
        if not text:
            return default
        return float(durationpy.from_str(text).total_seconds())
    except durationpy.DurationError:
        return default


def stage(pod: Object) -> Hashable:
    """What must change for the time in a stage to start anew."""
    if "deletionTimestamp" in pod["metadata"]:
        return "stopping"
    first = next(iter(pod.get("status", {}).get("containerStatuses", ())), None)
    if first is None:
        return "new"
    return *_state(first), first["restartCount"]


def step(pod: Object, waited: float, now: datetime, address: str) -> Step:
    """The next thing that happens to a pod which has been `waited` seconds in its stage."""
    if "deletionTimestamp" in pod["metadata"]:
        return _stopping(pod, waited, now)
    if not pod["spec"].get("nodeName"):
        return _scheduling(pod, now)
    statuses, event, wait = _containers(pod, waited, now)
    started = any(_state(one) != ("waiting", "ContainerCreating") for one in statuses)
    ran = pod.get("status", {}).get("phase") == "Running" or any(one["started"] for one in statuses)
    status = {
        **pod.get("status", {}),
        "phase": "Running" if ran else "Pending",
        "hostIP": "127.0.0.1",
        "hostIPs": [{"ip": "127.0.0.1"}],
        "startTime": pod.get("status", {}).get("startTime") or stamp(now),
        "containerStatuses": statuses,
    }
    if started:
        status.setdefault("podIP", address)
        status["podIPs"] = [{"ip": status["podIP"]}]
    status["conditions"] = _conditions(pod, statuses, started, now)
    changed = status != pod.get("status")
    return Step(status=status if changed else None, event=event, wait=wait)


def stop_seconds(pod: Object) -> float:
    """Simulated seconds from a pod's deletion to its end."""
    grace = float(pod["metadata"].get("deletionGracePeriodSeconds", 30))
    sleeps = (
        (container.get("lifecycle") or {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        for container in pod["spec"]["containers"]
    )
    usual = max(sleeps, default=0) + STOP_DELAY
    return min(seconds(_annotation(pod, "stop-delay"), usual), grace)


# --- the scheduler --------------------------------------------------------------------------


def _scheduling(pod: Object, now: datetime) -> Step:
    if simulated(pod) != "unschedulable":
        return Step(placed=True)
    message = "0/1 nodes are available: simulated."
    scheduled = {"status": "False", "reason": "Unschedulable", "message": message}
    status = {
        **pod.get("status", {}),
        "phase": "Pending",
        "conditions": [_condition(pod, "PodScheduled", scheduled, now)],
    }
    if status == pod.get("status"):
        return Step()
    return Step(status=status, event=("Warning", "FailedScheduling", message))


# --- the kubelet ----------------------------------------------------------------------------

_Statuses = list[Object]
_Event = tuple[str, str, str]


def _containers(
    pod: Object, waited: float, now: datetime
) -> tuple[_Statuses, _Event | None, float | None]:
    """(containerStatuses, Event, seconds until the next change) of a pod that is placed."""
    current = pod.get("status", {}).get("containerStatuses") or []
    if not current:
        creating = {"waiting": {"reason": "ContainerCreating"}}
        return _all(pod, [], creating), None, _start_delay(pod, [])
    lasts = _lasts(pod, current)
    if lasts is None:
        return current, None, None
    if waited < lasts:
        return current, None, lasts - waited
    statuses, event = _NEXT[_state(current[0])](pod, current, now)
    return statuses, event, _lasts(pod, statuses)


def _lasts(pod: Object, statuses: _Statuses) -> float | None:
    rule = _LASTS.get(_state(statuses[0]))
    return rule(pod, statuses) if rule else None


def _start_delay(pod: Object, _: _Statuses) -> float:
    return seconds(_annotation(pod, "start-delay"), START_DELAY)


def _crash_backoff(_: Object, statuses: _Statuses) -> float:
    restarts = statuses[0]["restartCount"]
    return float(min(CRASH_BACKOFF * 2 ** (restarts - 1), CRASH_BACKOFF_LIMIT))


def _begin(pod: Object, current: _Statuses, now: datetime) -> tuple[_Statuses, _Event]:
    if simulated(pod) == "image-pull-failure":
        return _pull(pod, current, now)
    if simulated(pod) == "config-error":
        message = 'secret "simulated" not found'
        waiting = {"waiting": {"reason": "CreateContainerConfigError", "message": message}}
        return _all(pod, current, waiting), ("Warning", "Failed", f"Error: {message}")
    return _run(pod, current, now)


def _run(pod: Object, current: _Statuses, now: datetime) -> tuple[_Statuses, _Event]:
    healthy = simulated(pod) not in {"crash-loop", "never-ready"}
    restarts = current[0]["restartCount"] + (_state(current[0])[0] != "waiting")
    if _state(current[0]) == ("waiting", "CrashLoopBackOff"):
        restarts += 1
    running = {"running": {"startedAt": stamp(now)}}
    statuses = _all(pod, current, running, ready=healthy, restarts=restarts)
    return statuses, ("Normal", "Started", "Container started")


def _crash(pod: Object, current: _Statuses, now: datetime) -> tuple[_Statuses, _Event]:
    ended = {
        "exitCode": 1,
        "reason": "Error",
        "startedAt": current[0]["state"]["running"]["startedAt"],
        "finishedAt": stamp(now),
    }
    if current[0]["restartCount"] == 0:  # the first restart is immediate
        statuses = _all(pod, current, {"terminated": ended})
    else:
        metadata = pod["metadata"]
        message = (
            f"back-off {_crash_backoff(pod, current):.0f}s restarting failed container=%s pod=%s"
        )
        where = f"{metadata['name']}_{metadata.get('namespace')}({metadata.get('uid')})"
        name = current[0]["name"]
        waiting = {"reason": "CrashLoopBackOff", "message": message % (name, where)}
        last = {"terminated": ended}
        statuses = _all(pod, current, {"waiting": waiting}, last=last)
    return statuses, ("Warning", "BackOff", "Back-off restarting failed container")


def _pull(pod: Object, current: _Statuses, _now: datetime) -> tuple[_Statuses, _Event]:
    image = pod["spec"]["containers"][0].get("image", "")
    message = f'failed to pull and unpack image "{image}": not found'
    waiting = {"waiting": {"reason": "ErrImagePull", "message": message}}
    event = f'Failed to pull image "{image}": {message}'
    return _all(pod, current, waiting), ("Warning", "Failed", event)


def _back_off(pod: Object, current: _Statuses, _now: datetime) -> tuple[_Statuses, _Event]:
    image = pod["spec"]["containers"][0].get("image", "")
    why = current[0]["state"]["waiting"]["message"]
    message = f'Back-off pulling image "{image}"'
    waiting = {"reason": "ImagePullBackOff", "message": f"{message}: ErrImagePull: {why}"}
    return _all(pod, current, {"waiting": waiting}), ("Normal", "BackOff", message)


_State = tuple[str, str]
# how long each state of a container lasts, in simulated seconds (None: for ever), and what follows
_LASTS: Mapping[_State, Callable[[Object, _Statuses], float | None]] = {
    ("waiting", "ContainerCreating"): _start_delay,
    ("waiting", "ErrImagePull"): lambda *_: CRASH_AFTER,
    ("waiting", "ImagePullBackOff"): lambda *_: PULL_RETRY,
    ("waiting", "CrashLoopBackOff"): _crash_backoff,
    ("running", ""): lambda pod, _: CRASH_AFTER if simulated(pod) == "crash-loop" else None,
    ("terminated", "Error"): lambda *_: STOP_DELAY,
}
_NEXT: Mapping[_State, Callable[[Object, _Statuses, datetime], tuple[_Statuses, _Event]]] = {
    ("waiting", "ContainerCreating"): _begin,
    ("waiting", "ErrImagePull"): _back_off,
    ("waiting", "ImagePullBackOff"): _pull,
    ("waiting", "CrashLoopBackOff"): _run,
    ("running", ""): _crash,
    ("terminated", "Error"): _run,
}


def _state(status: Object) -> _State:
    (name, content), *_ = status["state"].items()
    return name, content.get("reason", "")


def _all(
    pod: Object,
    current: Sequence[Object],
    state: Object,
    *,
    ready: bool = False,
    restarts: int | None = None,
    last: Object | None = None,
) -> _Statuses:
    """The statuses of all containers in one state: they share their fate here."""
    before = current[0] if current else {}
    if last is None:
        last = before.get("lastState", {})
        if "terminated" in before.get("state", {}):
            last = before["state"]
    count = before.get("restartCount", 0) if restarts is None else restarts
    running = "running" in state
    return [
        {
            "name": container["name"],
            "image": container.get("image", ""),
            "imageID": container.get("image", "") if running else "",
            "ready": ready,
            "started": running,
            "restartCount": count,
            "state": state,
            "lastState": last,
        }
        for container in pod["spec"]["containers"]
    ]


def _conditions(pod: Object, statuses: _Statuses, started: bool, now: datetime) -> list[Object]:
    unready = [one["name"] for one in statuses if not one["ready"]]
    containers: Object = {"status": "True"}
    if unready:
        message = f"containers with unready status: [{' '.join(unready)}]"
        containers = {"status": "False", "reason": "ContainersNotReady", "message": message}
    shut = _shut_gates(pod)
    ready = containers
    if shut and not unready:
        ready = {"status": "False", "reason": "ReadinessGatesNotReady", "message": shut}
    return _with_conditions(
        pod,
        {
            "PodReadyToStartContainers": {"status": str(started)},
            "Initialized": {"status": "True"},
            "Ready": ready,
            "ContainersReady": containers,
            "PodScheduled": {"status": "True"},
        },
        now,
    )


def _shut_gates(pod: Object) -> str:
    """Why readiness gates hold the pod back; empty where none does."""
    problems = []
    for gate in pod["spec"].get("readinessGates", ()):
        name = gate["conditionType"]
        found = condition(pod, name)
        if found is None:
            problems.append(
                f'corresponding condition of pod readiness gate "{name}" does not exist.'
            )
        elif found["status"] != "True":
            problems.append(
                f'the status of pod readiness gate "{name}" is not "True", but {found["status"]}'
            )
    return ", ".join(problems)


def _with_conditions(pod: Object, own: Mapping[str, Object], now: datetime) -> list[Object]:
    """The pod's conditions: the kubelet's as given, those of others as they are."""
    present = pod.get("status", {}).get("conditions", ())
    others = [one for one in present if one["type"] not in own]
    return [*(_condition(pod, kind, content, now) for kind, content in own.items()), *others]


def _condition(pod: Object, kind: str, content: Object, now: datetime) -> Object:
    before = condition(pod, kind)
    same = before is not None and before["status"] == content["status"]
    since = before["lastTransitionTime"] if before and same else stamp(now)
    return {"type": kind, "lastTransitionTime": since, **content}


def _stopping(pod: Object, waited: float, now: datetime) -> Step:
    current = pod.get("status", {}).get("containerStatuses")
    if not current or not pod["spec"].get("nodeName"):
        return Step(gone=True)
    left = stop_seconds(pod) - waited
    if left > 0:
        return Step(wait=left)
    grace = float(pod["metadata"].get("deletionGracePeriodSeconds", 30))
    killed = seconds(_annotation(pod, "stop-delay"), 0) >= grace > 0
    ended: dict[str, Any] = {
        "exitCode": 137 if killed else 0,
        "reason": "Error" if killed else "Completed",
        "startedAt": pod["status"].get("startTime"),
        "finishedAt": stamp(now),
    }
    why = {"status": "False", "reason": "PodFailed" if killed else "PodCompleted"}
    status = {
        **pod["status"],
        "phase": "Failed" if killed else "Succeeded",
        "containerStatuses": _all(pod, current, {"terminated": ended}),
        "conditions": _with_conditions(pod, {"Ready": why, "ContainersReady": why}, now),
    }
    return Step(status=status, gone=True)


def _annotation(pod: Object, name: str) -> str | None:
    value = (pod["metadata"].get("annotations") or {}).get(PREFIX + name)
    return None if value is None else str(value)
