"""What the operator allows, through the verbs and against the sandbox: who may push is not who owns
the cluster."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import gitfixtures
import paths
import pytest
from agents import agent, until
from commandline import Run, manifest, runner

from gitops_mcp.base.names import API_VERSION, KIND, JsonObject, ObjectRef
from gitops_mcp.cluster.kube import Cluster
from gitops_mcp.source import settings

pytest_plugins = ["clusters"]
TEMPLATES = paths.ROOT / "templates"
_numbers = itertools.count(1)


@pytest.fixture
def gitops(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


@pytest.fixture(scope="module")
def cluster(kubeconfig: Path) -> Iterator[Cluster]:
    connected = Cluster(str(kubeconfig))
    yield connected
    connected.close()


@pytest.fixture
def namespace(cluster: Cluster) -> str:
    name = f"policy-{next(_numbers)}"
    cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    return name


Sync = Callable[..., JsonObject]


@pytest.fixture
def sync(gitops: Run, kubeconfig: Path, namespace: str, tmp_path: Path) -> Sync:
    """Sync the folder, and say how each server ended."""

    def run(*arguments: object, text: str = "") -> JsonObject:
        (tmp_path / "source").mkdir(exist_ok=True)
        if text:
            (tmp_path / "source" / "web.json").write_text(text)
        scope = ("--source-id", namespace, "-n", namespace, "--kubeconfig", kubeconfig)
        ended = gitops("sync", tmp_path / "source", *scope, "-o", "json", *arguments)
        assert ended.code in (0, 1), ended.err
        return {one["server"].partition("/")[2]: one for one in ended.json["servers"]}

    return run


def read(cluster: Cluster, namespace: str, kind: str, name: str = "web") -> JsonObject | None:
    versions = {"Deployment": "apps/v1", KIND: API_VERSION}
    return cluster.get(ObjectRef(versions[kind], kind, namespace, name))


def synced(cluster: Cluster, namespace: str, name: str = "web") -> tuple[str, str]:
    cr = read(cluster, namespace, KIND, name)
    assert cr is not None
    conditions = {one["type"]: one for one in cr["status"]["conditions"]}
    return conditions["Synced"]["reason"], conditions["Synced"]["message"]


def is_manual(cluster: Cluster, namespace: str, name: str = "web", **spec: object) -> None:
    body = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"image": "example.com/web:1", **spec},
    }
    cluster.apply(body, manager="kubectl")


# --- where the operator says it ---------------------------------------------------------------


def test_the_operators_file_says_what_is_allowed(gitops: Run, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.json").write_text(manifest("a", "team-a", serviceAccount="reader"))
    (tmp_path / "source" / "b.json").write_text(manifest("b", "team-b", serviceAccount="reader"))
    config = tmp_path / "config.yaml"
    config.write_text('namespaces: [team-*]\nserviceAccounts:\n  team-a: [reader, "x-*"]\n')
    ended = gitops("validate", tmp_path / "source", "--config", config)
    assert ended.code == 1
    assert "b.json:10:21: error: the operator does not allow this service account" in ended.out
    assert "a.json:" not in ended.out
    config.write_text('namespaces: team-*\nserviceAccounts: ["team-*/reader"]\n')
    assert gitops("validate", tmp_path / "source", "--config", config).code == 0
    config.write_text("serviceAccounts: {team-a: {reader: true}}\n")
    ended = gitops("validate", tmp_path / "source", "--config", config)
    assert "serviceAccounts: expected a list of names for each namespace" in ended.error


@pytest.mark.parametrize(
    "key",
    [
        "namespaces",
        "serviceAccounts",
        "podSecurity",
        "drainHosts",
        "manualServers",
        "agentNamespace",
        "agentSecrets",
    ],
)
def test_a_source_allows_itself_nothing(gitops: Run, tmp_path: Path, key: str) -> None:
    (tmp_path / "gitops-mcp.yaml").write_text(f'{key}: "*"\n')
    ended = gitops("validate", tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert f"{key} may not be set by the source itself" in ended.error


def test_the_agents_namespace_is_that_of_its_pod(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert settings.SourceOptions().policy.own_namespaces == {"gitops-mcp"}
    (tmp_path / "namespace").write_text("ops")
    monkeypatch.setattr(settings, "POD_NAMESPACE", tmp_path / "namespace")
    assert settings.SourceOptions().policy.own_namespaces == {"gitops-mcp", "ops"}
    named = settings.SourceOptions(agent_namespace="tools")
    assert named.policy.own_namespaces == {"tools"}


# --- servers of git ---------------------------------------------------------------------------


def test_a_refused_manifest_is_a_problem_of_its_own_server(
    sync: Sync, cluster: Cluster, namespace: str
) -> None:
    """The last good workload runs on."""
    before = sync(text=manifest(namespace=namespace))
    assert before["web"]["result"] == "changed"
    after = sync(text=manifest(namespace=namespace, serviceAccount="ci-admin", replicas=2))
    assert after["web"]["result"] == "failed"
    reason, message = synced(cluster, namespace)
    assert reason == "ManifestInvalid"
    assert "service account" in message
    deployment = read(cluster, namespace, "Deployment")
    assert deployment is not None
    assert deployment["spec"]["replicas"] == 1
    assert "serviceAccountName" not in deployment["spec"]["template"]["spec"]
    allowed = sync("--service-accounts", f"{namespace}/ci-*")
    assert allowed["web"]["result"] == "changed"


def test_what_others_add_to_an_mcpserver_is_judged_too(
    sync: Sync, cluster: Cluster, namespace: str
) -> None:
    """A field that git does not set stays with whoever set it: it must not become the way to an
    account."""
    text = manifest(namespace=namespace)
    sync(text=text)
    body = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": "web", "namespace": namespace},
        "spec": {"serviceAccount": "ci-admin"},
    }
    cluster.apply(body, manager="tenant")
    assert sync(text=text)["web"]["result"] == "failed"
    reason, message = synced(cluster, namespace)
    assert reason == "ManifestInvalid"
    assert message.startswith("/spec/serviceAccount: ")
    assert message.endswith("(set by the field manager 'tenant')")
    deployment = read(cluster, namespace, "Deployment")
    assert deployment is not None
    assert "serviceAccountName" not in deployment["spec"]["template"]["spec"]


def test_a_pod_is_judged_as_the_operators_templates_render_it(
    sync: Sync, cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    templates = tmp_path / "templates"
    templates.mkdir()
    for file in TEMPLATES.glob("*.j2"):
        text = file.read_text().replace("containers:", "hostNetwork: true\n      containers:", 1)
        (templates / file.name).write_text(text)
    text = manifest(namespace=namespace)
    assert sync("--templates", templates, text=text)["web"]["result"] == "failed"
    reason, message = synced(cluster, namespace)
    assert reason == "ManifestInvalid"
    assert "hostNamespaces of the Pod Security profile baseline" in message
    assert "(the pod's /spec/hostNetwork)" in message
    assert "field manager" not in message  # it is the template's
    assert read(cluster, namespace, "Deployment") is None
    cr = read(cluster, namespace, KIND)
    assert cr is not None  # for the status to stand on, with no more than git says
    assert "replicas" not in cr["spec"]
    assert "finalizers" not in cr["metadata"]
    assert sync("--templates", templates, "--allow-privileged")["web"]["result"] == "changed"


# --- servers of kubectl -----------------------------------------------------------------------


def test_servers_made_with_kubectl_keep_the_same_rules(
    sync: Sync, cluster: Cluster, namespace: str
) -> None:
    """Who may create nothing but MCPServers gets no pod with an account that others made."""
    is_manual(cluster, namespace, "dep", serviceAccount="ci-admin")
    is_manual(cluster, namespace, "bad", podSecurityContext={"seLinuxOptions": {"type": "spc_t"}})
    is_manual(cluster, namespace, "good")
    ended = sync("--namespaces", namespace)
    assert {name: one["result"] for name, one in ended.items()} == {
        "dep": "failed",
        "bad": "failed",
        "good": "changed",
    }
    for name, word in (("dep", "/spec/serviceAccount"), ("bad", "seLinuxOptions")):
        reason, message = synced(cluster, namespace, name)
        assert reason == "ManifestInvalid"
        assert word in message
        assert read(cluster, namespace, "Deployment", name) is None
    assert read(cluster, namespace, "Deployment", "good") is not None


def test_an_agent_writes_nothing_but_the_status_of_a_server_that_is_refused(
    cluster: Cluster, kubeconfig: Path, namespace: str, tmp_path: Path
) -> None:
    def applied(name: str) -> set[str]:
        cr = read(cluster, namespace, KIND, name)
        entries = cr["metadata"]["managedFields"] if cr is not None else ()
        ours = (one for one in entries if one["manager"] == "gitops-mcp")
        return {one.get("subresource", "") for one in ours}

    def change(name: str, account: str) -> None:
        cr = read(cluster, namespace, KIND, name)
        assert cr is not None
        body = {"spec": {"serviceAccount": account}}
        uid = cr["metadata"]["uid"]
        cluster.merge_patch(ObjectRef.of(cr), body, manager="kubectl-edit", uid=uid)

    is_manual(cluster, namespace, "refused", serviceAccount="ci-admin")
    is_manual(cluster, namespace, "adopted", serviceAccount="ci-admin")
    is_manual(cluster, namespace, "ran")
    git = gitfixtures.bare(tmp_path / "git")
    body = json.loads(manifest("adopted", namespace))
    body["metadata"]["annotations"] = {"mcp.example.com/adopt": "true"}
    gitfixtures.commit(git, {"adopted.json": json.dumps(body)})
    scope = ("--source-id", namespace, "--watch-namespace", namespace, "--listen", "127.0.0.1:0")
    with agent(kubeconfig, git, *scope, "-n", namespace):
        until(lambda: "" in applied("ran"), "the finalizer of what may run")
        until(lambda: read(cluster, namespace, "Deployment", "ran"), "its Deployment")
        until(lambda: "status" in applied("ran"), "its status")
        for name in ("refused", "adopted"):
            until(lambda name=name: applied(name), f"the status of {name}")  # type: ignore[misc]
            assert synced(cluster, namespace, name)[0] == "ManifestInvalid"
        change("ran", "ci-admin")
        until(lambda: synced(cluster, namespace, "ran")[0] == "ManifestInvalid", "its refusal")
        assert applied("refused") == applied("adopted") == {"status"}
        cluster.delete(ObjectRef(API_VERSION, KIND, namespace, "ran"), uid=None)
        until(lambda: read(cluster, namespace, KIND, "ran") is None, "the end of its shutdown")


def test_servers_made_with_kubectl_can_be_switched_off(
    sync: Sync, cluster: Cluster, namespace: str
) -> None:
    is_manual(cluster, namespace)
    assert sync("--manual-servers", "off")["web"]["result"] == "failed"
    assert synced(cluster, namespace) == (
        "ManifestInvalid",
        "servers made with kubectl are not run here (--manual-servers off)",
    )
    cr = read(cluster, namespace, KIND)
    assert cr is not None
    assert "finalizers" not in cr["metadata"]
    assert read(cluster, namespace, "Deployment") is None
    assert sync()["web"]["result"] == "changed"
    assert read(cluster, namespace, "Deployment") is not None
    cluster.merge_patch(
        ObjectRef(API_VERSION, KIND, namespace, "web"),
        {"spec": {"image": "example.com/web:2"}},
        manager="kubectl-edit",
        uid=cr["metadata"]["uid"],
    )
    assert sync("--manual-servers", "off")["web"]["result"] == "failed"
    deployment = read(cluster, namespace, "Deployment")
    assert deployment is not None  # what ran is left alone
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == "example.com/web:1"
