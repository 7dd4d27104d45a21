"""One writer of each source, and one of the servers that kubectl made, on a running sandbox."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from gitops_mcp import crd, leadership, pipeline, sandbox, schemas
from gitops_mcp.errors import LeaseLost
from gitops_mcp.kube import Cluster
from gitops_mcp.model import API_VERSION, FINALIZER, KIND, JsonObject, ObjectRef
from gitops_mcp.options import SourceOptions


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with sandbox.start(speed=20) as started:
        file = started.write_kubeconfig(tmp_path_factory.mktemp("sandbox") / "config")
        cluster = Cluster.connect(str(file))
        cluster.apply(crd.custom_resource_definition(schemas.schema()))
        yield cluster
        cluster.close()


def holder(cluster: Cluster, source: str) -> str:
    ref = ObjectRef("coordination.k8s.io/v1", "Lease", "default", leadership.lease_name(source))
    lease = cluster.get(ref)
    return str(lease["spec"].get("holderIdentity") or "") if lease is not None else ""


def test_an_agent_is_not_waited_for(cluster: Cluster) -> None:
    lost = threading.Event()
    agent = leadership.only_writer(
        cluster, "default", "one", holder="agent", take_over=False, lost=lost
    )
    with agent:
        assert holder(cluster, "one").startswith("agent-")
        second = leadership.only_writer(
            cluster, "default", "one", holder="sync", take_over=False, lost=threading.Event()
        )
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
    with leadership.only_writer(
        cluster, "agents", "four", holder="agent", take_over=False, lost=threading.Event()
    ):
        found = leadership.lease_namespaces(cluster, ("four", "five"), None)
    assert found == ("agents", "default")
    assert listed == ["Lease"]


def test_taking_over_tells_the_former_holder(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leadership, "LEASE_RENEWAL", 0.1)
    first, second = threading.Event(), threading.Event()
    with leadership.only_writer(
        cluster, "default", "two", holder="agent", take_over=False, lost=first
    ):
        with leadership.only_writer(
            cluster, "default", "two", holder="sync", take_over=True, lost=second
        ):
            assert holder(cluster, "two").startswith("sync-")
            assert first.wait(5)
        assert not second.is_set()


def test_a_renewal_that_gets_no_answer_does_not_outlast_the_lease(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leadership, "LEASE_RENEWAL", 0.1)
    monkeypatch.setattr(leadership, "LEASE_DURATION", timedelta(seconds=1))
    lost, answer = threading.Event(), threading.Event()
    with leadership.only_writer(
        cluster, "default", "three", holder="sync", take_over=False, lost=lost
    ):
        asked = cluster.get

        def silent(ref: ObjectRef) -> JsonObject | None:
            answer.wait(10)
            return asked(ref)

        monkeypatch.setattr(cluster, "get", silent)
        assert lost.wait(5)
        answer.set()


def test_kubectls_servers_are_left_to_whoever_stands_for_them(cluster: Cluster) -> None:
    lost = threading.Event()
    told: list[str] = []
    agent, sync = (
        leadership.source_lease(cluster, "default", leadership.CLUSTER_SOURCE, holder)
        for holder in ("agent", "sync")
    )
    with leadership.kubectl_writer(agent, patience=0, lost=lost) as first:
        with leadership.kubectl_writer(sync, patience=9, lost=lost, say=told.append) as second:
            assert (first, second) == (True, False)
        assert told[0].startswith("servers made by kubectl are left to agent-")
    with leadership.kubectl_writer(sync, patience=0, lost=lost) as third:
        assert third is True


def test_whoever_stood_for_them_and_died_is_followed(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leadership, "LEASE_DURATION", timedelta(seconds=1))
    dead = leadership.source_lease(cluster, "default", leadership.CLUSTER_SOURCE, "sync")
    assert dead.acquire()
    heir = leadership.source_lease(cluster, "default", leadership.CLUSTER_SOURCE, "sync")
    with leadership.kubectl_writer(heir, patience=10, lost=threading.Event()) as standing:
        assert standing is True


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
    cluster: Cluster, folder: Path, wishes: pipeline.Wishes
) -> tuple[dict[str, str], list[str]]:
    options = SourceOptions(location=str(folder))
    warnings: list[str] = []
    with pipeline.open_repository(options) as repository:
        source = pipeline.read(options, repository)
        report = pipeline.Pass(source, cluster, options, wishes, warnings.append).run()
    return {outcome.server.name: outcome.result for outcome in report.outcomes}, warnings


def test_a_pass_that_does_not_stand_for_kubectl_leaves_its_servers(
    cluster: Cluster, tmp_path: Path
) -> None:
    apply(cluster, "by-hand")
    assert passed(cluster, tmp_path, pipeline.Wishes(kubectl=False))[0] == {}
    assert passed(cluster, tmp_path, pipeline.Wishes())[0] == {"by-hand": "changed"}


def test_a_finalizer_that_nobody_answers_is_warned_of(cluster: Cluster, tmp_path: Path) -> None:
    apply(cluster, "held", finalizers=[FINALIZER])
    _, warnings = passed(cluster, tmp_path, pipeline.Wishes())
    assert len(warnings) == 1
    assert warnings[0].startswith("1 server(s) bear the agent's finalizer")
    assert passed(cluster, tmp_path, pipeline.Wishes(finalizer=True))[1] == []
