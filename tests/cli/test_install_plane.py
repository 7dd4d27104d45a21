"""What ``install`` prints, applied to a real cluster: the agent runs with those rights and needs no
more and no less; the policy guards; ``uninstall`` takes everything back.

The plane has OwnerReferencesPermissionEnforcement on, and ServiceAccount, as every cluster does.
Pods run no process there: the agent is one of ours, with the token of the printed account.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paths
import plane as rig
import pytest
from agents import agent, until
from commandline import Ended, Run, manifest, runner
from stories import test_stories_converge as converge
from stories.telling import Asked, Story
from stories.test_stories_outside import mcp_server

from gitops_mcp.base import objects
from gitops_mcp.base.errors import Gone
from gitops_mcp.base.names import (
    ANNOTATION_FILE,
    ANNOTATION_RECONCILE,
    API_VERSION,
    FINALIZER,
    KIND,
    LABEL_SOURCE,
    JsonObject,
    ObjectRef,
)
from gitops_mcp.cli import install
from gitops_mcp.cli.install import Installation
from gitops_mcp.cluster.kube import Cluster
from gitops_mcp.decide import record

pytestmark = pytest.mark.usefixtures("processes")


@pytest.fixture(scope="module")
def plane(processes: None) -> Iterator[rig.Plane]:
    try:
        started = rig.Plane(
            users=("ci", "rescuer", "robot", "tenant"),
            # A pod that a handshake asks has a loopback address, from its first moment on.
            arguments={"kwok": ["--cidr=127.77.0.1/16"]},
        )
    except rig.Unavailable as reason:
        pytest.skip(str(reason))
    with started:
        yield started


@pytest.fixture(scope="module")
def hand(plane: rig.Plane) -> Iterator[Cluster]:
    """The administrator's connection."""
    connected = Cluster(str(plane.kubeconfig()))
    yield connected
    connected.close()


Kubectl = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def kubectl(plane: rig.Plane) -> Kubectl:
    """The administrator's kubectl."""
    return _kubectl(plane)


def _kubectl(plane: rig.Plane) -> Kubectl:
    def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = [str(plane.bin / "kubectl"), f"--kubeconfig={plane.kubeconfig()}", *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)

    return run


@pytest.fixture
def gitops(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


@dataclass
class Installed:
    """An installation in the cluster."""

    wanted: Installation
    kubeconfig: Path
    user: str
    arguments: tuple[str, ...]

    def rules(self) -> set[tuple[str, str]]:
        """Each right as (verb, resource)."""
        return {
            (verb, resource)
            for rule in (*install.server_rules(self.wanted), *install.lease_rules(self.wanted))
            for resource in rule["resources"]
            for verb in rule["verbs"]
        }


def installed(plane: rig.Plane, kubectl: Kubectl, gitops: Run, *arguments: str) -> Installed:
    """``gitops-mcp install … | kubectl apply --server-side -f -``"""
    printed = gitops("install", *arguments)
    assert (printed.code, printed.err) == (0, "")
    applied = kubectl("apply", "--server-side", "-f", "-", stdin=printed.out)
    assert (applied.returncode, applied.stderr) == (0, "")
    options = dict(
        argument.removeprefix("--").partition("=")[::2]
        for argument in arguments
        if argument.startswith("--")
    )
    wanted = Installation(
        "",
        source_id=options.get("source-id", ""),
        watch_namespace=options.get("watch-namespace", ""),
        create_namespace="create-namespace" in options,
        health_gate="health-gate" in options,
    )
    user = f"system:serviceaccount:{wanted.namespace}:{wanted.name}"
    kubeconfig = plane.account_kubeconfig(wanted.name, namespace=wanted.namespace)
    return Installed(wanted, kubeconfig, user, arguments)


# --- the rights -------------------------------------------------------------------------------


def a_gate_opens_though_its_pod_was_replaced_meanwhile(story: Story) -> None:
    """The readiness gate of a real MCP server; the pod goes just before its gate would open."""
    (port,) = rig.free_ports(1)
    story.put("web", transport="streamable-http", port=port, health={"gate": True})
    assert story.sync() == {"web": "changed"}

    def addresses() -> bool:
        """Let pods be where the server listens."""
        running = [p for p in story.pods() if p["status"].get("podIP")]
        local = {"podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}
        for pod in running:
            story.patch("Pod", {"status": local}, pod["metadata"]["name"], subresource="status")
        return bool(running)

    once = iter([True])

    def replace_pod(asked: Asked) -> None:
        if asked.kind == "Pod" and next(once, False):
            story.delete("Pod", asked.name)
            story.until(lambda: story.find("Pod", asked.name) is None)

    story.until(addresses, "addresses")
    with mcp_server(story.repository.parent, f"127.0.0.1:{port}", "open"):
        story.sync(probes=True, before=replace_pod)
        story.until(addresses, "addresses")
        story.sync(probes=True, wait=20)
    assert story.conditions()["Ready"] == "MCPServerReady"


def a_server_that_is_gone_in_between_is_made_again(story: Story) -> None:
    story.created()
    story.put("web", image="example.com/web:2")
    once = iter([True])

    def delete(asked: Asked) -> None:
        if asked.kind == KIND and next(once, False):
            story.delete(KIND)
            story.until(lambda: story.find(KIND) is None)

    assert story.sync(before=delete) == {"web": "changed"}
    assert story.get(KIND)["spec"]["image"] == "example.com/web:2"


def the_agents_own_day(story: Story, one: Installed) -> None:
    """Made by the agent's process, healed, deleted by a person, made anew, pruned with a drain."""
    web = manifest("web", story.namespace, transport="stdio")
    story.commit({"servers/web.yaml": web})
    own = [option for option in one.arguments if option.startswith(("--watch", "--create"))]
    own.append(f"--namespace={one.wanted.namespace}")  # as in a pod: it has leases nowhere else
    with agent(one.kubeconfig, story.repository, f"--source-id={story.namespace}", *own):
        until(lambda: ready(story), "Ready")
        assert FINALIZER in story.get(KIND)["metadata"]["finalizers"]
        for _ in range(2):  # the same again is counted in its Event
            story.patch("Deployment", {"spec": {"replicas": 5}})
            until(lambda: story.get("Deployment")["spec"]["replicas"] == 1, "the drift's end")
            until(lambda: ready(story) and "DriftHealed" in told(story), "its Event")
        old = uid_of(story)
        story.delete(KIND)
        until(lambda: uid_of(story) not in (None, old) and ready(story), "a new one")
        story.remove("web", message="Remove web\n\nAllow-Prune: 1")
        until(lambda: story.objects() == {}, "its end")


def told(story: Story) -> set[str]:
    events, _ = story.hand.list("v1", "Event", story.namespace)
    return {event["reason"] for event in events}


def uid_of(story: Story) -> str | None:
    found = story.find(KIND)
    return found["metadata"]["uid"] if found else None


def ready(story: Story) -> bool:
    return objects.text(story.find(KIND), "status", "phase") == "Ready"


STORIES: tuple[Callable[[Story], None], ...] = (
    converge.test_a_scaler_that_writes_in_between_wins,
    converge.test_an_edit_in_between_is_seen_and_healed_too,
    converge.test_another_transport_takes_the_service_away_and_brings_it_back,
    a_gate_opens_though_its_pod_was_replaced_meanwhile,
    a_server_that_is_gone_in_between_is_made_again,
)

VARIANTS = {
    "cluster-wide": ("--source-id={}", "--health-gate", "--create-namespace"),
    "one namespace": ("--source-id={}", "--health-gate", "--watch-namespace={}"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_printed_rights_are_enough_and_none_is_idle(
    variant: str,
    plane: rig.Plane,
    kubectl: Kubectl,
    gitops: Run,
    hand: Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The pods of a plane are where this process listens: on loopback, as the sandbox's are.
    monkeypatch.setattr(Cluster, "is_sandbox", True)
    namespace = plane.namespace()
    chosen = (argument.format(namespace) for argument in VARIANTS[variant])
    one = installed(plane, kubectl, gitops, *chosen)
    plane.requests()

    def story(name: str) -> Story:
        return Story(
            str(one.kubeconfig),
            hand,
            tmp_path / name / "fleet",
            namespace,
            lease_namespace=one.wanted.namespace,
            watch_namespace=one.wanted.watch_namespace or None,
        )

    def forget() -> None:
        """The next story has a repository of its own, which would be refused under the same id."""
        name = record.lease_name(namespace, record.area_of(one.wanted.watch_namespace or None))
        with contextlib.suppress(Gone):
            hand.delete(ObjectRef("v1", "ConfigMap", one.wanted.namespace, name), uid=None)

    for tell in STORIES:
        told = story(tell.__name__)
        tell(told)
        told.end()
        forget()
    if one.wanted.create_namespace:
        fresh = story("fresh")
        fresh.namespace += "-new"
        fresh.put("web")
        source = {"source_id": namespace}  # the only one whose record the account may write
        assert fresh.sync(create_namespace=True, source=source) == {"web": "changed"}
        fresh.end()
        forget()
    the_agents_own_day(story("day"), one)

    requests = plane.requests(user=one.user)
    assert [r for r in requests if r.denied] == []
    used = {(r.verb, r.resource) for r in requests}
    # A server-side apply that creates is a patch that needs both rights.
    used |= {("create", r.resource) for r in requests if r.verb == "patch" and r.code == 201}
    # Only the admission plugin asks for this one, and without it nothing could be created.
    used |= {("update", "mcpservers/finalizers")}
    # And this one is what the policy asks the authorizer for.
    used |= {(install.SYNC, "mcpservers")}
    idle = one.rules() - used
    assert idle == set()
    if one.wanted.watch_namespace:
        places = {r.namespace for r in requests if r.resource.partition("/")[0] in RESOURCES}
        assert places == {namespace, one.wanted.namespace}


RESOURCES = {"mcpservers", "deployments", "services", "pods", "leases", "events"}


def test_the_right_to_finalizers_is_what_the_plugin_asks_for(
    plane: rig.Plane, kubectl: Kubectl, gitops: Run, hand: Cluster
) -> None:
    installed(plane, kubectl, gitops)
    namespace = plane.namespace()
    rules = install.server_rules(Installation("", watch_namespace=namespace))
    plane.grant(
        "robot", [r for r in rules if "finalizers" not in r["resources"][0]], namespace=namespace
    )
    owner = hand.apply(server("web", namespace), manager="kubectl")
    reference = {
        "apiVersion": API_VERSION, "kind": KIND, "name": "web", "uid": owner["metadata"]["uid"],
        "controller": True, "blockOwnerDeletion": True,
    }  # fmt: skip
    body = {
        "metadata": {"name": "web", "ownerReferences": [reference]},
        "spec": {"ports": [{"port": 80}]},
    }
    path = f"/api/v1/namespaces/{namespace}/services"
    status, answer = plane.request("POST", path, body, user="robot")
    assert (status, "blockOwnerDeletion" in answer["message"]) == (403, True)


# --- the policy -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "reads", "writes"),
    [("view", "yes", "no"), ("edit", "yes", "yes"), ("admin", "yes", "yes")],
)
def test_kubernetes_own_roles_reach_mcpservers(
    role: str, reads: str, writes: str, plane: rig.Plane, kubectl: Kubectl, gitops: Run
) -> None:
    """Whoever has view, edit or admin of a namespace can see, or change, its MCPServers there."""
    namespace = plane.namespace()
    printed = gitops("install").out
    assert kubectl("apply", "--server-side", "-f", "-", stdin=printed).returncode == 0
    person = f"--user={role}-person"
    bound = ("rolebinding", role, f"--clusterrole={role}", person, f"--namespace={namespace}")
    assert kubectl("create", *bound).returncode == 0

    def can(verb: str, what: str, where: str = namespace) -> str:
        resource, _, sub = what.partition("/")
        asked = ("auth", "can-i", verb, resource, f"--subresource={sub}")
        return kubectl(*asked, f"--as={role}-person", f"--namespace={where}").stdout.strip()

    until(lambda: can("list", "mcpservers") == reads, "the collected rules", within=20)
    assert can("watch", "mcpservers") == reads
    assert can("get", "mcpservers/status") == reads
    for verb in ("create", "patch", "update", "delete"):
        assert can(verb, "mcpservers") == writes
    assert can("patch", "mcpservers/scale") == writes
    assert can("patch", "mcpservers/status") == "no"
    assert can("list", "mcpservers", "default") == "no"


def test_scaled_agents_survive_the_next_apply(kubectl: Kubectl, gitops: Run, hand: Cluster) -> None:
    where = ObjectRef("apps/v1", "Deployment", "gitops-mcp", "gitops-mcp-scaled")

    def apply(*arguments: str) -> int:
        printed = gitops("install", "--source-id=scaled", *arguments).out
        applied = kubectl("apply", "--server-side", "-f", "-", stdin=printed)
        assert (applied.returncode, applied.stderr) == (0, "")
        return objects.number(hand.get(where), "spec", "replicas")

    assert apply() == 1
    scaled = kubectl("scale", "deployment/gitops-mcp-scaled", "--replicas=2", "-n", "gitops-mcp")
    assert scaled.returncode == 0
    assert apply("--image=example.com/agent:2") == 2
    hand.delete(where, uid=None, resource_version=None, propagation="Background")
    until(lambda: hand.get(where) is None, "its end")
    assert apply("--replicas=2") == 2
    assert apply("--replicas=2", "--image=example.com/agent:2") == 2


def server(name: str, namespace: str, **metadata: Any) -> JsonObject:
    metadata = {"name": name, "namespace": namespace} | metadata
    spec = {"image": "example.com/web:1", "transport": "http", "drain": {"preStop": "0s"}}
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec}


def test_foreground_deletion_is_refused_and_every_other_is_not(
    plane: rig.Plane, kubectl: Kubectl, gitops: Run, hand: Cluster
) -> None:
    installed(plane, kubectl, gitops)
    namespace = plane.namespace()
    everywhere = f"--namespace={namespace}"

    def refused() -> bool:
        hand.apply(server("web", namespace), manager="kubectl")
        ended = kubectl("delete", "mcps", "web", "--cascade=foreground", "--wait=false", everywhere)
        return "drained" in ended.stderr

    until(refused, "the policy to hold")
    collection = f"/apis/{API_VERSION}/namespaces/{namespace}/mcpservers"
    assert plane.request("DELETE", f"{collection}?propagationPolicy=Foreground")[0] == 403
    for how in ("background", "orphan"):
        hand.apply(server("web", namespace), manager="kubectl")
        ended = kubectl("delete", "mcps", "web", f"--cascade={how}", everywhere)
        assert (ended.returncode, ended.stderr) == (0, "")
    hand.apply(server("web", namespace), manager="kubectl")
    assert plane.request("DELETE", collection)[0] == 200


MERGE = "application/merge-patch+json"


def test_what_says_whose_a_server_is_may_be_written_by_who_may_sync(
    plane: rig.Plane, kubectl: Kubectl, gitops: Run
) -> None:
    one = installed(plane, kubectl, gitops)
    namespace = plane.namespace()
    verbs = ["get", "create", "update", "patch", "delete"]
    servers = ["mcpservers", "mcpservers/status", "mcpservers/scale"]
    rules = [{"apiGroups": ["mcp.example.com"], "resources": servers, "verbs": verbs}]
    plane.grant("tenant", rules, namespace=namespace)
    collection = f"/apis/{API_VERSION}/namespaces/{namespace}/mcpservers"
    web = f"{collection}/web"

    def refused(answer: tuple[int, Any], what: str) -> None:
        assert (answer[0], what in str(answer[1])) == (403, True), str(answer[1]["message"])
        assert "'sync'" in answer[1]["message"]

    def patch(body: object, path: str = web, user: str = "tenant", query: str = "") -> Any:
        target = f"{path}?fieldManager=kubectl-edit{query}"
        return plane.request("PATCH", target, body, content_type=MERGE, user=user)

    def create(name: str, user: str = "tenant", query: str = "", **metadata: Any) -> Any:
        body = server(name, namespace, **metadata)
        return plane.request("POST", f"{collection}{query}", body, user=user)

    until(lambda: create("probe", labels={LABEL_SOURCE: "x"})[0] == 403, "the policy to hold")
    refused(create("a", labels={LABEL_SOURCE: "default"}), LABEL_SOURCE)
    refused(create("a", annotations={ANNOTATION_FILE: "a.yaml"}), ANNOTATION_FILE)
    refused(create("a", finalizers=[FINALIZER]), FINALIZER)
    refused(create("a", query="?fieldManager=gitops-mcp"), "field manager gitops-mcp")
    apply = f"{collection}/a?fieldManager=gitops-mcp&force=true"
    body = server("a", namespace)
    kind = "application/apply-patch+yaml"
    applied = plane.request("PATCH", apply, body, content_type=kind, user="tenant")
    refused(applied, "field manager gitops-mcp")
    forged = {"manager": "gitops-mcp", "operation": "Apply", "apiVersion": API_VERSION}
    tree: JsonObject = {"f:spec": {"f:image": {}}}
    entry = forged | {"fieldsType": "FieldsV1", "fieldsV1": tree, "time": "2026-01-01T00:00:00Z"}

    assert create("web")[0] == 201, "their own servers are nobody else's business"
    refused(patch({"metadata": {"labels": {LABEL_SOURCE: "default"}}}), LABEL_SOURCE)
    refused(patch({"metadata": {"managedFields": [entry]}}), "an Apply entry of gitops-mcp")
    state = {"step": "Deleting", "startedAt": "2026-01-01T00:00:00Z"}
    state["deadline"] = "2026-01-01T00:01:00Z"
    refused(patch({"status": {"shutdown": state}}, f"{web}/status"), "the status")

    ours = f"{web}?fieldManager=gitops-mcp&force=true"
    body = server("web", namespace, labels={LABEL_SOURCE: "default"}, finalizers=[FINALIZER])
    account = one.user
    headers = {"Impersonate-User": account}
    done = plane.request("PATCH", ours, body, content_type=kind, headers=headers)
    assert done[0] == 200, done
    phase = {"status": {"phase": "Ready"}}
    done = plane.request("PATCH", f"{web}/status", phase, content_type=MERGE, headers=headers)
    assert done[0] == 200, done
    refused(patch({"metadata": {"labels": {LABEL_SOURCE: "x"}}}), LABEL_SOURCE)
    refused(patch({"metadata": {"labels": {LABEL_SOURCE: None}}}), LABEL_SOURCE)
    refused(patch({"metadata": {"finalizers": None}}), FINALIZER)

    for mine in (
        patch({"spec": {"image": "example.com/web:2"}}),
        patch({"metadata": {"labels": {"team": "a"}, "annotations": {ANNOTATION_RECONCILE: "1"}}}),
        patch({"spec": {"replicas": 2}}, f"{web}/scale"),
        patch({"metadata": {"labels": {LABEL_SOURCE: None}}}, user="admin"),
        patch({"metadata": {"finalizers": None}}, user="admin"),
        plane.request("DELETE", web, user="tenant"),
    ):
        assert mine[0] == 200, mine


def test_servers_of_a_namespace_that_goes_are_released_by_hand_with_the_verb_sync(
    plane: rig.Plane, kubectl: Kubectl, gitops: Run, hand: Cluster
) -> None:
    text = (paths.ROOT / "docs" / "install.md").read_text()
    (command,) = re.findall(r"^    (kubectl -n team-a get mcps .*\n.*finalizers.*)$", text, re.M)
    namespace = plane.namespace("going")
    installed(plane, kubectl, gitops, f"--watch-namespace={namespace}", "--source-id=going")
    rules = [{"apiGroups": ["mcp.example.com"], "resources": ["mcpservers"]}]
    verbs = ["get", "list", "patch"]

    def release(how: str = "") -> subprocess.CompletedProcess[str]:
        config = str(plane.kubeconfig("rescuer"))
        return subprocess.run(
            ["/bin/sh", "-c", command.replace("team-a", namespace) + how],
            env=os.environ | {"KUBECONFIG": config, "PATH": f"{plane.bin}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
        )

    hand.apply(server("web", namespace, finalizers=[FINALIZER]), manager="kubectl")
    place, web = (ObjectRef("v1", "Namespace", "", namespace), f"{namespace}/web")
    assert kubectl("delete", "namespace", namespace, "--wait=false").returncode == 0
    until(lambda: deleting(hand, namespace, "web"), f"the deletion of {web}")
    plane.grant("rescuer", [rules[0] | {"verbs": verbs}])

    def refused() -> bool:
        ended = release(" --dry-run=server")  # before it holds nothing must be released
        return FINALIZER in ended.stderr and "needs the permission 'sync'" in ended.stderr

    until(refused, "the policy to hold")
    assert release().returncode != 0
    role = ("create", "role", "late", "--verb=sync", "--resource=mcpservers.mcp.example.com")
    late = kubectl(*role, f"--namespace={namespace}")
    assert "is being terminated" in late.stderr
    plane.grant("rescuer", [rules[0] | {"verbs": [*verbs, "sync"]}])
    until(lambda: release().returncode == 0, "the release")
    until(lambda: hand.get(place) is None, "the namespace to go")


def deleting(hand: Cluster, namespace: str, name: str) -> bool:
    return objects.is_deleting(hand.get(ObjectRef(API_VERSION, KIND, namespace, name)))


# --- uninstall --------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [True, False])
def test_uninstall_leaves_nothing_stuck_and_keeps_servers_where_it_should(
    keep: bool, gitops: Run, tmp_path: Path
) -> None:
    """On a plane of its own: the CRD goes."""
    try:
        started = rig.Plane()
    except rig.Unavailable as reason:
        pytest.skip(str(reason))
    with started as plane:
        admin = Cluster(str(plane.kubeconfig()))
        kubectl = _kubectl(plane)
        one = installed(plane, kubectl, gitops)
        story = Story(str(one.kubeconfig), admin, tmp_path / "fleet", plane.namespace())
        story.commit({"servers/web.yaml": manifest("web", story.namespace)})
        agents = ObjectRef("apps/v1", "Deployment", "gitops-mcp", "gitops-mcp")
        arguments = ["uninstall", f"--kubeconfig={plane.kubeconfig()}"]
        arguments += ["--keep-servers"] if keep else []
        with agent(one.kubeconfig, story.repository, f"--namespace={one.wanted.namespace}"):
            until(lambda: ready(story), "Ready")
            refused = gitops(*arguments, "-q")
            assert refused.code == 2
            assert "agent-" in refused.error
            assert "still at work" in refused.error
        before = story.get("Deployment")

        ended = gitops(*arguments)
        assert ended.code == 0, ended.err
        assert objects.at(admin.get(agents), "spec", "replicas") == 0
        assert "finalizers" not in story.get(KIND)["metadata"]
        assert gitops(*arguments).out == ended.out  # again is no harm

        for line in ended.out.splitlines():
            words = line.partition("#")[0].split()
            assert words[0] == "kubectl"
            done = kubectl(*words[1:], "--timeout=60s")
            assert (done.returncode, done.stderr) == (0, ""), line
        left = kubectl("get", "crd,ns,clusterrole,validatingadmissionpolicy", "-o", "name").stdout
        assert "mcp" not in left
        if keep:
            after = story.get("Deployment")
            assert after["spec"] == before["spec"]
            assert after["metadata"]["uid"] == before["metadata"]["uid"]
            assert "ownerReferences" not in after["metadata"]
            assert len(story.pods()) == 1
            assert story.find("Service")
        else:
            until(lambda: story.find("Deployment") is None and not story.pods(), "the servers' end")
        admin.close()


def test_uninstall_where_nothing_is_installed_says_so(plane: rig.Plane, gitops: Run) -> None:
    with rig.Plane(users=()) as empty:
        ended = gitops("uninstall", f"--kubeconfig={empty.kubeconfig()}")
    assert ended.code == 0
    assert "no agent is installed" in ended.err
    assert "does not know MCPServer" in ended.err
    del plane


# --- CI ---------------------------------------------------------------------------------------


def test_a_user_who_may_only_read_gets_a_full_diff(
    plane: rig.Plane, kubectl: Kubectl, gitops: Run, hand: Cluster, tmp_path: Path
) -> None:
    installed(plane, kubectl, gitops)
    namespace = plane.namespace()
    story = Story(str(plane.kubeconfig()), hand, tmp_path / "fleet", namespace)
    story.put("web", replicas=2)
    assert story.sync(wait=20) == {"web": "changed"}
    story.put("web", replicas=3)
    story.put("api")
    reads = ["get", "list", "watch"]
    plane.grant(
        "ci",
        [
            {"apiGroups": ["mcp.example.com"], "resources": ["mcpservers"], "verbs": reads},
            {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": reads},
            {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": reads},
            {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]},
            {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": reads},
            {
                "apiGroups": ["apiextensions.k8s.io"],
                "resources": ["customresourcedefinitions"],
                "verbs": ["get"],
            },
        ],
    )
    ids = [f"--namespace={namespace}", f"--source-id={namespace}"]
    options = [story.repository, *ids, "--output=json"]

    def diff(user: str) -> Ended:
        return gitops("diff", *options, f"--kubeconfig={plane.kubeconfig(user)}")

    until(lambda: diff("ci").code == 1, "the rights")
    plane.requests()
    restricted, full = diff("ci"), diff("admin")
    assert (restricted.code, full.code) == (1, 1), restricted.err + full.err + full.out
    assert "local" in restricted.err
    assert "local" not in full.err
    assert restricted.json == full.json
    assert restricted.json["summary"]["create"] == 1
    assert restricted.json["summary"]["update"] == 1
    requests = plane.requests(user="ci")
    assert [r for r in requests if r.denied] == []
    assert {r.verb for r in requests} <= {"get", "list", "watch", "create"}
    assert {r.resource for r in requests if r.verb == "create"} <= {"selfsubjectaccessreviews"}
    story.end()
