"""Diff truth: what is applied is what was meant, and whatever is changed then is named and healed.

A fleet of generated servers uses every field of the schema (`generating.py`); one sync makes it.
Then nothing may differ: for our own check, for an audited second sync, for the API server's own dry
run and for kubectl. After that fields are changed, one of each server at a time (`mutating.py`).
`make truth SERVERS=300 SEEDS="7 8"` makes other and larger fleets.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from kubectl import program
from stories.conftest import Ground
from stories.telling import Story
from truth import generating
from truth.conftest import CHANGES, SEED, SERVERS, SOURCE
from truth.mutating import GONE, WAYS, Api, Place, at, fits, leaves, other, pointer

from gitops_mcp.base.model import Change, Context, FieldChange
from gitops_mcp.base.names import KIND, LABEL_SOURCE, JsonObject, ObjectRef, ServerKey
from gitops_mcp.base.objects import DesiredObject, LiveObject
from gitops_mcp.base.source import Revision
from gitops_mcp.decide import diffing
from gitops_mcp.decide.rollout import ALL
from gitops_mcp.source.settings import SourceOptions
from gitops_mcp.sync import reading

DIFF = ("diff", "--server-side", "--force-conflicts", "-f", "-")
ROOT = Path(__file__).parents[2]
PEOPLE = sorted(Context("", "", Revision("")).kubectl_managers)
CONTROLLERS = (
    "gitops-mcp-suspend",
    "horizontal-pod-autoscaler",
    "kubectl-rollout",
    "sidecar-injector",
    "vpa-updater",
)
MANAGERS = (*PEOPLE, *CONTROLLERS, "gitops-mcp")

# --- nothing differs --------------------------------------------------------------------------


def test_every_place_of_the_schema_is_used(fleet: generating.Fleet) -> None:
    assert fleet.unused == set(), f"seed {SEED}"


def test_every_generated_server_is_taken(applied: Story, running: list[str]) -> None:
    failed = {o.server.name: o.message for o in applied.report.outcomes if o.result == "failed"}
    assert failed == {}, explain(applied, failed)
    assert len(running) > 0.9 * len(applied.report.outcomes)


def test_then_nothing_differs(applied: Story) -> None:
    applied.sync(check=True, source=SOURCE)
    assert named(applied) == {}, explain(applied, named(applied))


def test_nor_for_our_own_comparison_alone(applied: Story, running: list[str]) -> None:
    """The API server need not be asked: else each sync would write, to find out."""
    people = frozenset(PEOPLE)
    wrong: dict[str, str] = {}
    for name in running:
        for body in meant(applied, name, replicas=True):
            live = applied.get(body["kind"], name)
            fields = diffing.compare(body, live, kubectl_managers=people).fields
            if fields:
                wrong[name] = f"{body['kind']}{fields[0].path}"
            assert diffing.agrees(body, live, kubectl_managers=people) == (not fields)
    assert wrong == {}, explain(applied, wrong)


def test_and_a_second_sync_writes_nothing(applied: Story, ground: Ground) -> None:

    def silent() -> bool:
        before = ground.counts()
        applied.sync(source=SOURCE, serial=ALL)
        assert set(applied.deeds()) <= {"apply MCPServer/status"}
        asked = ground.counts() - before
        writes = {what for what in asked if what[0] not in ("get", "list", "watch")}
        return writes <= {("create", "selfsubjectaccessreviews.authorization.k8s.io")}

    applied.until(silent, "pods as they will be", within=60)


def test_and_the_api_server_finds_no_change_in_what_is_rendered(
    applied: Story, running: list[str]
) -> None:
    """An apply of ours, forced and dry, leaves content and generation as they are."""
    for name in running:
        for body in meant(applied, name, replicas=True):
            ref = ObjectRef.of(body)
            live = applied.get(ref.kind, name)
            uid = live["metadata"]["uid"]
            after = applied.hand.apply(body, manager="gitops-mcp", dry_run=True, uid=uid)
            assert diffing.same_content(live, after), explain(applied, {name: str(ref)})
            assert live["metadata"].get("generation") == after["metadata"].get("generation")


def test_and_kubectl_finds_no_change_in_what_is_rendered(
    applied: Story, ground: Ground, running: list[str], tmp_path: Path
) -> None:
    """For somebody who applies the output of `render` beside us, by kubectl's own manager, every
    value is there already. Owner references are not compared: render knows no uid. Forced, since
    an empty or false value that the server does not store is a conflict and yet no change."""
    kubectl = program()
    if kubectl is None:
        pytest.skip("no kubectl on this machine")
    render = [sys.executable, "-m", "gitops_mcp", "render", str(applied.repository)]
    render += ["--cluster", generating.CLUSTER, "--allow-privileged", "-n", applied.namespace]
    render += ["--service-accounts=*/*", "--drain-hosts=*"]
    render += ["--source-id", applied.namespace, "--limit", ",".join(running)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    rendered = subprocess.run(render, env=environment, capture_output=True, check=False)
    assert rendered.returncode == 0, rendered.stderr.decode()
    ran = subprocess.run(
        [
            kubectl,
            "--kubeconfig",
            ground.admin,
            "diff",
            "--server-side",
            "--force-conflicts",
            "-f",
            "-",
        ],
        input=rendered.stdout,
        env=environment,
        capture_output=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout.decode()[:3000]) == (0, ""), ran.stderr.decode()


# --- one field is changed ---------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Deed:
    """Somebody's change of one field, as the API server took it."""

    name: str
    before: JsonObject
    after: JsonObject
    place: Place
    way: str
    manager: str

    def __str__(self) -> str:
        """For a message of failure."""
        was, now = at(self.before, self.place), at(self.after, self.place)
        return (
            f"{self.manager} by {self.way}: {self.before['kind']}{pointer(self.place)} "
            f"{was!r:.60} -> {now!r:.60}"
        )


@pytest.mark.parametrize("turn", range(CHANGES))
def test_a_changed_field_of_ours_is_named_and_healed(
    applied: Story, ground: Ground, running: list[str], turn: int
) -> None:
    """Whoever changed it, and in whichever way: that field, no other, and it is as it was."""
    rng = Random(f"{SEED} {turn}")
    api = Api(ground.admin)
    applied.sync(source=SOURCE, serial=ALL)  # whatever the turn before has left
    pairs = list(itertools.product(WAYS, MANAGERS))
    Random(SEED).shuffle(pairs)  # the turns go on through them
    deeds: dict[str, Deed] = {}
    for number, name in enumerate(running, turn * len(running)):
        if deed := change_one(rng, api, applied, name, *pairs[number % len(pairs)]):
            deeds[name] = deed
    assert len(deeds) > 0.9 * len(running)
    assert {deed.way for deed in deeds.values()} >= set(WAYS) - {"scale"}
    assert len({deed.manager for deed in deeds.values()}) > 0.8 * min(len(running), len(MANAGERS))
    applied.sync(check=True, source=SOURCE)
    wrong = {
        name: f"{deed}: {told}" for name, deed in deeds.items() if (told := untrue(applied, deed))
    }
    assert wrong == {}, explain(applied, wrong)
    assert named(applied).keys() <= deeds.keys()
    applied.sync(source=SOURCE, serial=ALL)
    wrong = {
        name: f"{deed}: {left}" for name, deed in deeds.items() if (left := unhealed(applied, deed))
    }
    assert wrong == {}, explain(applied, wrong)
    applied.sync(check=True, source=SOURCE)
    assert named(applied) == {}


def change_one(
    rng: Random, api: Api, story: Story, name: str, way: str, manager: str
) -> Deed | None:
    """Change a field of one of a server's objects that we mean: in this way, by this manager, or
    in another way where that cannot be."""
    bodies = meant(story, name)
    for attempt in range(60):
        if attempt >= 20 or (manager, way) == ("gitops-mcp", "apply"):
            way = rng.choice(WAYS)
        body = rng.choice(bodies)
        live = story.get(body["kind"], name)
        places = [one for one in leaves(body) if changeable(one[0])]
        place, wanted = rng.choice(places)
        # what is empty and what is absent are one value
        value = GONE if wanted and rng.random() < 0.2 else other(rng, place[-1], wanted)
        if way == "scale":
            place, value = ("spec", "replicas"), rng.choice((0, 3))
        if at(body, place) is None or at(live, place) in (None, value):
            continue
        if not fits(live, place, value, way) or (manager, way) == ("gitops-mcp", "apply"):
            continue
        status, _ = api.change(live, place, value, way=way, manager=manager)
        if status >= 300:
            continue  # it has a reason to refuse that
        after = story.get(body["kind"], name)
        if content(after) != content(live):
            return Deed(name, live, after, place, way, manager)
    return None


IDENTITIES = ("containerPort", "mountPath", "name", "port", "protocol")
"""What tells an item of a list from the others: another one is another item."""


def changeable(place: Place) -> bool:
    """Not what tells an object, or whose it is."""
    return (
        place[0] in ("metadata", "spec")
        and place[1] not in ("name", "namespace", "ownerReferences")
        and place[-1] not in (LABEL_SOURCE, *IDENTITIES)
    )


def untrue(story: Story, deed: Deed) -> str:
    """What is wrong with what the check named; "" when it is the truth."""
    changes = named(story).get(deed.name, ())
    if [(one.action, one.ref.kind) for one in changes] != [("update", deed.before["kind"])]:
        told = [(one.action, one.ref.kind, [f.path for f in one.fields]) for one in changes]
        return f"named {told}: {story.outcome(deed.name).message}"
    fields = changes[0].fields
    differing = places_between(deed.before, deed.after)
    for field in fields:
        if not any(same_field(field, place, deed) for place in differing):
            return f"named {field.path}, which is as it was"
    if not any(same_field(field, deed.place, deed) for field in fields):
        return f"named only {[field.path for field in fields]}"
    return ""


def same_field(field: FieldChange, place: Place, deed: Deed) -> bool:
    """Is it this field that was named, or the one value that holds it?"""
    steps = [pointer(place[:depth]) for depth in range(len(place) + 1)]
    if field.path not in steps:
        return False
    holder = place[: steps.index(field.path)]
    values = at(deed.before, holder), at(deed.after, holder)
    # a list that is one value, a map or an item that came or went as a whole
    return holder == place or None in values or isinstance(values[0], list)


def unhealed(story: Story, deed: Deed) -> list[str]:
    """Where the object is not as it was before."""
    live = story.get(deed.before["kind"], deed.name)
    places = places_between(deed.before, live)
    return [pointer(place) for place in places if place[-1] != "nodePort"]  # allotted anew


# --- something is added -----------------------------------------------------------------------

ADDITIONS: list[JsonObject] = yaml.safe_load(Path(__file__).with_name("additions.yaml").read_text())


def test_what_is_added_goes_or_stays_and_is_told(
    applied: Story, ground: Ground, running: list[str]
) -> None:
    """A person's goes, a controller's stays, and neither takes anything else along."""
    rng = Random(f"{SEED} additions")
    api = Api(ground.admin)
    applied.sync(source=SOURCE, serial=ALL)
    deeds: dict[str, tuple[JsonObject, Deed]] = {}
    left = [(row, people) for people in (True, False) for row in ADDITIONS]
    rng.shuffle(left)
    for name in running:
        for row, people in left:
            deed = add(rng, api, applied, name, row, people=people)
            if deed is not None:
                left.remove((row, people))
                deeds[name] = row, deed
                break
    assert len(deeds) == min(len(running), len(ADDITIONS) * 2), left
    applied.sync(check=True, source=SOURCE)
    wrong = {
        name: f"{deed}: {told}"
        for name, (row, deed) in deeds.items()
        if (told := untold(applied, row, deed))
    }
    assert wrong == {}, explain(applied, wrong)
    applied.sync(source=SOURCE, serial=ALL)
    for name, (row, deed) in deeds.items():
        kept = deed.before if goes(row, deed) else deed.after
        live = applied.get(row["kind"], name)
        wrong[name] = ", ".join(pointer(place) for place in places_between(kept, live))
    wrong = {name: f"{deeds[name][1]}: {what}" for name, what in wrong.items() if what}
    assert wrong == {}, explain(applied, wrong)


def add(
    rng: Random, api: Api, story: Story, name: str, row: JsonObject, *, people: bool
) -> Deed | None:
    """Let somebody add what a row says to a server's object, where it can be added."""
    live = story.find(row["kind"], name)
    tokens = [token.replace("~1", "/") for token in row["at"].split("/")[1:]]
    place: Place = tuple(int(token) if token.isdigit() else token for token in tokens)
    desired = next((body for body in meant(story, name) if body["kind"] == row["kind"]), None)
    if live is None or desired is None or (place[-1] != "-" and at(desired, place) is not None):
        return None
    manager = rng.choice(PEOPLE if people else CONTROLLERS)
    for way in rng.sample(("put", "merge", "strategic", "json", "apply"), 5):
        if not fits(live, place, row["value"], way):
            continue
        status, _ = api.change(live, place, row["value"], way=way, manager=manager)
        if status < 300:
            after = story.get(row["kind"], name)
            if place[-1] == "-":  # a strategic merge puts it first
                items = at(after, place[:-1])
                where = (n for n, item in enumerate(items) if row["value"].items() <= item.items())
                place = (*place[:-1], next(where))
            return Deed(name, live, after, place, way, manager)
    return None


def goes(row: JsonObject, deed: Deed) -> bool:
    """Is it ours to take away?"""
    if "always" in row:
        return bool(row["always"] == "goes")
    return deed.manager in PEOPLE


def untold(story: Story, row: JsonObject, deed: Deed) -> str:
    """What is wrong with what the check said of an addition; "" when it is the truth."""
    changes = [one for one in named(story).get(deed.name, ()) if one.ref.kind == row["kind"]]
    told = [field.path for change in changes for field in change.fields]
    if goes(row, deed):
        # the server may have set more, as externalTrafficPolicy beside externalIPs
        differing = places_between(deed.before, deed.after)
        right = all(any(related(path, place) for place in differing) for path in told)
        itself = any(related(path, deed.place) for path in told)
        return "" if right and itself else f"named {told}: {story.outcome(deed.name).message}"
    if told:
        return f"named {told}"
    desired = next(
        one for one in meant(story, deed.name, replicas=True) if one["kind"] == row["kind"]
    )
    found = diffing.compare(desired, LiveObject(deed.after), kubectl_managers=frozenset(PEOPLE))
    if row.get("always") != "stays" and not any(
        related(field.path, deed.place) for field in found.foreign
    ):
        return f"foreign are only {[field.path for field in found.foreign]}"
    return ""


def related(path: str, place: Place) -> bool:
    """Is one of two places within the other?"""
    whole = pointer(place) + "/"
    return whole.startswith(path + "/") or (path + "/").startswith(whole)


# --- what is read of objects ------------------------------------------------------------------


@pytest.fixture(scope="session")
def running(applied: Story) -> list[str]:
    """The servers that have children: all but the suspended ones."""
    objects = applied.objects()
    names = [outcome.server.name for outcome in applied.report.outcomes]
    return [name for name in names if f"Deployment/{name}" in objects]


@functools.cache
def source_of(repository: Path, namespace: str) -> reading.Source:
    """The fleet as it was read."""
    options = SourceOptions(
        location=str(repository),
        namespace=namespace,
        source_id=namespace,
        cluster=generating.CLUSTER,
        allow_privileged=True,
        service_accounts="*",
        drain_hosts="*",
    )
    with reading.open_repository(options) as opened:
        return reading.read(options, opened)


def meant(story: Story, name: str, *, replicas: bool = False) -> list[DesiredObject]:
    """A server's objects as we apply them; without `replicas` those that are not git's are left
    out."""
    source = source_of(story.repository, story.namespace)
    cr = story.get(KIND, name)
    body = source.renderer.custom_resource(source.loaded.servers[ServerKey(story.namespace, name)])
    bodies = [body, *source.renderer.children(cr)]
    for position in (0, 1) if replicas else ():
        body = bodies[position]
        live = story.get(body["kind"], name)["spec"]["replicas"]
        bodies[position] = DesiredObject({**body, "spec": {"replicas": live, **body["spec"]}})
    return bodies


def named(story: Story) -> dict[str, tuple[Change, ...]]:
    """What the last pass found to change, by server."""
    outcomes = story.report.outcomes
    return {outcome.server.name: outcome.changes for outcome in outcomes if outcome.changes}


def content(body: JsonObject) -> JsonObject:
    """What a change of an object can be seen by."""
    metadata = body["metadata"]
    kept = {k: metadata[k] for k in ("labels", "annotations", "ownerReferences") if k in metadata}
    kept["annotations"] = {
        key: value
        for key, value in kept.get("annotations", {}).items()
        if key != "deployment.kubernetes.io/revision"
    }
    return {"metadata": kept, "spec": body["spec"]}


def places_between(one: JsonObject, two: JsonObject) -> list[Place]:
    """Where two states of an object differ."""
    before, after = dict(leaves(content(one))), dict(leaves(content(two)))
    return [
        place
        for place in before | after
        if before.get(place) != after.get(place) or (place in before) != (place in after)
    ]


def explain(story: Story, wrong: dict[str, Any]) -> str:
    """What to look at first: the seed, and the first manifest that went wrong."""
    if not wrong:
        return ""
    name = next(iter(wrong))
    found = list(story.repository.rglob(f"{name}.yaml"))
    manifest = found[0].read_text() if found else ""
    manifest = manifest.replace(generating.LONG, "long")
    return f"TRUTH_SEED={SEED} TRUTH_SERVERS={SERVERS}: {name}: {wrong[name]}\n{manifest}"
