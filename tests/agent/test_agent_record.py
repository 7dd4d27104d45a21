"""An agent prunes nothing that nobody released, and nothing of another repository."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import gitfixtures
import pytest
from agents import until
from commandline import runner
from places import NAMESPACE, Place, manifest, place

from gitops_mcp.base.names import KIND, ObjectRef
from gitops_mcp.cluster import leadership, sourceleases

__all__ = ["place"]


def test_a_block_stands_through_an_unrelated_commit_and_a_restart(place: Place) -> None:
    names = [f"s{number}" for number in range(5)]
    place.push(**{name: manifest(name, replicas=0) for name in names})

    def phase(name: str) -> str:
        return str((place.get(KIND, name).get("status") or {}).get("phase", ""))

    def held() -> bool:
        conditions = (place.get(KIND, "s0").get("status") or {}).get("conditions") or ()
        return any(one["reason"] == "PruneBlocked" for one in conditions)

    with place.agent():
        until(lambda: all(place.ready(name) for name in names), "the first commit")
        renamed: dict[str, str | None] = {f"s{number}.yaml": None for number in range(3)}
        renamed |= {f"n{number}.yaml": manifest(f"n{number}", replicas=0) for number in range(3)}
        gitfixtures.commit(place.repository, renamed, "Rename three")
        place.wake()
        until(lambda: held() and place.ready("n2"), "the block")
        gitfixtures.commit(place.repository, {"README.md": "Talk"}, "Talk")
        place.push(n0=manifest("n0", "2.0", replicas=0))
        place.wake()
        until(lambda: place.image("n0").endswith(":2.0"), "an unrelated commit")
    with place.agent():
        until(place.is_ready, "the agent after a restart")
        place.push(n0=manifest("n0", "3.0", replicas=0))
        place.wake()
        until(lambda: place.image("n0").endswith(":3.0"), "a commit after that")
        assert {phase(f"s{number}") for number in range(3)} == {"Ready"}
        gitfixtures.commit(place.repository, {"README.md": "Go"}, "Go\n\nAllow-Prune: 3")
        place.wake()
        until(lambda: not place.get(KIND, "s0") and not place.get(KIND, "s2"), "the release")


def test_another_repository_that_chose_this_id_does_not_get_an_agent(
    place: Place, tmp_path: Path
) -> None:
    place.push(web=manifest("web"))
    with place.agent("--source-id", "team-a"):
        until(lambda: place.ready("web") and place.is_ready(), "the first commit")
    other = gitfixtures.bare(tmp_path / "other.git")
    files = {"own.yaml": manifest("own"), "gitops-mcp.yaml": "sourceId: team-a\n"}
    gitfixtures.commit(other, files, "Take it\n\nAllow-Prune: 1", parent="")
    ended = subprocess.run(
        [sys.executable, "-m", "gitops_mcp", "agent", str(other), "--probes", "off"],
        env=os.environ | {"KUBECONFIG": str(place.kubeconfig)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 2
    assert "source id 'team-a' belongs to another repository in this cluster" in ended.stderr
    assert place.get(KIND, "web")["status"]["phase"] == "Ready"
    assert not place.get(KIND, "own")


def test_an_agent_whose_source_id_is_taken_over_says_what_it_lost_and_no_more(
    place: Place,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(place.kubeconfig))
    run = runner(capsys)
    place.push(web=manifest("web"))
    other = tmp_path / "other"
    files = {name: manifest(name) for name in ("web", "own", "more")}
    gitfixtures.worktree(other, {f"{name}.yaml": text for name, text in files.items()})
    theirs = gitfixtures.git(other, "rev-parse", "HEAD")
    refused = "source id 'default' belongs to another repository"

    def status() -> str:
        return run("status", "-A").out.partition("NAMESPACE")[0]

    with place.agent():
        until(lambda: place.ready("web") and place.is_ready(), "the first commit")
        taken = run("sync", other, "--take-over")
        assert (taken.code, "was taken from agent-" in taken.err) == (0, True), taken.err
        assert "from another repository" in taken.err
        until(lambda: "nothing is enforced" in place.ask("/readyz")[1], "the agent to notice")
        until(lambda: f"the agent enforces nothing: {refused}" in status(), "the agent to say so")
        ended = run("reconcile", "--source")
        assert ended.code == 1
        assert f"source default: nothing is enforced: {refused}" in ended.out
        assert "still enforcing" not in ended.out
        gitfixtures.commit(place.repository, {"README.md": "Talk"}, "Talk")
        assert run("reconcile", "--source").code == 1
        heading = status()
        assert heading.startswith(f"source default at {theirs[:12]}, agent seen ")
        assert f"the agent enforces nothing: {refused}" in heading
        source = run("status", "-A", "-o", "json").json["source"]
        assert (source["enforced"], refused in source["agentTrouble"]) == (theirs, True)
    log = place.log()
    assert "was taken by another process" in log or "was lost to sync-" in log
    assert "not renewed in time" not in log
    advised = [line for line in log.splitlines() if "delete it with kubectl" in line]
    assert all("unless it is another repository's" in line for line in advised)
    assert run("sync", other).code == 0
    assert "enforces nothing" not in status()  # nobody is left whom it was about


def test_an_agent_that_waits_for_the_first_commit_says_so_in_the_cluster(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(place.kubeconfig))
    run = runner(capsys)
    waits = "source team-a, the agent waits for the first commit\n"
    why = f"{place.repository}: there is no commit yet"
    chosen = ("--source-id", "team-a")
    with place.agent(*chosen):
        until(lambda: "there is no commit yet; trying again" in place.log(), "the wait")
        until(lambda: run("status", "-A", *chosen).out.startswith(waits), "its word")
        assert why in run("status", "-A", *chosen).out
        found = run("status", "-A", *chosen, "-o", "json").json["source"]
        assert found == {"id": "team-a", "enforced": "", "agentWaits": why}
        ended = run("reconcile", "--source", *chosen)
        assert (ended.code, ended.err) == (1, "")
        assert ended.out == f"source team-a: the agent waits for the first commit: {why}\n"
        place.push(web=manifest("web"))
        until(lambda: place.ready("web") and place.is_ready(), "the server")
        until(lambda: run("reconcile", "--source", *chosen).code == 0, "an answer")
        assert "waits" not in run("status", "-A", *chosen).out
    name = leadership.lease_name("team-a")
    lease = place.cluster.get(ObjectRef("coordination.k8s.io/v1", "Lease", "default", name))
    assert lease is not None
    assert sourceleases.LEASE_WAITS not in lease["metadata"]["annotations"]


def test_nothing_is_moved_from_an_agent_that_lives(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(place.kubeconfig))
    run = runner(capsys)
    place.push(web=manifest("web"))
    moved = ("sync", place.repository, "--source-id", "new", "--take-over")
    with place.agent() as former:
        until(lambda: place.ready("web") and place.is_ready(), "the first commit")
        ended = run(*moved)
        assert (ended.code, ended.out) == (2, "")
        assert "cannot be moved from source 'default' while agent-" in ended.err
        assert f"-{former.pid}-" in ended.err
        assert "holds lease default/gitops-mcp-default" in ended.err
        assert "finalizer" not in ended.err
        former.kill()  # which leaves its Lease as it is
        former.wait()
    ended = run(*moved)
    assert ended.code == 0
    assert "changed: [ai/web] update MCPServer; moved from source 'default'" in ended.out
    assert "waits for an agent of this source, or for its next sync" in ended.err


def test_status_knows_what_an_agent_of_one_namespace_cannot_make(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such an agent keeps a record of its own, beside the one Lease of the source."""
    monkeypatch.setenv("KUBECONFIG", str(place.kubeconfig))
    run = runner(capsys)
    place.push(web=manifest("web"), wrong=manifest("wrong", replicas="three"))
    with place.agent("--watch-namespace", NAMESPACE):
        until(lambda: place.ready("web") and place.is_ready(), "the first commit")
        until(lambda: "1 problem" in run("status", "-A").out, "the record")
        ended = run("status", "-A")
        assert (ended.code, "1 server missing" in ended.out) == (1, True)
        assert any(
            line.split()[:3] == [NAMESPACE, "wrong", "Missing"] for line in ended.out.splitlines()
        )
        place.push(wrong=manifest("wrong"))
        place.wake()
        until(lambda: place.ready("wrong"), "the mended server")
        until(lambda: run("status", "-A").code == 0, "the record")
