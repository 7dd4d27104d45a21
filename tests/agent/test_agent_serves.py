"""What a running agent answers, whatever happens to the API server behind it.

A process of its own on the sandbox, its API server behind a proxy that makes trouble.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import gitfixtures
import paths
import plane as rig
import pytest
from agents import agent, until
from commandline import manifest
from faults import HUNG, Proxy
from prometheus_client.parser import text_string_to_metric_families

from gitops_mcp import sandbox
from gitops_mcp.agent.metrics import RESULTS
from gitops_mcp.base import objects
from gitops_mcp.base.limits import NEWS_AT_ONCE
from gitops_mcp.base.names import ANNOTATION_RECONCILE, ObjectRef
from gitops_mcp.cli import install
from gitops_mcp.cluster.kube import Cluster

SECRET = "a-secret-of-the-forge"


@dataclass
class Running:
    """An agent that looks at git only when it is woken."""

    repository: Path
    proxy: Proxy
    port: int
    log: Path

    def ask(
        self,
        path: str,
        *,
        method: str = "GET",
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, str]:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)) as client:
            client.request(method, path, body, dict(headers or {}))
            answer = client.getresponse()
            return answer.status, answer.read().decode()

    def answers(self, path: str) -> bool:
        try:
            return self.ask(path)[0] == 200
        except OSError:
            return False

    def metric(self, name: str, **labels: str) -> float | None:
        for family in text_string_to_metric_families(self.ask("/metrics")[1]):
            for sample in family.samples:
                if sample.name == f"gitops_mcp_{name}" and sample.labels == labels:
                    return float(sample.value)
        return None

    def reconciles(self) -> float:
        found = (self.metric("reconcile_duration_seconds_count", result=r) for r in RESULTS)
        return sum(count or 0 for count in found)

    def push(self, body: bytes, secret: str, forge: str = "GitHub") -> int:
        signature = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
        headers = {f"X-{forge}-Event": "push", f"X-{forge}-Signature": signature}
        if forge == "GitHub":
            headers = {"X-Hub-Signature-256": f"sha256={signature}", "X-GitHub-Event": "push"}
        return self.ask("/webhook", method="POST", body=body, headers=headers)[0]


@pytest.fixture(scope="module")
def running(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("agent")
    repository = gitfixtures.bare(folder / "fleet.git")
    gitfixtures.commit(repository, {"web.yaml": manifest("web", transport="stdio")})
    secret = folder / "token"
    secret.write_text(f"{SECRET}\n")
    (port,) = rig.free_ports(1)
    arguments = (
        f"--listen=127.0.0.1:{port}",
        "--interval=10m",
        "--create-namespace",
        f"--webhook-secret-file={secret}",
    )
    with sandbox.start(speed=20) as cluster:
        kubeconfig = cluster.write_kubeconfig(folder / "config")
        with closing(Cluster(str(kubeconfig))) as hand:
            hand.apply(install.definition())
        with (
            Proxy(kubeconfig) as proxy,
            agent(Path(proxy.kubeconfig), repository, *arguments),
        ):
            here = Running(repository, proxy, port, folder / "agent.log")
            until(lambda: here.answers("/readyz"), "an agent that is ready")
            yield here
            proxy.rule = lambda _: None
            proxy.release()


def test_it_says_what_it_enforces_and_how_its_servers_are(running: Running) -> None:
    head = gitfixtures.git(running.repository, "rev-parse", "main")
    assert running.metric("revision_info", revision=head) == 1
    assert running.metric("leader", source="default") == 1
    until(lambda: running.metric("servers", phase="Ready") == 1, "a server that is Ready")
    assert running.metric("changes_total", action="create", kind="Deployment") == 1
    assert running.metric("servers_by_result", result="failed") == 0
    assert (running.metric("view_age_seconds") or 0) < 60
    assert running.metric("api_requests_total", verb="patch", kind="Deployment", code="201") == 1


def test_only_a_push_of_whoever_knows_the_secret_wakes_it(running: Running) -> None:
    gitfixtures.commit(running.repository, {"search.yaml": manifest("search", transport="stdio")})
    body = json.dumps({"ref": "refs/heads/main"}).encode()
    assert running.push(body, "a guess") == 401
    assert running.metric("webhook_requests_total", verdict="refused") == 1
    time.sleep(0.5)
    assert running.metric("changes_total", action="create", kind="Deployment") == 1
    assert running.push(body, SECRET) == 202
    until(
        lambda: running.metric("changes_total", action="create", kind="Deployment") == 2,
        "the pushed server",
    )
    assert running.metric("git_poll_duration_seconds_count", result="moved") == 1
    for forge in ("Gitea", "Gogs"):
        assert running.push(body, "a guess", forge) == 401
        assert running.push(body, SECRET, forge) == 202
    assert SECRET not in running.log.read_text() + running.ask("/metrics")[1]


def test_a_replayed_push_has_git_asked_once_a_second_and_the_last_push_is_not_lost(
    running: Running,
) -> None:
    def polls() -> float:
        results = ("moved", "unchanged", "failed")
        found = (running.metric("git_poll_duration_seconds_count", result=r) for r in results)
        return sum(count or 0 for count in found)

    body = json.dumps({"ref": "refs/heads/main"}).encode()
    before, began = polls(), time.monotonic()
    for _ in range(100):
        assert running.push(body, SECRET) == 202
    gitfixtures.commit(running.repository, {"last.yaml": manifest("last", transport="stdio")})
    assert running.push(body, SECRET) == 202
    head = gitfixtures.git(running.repository, "rev-parse", "main")
    until(lambda: running.metric("revision_info", revision=head) == 1, "the last push")
    assert polls() - before <= 2 + time.monotonic() - began


WEB = ObjectRef("mcp.example.com/v1alpha1", "MCPServer", "ai", "web")


def _annotate(running: Running, hand: Cluster, name: str, times: int) -> tuple[float, float]:
    """Write an annotation so often; the reconciles and the seconds until the agent has answered the
    request that follows it."""

    def write(name: str, value: str) -> None:
        body = {"metadata": {"annotations": {name: value}}}
        hand.merge_patch(WEB, body, manager="kubectl-annotate")

    began, before = time.monotonic(), running.reconciles()
    for number in range(times):
        write(name, str(number))
    last = f"after {times} of {name}"
    write(ANNOTATION_RECONCILE, last)
    until(
        lambda: objects.status(hand.get(WEB)).get("lastHandledReconcileAt") == last,
        "the answer to the last request",
    )
    return running.reconciles() - before, time.monotonic() - began


def test_a_flood_of_writes_to_a_server_costs_a_reconcile_a_second_and_none_if_nobody_reads_them(
    running: Running,
) -> None:
    until(lambda: running.metric("servers", phase="Ready"), "a server that is Ready")
    with closing(Cluster(str(running.proxy.kubeconfig))) as hand:
        _annotate(running, hand, "example.com/note", 1)  # who owns it is news
        unread, _ = _annotate(running, hand, "example.com/note", 200)
        assert unread < 200 / 5  # the pods and the clock have news of their own
        flood, seconds = _annotate(running, hand, ANNOTATION_RECONCILE, 200)
        assert 1 <= flood <= NEWS_AT_ONCE + 1 + seconds


def test_a_hanging_api_server_holds_up_no_answer_and_is_no_reason_to_restart(
    running: Running,
) -> None:
    running.proxy.rule = lambda _: HUNG
    try:
        until(lambda: running.metric("leader", source="default") == 0, "the end of its lease")
        for _ in range(10):
            assert running.ask("/healthz") == (200, "ok\n")
    finally:
        running.proxy.rule = lambda _: None
        running.proxy.release()
    until(lambda: running.metric("leader", source="default") == 1, "its lease again")
    until(lambda: running.answers("/readyz"), "an agent that is ready again")


def test_a_port_that_is_taken_ends_it_with_one_line(running: Running) -> None:
    command = [sys.executable, "-m", "gitops_mcp", "agent", str(running.repository)]
    ended = subprocess.run(
        [
            *command,
            f"--listen=127.0.0.1:{running.port}",
            f"--kubeconfig={running.proxy.kubeconfig}",
        ],
        cwd=paths.ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith(
        f"error: cannot listen on 127.0.0.1:{running.port}: Address already in use"
    )
