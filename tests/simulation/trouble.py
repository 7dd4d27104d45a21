"""What happens to a run besides: faults of requests and watches, people, git, leaders, deaths.

A run's troubles are a list of values, drawn from its seed beforehand; what one of them does depends
on its own seed and the moment, not on the others, so that a run can be repeated with fewer of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gitops_mcp.base.names import LABEL_MANAGED_BY, JsonObject
from simulation.cluster import CRS, DEPLOYMENTS, PODS
from simulation.sources import NAMESPACE, manifest

if TYPE_CHECKING:
    from simulation.runs import Run

MERGE = "application/merge-patch+json"
IMAGES = tuple(f"example.com/server:{number}" for number in range(3))
NAMES = ("web", "chat", "tool", "spare")


@dataclass(frozen=True, order=True, slots=True)
class Trouble:
    """``kind`` happens at that time, in a way that ``seed`` says."""

    at: float
    kind: str
    seed: int

    def __str__(self) -> str:
        return f"{self.at:8.2f} {self.kind} ({self.seed})"


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to one request. ``code`` 0: the connection is lost. ``acts``: it did its work
    all the same. ``waits`` are seconds on its way; ``dies``: so does who sent it."""

    code: int | None = None
    acts: bool = False
    waits: float = 0.0
    dies: bool = False
    retry_after: int | None = None

    def __str__(self) -> str:
        when = "after it acted" if self.acts else "before it acts"
        if self.dies:
            return f"its sender dies {when}"
        if self.code is None:
            return f"waits {self.waits:.1f} s"
        return f"answered {self.code or 'by nothing'} {when}"


# --- requests ---------------------------------------------------------------------------------


def _refused(run: Run, rng: random.Random) -> str:
    code = rng.choice([500, 503, 429, 0, 504])
    after = rng.choice([None, 1, 2]) if code in (429, 503) else None
    return run.arm(Fault(code, retry_after=after))


def _lost(run: Run, rng: random.Random) -> str:
    return run.arm(Fault(rng.choice([0, 504, 500]), acts=True), writes=True)


def _slow(run: Run, rng: random.Random) -> str:
    return run.arm(Fault(waits=rng.choice([0.2, 1.0, 5.0])))


def _dead(run: Run, rng: random.Random) -> str:
    acts = rng.random() < 0.5
    return run.arm(Fault(acts=acts, dies=True), writes=rng.random() < 0.8)


def _storm(run: Run, rng: random.Random) -> str:
    run.storm_until = run.world.now + rng.choice([0.5, 3.0, 15.0])
    run.lasting(run.storm_until - run.world.now)
    run.storm = Fault(rng.choice([429, 503, 0]), retry_after=rng.choice([None, 1]))
    return f"until {run.storm_until:.1f} every request is {run.storm}"


# --- watches ----------------------------------------------------------------------------------


def _lag(run: Run, rng: random.Random) -> str:
    agent, seconds = run.some_agent(rng), rng.choice([0.5, 3.0, 20.0])
    feed = rng.choice(agent.feeds)
    feed.lag = seconds
    run.lasting(3 * seconds)
    run.world.later(seconds * 2, lambda: setattr(feed, "lag", 0.0))
    return f"{agent.name} hears of {feed.watched.kind} {seconds} s late"


def _silence(run: Run, rng: random.Random) -> str:
    agent, seconds = run.some_agent(rng), rng.choice([1.0, 10.0, 60.0])
    feed, known = rng.choice(agent.feeds), rng.random() < 0.5
    feed.stop(known=known)
    run.lasting(seconds + 5.0)
    run.world.later(seconds, feed.resume if rng.random() < 0.5 else feed.relist)
    return f"{agent.name} hears nothing of {feed.watched.kind} for {seconds} s (known: {known})"


def _relist(run: Run, rng: random.Random) -> str:
    agent = run.some_agent(rng)
    feed = rng.choice(agent.feeds)
    feed.relist()
    return f"{agent.name} must list {feed.watched.kind} anew"


def _replay(run: Run, rng: random.Random) -> str:
    agent = run.some_agent(rng)
    feed, count = rng.choice(agent.feeds), rng.choice([1, 5, 40])
    feed.replay(count)
    return f"{agent.name} hears the last {count} news of {feed.watched.kind} again"


# --- people -----------------------------------------------------------------------------------


def _paths(name: str) -> Mapping[str, str]:
    return {
        "deployment": f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{name}",
        "service": f"/api/v1/namespaces/{NAMESPACE}/services/{name}",
        "mcpserver": f"/apis/mcp.example.com/v1alpha1/namespaces/{NAMESPACE}/mcpservers/{name}",
    }


def _edit(run: Run, rng: random.Random, kind: str, body: JsonObject, manager: str) -> str:
    name = rng.choice(NAMES)
    answer = run.plane.ask("PATCH", _paths(name)[kind], body, {"fieldManager": manager}, MERGE)
    return f"{manager}: {kind}/{name} {body} ({answer.code})"


def _scale(run: Run, rng: random.Random) -> str:
    name, kind = rng.choice(NAMES), "deployment"
    body = {"spec": {"replicas": rng.choice([0, 1, 3])}}
    path = _paths(name)[kind] + "/scale"
    answer = run.plane.ask("PATCH", path, body, {"fieldManager": "kubectl"}, MERGE)
    return f"kubectl scale {kind}/{name} {body['spec']} ({answer.code})"


def _edit_deployment(run: Run, rng: random.Random) -> str:
    body: JsonObject = rng.choice(
        [
            {"spec": {"replicas": 4}},
            {"spec": {"paused": True}},
            {"spec": {"template": {"metadata": {"annotations": {"edited": "by-hand"}}}}},
            {"metadata": {"annotations": {"edited": "by-hand"}}},
        ]
    )
    return _edit(run, rng, "deployment", body, rng.choice(["kubectl-edit", "kubectl-patch"]))


def _edit_service(run: Run, rng: random.Random) -> str:
    body: JsonObject = rng.choice(
        [
            {"spec": {"selector": {"edited": "by-hand"}}},
            {"spec": {"sessionAffinity": "None"}},
        ]
    )
    return _edit(run, rng, "service", body, "kubectl-edit")


def _edit_server(run: Run, rng: random.Random) -> str:
    body: JsonObject = rng.choice(
        [
            {"spec": {"image": "example.com/by-hand:1"}},
            {"spec": {"replicas": 3}},
            {"spec": {"config": {"BY_HAND": "1"}}},
        ]
    )
    name = rng.choice([name for name in NAMES if name in run.from_git] or NAMES)
    if "replicas" in body["spec"]:
        name = "web"  # the others' are left to whoever sets them
    path = _paths(name)["mcpserver"]
    answer = run.plane.ask("PATCH", path, body, {"fieldManager": "kubectl-edit"}, MERGE)
    return f"kubectl edit mcpserver/{name} {body} ({answer.code})"


def _unlabel(run: Run, rng: random.Random) -> str:
    kind = rng.choice(["deployment", "service"])
    body = {"metadata": {"labels": {LABEL_MANAGED_BY: None}}}
    return _edit(run, rng, kind, body, "kubectl-label")


def _delete(run: Run, rng: random.Random) -> str:
    name = rng.choice(NAMES)
    kind = rng.choice(["deployment", "service", "mcpserver"])
    policy = rng.choice(["Background", "Background", "Foreground"])
    body = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": policy}
    answer = run.plane.ask("DELETE", _paths(name)[kind], body)
    return f"kubectl delete {kind}/{name} {policy} ({answer.code})"


def _evict(run: Run, rng: random.Random) -> str:
    pods = run.plane.store.list(PODS, NAMESPACE)
    if not pods:
        return "no pod to delete"
    name = rng.choice(pods)["metadata"]["name"]
    run.plane.ask("DELETE", f"/api/v1/namespaces/{NAMESPACE}/pods/{name}")
    return f"kubectl delete pod/{name}"


def _replace_deployment(run: Run, rng: random.Random) -> str:
    return replace_deployment(run, rng.choice(NAMES))


def replace_deployment(run: Run, name: str) -> str:
    """Another one of that name, with a selector that can never be ours: only a recreate helps."""
    path = _paths(name)["deployment"]
    live = run.plane.store.get(DEPLOYMENTS, NAMESPACE, name)
    cr = run.plane.store.get(CRS, NAMESPACE, name)
    if live is None or cr is None or "deletionTimestamp" in cr["metadata"]:
        return f"no deployment/{name} to replace"
    run.plane.ask("DELETE", path)
    labels = dict(live["metadata"].get("labels") or {})
    selector = {"by-hand": name}
    body = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": selector},
            "template": {
                "metadata": {"labels": selector},
                "spec": {"containers": [{"name": "other", "image": "example.com/other:1"}]},
            },
        },
    }
    answer = run.plane.ask("POST", path.rpartition("/")[0], body)
    return f"kubectl replace --force deployment/{name} ({answer.code})"


def _drop_namespace(run: Run, _: random.Random) -> str:
    answer = run.plane.ask("DELETE", f"/api/v1/namespaces/{NAMESPACE}")
    return f"kubectl delete namespace {NAMESPACE} ({answer.code})"


# --- git --------------------------------------------------------------------------------------


def some_spec(rng: random.Random, name: str) -> JsonObject:
    """A valid spec. A server sets its replicas always or never: what nobody sets is left alone."""
    transport = {"tool": "stdio"}.get(name) or rng.choice(["http", "http", "streamable-http"])
    if name == "spare":
        transport = rng.choice(["stdio", "http"])
    spec: JsonObject = {"image": rng.choice(IMAGES), "transport": transport}
    if name == "web":
        spec["replicas"] = rng.choice([0, 1, 2, 3])
    if rng.random() < 0.5:
        spec["config"] = {"LEVEL": "high"}
    if transport != "stdio":
        spec["drain"] = {"preStop": "3s", "timeout": rng.choice(["4s", "8s"])}
        if rng.random() < 0.3:
            spec["drain"]["gauge"] = {"name": "sessions"}
    return spec


def _commit(run: Run, rng: random.Random) -> str:
    files = run.origin.files()
    for _ in range(rng.choice([1, 1, 2])):
        name = rng.choice(NAMES)
        path = f"{name}.yaml"
        if path in files and rng.random() < 0.25:
            del files[path]
        else:
            files[path] = manifest(name, some_spec(rng, name))
    return run.push(files)


def _break(run: Run, rng: random.Random) -> str:
    files = run.origin.files()
    name = rng.choice(NAMES)
    text = rng.choice(
        [
            manifest(name, {"image": "x", "transport": "pigeon"}),
            manifest(name, {"image": "x", "replicas": "three"}),
            "kind: MCPServer\nspec: [unfinished",
        ]
    )
    return run.push(files | {f"{name}.yaml": text})


def _force(run: Run, rng: random.Random) -> str:
    parent = rng.choice(sorted(run.origin.commits))
    files = dict(run.origin.commits[parent].files)
    name = rng.choice(NAMES)
    files[f"{name}.yaml"] = manifest(name, some_spec(rng, name))
    return "forced " + run.push(files, parent=parent)


def _away(run: Run, rng: random.Random) -> str:
    run.origin.away = True
    seconds = rng.choice([2.0, 20.0])
    run.lasting(seconds)
    run.world.later(seconds, lambda: setattr(run.origin, "away", False))
    return f"git is away for {seconds} s"


# --- processes --------------------------------------------------------------------------------


def _switch(run: Run, rng: random.Random) -> str:
    return run.lead(rng.randrange(2))


def _restart(run: Run, rng: random.Random) -> str:
    agent = run.some_agent(rng)
    run.restart(agent)
    return f"{agent.name} is killed"


KINDS: Mapping[str, tuple[int, Callable[[Any, random.Random], str]]] = {
    "a request is refused": (6, _refused),
    "an answer is lost": (6, _lost),
    "a request is slow": (6, _slow),
    "the sender of a request dies": (6, _dead),
    "a storm": (2, _storm),
    "a watch lags": (4, _lag),
    "a watch is silent": (4, _silence),
    "a watch lists anew": (2, _relist),
    "a watch repeats itself": (2, _replay),
    "scale": (2, _scale),
    "edit a Deployment": (3, _edit_deployment),
    "edit a Service": (2, _edit_service),
    "edit an MCPServer": (3, _edit_server),
    "take a label away": (2, _unlabel),
    "delete": (5, _delete),
    "delete a pod": (2, _evict),
    "replace a Deployment": (1, _replace_deployment),
    "delete the namespace": (1, _drop_namespace),
    "commit": (12, _commit),
    "a broken commit": (3, _break),
    "a forced push": (2, _force),
    "git is away": (2, _away),
    "the leader changes": (3, _switch),
    "a process is killed": (3, _restart),
}
"""Each with its weight."""


def draw(seed: int) -> list[Trouble]:
    """The troubles of a run, in time."""
    rng = random.Random(seed)
    weights = [weight for weight, _ in KINDS.values()]
    count, within = rng.randint(4, 30), rng.choice([20.0, 60.0, 150.0])
    kinds = rng.choices(list(KINDS), weights, k=count)
    return sorted(
        Trouble(round(rng.uniform(2.0, 2.0 + within), 3), kind, rng.getrandbits(24))
        for kind in kinds
    )
