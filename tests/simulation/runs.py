"""One run: a cluster, git, two processes of which one leads, and the troubles that come to them.

``Run.play`` raises ``Broken`` where a law does not hold, at once or at the end; ``check`` plays a
seed and, where it fails, finds a short list of troubles that still fails.
"""

from __future__ import annotations

import copy
import itertools
import logging
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from unittest import mock

import orjson

from gitops_mcp.base.model import Context, Decision, Facts
from gitops_mcp.base.names import (
    FIELD_MANAGER,
    KIND,
    LABEL_INSTANCE,
    LABEL_SOURCE,
    JsonObject,
    ServerKey,
)
from gitops_mcp.base.objects import LiveObject
from gitops_mcp.decide import ownership, planning, rollout
from gitops_mcp.decide.rollout import Serial
from gitops_mcp.sync import hooks as hooks_module
from simulation import trouble
from simulation.agents import Agent, Died
from simulation.cluster import CRS, DEPLOYMENTS, KEYS, PODS, SERVICES, Answer, Plane, Request
from simulation.laws import Broken, Laws
from simulation.sources import NAMESPACE, SOURCE, Origin, load, manifest
from simulation.trouble import Fault, Trouble
from simulation.world import World

LATENCY = (0.001, 0.01)
"""Seconds that a request takes each way."""
ONE_BY_ONE = Serial(1, percent=False)
SETTLES = 600.0
"""Seconds within which everything is where git wants it, once there is no trouble any more."""
INSPECTS = 10.0
"""Seconds between two looks at whether anything was overlooked."""
RESTS = 75.0
"""Seconds without a write that are rest: longer than any retry of what may still succeed, and than
the time between two handshakes."""

Version = tuple[str, str, str, str]
"""Kind, name, uid and resourceVersion."""
Faults = Mapping[int, Fault]
"""What happens to the requests of these numbers, counted over all processes."""


class Run:
    """One run, from its seed. ``faults`` come on top of ``troubles``; ``processes`` stand by each
    other; ``files`` are what git holds at first, ``hand`` the MCPServers that kubectl made."""

    def __init__(
        self,
        seed: int,
        troubles: Sequence[Trouble] = (),
        *,
        faults: Faults | None = None,
        files: Mapping[str, str] | None = None,
        hand: Sequence[JsonObject] = (),
        processes: int = 2,
        hooks: bool = False,
        serial: Serial | None = None,
    ) -> None:
        self.trace: list[str] = []
        self.requests = 0
        self.wrote: list[bool] = []
        """Of each request, could it have changed something?"""
        self.writes = 0
        """Requests that could have changed something."""
        self.storm = Fault()
        self.storm_until = -1.0
        self.trouble_until = 0.0
        """When nothing will be left of the troubles so far but what they changed."""
        self.world = World(seed)
        self._troubles = troubles
        self._faults = faults or {}
        self._hooks = hooks
        self._serial = serial
        self._armed: list[tuple[Fault, bool]] = []
        self._bugs = Bugs()
        logging.getLogger("gitops_mcp").addHandler(self._bugs)
        try:
            self.plane = Plane(self.world)
            self.origin = Origin()
            self.laws = Laws(self.plane, self.origin)
            if hand:
                self.plane.create(_namespace(), "kubectl")
                self.world.run(self.world.now + 0.5)
            for body in hand:
                self.plane.create(body, "kubectl-create")
            self.push(dict(files or {}))
            self.leader = 0
            self.agents: list[Agent] = []
            self._born = self._terms = self._inspected = 0
            for slot in range(processes):
                self.agents.append(self._agent(slot))
        finally:
            logging.getLogger("gitops_mcp").removeHandler(self._bugs)

    def say(self, text: str) -> None:
        """One line of what happened."""
        self.trace.append(f"{self.world.now:9.3f} {text}")

    def lasting(self, seconds: float) -> None:
        """Trouble goes on for so long."""
        self.trouble_until = max(self.trouble_until, self.world.now + seconds)

    # --- processes ---

    def _agent(self, slot: int) -> Agent:
        self._born += 1
        return Agent(
            self.plane,
            self.origin,
            f"agent-{self._born}",
            self._wire,
            leads=lambda: self.leader == slot and self.agents[slot].alive,
            hooks=self._hooks,
            serial=self._serial,
        )

    def some_agent(self, rng: random.Random) -> Agent:
        """The leader, or sometimes another process."""
        slot = self.leader if rng.random() < 0.75 else rng.randrange(len(self.agents))
        return self.agents[slot]

    def restart(self, agent: Agent) -> None:
        """It dies and comes back with nothing but what cluster and git hold; sometimes the other
        one has taken over by then."""
        if not agent.alive:
            return
        slot = self.agents.index(agent)
        agent.kill()
        rng = random.Random(self._born)
        self.lasting(5.0)
        self.world.later(rng.uniform(0.2, 3.0), lambda: self._back(slot))
        if self.leader == slot and rng.random() < 0.5:
            self.world.later(rng.uniform(0.1, 5.0), lambda: self._follow(slot))

    def _back(self, slot: int) -> None:
        self.agents[slot] = self._agent(slot)

    def _follow(self, slot: int) -> None:
        self.lead(slot + 1)

    def lead(self, slot: int) -> str:
        """From now on that process writes, and no other."""
        slot %= len(self.agents)
        if slot != self.leader:
            self.leader = slot
            self._terms += 1
            self.agents[slot].controller.lead()
            self.agents[slot].controller.look_at_all()
        return f"{self.agents[slot].name} leads"

    # --- git ---

    def push(self, files: dict[str, str], *, parent: str | None = None) -> str:
        """A commit, and a hook that tells of it."""
        commit = self.origin.push(files, parent=parent)
        return f"push {commit.sha[:7]}: " + ", ".join(sorted(files))

    @property
    def from_git(self) -> frozenset[str]:
        """The names of the servers that git holds."""
        return frozenset(
            key.name for key in load(self.origin.commits[self.origin.head].files).servers
        )

    # --- requests ---

    def arm(self, fault: Fault, *, writes: bool = False) -> str:
        """The next request (that writes) has this fault."""
        self._armed.append((fault, writes))
        return f"the next {'write' if writes else 'request'} {fault}"

    def _fault(self, request: Request) -> Fault:
        if self.requests in self._faults:
            return self._faults[self.requests]
        for index, (fault, writes) in enumerate(self._armed):
            if request.writes or not writes:
                del self._armed[index]
                return fault
        return self.storm if self.world.now < self.storm_until else Fault()

    def _wire(self, agent: Agent, request: Request) -> Answer:
        """Carry one request there and its answer back, or what becomes of them."""
        if not agent.alive:
            raise Died
        if agent.peeking:
            return self.plane.answer(request)
        fault = self._fault(request)
        self.requests += 1
        self.wrote.append(request.writes)
        self.writes += request.writes
        if request.writes:
            self.laws.sent(agent, request)
        locks = request.ref is not None and request.ref.kind in ("Namespace", "ConfigMap")
        agent.asking += locks
        try:
            return self._carry(agent, request, fault)
        finally:
            agent.asking -= locks

    def _carry(self, agent: Agent, request: Request, fault: Fault) -> Answer:
        self._pass(agent, fault.waits)
        answer = Answer.refusal(fault.code or 503, fault.retry_after)
        if fault.acts or (fault.code is None and not fault.dies):
            self.laws.actor = agent.name
            try:
                acted = self.plane.answer(request)
            finally:
                self.laws.actor = ""
            self._tell(request, fault, acted)
            if fault.code is None:
                answer = acted
        else:
            self._tell(request, fault, None)
        if fault.dies:
            self.restart(agent)
            raise Died
        self._pass(agent, 0.0)
        if fault.code == 0:
            raise ConnectionError("simulated")
        return answer

    def _pass(self, agent: Agent, seconds: float) -> None:
        """Time passes while a request is under way, and others act."""
        self.world.run(self.world.now + seconds + self.world.rng.uniform(*LATENCY))
        if not agent.alive:
            raise Died

    def _tell(self, request: Request, fault: Fault, answer: Answer | None) -> None:
        said = f" {answer.code}" if answer is not None else ""
        hurt = f" [{fault}]" if fault != Fault() else ""
        self.say(f"#{self.requests - 1} {request}{said}{hurt}")

    # --- the run ---

    def play(self) -> None:
        """Everything, with its end. Raises Broken."""
        with self._listening():
            self._play()

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """What goes on outside of this thread in the product stays in it, and what should be the
        same each time is looked at twice."""
        log, decide, asked = logging.getLogger("gitops_mcp"), planning.decide, itertools.count()

        def twice(facts: Facts, context: Context, renderer: ownership.Renderer) -> Decision:
            decision = decide(facts, context, renderer)
            if next(asked) % 8 == 0 and decide(facts, context, renderer) != decision:
                raise Broken(f"the same facts lead to the same actions: {facts.key}")
            return decision

        def call(_: object, event: JsonObject, *, limit: timedelta) -> str:  # noqa: ARG001
            self.laws.cleans_up(event["uid"], str(event["server"]), self.lives)
            return "1 of 1 hooks done"

        log.addHandler(self._bugs)
        try:
            with (
                mock.patch.object(planning, "decide", twice),
                mock.patch.object(hooks_module, "run", call),
                mock.patch.object(rollout, "THRESHOLD", 2 if self._serial else 10),
            ):
                yield
        finally:
            log.removeHandler(self._bugs)
            for agent in self.agents:
                agent.kill()

    @property
    def lives(self) -> int:
        """How many processes there were, and terms of theirs."""
        return self._born + self._terms

    def _play(self) -> None:
        self.world.later(INSPECTS, self._inspect)
        for one in self._troubles:
            self.world.later(one.at, lambda one=one: self._befall(one))  # type: ignore[misc]
        last = self.world.now + max((one.at for one in self._troubles), default=0.0)
        self.world.run(last + 3.0)
        self._mend()
        self.settle()
        self._end()

    def tell(self, before: float, happens: Callable[[Run], None]) -> tuple[int, int]:
        """A story: what happens once all is Ready, and its end. Returns the numbers of its first
        request and of the one after its last. Raises Broken."""
        with self._listening():
            self.world.run(self.world.now + before)
            happens(self)
            first = self.requests
            self.settle()
            last = self.requests
            self._end()
        return first, last

    def _inspect(self) -> None:
        self.world.later(INSPECTS, self._inspect)
        version = self.plane.store.storage.rv
        if version != self._inspected:
            self._inspected = version
            for agent in self.agents:
                if overlooked := agent.overlooked():
                    raise Broken(f"no wake-up is lost: {overlooked}")

    def _befall(self, one: Trouble) -> None:
        _, happens = trouble.KINDS[one.kind]
        self.lasting(3.0)
        self.say(f"** {happens(self, random.Random(one.seed))}")

    def _mend(self) -> None:
        """Whatever is wrong in git is put right, and all that it says may be done."""
        rng = random.Random(len(self.origin.commits))
        files = self.origin.files()
        for path in [path for path in files if not _valid(files[path])]:
            name = path.removesuffix(".yaml")
            files[path] = manifest(name, trouble.some_spec(rng, name))
        commit = self.origin.push(files)
        self.say(f"** push {commit.sha[:7]}: all is well from here on")
        self.settle()
        held = load(commit.files).servers
        kept = [cr for cr in self.plane.store.list(CRS) if _is_ours(cr) and _key(cr) not in held]
        if kept:
            commit = self.origin.push(files, allow_prune=len(kept))
            self.say(f"** push {commit.sha[:7]}: {len(kept)} may be pruned")

    def settle(self, rests: float = RESTS) -> None:
        """No trouble any more: everything comes to where git wants it, and to rest."""
        self.world.run(max(self.world.now, self.trouble_until))
        self._armed.clear()
        until = self.world.now + SETTLES
        while self._moves(rests):
            if self.world.now > until:
                raise Broken(f"after the last action there is none: {self.trace[-1]}")
        if self._bugs.lines:
            raise Broken(f"nothing stumbles: {self._bugs.lines[0]}")

    def _moves(self, seconds: float) -> bool:
        """Does anybody write in that time, or has anything failed that is to be tried again?"""
        before = self.writes
        self.world.run(self.world.now + seconds)
        return self.writes != before or any(agent.failing for agent in self.agents)

    def _end(self) -> None:
        self._see_all()
        for agent in list(self.agents):
            self.restart(agent)
        before = self.writes
        self.world.run(self.world.now + 20.0)
        if self.writes != before:
            raise Broken(f"a restart changes nothing: {self.trace[-1]}")
        self._see_all()
        hand = [_bare(cr) for cr in self.plane.store.list(CRS) if _is_kubectls(cr)]
        files = self.origin.commits[self.origin.head].files
        wanted: dict[str, JsonObject] = {}
        for path, text in files:
            wanted |= undisturbed(path, text)
        for body in hand:
            wanted |= undisturbed("", orjson.dumps(body).decode())
        found = self.state()
        for name, obj in found.items():
            if name in wanted and "owned" in obj:
                # What somebody set by hand to what git says anyway is theirs.
                wanted[name] = {
                    **wanted[name],
                    "owned": _common(wanted[name]["owned"], obj["owned"]),
                }
        if found != wanted:
            raise Broken("the end is that of the undisturbed run: " + _difference(wanted, found))

    def _see_all(self) -> None:
        """Every view holds what there is."""
        for agent in self.agents:
            for feed in agent.feeds:
                if feed.behind:
                    raise Broken(f"the watches are whole again: {feed.watched.kind}")
            known, there = _known(agent), self._there(agent)
            if known != there:
                one = min(known ^ there)
                raise Broken(f"a view holds what there is: {one} {'more' if one in known else ''}")

    def _there(self, agent: Agent) -> set[Version]:
        """What a view that knows all of the present knows of it."""
        return {
            _version(obj)
            for feed in agent.feeds
            for obj in self.plane.store.list(KEYS[feed.watched.kind])
            if feed.selects(obj)
        }

    def state(self) -> dict[str, JsonObject]:
        """The cluster without what no two runs have alike."""
        found: dict[str, JsonObject] = {}
        for kind in (CRS, DEPLOYMENTS, SERVICES, PODS):
            for obj in self.plane.store.list(kind, NAMESPACE):
                labels = obj["metadata"].get("labels") or {}
                ours = LABEL_INSTANCE in labels and "ownerReferences" in obj["metadata"]
                if kind != CRS and not ours:
                    continue  # somebody else's, who may keep it
                if kind == PODS:
                    name = f"Pod/{labels[LABEL_INSTANCE]}"
                    image = obj["spec"]["containers"][0]["image"]
                    count = found.get(name, {}).get("count", 0)
                    found[name] = {"count": count + 1, "image": image}
                else:
                    found[f"{obj['kind']}/{obj['metadata']['name']}"] = _normal(obj)
        return found


@lru_cache(4096)
def undisturbed(path: str, text: str) -> dict[str, JsonObject]:
    """Where one server comes to when nothing happens to it, and there is no other: from a file of
    git, or (no ``path``) made by kubectl."""
    files, hand = ({path: text}, []) if path else ({}, [orjson.loads(text)])
    run = Run(0, files=files, hand=hand, processes=1)
    try:
        run.settle(rests=40.0)
    finally:
        run.agents[0].kill()
    return run.state()


class Bugs(logging.Handler):
    """What the sandbox logs is a bug of its own, or one of ours that it met."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text += f": {record.exc_info[1]!r}"
        self.lines.append(text)


# --- what two runs have alike -----------------------------------------------------------------

_UNIQUE = frozenset(
    {
        "uid",
        "resourceVersion",
        "creationTimestamp",
        "generation",
        "managedFields",
        "selfLink",
        "clusterIP",
        "clusterIPs",
        "nodePort",
        "healthCheckNodePort",
        "lastTransitionTime",
        "lastUpdateTime",
        "observedGeneration",
        "startedAt",
        "revision",
        "lastHandledReconcileAt",
    }
)


def _normal(obj: JsonObject) -> JsonObject:
    metadata = obj["metadata"]
    owned = [
        entry["fieldsV1"]
        for entry in metadata.get("managedFields", ())
        if (entry["manager"], entry["operation"]) == (FIELD_MANAGER, "Apply")
        and not entry.get("subresource")
    ]
    kept = copy.deepcopy(obj)
    annotations = kept["metadata"].get("annotations") or {}
    annotations.pop("deployment.kubernetes.io/revision", None)
    if not annotations:
        kept["metadata"].pop("annotations", None)
    if obj["kind"] != KIND:
        counts = kept.pop("status", {})
        kept["status"] = {k: v for k, v in counts.items() if k.endswith("Replicas")}
    else:
        for condition in kept.get("status", {}).get("conditions", ()):
            condition["message"] = re.sub(r"[0-9a-f]{40}", "(commit)", condition["message"])
    stripped = _stripped(kept)
    assert isinstance(stripped, dict)
    return {**stripped, "owned": _stripped(owned)}


def _stripped(value: object) -> object:
    if isinstance(value, dict):
        return {
            key: _stripped(one)
            for key, one in value.items()
            if key not in _UNIQUE and not key.startswith('k:{"uid"')
        }
    if isinstance(value, list):
        return [_stripped(one) for one in value]
    return value


def _difference(wanted: object, found: object, path: str = "") -> str:
    """The first place where two values differ."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key in sorted({*wanted, *found}, key=str):
            if wanted.get(key) != found.get(key):
                return _difference(wanted.get(key), found.get(key), f"{path}/{key}")
    if isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        for index, (one, other) in enumerate(zip(wanted, found, strict=True)):
            if one != other:
                return _difference(one, other, f"{path}/{index}")
    return f"{path}: wanted {wanted}, found {found}"


def _common(wanted: object, found: object) -> object:
    """The part of what we should own that we do own."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        return {key: _common(one, found[key]) for key, one in wanted.items() if key in found}
    if isinstance(wanted, list) and isinstance(found, list):
        return [_common(one, other) for one, other in zip(wanted, found, strict=False)]
    return wanted


def _bare(cr: JsonObject) -> JsonObject:
    metadata = {key: cr["metadata"][key] for key in ("name", "namespace")}
    return {"apiVersion": cr["apiVersion"], "kind": KIND, "metadata": metadata, "spec": cr["spec"]}


def _is_ours(cr: JsonObject) -> bool:
    return ownership.owner_of(LiveObject(cr), SOURCE) is ownership.Owner.OURS


def _key(cr: JsonObject) -> ServerKey:
    return ServerKey(cr["metadata"]["namespace"], cr["metadata"]["name"])


def _is_kubectls(cr: JsonObject) -> bool:
    return LABEL_SOURCE not in (cr["metadata"].get("labels") or {})


def _version(obj: JsonObject) -> Version:
    metadata = obj["metadata"]
    return obj["kind"], metadata["name"], metadata["uid"], metadata["resourceVersion"]


def _known(agent: Agent) -> set[Version]:
    found = set()
    for key in list(agent.view._servers):
        live = agent.view.live(key)
        objects = (live.cr, *live.children.values(), *live.pods.values())
        found |= {_version(obj) for obj in objects if obj is not None}
    return found


def _valid(text: str) -> bool:
    return bool(load((("one.yaml", text),)).servers)


def _namespace() -> JsonObject:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}


HAND = {
    "apiVersion": "mcp.example.com/v1alpha1",
    "kind": "MCPServer",
    "metadata": {"name": "hand", "namespace": NAMESPACE},
    "spec": {"image": "example.com/hand:1", "transport": "http", "replicas": 1},
}


# --- seeds ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Failure:
    """A seed that fails, and the fewest of its troubles that were found to do so."""

    seed: int
    law: str
    troubles: tuple[Trouble, ...]
    trace: tuple[str, ...] = field(repr=False, default=())

    def __str__(self) -> str:
        lines = [f"seed {self.seed}: {self.law}", "troubles:", *map(str, self.troubles)]
        return "\n".join([*lines, "trace:", *self.trace[-150:]])


def beginning(seed: int) -> dict[str, str]:
    """What git holds at first."""
    rng = random.Random(seed)
    names = rng.sample(trouble.NAMES, k=rng.randint(1, 3))
    return {f"{name}.yaml": manifest(name, trouble.some_spec(rng, name)) for name in sorted(names)}


def play(seed: int, troubles: Sequence[Trouble]) -> tuple[Run, Broken | None]:
    """One run of a seed with these of its troubles."""
    hand = [HAND] if seed % 2 else []
    run = Run(
        seed,
        troubles,
        files=beginning(seed),
        hand=hand,
        processes=1 + (seed // 2) % 2,
        hooks=seed % 3 == 0,
        serial=ONE_BY_ONE if seed % 5 == 0 else None,
    )
    try:
        run.play()
    except Broken as broken:
        return run, broken
    return run, None


def check(seed: int, *, shorten: bool = True) -> Failure | None:
    """Play a seed; None where all laws hold."""
    troubles = trouble.draw(seed)
    run, broken = play(seed, troubles)
    if broken is None:
        return None
    if shorten:
        law = str(broken).partition(":")[0]
        troubles = shortest(troubles, lambda some: _fails(seed, some, law))
        run, broken = play(seed, troubles)
        assert broken is not None
    return Failure(seed, str(broken), tuple(troubles), tuple(run.trace))


def _fails(seed: int, troubles: Sequence[Trouble], law: str) -> bool:
    _, broken = play(seed, troubles)
    return broken is not None and str(broken).partition(":")[0] == law


def shortest(troubles: list[Trouble], fails: Callable[[Sequence[Trouble]], bool]) -> list[Trouble]:
    """A part of the troubles that still fails and of which none can be left out (delta debugging:
    larger parts are tried before smaller ones)."""
    size = max(len(troubles) // 2, 1)
    while True:
        index, less = 0, False
        while index < len(troubles):
            rest = troubles[:index] + troubles[index + size :]
            if fails(rest):
                troubles, less = rest, True
            else:
                index += size
        if size == 1 and not less:
            return troubles
        size = max(size // 2, 1)
