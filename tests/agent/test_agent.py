"""The living agent, as a process of its own, on the sandbox: what wakes it, what does not, its end.

The periodic looks are an hour apart here, so that all that happens is owed to events.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gitfixtures
import paths
import pytest
from agents import agent, until
from faults import HUNG, TOO_MANY, Proxy
from places import HOUR, NAMESPACE, Place, manifest, place

from gitops_mcp.base.names import KIND, ObjectRef

__all__ = ["place"]


def test_a_push_a_drift_and_a_removal_are_answered_at_once(place: Place) -> None:
    place.push(web=manifest("web"))
    with place.agent():
        until(lambda: place.ready("web") and place.is_ready(), "the first commit")

        place.push(web=manifest("web", "2.0"), other=manifest("other"))
        assert place.wake() == 202
        until(lambda: place.image("web").endswith(":2.0"), "the push", within=10)
        until(lambda: place.ready("web") and place.ready("other"), "what was pushed", within=20)

        hand = {
            "spec": {
                "template": {"spec": {"containers": [{"name": "mcp-server", "image": "evil"}]}}
            }
        }
        body = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "web", "namespace": NAMESPACE},
        }
        place.cluster.apply(body | hand, manager="kubectl-set", force=True)
        until(lambda: place.image("web").endswith(":2.0"), "the drift to be healed", within=10)
        place.cluster.delete(
            ObjectRef("v1", "Service", NAMESPACE, "other"),
            uid=place.get("Service", "other")["metadata"]["uid"],
        )
        until(lambda: place.get("Service", "other"), "the Service to be back", within=10)

        place.push(other=None)
        assert place.wake() == 202
        until(lambda: not place.get(KIND, "other"), "the removal", within=60)
    log = place.log()
    assert "drift; updated deployment/web" in log
    assert "pruned" in log
    assert "Traceback" not in log


def test_a_batch_that_fails_stops_a_rollout_over_a_restart_until_the_commit_is_reverted(
    place: Place,
) -> None:
    names = [f"s{number:02}" for number in range(12)]

    def push(tag: str, broken: str = "") -> None:
        failing = {"podAnnotations": {"sandbox.mcp.example.com/simulate": "image-pull-failure"}}
        files = {n: manifest(n, tag, **(failing if n == broken else {})) for n in names}
        place.push(**files)

    def tags() -> list[str]:
        return [place.image(name)[-3:] for name in names]

    def stopped() -> bool:
        conditions = place.get(KIND, "s11")["status"]["conditions"]
        (synced,) = (c for c in conditions if c["type"] == "Synced")
        return f"stopped: {NAMESPACE}/s01 is not Ready" in synced["message"]

    push("1.0")
    with place.agent("--serial", "4"):
        until(lambda: all(map(place.ready, names)), "the first commit")
        push("2.0", broken="s01")
        place.wake()
        until(stopped, "the rollout to stop")
        assert tags() == ["2.0"] * 4 + ["1.0"] * 8
    with place.agent("--serial", "4"):
        until(place.is_ready, "the next agent")
        until(stopped, "it to find the rollout stopped")
        assert tags() == ["2.0"] * 4 + ["1.0"] * 8
        push("1.0")
        place.wake()
        until(lambda: tags() == ["1.0"] * 12 and all(map(place.ready, names)), "the revert")
        push("3.0")
        place.wake()
        until(lambda: tags() == ["3.0"] * 12 and all(map(place.ready, names)), "all batches")
    assert "Traceback" not in place.log()


def test_nothing_happens_and_nothing_is_asked(place: Place) -> None:
    place.push(**{name: manifest(name) for name in ("web", "other")})
    with place.agent():
        until(lambda: place.ready("web") and place.ready("other"), "the servers")
        time.sleep(3)  # the last status, the Events
        place.started.requests.clear()
        time.sleep(6)
        asked = {what for what, count in place.started.requests.items() if count}
    assert {resource for _, resource in asked} == {"leases"}


def test_its_endpoints_tell_how_it_is(place: Place) -> None:
    revision = place.push(web=manifest("web"))
    with place.agent():
        until(place.is_ready, "readiness")
        until(lambda: place.ready("web"), "the server")
        assert place.ask("/healthz")[0] == 200
        metrics = place.ask("/metrics")[1]
        assert f'gitops_mcp_revision_info{{revision="{revision}"}} 1.0' in metrics
        assert 'gitops_mcp_source_info{cluster="default",source="default"} 1.0' in metrics
        assert 'gitops_mcp_api_requests_total{code="201",kind="MCPServer"' in metrics
        assert place.ask("/webhook", b"{}", X_Hub_Signature_256="sha256=00")[0] == 401
        (place.repository.parent / "secret").unlink()
        assert place.wake() == 404
    assert "the webhook's secret cannot be read" in place.log()


def test_a_mistake_that_the_next_commit_mends_is_tried_again_at_once(place: Place) -> None:
    """Its namespace is missing: 404s are tried again, and another commit does not wait for it."""
    place.push(web=manifest("web").replace(f'"{NAMESPACE}"', '"absent"'))
    with place.agent():
        until(lambda: "create it, or use" in place.log(), "the complaint")
        place.push(web=manifest("web"))
        place.wake()
        until(lambda: place.ready("web"), "the server", within=20)


def test_the_last_good_commit_is_kept_while_git_is_away(place: Place) -> None:
    place.push(web=manifest("web"))
    away = place.repository.with_name("away.git")
    with place.agent():
        until(lambda: place.ready("web") and place.is_ready(), "the server")
        place.repository.rename(away)
        assert place.wake() == 202
        until(lambda: "what was read last stays in force" in place.log(), "the complaint")
        place.cluster.delete(
            ObjectRef("apps/v1", "Deployment", NAMESPACE, "web"),
            uid=place.get("Deployment", "web")["metadata"]["uid"],
        )
        until(lambda: place.get("Deployment", "web"), "the Deployment to be back", within=10)
        away.rename(place.repository)
        place.push(web=manifest("web", "2.0"))
        place.wake()
        until(lambda: place.image("web").endswith(":2.0"), "the push", within=20)
        assert "git can be read again" in place.log()


def test_in_a_pod_a_git_server_that_is_away_at_the_start_is_waited_for(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    place.push(web=manifest("web"))
    with gitfixtures.GitServer(place.repository.parent) as server:
        server.trouble = 503
        url = f"{server.url}/{place.repository.name}"
        with agent(place.kubeconfig, place.repository, *place.arguments, url=url):
            until(lambda: "returned error: 503; trying again" in place.log(), "the wait")
            assert (place.ask("/healthz")[0], place.ask("/readyz")[0]) == (200, 503)
            server.trouble = 0
            until(lambda: place.ready("web") and place.is_ready(), "the server", within=30)


@pytest.mark.parametrize("how", ["its path", "a server, in a pod"])
def test_the_first_commit_of_an_empty_repository_is_waited_for(
    how: str, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with gitfixtures.GitServer(place.repository.parent) as server:
        url = ""
        if how != "its path":
            monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
            url = f"{server.url}/{place.repository.name}"
        with agent(place.kubeconfig, place.repository, *place.arguments, url=url):
            until(lambda: "there is no commit yet; trying again" in place.log(), "the wait")
            assert place.ask("/healthz")[0] == 200
            assert place.ask("/readyz") == (503, "git was not read yet: there is no commit yet\n")
            if not url:  # another branch comes first: no reason to end
                gitfixtures.commit(place.repository, {"README.md": "x"}, branch="other")
                until(lambda: "no branch main; trying again" in place.log(), "the branch")
            place.push(web=manifest("web"))
            until(lambda: place.ready("web") and place.is_ready(), "the server")


def test_in_a_pod_a_branch_that_is_not_there_yet_is_waited_for(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.push(web=manifest("web"))
    typed = subprocess.run(
        [sys.executable, "-m", "gitops_mcp", "agent", str(place.repository), "--branch", "next"],
        env=os.environ | {"KUBECONFIG": str(place.kubeconfig)},
        cwd=paths.ROOT,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (typed.returncode, b"no branch next" in typed.stderr) == (2, True)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    with place.agent("--branch", "next"):
        until(lambda: "no branch next; trying again" in place.log(), "the wait")
        assert place.ask("/readyz")[1] == "git was not read yet: the branch or ref is not there\n"
        gitfixtures.git(place.repository, "branch", "next", "main")
        until(lambda: place.ready("web") and place.is_ready(), "the server")


def test_a_mirror_that_broke_is_mended_while_it_runs(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    dead = scratch / "gitops-mcp-dead"
    dead.mkdir(parents=True)
    (dead / "owner").touch()  # of a process that was killed
    monkeypatch.setenv("TMPDIR", str(scratch))
    place.push(web=manifest("web"))
    with gitfixtures.GitServer(place.repository.parent) as server:
        url = f"{server.url}/{place.repository.name}"
        with agent(place.kubeconfig, place.repository, *place.arguments, url=url):
            until(lambda: place.ready("web"), "the server")
            assert not dead.exists()
            for pack in scratch.glob("*/mirror.git/objects/pack/*.pack"):
                pack.chmod(0o600)
                os.truncate(pack, 60)
            place.push(web=manifest("web", "2.0"))
            place.wake()
            until(lambda: place.image("web").endswith(":2.0"), "the push", within=30)


def test_in_a_pod_a_commit_that_is_too_large_at_the_start_is_waited_out(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    blob = gitfixtures.git(place.repository, "hash-object", "-w", "--stdin", stdin=b"a: 1\n")
    entries = [f"100644 blob {blob}\tf{number}.yaml" for number in range(10)]
    for level in range(9):  # 10^9 paths
        stdin = "".join(f"{entry}\n" for entry in entries).encode()
        tree = gitfixtures.git(place.repository, "mktree", stdin=stdin)
        entries = [f"040000 tree {tree}\td{level}{number}" for number in range(10)]
    bomb = gitfixtures.git(place.repository, "commit-tree", "-m", "docs", tree)
    gitfixtures.git(place.repository, "update-ref", "refs/heads/main", bomb)
    with gitfixtures.GitServer(place.repository.parent) as server:
        url = f"{server.url}/{place.repository.name}"
        with agent(place.kubeconfig, place.repository, *place.arguments, url=url):
            until(lambda: "50,000 YAML and JSON files; trying again" in place.log(), "the wait")
            assert (place.ask("/healthz")[0], place.ask("/readyz")[0]) == (200, 503)
            gitfixtures.git(place.repository, "update-ref", "-d", "refs/heads/main")
            place.push(web=manifest("web"))
            until(lambda: place.ready("web") and place.is_ready(), "the server", within=60)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"gitops-mcp.yaml": "path: [unclosed"}, "gitops-mcp.yaml"),
        ({"group_vars/prod.yaml": "spec: {port: 9000}\n"}, "no --cluster was given"),
    ],
)
def test_a_commit_that_cannot_be_enforced_stops_no_agent_and_no_start(
    files: dict[str, str | None], says: str, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    good = place.push(web=manifest("web"))
    with place.agent():
        until(lambda: place.ready("web") and place.is_ready(), "the server")
        gitfixtures.commit(place.repository, files)
        place.wake()
        until(lambda: says in place.log(), "the refusal")
        assert f'revision="{good}"' in place.ask("/metrics")[1]
        hand = {"spec": {"containers": [{"name": "mcp-server", "image": "evil"}]}}
        body = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "web", "namespace": NAMESPACE},
            "spec": {"template": hand},
        }
        place.cluster.apply(body, manager="kubectl-set", force=True)
        until(lambda: place.image("web").endswith(":1.0"), "the drift to be healed")
    with place.agent():
        until(lambda: place.log().count("trying again") and place.ask("/healthz")[0] == 200, "wait")
        assert place.ask("/readyz")[0] == 503
        gitfixtures.commit(place.repository, dict.fromkeys(files))
        place.push(web=manifest("web", "2.0"))
        until(lambda: place.image("web").endswith(":2.0"), "the mended commit", within=40)


def test_whoever_waits_for_git_ends_at_once_when_told(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    with gitfixtures.GitServer(place.repository.parent) as server:
        server.trouble = 503
        url = f"{server.url}/{place.repository.name}"
        with agent(place.kubeconfig, place.repository, *place.arguments, url=url) as process:
            until(lambda: len(server.seen) > 3, "waits that become longer")
            asked = len(server.seen)
            process.send_signal(signal.SIGTERM)
            assert process.wait(200) == 0
        assert len(server.seen) == asked


@pytest.mark.parametrize("in_pod", [False, True])
def test_a_git_server_that_refuses_at_the_start_ends_it(
    in_pod: bool, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So does one that is away, where somebody can read it: not in a pod."""
    if in_pod:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    with gitfixtures.GitServer(place.repository.parent) as server:
        server.trouble = 403 if in_pod else 503
        ended = subprocess.run(
            [sys.executable, "-m", "gitops_mcp", "agent", f"{server.url}/fleet.git"],
            env=os.environ | {"KUBECONFIG": str(place.kubeconfig)},
            cwd=paths.ROOT,
            capture_output=True,
            timeout=60,
            check=False,
        )
    assert ended.returncode == 2
    expected = "refused the credentials" if in_pod else "does not answer"
    assert f"error: {server.url}/fleet.git: the git server {expected}" in ended.stderr.decode()


def test_it_ends_before_the_requests_that_hang_are_given_up(place: Place) -> None:
    place.push(web=manifest("web"))
    with (
        Proxy(place.kubeconfig) as proxy,
        agent(proxy.kubeconfig, place.repository, *place.arguments) as process,
    ):
        until(lambda: place.ready("web"), "the server")
        proxy.rule = lambda _: HUNG
        place.push(web=manifest("web", "2.0"))
        place.wake()
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(200) == 0
    assert "no answer in time" not in place.log()


def test_a_bug_in_a_thread_ends_it_though_another_one_hangs(place: Place) -> None:
    place.push(bad=manifest("bad"), slow=manifest("slow"))
    buggy = (
        "import time\n"
        "from gitops_mcp.cli import main as cli\n"
        "from gitops_mcp.sync import controller\n"
        "def look(self, key):\n"
        "    time.sleep(600 if key.name == 'slow' else 1)\n"
        "    raise RuntimeError('a bug in a thread')\n"
        "controller.Controller.look = look\n"
        "cli.main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", buggy, "agent", str(place.repository), *place.arguments],
        env=os.environ | {"KUBECONFIG": str(place.kubeconfig)},
        cwd=paths.ROOT,
        capture_output=True,
        timeout=120,  # it ends before the other thread does
        check=False,
    )
    assert ended.returncode == 70
    assert b"this is a bug; please report it" in ended.stderr


def test_a_commit_that_cannot_be_read_is_told_and_read_again(place: Place) -> None:
    place.push(web=manifest("web"))
    with place.agent():
        until(lambda: place.ready("web") and place.is_ready(), "the server")
        place.push(**{"gitops-mcp": "path: [1]", "web": manifest("web", "2.0")})
        place.wake()
        until(lambda: "what was read last stays in force" in place.log(), "the complaint")
        place.wake()  # nothing has moved, and it is still not read
        until(
            lambda: place.ask("/metrics")[1].count(
                'git_poll_duration_seconds_count{result="failed"} 2'
            ),
            "another look",
        )
        assert place.image("web").endswith(":1.0")
        place.push(**{"gitops-mcp": "path: ''"})
        place.wake()
        until(lambda: place.image("web").endswith(":2.0"), "the push", within=20)


def test_it_begins_once_a_starting_api_server_answers(place: Place) -> None:
    place.push(web=manifest("web"))
    with Proxy(place.kubeconfig) as proxy:
        proxy.rule = lambda _: TOO_MANY
        with agent(proxy.kubeconfig, place.repository, *place.arguments):
            until(lambda: "trying again" in place.log(), "the complaint")
            assert (place.ask("/healthz")[0], place.ask("/readyz")[0]) == (200, 503)
            proxy.rule = lambda _: None
            until(lambda: place.ready("web"), "the server", within=30)


def test_a_stand_by_that_read_an_older_commit_takes_nothing_back(place: Place) -> None:
    place.push(web=manifest("web"))
    with place.agent() as leader:
        until(lambda: place.ready("web") and place.is_ready(), "the first commit")
        with agent(place.kubeconfig, place.repository, *HOUR):
            until(lambda: "waiting for agent-" in place.log(), "the stand-by")
            place.push(web=manifest("web", "2.0"))
            place.wake()  # the leader alone
            until(lambda: place.image("web").endswith(":2.0"), "the push", within=20)
            until(lambda: place.ready("web"), "what was pushed")
            time.sleep(3)  # the Lease bears the commit by now
            place.push(other=manifest("other"))  # nobody is told of this one
            before = place.get("Deployment", "web")["metadata"]["generation"]
            leader.send_signal(signal.SIGTERM)
            assert leader.wait(30) == 0
            until(lambda: place.ready("other"), "the stand-by to ask git, and to lead")
            assert place.get("Deployment", "web")["metadata"]["generation"] == before


def test_a_stand_by_whose_git_is_away_takes_back_nothing_that_it_has_not_read(
    place: Place,
) -> None:
    place.push(web=manifest("web"))
    with place.agent() as leader:
        until(lambda: place.ready("web") and place.is_ready(), "the first commit")
        with agent(place.kubeconfig, place.repository, *HOUR):
            until(lambda: "waiting for agent-" in place.log(), "the stand-by")
            place.push(web=manifest("web", "2.0"), other=manifest("other"))
            place.wake()  # the leader alone
            until(lambda: place.ready("web") and place.ready("other"), "the push", within=20)
            time.sleep(3)  # the Lease bears the commit by now
            away = place.repository.rename(place.repository.with_suffix(".away"))
            leader.send_signal(signal.SIGTERM)
            assert leader.wait(30) == 0
            until(lambda: "was enforced last" in place.log(), "the stand-by to lead")
            until(lambda: "what was read last stays in force" in place.log(), "its look at git")
            time.sleep(2)
            assert place.image("web").endswith(":2.0")
            assert "deletionTimestamp" not in place.get(KIND, "other")["metadata"]
            away.rename(place.repository)
            place.push(web=manifest("web", "3.0"))
            until(lambda: place.image("web").endswith(":3.0"), "git to be asked again", within=40)
            assert place.get(KIND, "other")


def test_an_agent_of_one_namespace_keeps_nobody_from_kubectls_servers_in_others(
    place: Place,
) -> None:
    place.push(other=manifest("other"))
    place.cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team-a"}})

    def by_hand(namespace: str) -> None:
        body = json.loads(manifest("web"))
        body["metadata"]["namespace"] = namespace
        place.cluster.apply(body, manager="kubectl")

    def runs(namespace: str) -> bool:
        ref = ObjectRef("apps/v1", "Deployment", namespace, "web")
        return place.cluster.get(ref) is not None

    narrow = (*HOUR, "--listen", "127.0.0.1:0", "--source-id", "a", "--watch-namespace", "team-a")
    with agent(place.kubeconfig, place.repository, *narrow):
        by_hand("team-a")
        until(lambda: runs("team-a"), "the agent of that namespace", within=20)
        with place.agent():
            by_hand(NAMESPACE)
            until(lambda: runs(NAMESPACE), "the agent of all of them", within=20)
