"""One writer of each source, and one of the servers that kubectl made, on a running sandbox."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import faults
import paths
import pytest
from commandline import manifest

from gitops_mcp.base.errors import LeaseLost, Permanent
from gitops_mcp.base.names import API_VERSION, FINALIZER, KIND, JsonObject, ObjectRef
from gitops_mcp.cluster import leadership, sourceleases
from gitops_mcp.cluster.kube import Cluster
from gitops_mcp.cluster.lease import Lease, LeaseTiming
from gitops_mcp.source.settings import SourceOptions
from gitops_mcp.sync import pipeline, reading, syncoptions

pytest_plugins = ["clusters"]


@pytest.fixture(scope="module")
def cluster(sandboxed: Path) -> Iterator[Cluster]:
    cluster = Cluster(str(sandboxed))
    yield cluster
    cluster.close()


def holder(cluster: Cluster, source: str) -> str:
    ref = ObjectRef("coordination.k8s.io/v1", "Lease", "default", leadership.lease_name(source))
    lease = cluster.get(ref)
    return str(lease["spec"].get("holderIdentity") or "") if lease is not None else ""


def lease(cluster: Cluster, source: str, holder: str, *, namespace: str = "default") -> Lease:
    """With times as short as they can be."""
    timing = LeaseTiming(lease_duration=1, renew_deadline=0.6, retry_period=0.2)
    return leadership.source_lease(cluster, namespace, source, holder, timing=timing)


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leadership, "STEP", 0.1)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_agent_is_not_waited_for(cluster: Cluster) -> None:
    with leadership.only_writer(lease(cluster, "one", "agent")):
        assert holder(cluster, "one").startswith("agent-")
        second = leadership.only_writer(lease(cluster, "one", "sync"))
        with pytest.raises(LeaseLost, match="lease default/gitops-mcp-one is held by agent-"):
            second.__enter__()
    assert holder(cluster, "one") == ""


def test_each_lease_is_looked_for_where_its_agent_holds_it_with_one_list(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "agents"}})
    listed: list[str] = []
    find = cluster.list

    def counted(api_version: str, kind: str, *more: Any, **options: Any) -> Any:
        listed.append(kind)
        return find(api_version, kind, *more, **options)

    monkeypatch.setattr(cluster, "list", counted)
    with leadership.only_writer(lease(cluster, "four", "agent", namespace="agents")):
        found = sourceleases.lease_namespaces(cluster, ("four", "five"), None)
    assert found == ("agents", "default")
    assert listed == ["Lease"]


def test_taking_over_tells_the_former_holder(cluster: Cluster) -> None:
    with (
        leadership.only_writer(lease(cluster, "two", "agent")) as first,
        leadership.only_writer(lease(cluster, "two", "sync"), take_over=True) as second,
    ):
        assert holder(cluster, "two").startswith("sync-")
        until(lambda: not first.holds)
        assert second.holds


def test_a_renewal_that_gets_no_answer_does_not_outlast_the_lease(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with leadership.only_writer(lease(cluster, "three", "sync")) as leader:
        answer = threading.Event()
        renew = cluster.update

        def silent(body: JsonObject, *, timeout: float | None = None) -> JsonObject:
            answer.wait(10)
            return renew(body, timeout=timeout)

        monkeypatch.setattr(cluster, "update", silent)
        until(lambda: not leader.holds)
        answer.set()
        time.sleep(0.3)  # a sync has ended by then: what it lost it does not take up again
        assert not leader.holds


@pytest.mark.usefixtures("cluster")
def test_a_sync_whose_api_server_hangs_writes_nothing_after_its_lease(
    sandboxed: Path, tmp_path: Path
) -> None:
    (tmp_path / "web.yaml").write_text(manifest("hangs", "default"))
    hangs = threading.Event()

    def rule(request: faults.Request) -> faults.Fault | None:
        if "/deployments/hangs" in request.path:
            hangs.set()
        return faults.HUNG if hangs.is_set() and not request.watch else None

    with faults.Proxy(sandboxed) as proxy:
        proxy.rule = rule
        command = [sys.executable, "-m", "gitops_mcp", "sync", str(tmp_path)]
        sync = subprocess.Popen(
            [*command, "--source-id", "six", "--kubeconfig", str(proxy.kubeconfig)],
            cwd=paths.ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert hangs.wait(30)
        time.sleep(LeaseTiming().renew_deadline + 1)
        hung = len(proxy.seen)
        proxy.rule = lambda _: None
        proxy.release()
        _, said = sync.communicate(timeout=200)
    assert sync.returncode == 2
    assert "lease default/gitops-mcp-six was not renewed in time" in said
    written = [one.path for one, fault, _ in proxy.seen[hung:] if not fault and faults.writes(one)]
    assert [path for path in written if "/leases/" not in path] == []


def test_kubectls_servers_are_left_to_whoever_stands_for_them(cluster: Cluster) -> None:
    told: list[str] = []
    agent, sync = (
        lease(cluster, leadership.CLUSTER_SOURCE, holder) for holder in ("agent", "sync")
    )
    with leadership.kubectl_writer(agent, patience=0) as first:
        with leadership.kubectl_writer(sync, patience=9, say=told.append) as second:
            assert (first.holds, second.holds) == (True, False)
        assert told[0].startswith("servers made by kubectl are left to agent-")
    with leadership.kubectl_writer(sync, patience=0) as third:
        assert third.holds


def test_whoever_stood_for_them_and_died_is_followed(cluster: Cluster) -> None:
    assert lease(cluster, leadership.CLUSTER_SOURCE, "sync").acquire()
    heir = lease(cluster, leadership.CLUSTER_SOURCE, "sync")
    with leadership.kubectl_writer(heir, patience=10) as standing:
        assert standing.holds


def apply(cluster: Cluster, name: str, **metadata: object) -> None:
    cluster.apply(
        {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": name, "namespace": "default", **metadata},
            "spec": {"image": "example.com/web:1", "transport": "stdio"},
        },
        manager="kubectl",
    )


def passed(
    cluster: Cluster, folder: Path, wishes: syncoptions.SyncOptions
) -> tuple[dict[str, str], list[str]]:
    options = SourceOptions(location=str(folder))
    warnings: list[str] = []
    with reading.open_repository(options) as repository:
        source = reading.read(options, repository)
        report = pipeline.Pass(source, cluster, options, wishes, warnings.append).run()
    return {outcome.server.name: outcome.result for outcome in report.outcomes}, warnings


def test_a_pass_that_does_not_stand_for_kubectl_leaves_its_servers(
    cluster: Cluster, tmp_path: Path
) -> None:
    apply(cluster, "by-hand")
    assert passed(cluster, tmp_path, syncoptions.SyncOptions(kubectl=False))[0] == {}
    assert passed(cluster, tmp_path, syncoptions.SyncOptions())[0] == {"by-hand": "changed"}


def test_a_finalizer_that_nobody_answers_is_warned_of(cluster: Cluster, tmp_path: Path) -> None:
    apply(cluster, "held", finalizers=[FINALIZER])
    _, warnings = passed(cluster, tmp_path, syncoptions.SyncOptions())
    assert len(warnings) == 1
    assert warnings[0].startswith("1 server(s) bear the agent's finalizer")
    assert passed(cluster, tmp_path, syncoptions.SyncOptions(finalizer=True))[1] == []


def test_a_sync_stands_where_the_agents_are_that_are_narrowed(cluster: Cluster) -> None:
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "narrowed"}})
    held = leadership.source_lease(
        cluster, "narrowed", leadership.CLUSTER_SOURCE, "agent", area=leadership.area_of("ai")
    )
    assert held.acquire()
    assert sourceleases.lease_namespaces(cluster, ("cluster",), None) == ("narrowed",)
    held.release()


def namespaces(cluster: Cluster, *names: str) -> None:
    for name in names:
        cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})


@pytest.mark.parametrize("given", [None, "team", "elsewhere"])
def test_a_lease_that_nobody_holds_is_used_where_it_was_given_up_last(
    cluster: Cluster, given: str | None
) -> None:
    """As between two terms of an agent: one of our own would let both of us write."""
    namespaces(cluster, "team", "agents")
    source = f"seven-{given}".lower()
    for where, by in (("default", "sync"), ("team", "sync"), ("agents", "agent")):
        with leadership.only_writer(lease(cluster, source, by, namespace=where)):
            pass
    assert sourceleases.lease_namespaces(cluster, (source,), given) == ("agents",)
    with leadership.only_writer(lease(cluster, source, "sync")):
        assert sourceleases.lease_namespaces(cluster, (source,), given) == ("default",)
        with leadership.only_writer(lease(cluster, source, "agent", namespace="team")):
            assert sourceleases.lease_namespaces(cluster, (source,), given) == ("team",)


def test_who_may_not_list_leases_looks_in_the_namespace_that_was_named(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> Any:
        raise Permanent("no", code=403)

    namespaces(cluster, "named", "hidden")
    monkeypatch.setattr(cluster, "list", refused)
    for source, where in (("eight", "named"), ("nine", "hidden")):
        assert lease(cluster, source, "agent", namespace=where).acquire()
    find = sourceleases.lease_namespaces
    assert find(cluster, ("eight", "nine"), "named") == ("named", "named")
    assert find(cluster, ("eight", "nine"), None) == ("default", "default")
    assert sourceleases.find_leases(cluster, "eight", given="named").seen != []


@pytest.mark.parametrize(
    ("given", "pod", "place"),
    [(None, False, "default"), (None, True, "context"), ("mine", False, "mine"),
     ("mine", True, "mine")],
)  # fmt: skip
def test_leases_live_in_the_pods_own_namespace_and_in_no_contexts(
    given: str | None, pod: bool, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    if pod:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    assert sourceleases.home(cast("Any", SimpleNamespace(namespace="context")), given) == place
