"""The verbs that need a cluster, on the sandbox: results, exit codes, leases, interruptions.

Each test has its own namespace and source id, so that they may share one cluster.
"""

from __future__ import annotations

import itertools
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

import pytest
import yaml
from commandline import BROKEN, Ended, Run, completer, manifest, runner
from gitfixtures import GitServer, bare, commit, commit_all, git, worktree, write

from gitops_mcp import sandbox
from gitops_mcp.base.model import Decision, Facts
from gitops_mcp.base.names import API_VERSION, KIND, JsonObject, ObjectRef
from gitops_mcp.cli.verbs.sandbox import install_crd
from gitops_mcp.cluster import leadership, sourceleases
from gitops_mcp.cluster.kube import Cluster
from gitops_mcp.decide import planning
from gitops_mcp.decide.sourcestatus import Missing, SourceStatus

pytestmark = pytest.mark.usefixtures("processes")
pytest_plugins = ["clusters"]
GITOPS = [sys.executable, "-m", "gitops_mcp"]
SECRET = "hunter2-do-not-tell"
RECAP = re.compile(r"ok=\d+ changed=\d+ pruned=\d+ failed=\d+ blocked=\d+ skipped=\d+")


@pytest.fixture(scope="module")
def cluster(kubeconfig: Path) -> Iterator[Cluster]:
    connected = Cluster(str(kubeconfig))
    yield connected
    connected.close()


_numbers = itertools.count(1)


@dataclass
class Fleet:
    """A work tree with one server, the namespace and the source id that are this test's own."""

    folder: Path
    name: str
    cluster: Cluster
    run: Run

    def __call__(self, verb: str, *arguments: object) -> Ended:
        """Run a verb on this source."""
        chosen = (verb, self.folder, "--source-id", self.name, "-n", self.name)
        return self.run(*chosen, *arguments)

    def get(self, kind: str, name: str) -> JsonObject | None:
        versions = {"Deployment": "apps/v1", "Service": "v1", KIND: API_VERSION}
        return self.cluster.get(ObjectRef(versions[kind], kind, self.name, name))

    def lease(self, holder: str, *, age: timedelta = timedelta(0), namespace: str = "") -> None:
        """Let somebody else hold this source's lease."""
        stamp = (datetime.now(UTC) - age).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        self.cluster.create(
            {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {
                    "name": leadership.lease_name(self.name),
                    "namespace": namespace or self.name,
                    "labels": {"app.kubernetes.io/managed-by": "gitops-mcp"},
                },
                "spec": {
                    "holderIdentity": holder,
                    "leaseDurationSeconds": 60,
                    "acquireTime": stamp,
                    "renewTime": stamp,
                },
            }
        )


@pytest.fixture
def fleet(
    tmp_path: Path,
    kubeconfig: Path,
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Fleet:
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    name = f"test-{next(_numbers)}"
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    cluster.create(body)
    folder = tmp_path / "fleet"
    worktree(folder, {"web.yaml": manifest(namespace=None)})
    return Fleet(folder, name, cluster, runner(capsys))


# --- sync and diff ------------------------------------------------------------------------------


def test_diff_tells_1_of_changes_and_0_of_none_and_changes_nothing(fleet: Fleet) -> None:
    before = fleet("diff", "-o", "json")
    assert (before.code, before.err) == (1, "")
    assert before.json["base"] is None
    assert before.json["head"] == git(fleet.folder, "rev-parse", "HEAD")
    assert before.json["summary"]["create"] == 1
    assert {(c["kind"], c["action"]) for c in before.json["changes"]} == {
        (KIND, "create"),
        ("Deployment", "create"),
        ("Service", "create"),
    }
    assert fleet.get(KIND, "web") is None
    assert fleet("sync").code == 0
    after = fleet("diff")
    assert (after.code, after.out, after.err) == (0, "no changes (1 server)\n", "")


@pytest.mark.parametrize("verb", ["diff", "sync"])
def test_an_unexpected_error_at_one_server_ends_no_pass_of_the_fleet(
    fleet: Fleet, verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide = planning.decide

    def broken(facts: Facts, *others: Any) -> Decision:
        if facts.key.name == "bad":
            raise KeyError("step")
        return decide(facts, *others)

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(planning, "decide", broken)
    (fleet.folder / "bad.yaml").write_text(manifest("bad", namespace=None))
    git(fleet.folder, "add", "-A")
    git(fleet.folder, "commit", "-q", "-m", "bad")
    ended = fleet(verb)
    assert ended.code == (1 if verb == "sync" else 2), ended.err
    assert "bad" in ended.out
    assert "web" in ended.out
    (log,) = tmp_path.glob("gitops-mcp-*.log")
    assert ended.err.count("unexpected KeyError") == ended.err.count(str(log)) == 1
    assert "KeyError: 'step'" in log.read_text()
    assert (fleet.get(KIND, "web") is not None) == (verb == "sync")


def test_whose_additions_are_drift_can_be_set(fleet: Fleet) -> None:
    assert fleet("sync").code == 0
    body = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "namespace": fleet.name, "labels": {"team": "a"}},
    }
    fleet.cluster.apply(body, manager="console")
    assert fleet("diff").code == 0
    ended = fleet("diff", "--kubectl-managers", "kubectl,console", "-o", "json")
    assert [(c["kind"], [f["path"] for f in c["fields"]]) for c in ended.json["changes"]] == [
        ("Service", ["/metadata/labels/team"])
    ]


def test_sync_ends_with_its_recap_and_waits_until_ready(fleet: Fleet) -> None:
    ended = fleet("sync", "--wait")
    assert ended.code == 0, ended.err
    *lines, recap = ended.out.splitlines()
    assert recap == "ok=0 changed=1 pruned=0 failed=0 blocked=0 skipped=0"
    assert lines == [f"changed: [{fleet.name}/web] create MCPServer, Deployment, Service"]
    live = fleet.get(KIND, "web")
    assert live is not None
    assert live["status"]["phase"] == "Ready"
    again = fleet("sync", "--wait=30s", "-q")
    assert (again.code, again.err) == (0, "")
    assert again.out == "ok=1 changed=0 pruned=0 failed=0 blocked=0 skipped=0\n"


def test_sync_in_json(fleet: Fleet) -> None:
    ended = fleet("sync", "--wait", "-o", "json")
    found = ended.json
    assert list(found) == [
        "revision", "cluster", "check", "servers", "problems", "recap",
    ]  # fmt: skip
    assert found["revision"] == git(fleet.folder, "rev-parse", "HEAD")
    assert (found["cluster"], found["check"], found["problems"]) == ("default", False, [])
    (server,) = found["servers"]
    assert list(server) == ["server", "result", "ready", "changes", "message"]
    assert (server["server"], server["result"]) == (f"{fleet.name}/web", "changed")
    assert server["ready"] is True
    assert list(found["recap"].items()) == [
        ("ok", 0), ("changed", 1), ("pruned", 0), ("failed", 0), ("blocked", 0), ("skipped", 0),
    ]  # fmt: skip


def test_a_dirty_tree_is_named_and_leaves_no_note(fleet: Fleet) -> None:
    write(fleet.folder, {"new.yaml": manifest("new", None)})
    found = fleet("sync", "-o", "json").json
    assert found["revision"] == git(fleet.folder, "rev-parse", "HEAD") + "-dirty"
    assert git(fleet.folder, "for-each-ref", "refs/notes") == ""
    live = fleet.get(KIND, "new")
    assert live is not None
    assert live["status"]["source"]["revision"] == found["revision"]


def test_check_changes_nothing_and_diff_shows_each_change(fleet: Fleet) -> None:
    ended = fleet("sync", "--check", "--diff")
    assert ended.code == 0
    assert f"+++ git/MCPServer/{fleet.name}/web" in ended.out
    assert ended.out.splitlines()[-1].startswith("ok=0 changed=1 ")
    assert fleet.get(KIND, "web") is None
    assert fleet("sync").code == 0
    write(fleet.folder, {"web.yaml": manifest(namespace=None, replicas=3)})
    ended = fleet("sync", "--check", "--diff", "-o", "json")
    assert (ended.code, ended.json["check"]) == (0, True)
    fields = [f for c in ended.json["servers"][0]["changes"] for f in c["fields"]]
    assert {"path": "/spec/replicas", "from": 1, "to": 3} in fields
    live = fleet.get("Deployment", "web")
    assert live is not None
    assert live["spec"]["replicas"] == 1


def test_diff_names_what_other_controllers_added_though_nothing_changes(fleet: Fleet) -> None:
    assert fleet("sync", "--wait").code == 0
    added = {"env": [{"name": "ADDED", "value": "1"}, {"name": "API_TOKEN", "value": SECRET}]}
    containers = [{"name": "mcp-server", **added}]
    body = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web", "namespace": fleet.name},
        "spec": {"template": {"spec": {"containers": containers}}},
    }
    fleet.cluster.apply(body, manager="injector")
    cr = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": "web", "namespace": fleet.name},
        "spec": {"command": ["run"]},
    }
    fleet.cluster.apply(cr, manager="tuner")
    fleet("sync")  # what is added to the MCPServer is run
    ended = fleet("diff", "-v")
    assert ended.code == 0
    told = ended.out.splitlines()
    assert told == [
        f"= {fleet.name}/web: MCPServer web",
        '  kept, of another controller: /spec/command: ["run"]',
        f"= {fleet.name}/web: Deployment web",
        "  kept, of another controller: /spec/template/spec/containers/0/env/1: "
        '{"name":"ADDED","value":"1"}',
        told[4],
        "no changes (1 server)",
    ]
    assert "API_TOKEN" in told[4]
    assert SECRET not in ended.out
    assert fleet("diff").out == "no changes (1 server)\n"


def test_problems_of_the_source_make_sync_1_and_diff_2(fleet: Fleet) -> None:
    write(fleet.folder, {"broken.yaml": BROKEN})
    ended = fleet("sync")
    assert ended.code == 1
    assert ended.err.startswith("broken.yaml:8:3: error: ")
    assert RECAP.fullmatch(ended.out.splitlines()[-1])
    assert fleet.get(KIND, "web") is not None
    ended = fleet("diff", "-o", "markdown")
    assert ended.code == 2
    assert "broken.yaml:8:3" in ended.out


def test_a_repair_is_ready_on_the_commit_that_brought_it(fleet: Fleet) -> None:
    for text, code in (
        (manifest(namespace=None), 0),
        (manifest(namespace=None, replicas=-1), 1),
        (manifest(namespace=None), 0),
    ):
        commit_all(fleet.folder, {"web.yaml": text})
        # Longer than a test may take: what has failed is not waited for.
        assert fleet("sync", "--wait=1h").code == code
    asked = ("history", fleet.folder, "--server", f"{fleet.name}/web", "-o", "json")
    newest = fleet.run(*asked).json[0]
    assert newest["event"] == "ready"
    assert newest["commit"] == git(fleet.folder, "rev-parse", "HEAD")


def test_a_server_that_does_not_get_ready_fails_only_who_waits(fleet: Fleet) -> None:
    write(fleet.folder, {"web.yaml": _unready()})
    assert fleet("sync").code == 0
    ended = fleet("sync", "--wait=2s")
    assert ended.code == 1
    assert ended.out.splitlines()[-1].startswith("ok=1 ")
    told = f"not ready: [{fleet.name}/web] ImagePullFailed: 0/1 replicas ready: image "
    assert ended.err.splitlines()[-1].startswith(told)
    (server,) = fleet("sync", "--wait=1s", "-q", "-o", "json").json["servers"]
    assert (server["result"], server["ready"]) == ("ok", False)
    assert server["message"].startswith("ImagePullFailed: 0/1 replicas ready: image ")


def test_a_wait_ends_once_nothing_is_waited_for_but_what_no_wait_cures(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gitops_mcp.sync.fleet.SETTLED", timedelta(0))
    monkeypatch.setattr("gitops_mcp.sync.fleet.PROGRESS_INTERVAL", timedelta(0))
    write(fleet.folder, {"bad.yaml": _unready("bad")})
    ended = fleet("sync", "--wait=1h", "-o", "json")
    assert ended.code == 1
    assert {server["server"]: server["ready"] for server in ended.json["servers"]} == {
        f"{fleet.name}/bad": False,
        f"{fleet.name}/web": True,
    }
    told = f"not ready: [{fleet.name}/bad] ImagePullFailed: "
    assert [line[: len(told)] for line in ended.err.splitlines()[-1:]] == [told]
    assert re.search(r"^0/2 servers done, (60m|59m\d*s?|1h) left$", ended.err, re.M)
    assert re.search(r"^1/2 servers done, (60m|59m\d*s?|1h) left$", ended.err, re.M)


def _unready(name: str = "web") -> str:
    """A server whose pods never start."""
    simulated = {"sandbox.mcp.example.com/simulate": "image-pull-failure"}
    return manifest(name, namespace=None, podAnnotations=simulated)


def test_a_namespace_that_is_missing_is_created_when_asked(fleet: Fleet) -> None:
    there = f"{fleet.name}-new"
    write(fleet.folder, {"web.yaml": manifest(namespace=there)})
    told = f'namespace "{there}" not found: create it, or sync with --create-namespace'
    shown = fleet("diff")
    assert (shown.code, "1 to create" in shown.out) == (1, True)
    assert f"warning: {told} [{there}/web /metadata/namespace]" in shown.err
    (problem,) = fleet("diff", "-o", "json").json["problems"]
    assert (problem["severity"], problem["message"]) == ("warning", told)
    assert f"| warning: `{told}` |" in fleet("diff", "-o", "markdown").out
    refused = fleet("sync")
    assert refused.code == 1
    assert f'namespace "{there}" not found: create it, or use --create-namespace' in refused.out
    ended = fleet("sync", "--create-namespace")
    assert ended.code == 0, ended.out
    assert fleet.cluster.get(ObjectRef("v1", "Namespace", "", there)) is not None
    assert "not found" not in fleet("diff").err


def test_n_may_name_a_namespace_that_is_still_to_be_created(fleet: Fleet) -> None:
    there = f"{fleet.name}-n"
    chosen = ("sync", fleet.folder, "--source-id", fleet.name, "-n", there)
    refused = fleet.run(*chosen)
    assert refused.code == 2
    assert "--create-namespace" in refused.error
    ended = fleet.run(*chosen, "--create-namespace")
    assert ended.code == 0, ended.err
    assert fleet.cluster.get(ObjectRef(API_VERSION, KIND, there, "web")) is not None


def test_the_prune_guard_is_released_by_the_number_that_it_names(fleet: Fleet) -> None:
    quick = {"timeout": "0s"}
    # No sessions to wait for: the windows of a drain are real time.
    files = {f"{n}.yaml": manifest(f"server-{n}", None, drain=quick) for n in range(3)}
    commit_all(fleet.folder, files)
    assert fleet("sync").code == 0
    commit_all(fleet.folder, dict.fromkeys(files))
    blocked = fleet("sync")
    assert blocked.code == 1
    assert blocked.out.splitlines()[-1] == "ok=1 changed=0 pruned=0 failed=0 blocked=3 skipped=0"
    lines = blocked.out.splitlines()
    assert lines[0].startswith("blocked: pruning 3 server(s) is held back, since ")
    assert lines[0].endswith("--allow-prune=3")
    assert lines[1:-1] == [f"blocked: [{fleet.name}/server-{n}]" for n in range(3)]
    assert fleet("sync", "--diff").out.count("is held back") == 1
    assert fleet("sync", "-o", "json").out.count("is held back") == 6  # reason and message of each
    assert fleet("sync", "--allow-prune=2").code == 1
    assert fleet.get(KIND, "server-0") is not None
    found = fleet(
        "diff",
        "-o",
        "json",
    )
    assert (found.code, found.json["summary"]["blocked"]) == (1, 3)
    ended = fleet("sync", "--allow-prune=3")
    assert ended.code == 0, ended.out
    assert ended.out.splitlines()[-1] == "ok=1 changed=0 pruned=3 failed=0 blocked=0 skipped=0"
    assert fleet.get(KIND, "server-0") is None
    assert fleet.get("Deployment", "server-0") is None


def test_a_server_whose_file_became_a_pointer_stays_until_the_file_goes(fleet: Fleet) -> None:
    quick = {"timeout": "0s"}
    commit_all(fleet.folder, {"more.yaml": manifest("more", None, drain=quick)})
    assert fleet("sync").code == 0
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n"
    commit_all(fleet.folder, {"more.yaml": pointer})
    kept = fleet("sync")
    assert kept.code == 1
    assert kept.out.splitlines()[-1] == "ok=1 changed=0 pruned=0 failed=0 blocked=1 skipped=0"
    assert "more.yaml:1: a Git LFS pointer" in kept.out
    assert "remove the file to have the server removed" in kept.out
    found = fleet("diff", "-o", "json")
    assert (found.code, found.json["summary"]["blocked"]) == (1, 1)
    commit_all(fleet.folder, {"more.yaml": None})
    gone = fleet("sync")
    assert gone.out.splitlines()[-1] == "ok=1 changed=0 pruned=1 failed=0 blocked=0 skipped=0"
    assert fleet.get(KIND, "more") is None


def test_diff_says_the_same_of_a_commit_with_and_without_a_cluster(fleet: Fleet) -> None:
    """What keeps a server though its manifest is gone, or leaves it alone though it is not."""

    def server(name: str, **spec: object) -> str:
        return manifest(name, None, **spec)

    start = {
        f"{name}.yaml": server(name) for name in ("emptied", "pointer", "text", "hidden", "goes")
    }
    start |= {"teams/linked.yaml": server("linked")}
    start |= {
        f"{name}.yaml": server(name, suspend=True)
        for name in ("suspended-gone", "suspended-changed", "suspended-left-out")
    }
    start |= {"now-suspended.yaml": server("now-suspended")}
    stays = json.loads(server("handed-over"))
    stays["metadata"]["annotations"] = {"mcp.example.com/prune": "disabled"}
    start |= {"handed-over.yaml": json.dumps(stays)}
    commit_all(fleet.folder, start)
    assert fleet("sync").code == 0
    git(fleet.folder, "branch", "base")
    text = "manifest: |\n" + "".join(f"  {line}\n" for line in server("text").splitlines())
    lfs = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n"
    changes: dict[str, str | None] = {"emptied.yaml": "", "pointer.yaml": lfs, "text.yaml": text}
    changes |= {"hidden.yaml": None, "templates/hidden.yaml": server("hidden")}
    changes |= dict.fromkeys(("goes.yaml", "suspended-gone.yaml", "handed-over.yaml"))
    changes |= {"teams/linked.yaml": None}
    for name, more in (
        ("suspended-changed", {"suspend": True}),
        ("suspended-left-out", {}),
        ("now-suspended", {"suspend": True}),
        ("suspended-new", {"suspend": True}),
    ):
        changes[f"{name}.yaml"] = server(name, port=9000, **more)
    write(fleet.folder, changes)
    (fleet.folder / "teams").rmdir()
    (fleet.folder / "teams").symlink_to("elsewhere")
    commit_all(fleet.folder, {})

    def told(*more: str) -> dict[str, Any]:
        found = fleet("diff", "-o", "json", *more)
        assert found.code == 1, found.err
        named = ("server", "action", "kind", "reason")
        answer: dict[str, Any] = found.json
        removals = {"git no longer holds it": ""}  # git alone needs no reason for one
        return {
            "changes": sorted(
                [*(c[name] for name in named[:3]), removals.get(c["reason"], c["reason"])]
                for c in answer["changes"]
            ),
            "skipped": answer["skipped"],
            "summary": answer["summary"],
        }

    without = told("--base", "base")
    assert without == told()
    assert without["summary"] == {
        "create": 1, "update": 2, "replace": 0, "delete": 1, "unchanged": 1, "blocked": 5,
        "skipped": 3,
    }  # fmt: skip
    kept = {
        "emptied": "emptied.yaml:1: it holds no document; remove the file",
        "hidden": "templates/hidden.yaml:1: not read: templates/ holds no manifests; move it back, "
        "or delete it; remove the file",
        "linked": "teams: a symbolic link is not followed; remove the link",
        "pointer": "pointer.yaml:1: a Git LFS pointer, not the file: keep manifests out of LFS "
        "(git lfs untrack); remove the file",
        "text": "text.yaml:1: a manifest inside a block of text is none: take it out of the block; "
        "remove the file",
    }
    why = {name: f"{reason} to have the server removed" for name, reason in kept.items()}
    reasons = {s: reason for s, action, _, reason in without["changes"] if action == "blocked"}
    assert reasons == {f"{fleet.name}/{n}": f"PruneBlocked: {why[n]}" for n in why}
    shown = fleet("diff", "--base", "base")
    comment = fleet("diff", "--base", "base", "-o", "markdown").out
    for reason in why.values():
        assert reason in shown.out
        assert reason in comment
    skipped = f"- {fleet.name}/suspended-gone: skipped: Suspended: suspended"
    assert skipped in shown.out.splitlines()
    assert f"| skipped | `{fleet.name}/suspended-gone` | | `Suspended: suspended` |" in comment
    assert "Allow-Prune" not in shown.out + comment


def test_what_is_outside_the_limit_is_neither_changed_nor_pruned(fleet: Fleet) -> None:
    commit_all(fleet.folder, {"old.yaml": manifest("old", None)})
    assert fleet("sync").code == 0
    commit_all(fleet.folder, {"old.yaml": None, "web.yaml": manifest(namespace=None, replicas=2)})
    ended = fleet("sync", "--limit", "!old,!web")
    assert ended.code == 2
    assert "--limit matches no server" in ended.error
    ended = fleet("sync", "--limit", f"{fleet.name}/w*")
    assert ended.out.splitlines()[-1] == "ok=0 changed=1 pruned=0 failed=0 blocked=0 skipped=0"
    assert fleet.get(KIND, "old") is not None
    status = fleet.run("status", "-n", fleet.name, "--source-id", fleet.name).out
    assert git(fleet.folder, "rev-parse", "--short=12", "HEAD").strip() not in status.split("\n")[0]


def test_a_sandbox_leaves_no_notes_in_a_clone_unless_it_is_told_to(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GITOPS_MCP_NOTES")
    assert fleet("sync").code == 0
    assert git(fleet.folder, "for-each-ref", "refs/notes") == ""
    (fleet.folder / "web.yaml").unlink()
    assert fleet("sync", "--allow-prune", "--notes", "on").code == 0
    (fleet.folder / "web.yaml").write_text(manifest(namespace=None))
    git(fleet.folder, "checkout", "-q", ".")
    assert fleet("sync", "--notes", "on").code == 0
    assert "gitops-mcp/default" in git(fleet.folder, "for-each-ref", "refs/notes")


def test_another_cluster_name_changes_nothing_until_it_is_said_to_be_a_new_one(
    fleet: Fleet,
) -> None:
    assert fleet("sync", "--cluster", "prod").code == 0
    for verb in ("sync", "diff"):
        ended = fleet(verb)
        assert (ended.code, ended.out) == (2, "")
        assert "was enforced here with --cluster prod, not default" in ended.err
    assert fleet("sync", "--take-over").code == 2
    assert fleet("sync", "--cluster", "production", "--take-over").code == 0
    assert fleet("diff", "--cluster", "production").code == 0


def test_notes_are_pushed_only_when_asked(fleet: Fleet, tmp_path: Path) -> None:
    repository = bare(tmp_path / "served" / "fleet.git")
    git(fleet.folder, "push", "--quiet", str(repository), "main")
    with GitServer(repository.parent) as server:
        url = f"{server.url}/fleet.git"
        chosen = ("--source-id", fleet.name, "-n", fleet.name)
        assert fleet.run("sync", url, *chosen).code == 0
        assert git(repository, "for-each-ref", "refs/notes") == ""
        commit(repository, {"web.yaml": manifest(namespace=None, replicas=2)})
        assert fleet.run("sync", url, *chosen, "--push-notes").code == 0
        assert "refs/notes/gitops-mcp/default" in git(repository, "for-each-ref", "refs/notes")
        events = [one["event"] for one in fleet.run("history", url, "-o", "json").json]
    assert sorted(events) == ["applied", "synced"]


def test_a_bare_repository_by_its_path_gets_its_notes_directly(
    fleet: Fleet, tmp_path: Path
) -> None:
    repository = bare(tmp_path / "fleet.git")
    git(fleet.folder, "push", "--quiet", str(repository), "main")
    ended = fleet.run("sync", repository, "--source-id", fleet.name, "-n", fleet.name, "--wait")
    assert (ended.code, ended.err) == (0, "")
    events = [one["event"] for one in fleet.run("history", repository, "-o", "json").json]
    assert sorted(events) == ["applied", "ready", "synced"]


def test_a_force_push_is_deployed_and_what_cannot_be_read_changes_nothing(
    fleet: Fleet, tmp_path: Path
) -> None:
    repository = bare(tmp_path / "fleet.git")

    def sync(source: object, *arguments: str) -> Ended:
        return fleet.run("sync", source, "--source-id", fleet.name, "-n", fleet.name, *arguments)

    assert sync(repository).code == 2  # empty: nobody has pushed yet
    quick = {"timeout": "0s", "preStop": "0s"}
    names = ("web", "api", "old")
    files = {f"{name}.yaml": manifest(name, namespace=None, drain=quick) for name in names}
    commit(repository, files)
    assert sync(repository).code == 0
    del files["old.yaml"]
    commit(repository, files, parent="")
    ended = sync(repository)  # what it removed is not known from its history
    assert (ended.code, "Allow-Prune: 1" in ended.out) == (1, True)
    assert sync(repository, "--allow-prune=1").code == 0
    assert fleet.get(KIND, "old") is None
    git(repository, "update-ref", "-d", "refs/heads/main")
    for source, arguments in (
        (repository, ()),
        (repository, ("--branch", "main")),
        ("http://127.0.0.1:9/fleet.git", ()),
    ):
        ended = sync(source, *arguments)
        assert (ended.code, ended.out) == (2, "")
        assert len(ended.err.splitlines()) == 1
        assert ended.err.startswith("error: ")
    assert fleet.get("Deployment", "web") is not None
    assert fleet.get("Deployment", "api") is not None


def test_no_secret_is_told_by_any_verb(fleet: Fleet) -> None:
    def server(suffix: str) -> str:
        return manifest(
            namespace=None,
            config={"API_TOKEN": SECRET + suffix},
            args=["--password", SECRET + suffix],
            env=[{"name": "DB_PASSWORD", "value": SECRET + suffix}],
        )

    commit_all(fleet.folder, {"web.yaml": server("1")})
    said = fleet("sync", "--diff", "--wait", "-v").out
    commit_all(fleet.folder, {"web.yaml": server("2")})
    for arguments in (
        ("diff", "-v"),
        ("diff", "-o", "json"),
        ("diff", "-o", "markdown"),
        ("sync", "--diff", "-o", "json"),
    ):
        ended = fleet(*arguments)
        said += ended.out + ended.err
    said += fleet.run("history", fleet.folder, "-o", "json").out
    said += fleet.run("status", "-n", fleet.name, "-o", "wide").out
    assert "API_TOKEN" in said
    assert SECRET not in said
    assert SECRET not in git(fleet.folder, "log", "-p", "refs/notes/gitops-mcp/default")


# --- interruption -------------------------------------------------------------------------------


def _started(fleet: Fleet, verb: str, *arguments: str) -> subprocess.Popen[str]:
    chosen = (str(fleet.folder), "--source-id", fleet.name, "-n", fleet.name)
    return subprocess.Popen(
        [*GITOPS, verb, *chosen, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _eventually(true: Callable[[], Any], within: float = 30) -> Any:
    until = time.monotonic() + within
    while not (found := true()):
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.1)
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sync_ends_with_130_and_the_next_one_goes_on(
    fleet: Fleet, number: signal.Signals
) -> None:
    files = {"web.yaml": _unready(), "good.yaml": manifest("good", None)}
    commit_all(fleet.folder, files, "One that never turns ready")
    with _started(fleet, "sync", "--wait") as process:
        _eventually(lambda: fleet.get("Deployment", "web"))
        process.send_signal(number)
        _, err = process.communicate(timeout=200)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "error: interrupted; run the same command again to go on"
    # What it had done is noted; that the commit was synced is not.
    told = {
        (r["event"], r["server"]) for r in fleet.run("history", fleet.folder, "-o", "json").json
    }
    assert ("applied", f"{fleet.name}/good") in told
    assert "synced" not in {event for event, _ in told}
    write(fleet.folder, {"web.yaml": manifest(namespace=None)})
    ended = fleet("sync", "--wait=60s")
    assert ended.code == 0, ended.out
    assert "waiting for sync" not in ended.err  # the lease was given back


def test_a_server_that_turns_ready_later_is_noted_on_the_commit_that_brought_it(
    fleet: Fleet,
) -> None:
    slow = {"sandbox.mcp.example.com/start-delay": "20s"}  # ten times faster here
    body = yaml.safe_load(manifest(namespace=None))
    body["spec"] |= {"podAnnotations": slow, "replicas": 1}
    first = commit_all(fleet.folder, {"web.yaml": yaml.safe_dump(body)}, "Slow to start")
    ended = fleet("sync")
    assert "1 server(s) are not Ready yet: --wait, or an agent, follows them" in ended.err
    commit_all(fleet.folder, {"README.md": "Something else."}, "Nothing of it")
    assert fleet("sync", "--wait=60s").code == 0
    records = fleet.run("history", fleet.folder, "-o", "json").json
    ready = [r for r in records if (r["event"], r["server"]) == ("ready", f"{fleet.name}/web")]
    assert [record["commit"] for record in ready] == [first]


def test_diff_tells_of_a_shutdown_that_is_under_way(fleet: Fleet) -> None:
    body = yaml.safe_load(manifest(namespace=None))
    body["spec"] |= {"drain": {"timeout": "30s", "preStop": "0s"}}
    commit_all(fleet.folder, {"web.yaml": yaml.safe_dump(body)}, "Long drain")
    assert fleet("sync", "--wait=60s").code == 0
    commit_all(fleet.folder, {"web.yaml": None, "other.yaml": manifest("other", None)}, "Retire")
    with _started(fleet, "sync") as process:
        _eventually(lambda: (fleet.get(KIND, "web") or {}).get("status", {}).get("shutdown"))
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=200)
    ended = fleet("diff", "-o", "json")
    assert ended.code == 1
    gone = {c["kind"] for c in ended.json["changes"] if c["action"] == "delete"}
    assert gone == {KIND, "Deployment", "Service"}
    assert ended.json["summary"]["delete"] == 1


def test_a_cluster_name_that_notes_cannot_bear_changes_nothing(fleet: Fleet) -> None:
    ended = fleet("sync", "--cluster", "a b")
    assert ended.code == 2
    assert "'--cluster': 'a b' is no name of a cluster" in ended.error
    assert fleet.get(KIND, "web") is None


# --- the lease ----------------------------------------------------------------------------------


def test_a_lease_of_an_agent_stops_a_sync_unless_it_takes_over(fleet: Fleet) -> None:
    fleet.lease("agent-there-1")
    ended = fleet("sync")
    assert (ended.code, ended.out) == (2, "")
    assert "agent-there-1" in ended.error
    assert "--take-over" in ended.error
    assert fleet.get(KIND, "web") is None
    assert fleet("diff").code == 1  # reading needs no lease
    assert fleet("sync", "--check").code == 0
    assert fleet("sync", "--take-over").code == 0


def test_another_repository_is_told_so_and_not_only_who_holds_the_lease(
    fleet: Fleet, tmp_path: Path
) -> None:
    assert fleet("sync").code == 0
    lease = leadership.lease_name(fleet.name)
    ref = ObjectRef("coordination.k8s.io/v1", "Lease", fleet.name, lease)
    fleet.cluster.delete(ref, uid=None)
    fleet.lease("agent-there-1")
    worktree(tmp_path / "other", {"own.yaml": manifest("own", None)})
    ended = fleet.run("sync", tmp_path / "other", "--source-id", fleet.name, "-n", fleet.name)
    assert (ended.code, ended.out) == (2, "")
    assert f"source id '{fleet.name}' belongs to another repository" in ended.error
    assert "agent-there-1" not in ended.error


def test_a_lease_of_another_sync_is_waited_for(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leadership, "LEASE_PATIENCE", 1.0)
    fleet.lease("sync-there-1")
    ended = fleet("sync")
    assert (ended.code, ended.out) == (2, "")
    told, error = ended.err.splitlines()
    assert told.startswith("waiting for sync-there-1")
    assert error.startswith("error: ")
    assert "sync-there-1" in error
    free = threading.Timer(1, lambda: fleet.cluster.merge_patch(_lease(fleet), {"spec": FREED}))
    monkeypatch.setattr(leadership, "LEASE_PATIENCE", 20.0)
    free.start()
    assert fleet("sync").code == 0
    free.join()


FREED = {"holderIdentity": ""}


def _record(fleet: Fleet) -> ObjectRef:
    return ObjectRef("v1", "ConfigMap", fleet.name, leadership.lease_name(fleet.name))


def _lease(fleet: Fleet, namespace: str = "", name: str = "") -> ObjectRef:
    name = leadership.lease_name(name or fleet.name)
    return ObjectRef("coordination.k8s.io/v1", "Lease", namespace or fleet.name, name)


def test_an_agent_in_another_namespace_stops_a_sync_that_names_its_own(fleet: Fleet) -> None:
    fleet.lease("agent-there-1", namespace="default")
    ended = fleet("sync")
    assert ended.code == 2
    assert f"default/{leadership.lease_name(fleet.name)} is held by agent-there-1" in ended.error
    assert fleet.get("Deployment", "web") is None
    assert fleet.cluster.get(_lease(fleet)) is None


def test_without_n_the_lease_is_where_the_agent_has_its_own_else_in_default(fleet: Fleet) -> None:
    write(fleet.folder, {"web.yaml": manifest(namespace=fleet.name)})
    assert fleet.run("sync", fleet.folder, "--source-id", fleet.name).code == 0
    assert fleet.cluster.get(_lease(fleet, "default")) is not None
    fleet.lease("agent-there-1")
    ended = fleet.run("sync", fleet.folder, "--source-id", fleet.name)
    assert ended.code == 2
    assert (
        f"{fleet.name}/{leadership.lease_name(fleet.name)} is held by agent-there-1" in ended.error
    )


def test_a_source_id_that_is_taken_over_keeps_every_server_until_it_is_released(
    fleet: Fleet, tmp_path: Path
) -> None:
    theirs = {f"s{n}.yaml": manifest(f"s{n}", None, replicas=0) for n in range(6)}
    commit_all(fleet.folder, {"web.yaml": None, **theirs})
    assert fleet("sync").code == 0
    other = tmp_path / "other"
    worktree(other, {name: text for name, text in theirs.items() if name != "s0.yaml"})
    common = ("-n", fleet.name, "--source-id", fleet.name)
    assert "belongs to another repository" in fleet.run("sync", other, *common).error
    for take_over in (("--take-over",), ()):  # one of six: the guard alone would let it go
        ended = fleet.run("sync", other, *common, *take_over)
        assert (ended.code, "blocked=1" in ended.out) == (1, True)
        assert "was taken over from another repository" in ended.out
    assert fleet.run("sync", other, *common, "--allow-prune=1").code == 0
    assert fleet.get(KIND, "s0") is None


def test_a_repository_whose_record_is_elsewhere_replaces_nothing_of_another_one(
    fleet: Fleet, tmp_path: Path
) -> None:
    assert fleet("sync").code == 0
    other = tmp_path / "other"
    worktree(
        other,
        {
            "web.yaml": manifest(namespace=fleet.name, image="other"),
            "new.yaml": manifest("new", fleet.name),
        },
    )
    fleet.lease("", namespace="default")  # given up later than the other one
    common = ("-n", "default", "--source-id", fleet.name)
    for _ in range(2):
        ended = fleet.run("sync", other, *common)
        assert (ended.code, "blocked=1" in ended.out) == (1, True)
        assert "which is not in this repository: another one has the source id" in ended.out
        assert fleet.get(KIND, "new") is not None
    assert (fleet.get(KIND, "web") or {})["spec"]["image"] != "other"
    assert fleet.run("sync", other, *common, "--take-over").code == 0
    assert (fleet.get(KIND, "web") or {})["spec"]["image"] == "other"


def test_a_changed_source_id_takes_its_servers_along_when_it_is_told_to(
    fleet: Fleet, tmp_path: Path
) -> None:
    commit_all(fleet.folder, {"api.yaml": manifest("api", None)})
    assert fleet("sync").code == 0
    before = fleet.get(KIND, "web") or {}
    named = ("-n", fleet.name, "--source-id", f"{fleet.name}-new")
    ended = fleet.run("sync", fleet.folder, *named)
    assert (ended.code, "blocked=2" in ended.out) == (1, True)
    assert "sync --take-over moves it" in ended.out
    other = tmp_path / "other"  # whose files have the same names
    worktree(other, {"web.yaml": manifest(namespace=None)}, message="Another one")
    strange = ("-n", fleet.name, "--source-id", f"{fleet.name}-other", "--take-over")
    assert "blocked=1" in fleet.run("sync", other, *strange).out
    assert "changed=2" in fleet.run("sync", fleet.folder, *named, "--take-over").out
    after = fleet.get(KIND, "web") or {}
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    deployment = fleet.get("Deployment", "web") or {}
    assert deployment["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "1"
    assert after["metadata"]["labels"]["mcp.example.com/source"] == f"{fleet.name}-new"
    assert fleet.run("diff", fleet.folder, *named).code == 0
    commit_all(fleet.folder, {"api.yaml": None})
    assert "pruned=0" in fleet("sync").out  # it is the former id's no longer
    assert "pruned=1" in fleet.run("sync", fleet.folder, *named).out


def test_a_server_that_another_repository_took_over_unchanged_is_not_moved(
    fleet: Fleet, tmp_path: Path
) -> None:
    assert fleet("sync").code == 0
    worktree(tmp_path / "other", {"web.yaml": manifest(namespace=None)}, message="Another one")
    common = ("-n", fleet.name, "--source-id", fleet.name, "--take-over")
    assert fleet.run("sync", tmp_path / "other", *common).code == 0
    before = fleet.get(KIND, "web") or {}  # which names our commit, as it says the same
    sha = git(fleet.folder, "rev-parse", "HEAD")
    assert before["status"]["source"]["revision"] == sha
    named = ("-n", fleet.name, "--source-id", f"{fleet.name}-new", "--take-over")
    for more in (("--check",), ()):
        ended = fleet.run("sync", fleet.folder, *named, *more)
        assert (ended.code, "blocked=1" in ended.out) == (1, True)
        assert "which another repository has taken over: " in ended.out
        assert str(tmp_path / "other") in ended.out
        assert leadership.lease_name(fleet.name) in ended.out
    assert "sync --take-over moves it" not in ended.out
    after = fleet.get(KIND, "web") or {}
    assert after["metadata"]["labels"]["mcp.example.com/source"] == fleet.name
    assert after["metadata"]["generation"] == before["metadata"]["generation"]


def test_nothing_is_moved_while_somebody_writes_under_the_former_id(fleet: Fleet) -> None:
    assert fleet("sync").code == 0
    named = ("-n", fleet.name, "--source-id", f"{fleet.name}-new", "--take-over")
    stop = threading.Event()
    lease = leadership.source_lease(fleet.cluster, fleet.name, fleet.name, "agent")

    def renew() -> None:
        while not stop.wait(0.5):
            lease.acquire()

    assert lease.acquire()
    renewal = threading.Thread(target=renew)
    renewal.start()
    try:
        ended = fleet.run("sync", fleet.folder, *named)
        check = fleet.run("sync", fleet.folder, *named, "--check")
    finally:
        stop.set()
        renewal.join()
    assert (ended.code, ended.out) == (2, "")
    where = f"{lease.identity} holds lease {fleet.name}/{leadership.lease_name(fleet.name)}"
    assert f"1 server(s) cannot be moved from source '{fleet.name}' while {where}" in ended.error
    assert "stop it first, or start it with another --source-id" in ended.error
    assert (check.code, where in check.err) == (0, True)
    assert "--check: nothing was written" in check.err
    server = fleet.get(KIND, "web") or {}
    assert server["metadata"]["labels"]["mcp.example.com/source"] == fleet.name
    # It was killed: its Lease names it still, and is renewed no more.
    assert "changed=1" in fleet.run("sync", fleet.folder, *named).out


def test_a_take_over_says_what_it_took_and_from_whom(fleet: Fleet, tmp_path: Path) -> None:
    commit_all(fleet.folder, {"api.yaml": manifest("api", None)})
    assert fleet("sync").code == 0
    sha = git(fleet.folder, "rev-parse", "HEAD")
    new = ("-n", fleet.name, "--source-id", f"{fleet.name}-new", "--take-over")
    moved = f"moved from source '{fleet.name}'"
    ended = fleet.run("sync", fleet.folder, *new, "--limit", "web")
    assert f"changed: [{fleet.name}/web] update MCPServer; {moved}" in ended.out
    assert "has no servers any more" not in ended.err
    check = fleet.run("sync", fleet.folder, *new, "--check", "-o", "json")
    assert {s["server"]: s["message"] for s in check.json["servers"] if s["message"]} == {
        f"{fleet.name}/api": moved
    }
    assert "nothing was written" in check.err
    assert moved in fleet.run("sync", fleet.folder, *new).out

    other = tmp_path / "other"
    worktree(other, {"web.yaml": manifest(namespace=None)}, message="Another one")
    fleet.cluster.merge_patch(
        _lease(fleet, name=f"{fleet.name}-new"), {"spec": {"holderIdentity": "agent-gone"}}
    )
    for more, would in (("--check", "would be"), ("-v", "was")):
        ended = fleet.run("sync", other, *new, more, "-o", "json")
        said = f"source id '{fleet.name}-new' {would} taken over from another repository: "
        assert f"{said}{fleet.folder} (root " in ended.err
        assert f"which enforced {sha[:12]} last" in ended.err
        (web,) = (s for s in ended.json["servers"] if s["server"].endswith("/web"))
        assert web["message"].startswith(
            f"taken over from another repository, applied from commit {sha[:12]}"
        )
        assert ("was taken from agent-gone" in ended.err) == (more == "-v")


def test_a_source_id_that_everything_was_moved_from_is_no_source_any_more(
    fleet: Fleet, tmp_path: Path
) -> None:
    with sandbox.start(speed=20) as alone:  # status -A is about the whole cluster
        config = alone.write_kubeconfig(tmp_path / "config")
        install_crd(alone.url)
        options = ("--kubeconfig", config)
        assert fleet.run("sync", fleet.folder, *options).code == 0
        assert fleet.run("status", "-A", *options).out.startswith("source default at ")
        assert fleet.run("status", "-A", "-o", "json", *options).json["source"]["id"] == "default"
        ended = fleet.run("sync", fleet.folder, *options, "--source-id", "new", "--take-over")
        assert (
            "source 'default' has no servers any more; to forget it: kubectl delete "
            "configmap,lease -n default gitops-mcp-default"
        ) in ended.err
        assert fleet.run("status", "-A", *options).out.startswith("NAMESPACE")
        assert "source" not in fleet.run("status", "-A", "-o", "json", *options).json
        asked = fleet.run("status", "-A", "--source-id", "default", *options)
        assert asked.out.startswith("source default at ")


def test_the_loss_of_the_record_releases_no_prune(fleet: Fleet) -> None:
    files = {f"s{n}.yaml": manifest(f"s{n}", None, replicas=0) for n in range(4)}
    commit_all(fleet.folder, {"web.yaml": None, **files})
    assert fleet("sync").code == 0
    commit_all(fleet.folder, {"s0.yaml": None})
    for _ in range(2):
        fleet.cluster.delete(_record(fleet), uid=None)
        ended = fleet("sync")  # one of four: with a record the guard would let it go
        assert (ended.code, "blocked=1" in ended.out) == (1, True)
        assert "what git held before is not known" in ended.out
    assert fleet("sync").code == 1
    assert fleet("sync", "--allow-prune=1").code == 0
    assert fleet.get(KIND, "s0") is None


# --- status -------------------------------------------------------------------------------------


def test_status_is_a_table_under_a_line_about_source_and_agent(fleet: Fleet) -> None:
    fleet("sync", "--wait")
    revision = git(fleet.folder, "rev-parse", "HEAD")
    heading, titles, row = fleet.run(
        "status", "-n", fleet.name, "--source-id", fleet.name
    ).out.splitlines()
    assert heading.startswith(f"source {fleet.name} at {revision[:12]}, no agent, commit read ")
    assert titles.split() == [
        "NAME", "PHASE", "READY", "REPLICAS", "TRANSPORT", "ENDPOINT", "AGE", "SUSPENDED",
        "REVISION", "MESSAGE",
    ]  # fmt: skip
    assert row.split()[:5] == ["web", "Ready", "1", "1", "streamable-http"]
    assert row.split()[-1] == revision[:12]
    wide = fleet.run("status", "web", "-n", fleet.name, "-o", "wide").out.splitlines()
    assert wide[1].split()[-1] == "VERIFIED"
    everywhere = fleet.run("status", "-A").out.splitlines()
    assert everywhere[0].split()[0] == "NAMESPACE"  # nothing is source default's
    assert any(line.split()[:2] == [fleet.name, "web"] for line in everywhere)


def test_status_after_a_sync_shows_what_the_cluster_lacks(fleet: Fleet) -> None:
    commit_all(fleet.folder, {"far.yaml": manifest("far", "no-such-place")})
    assert fleet("sync").code == 1
    ended = fleet.run("status", "-n", "no-such-place", "--source-id", fleet.name)
    heading, _, row = ended.out.splitlines()
    assert (ended.code, row.split()[:2]) == (1, ["far", "Missing"])
    assert heading.endswith(", 1 server missing")
    assert fleet.run("status", "-n", fleet.name, "--source-id", fleet.name).code == 0


def test_status_shows_a_server_once_that_was_made_since_its_source_was_described(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet("sync")
    late = SourceStatus(missing_count=1, missing=(Missing(f"{fleet.name}/web", "Gone", "late"),))
    monkeypatch.setattr(sourceleases, "find_states", lambda *_: [late])
    ended = fleet.run("status", "-n", fleet.name, "--source-id", fleet.name)
    heading, _, row = ended.out.splitlines()
    assert (ended.code, row.split()[0]) == (0, "web")
    assert "Missing" not in row
    assert "missing" not in heading


def test_status_lists_objects_for_programs(fleet: Fleet) -> None:
    fleet("sync")
    listed = fleet.run("status", "-n", fleet.name, "-o", "json").json
    assert (listed["apiVersion"], listed["kind"]) == ("v1", "List")
    assert [item["metadata"]["name"] for item in listed["items"]] == ["web"]
    assert listed["items"][0]["kind"] == KIND
    assert "managedFields" not in listed["items"][0]["metadata"]
    same = yaml.safe_load(fleet.run("status", "-n", fleet.name, "-o", "yaml").out)
    assert same["kind"] == "List"


def test_status_of_a_server_that_is_not_there_is_1(fleet: Fleet) -> None:
    fleet("sync")
    ended = fleet.run("status", "web", "none", "-n", fleet.name)
    assert ended.code == 1
    assert "web" in ended.out
    assert 'mcpserver "none" not found' in ended.err
    assert fleet.run("status", "-n", fleet.name).code == 0


@pytest.mark.parametrize(("age", "stale"), [(12, False), (600, True)])
def test_status_tells_the_agents_last_sign_of_life(fleet: Fleet, age: int, stale: bool) -> None:
    fleet.lease("agent-there-1", age=timedelta(seconds=age))
    # Found wherever the agent lives, not only in the namespace that is looked at.
    heading = fleet.run("status", "-n", "default", "--source-id", fleet.name).out.splitlines()[0]
    assert "agent seen 1" in heading
    assert ("stale" in heading) is stale


@contextmanager
def watched(
    fleet: Fleet, kubeconfig: Path, *names: str
) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """``status --watch`` and what it prints, once it has shown web for the first time."""
    given = ["-n", fleet.name, "--kubeconfig", str(kubeconfig)]
    arguments = [*GITOPS, "status", *names, "--watch", *given]
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        while "web" not in (line := process.stdout.readline()):
            assert line
        yield process, process.stdout


def test_status_watches(fleet: Fleet, kubeconfig: Path) -> None:
    fleet("sync")
    with watched(fleet, kubeconfig) as (process, out):
        write(fleet.folder, {"second.yaml": manifest("second", None)})
        assert fleet("sync").code == 0
        while "second" not in (line := out.readline()):
            assert line
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=200)
    assert process.returncode == 130


def test_status_of_one_server_is_told_again_when_that_one_changes(
    fleet: Fleet, kubeconfig: Path
) -> None:
    write(fleet.folder, {"second.yaml": manifest("second", None)})
    fleet("sync", "--wait")
    with watched(fleet, kubeconfig, "web") as (process, out):
        for verb, name in (("suspend", "second"), ("resume", "second")) * 2 + (("suspend", "web"),):
            assert fleet.run(verb, name, "-n", fleet.name).code == 0
        assert fleet("sync").code == 0
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        told = out.read()
    assert 1 <= told.count("source ") <= 2  # web's spec, and its status; nothing of second's


# --- suspend and resume -------------------------------------------------------------------------


def test_suspend_keeps_a_server_as_it_is_until_resume(fleet: Fleet) -> None:
    fleet("sync", "--wait")
    ended = fleet.run("suspend", "web", "-n", fleet.name)
    assert (ended.code, ended.out) == (0, "mcpserver/web suspended\n")
    commit_all(fleet.folder, {"web.yaml": manifest(namespace=None, port=9000)})
    found = fleet("sync", "-o", "json")
    assert (found.code, found.json["recap"]["skipped"]) == (0, 1)
    assert fleet("diff").code == 0
    commit_all(fleet.folder, {"web.yaml": None, "b.yaml": manifest("b", None)})
    assert fleet("sync").code == 0
    assert fleet.get("Deployment", "web") is not None
    commit_all(fleet.folder, {"web.yaml": manifest(namespace=None, port=9000)})
    ended = fleet.run("resume", "web", "-n", fleet.name)
    assert (ended.code, ended.out) == (0, "mcpserver/web resumed\n")
    assert fleet("sync", "--wait").code == 0
    service = fleet.get("Service", "web")
    assert service is not None
    assert service["spec"]["ports"][0]["port"] == 9000


def test_servers_are_suspended_by_their_whole_name_and_all_at_once(fleet: Fleet) -> None:
    commit_all(fleet.folder, {"b.yaml": manifest("b", None)})
    fleet("sync")
    whole = (f"{fleet.name}/web", f"{fleet.name}/b")
    assert fleet.run("suspend", *whole, "-n", "default").code == 0
    rows = fleet.run("status", *whole).out.splitlines()[2:]
    assert [(row.split()[0], "True" in row.split()) for row in rows] == [("b", True), ("web", True)]
    assert "several namespaces" in fleet.run("status", whole[0], "ops/x").error
    ended = fleet.run("resume", "--all", "-n", fleet.name)
    assert ended.out == "mcpserver/b resumed\nmcpserver/web resumed\n"
    ended = fleet.run("suspend", "--all", "-n", "no-such-place")
    assert (ended.out, ended.err) == ("", "no servers found in namespace no-such-place\n")


def test_a_namespace_without_servers_is_told_apart_from_an_empty_table(fleet: Fleet) -> None:
    ended = fleet.run("status", "-n", "no-such-place")
    assert (ended.code, ended.err) == (0, "no servers found in namespace no-such-place\n")


def test_what_cannot_be_suspended_is_told(fleet: Fleet) -> None:
    ended = fleet.run("suspend", "none", "-n", fleet.name)
    assert ended.code == 2
    assert 'mcpserver "none" not found' in ended.error
    commit_all(fleet.folder, {"web.yaml": manifest(namespace=None, suspend=False)})
    assert fleet("sync").code == 0
    ended = fleet.run("suspend", "web", "-n", fleet.name)
    assert ended.code == 2
    assert "git sets spec.suspend to false" in ended.error
    live = fleet.get(KIND, "web")
    assert live is not None
    assert live["spec"]["suspend"] is False


def test_resume_does_not_say_that_it_ended_what_git_goes_on_with(fleet: Fleet) -> None:
    commit_all(fleet.folder, {"web.yaml": manifest(namespace=None, suspend=True)})
    assert fleet("sync").code == 0
    ended = fleet.run("resume", "web", "-n", fleet.name)
    assert (ended.code, ended.out) == (2, "")
    assert "git sets spec.suspend to true; change it in the manifest" in ended.error


@pytest.mark.parametrize("suspended", [True, False])
def test_whoever_else_set_suspend_is_named(suspended: bool, fleet: Fleet) -> None:
    body = json.loads(manifest("hand", fleet.name, suspend=suspended))
    fleet.cluster.apply(body, manager="kubectl-create")
    verb = "resume" if suspended else "suspend"
    ended = fleet.run(verb, "hand", "-n", fleet.name)
    assert (ended.code, ended.out) == (2, "")
    state, other = ("true", "false") if suspended else ("false", "true")
    assert f"mcpserver/hand: kubectl-create set spec.suspend to {state}; " in ended.error
    patch = f"""--type merge -n {fleet.name} -p '{{"spec": {{"suspend": {other}}}}}'"""
    assert f"kubectl patch mcps hand {patch}" in ended.error


# --- agent --------------------------------------------------------------------------------------


def test_the_agent_enforces_head_until_sigterm(fleet: Fleet) -> None:
    with _started(fleet, "agent", "--interval", "300ms") as process:
        _eventually(lambda: fleet.get(KIND, "web"))
        write(fleet.folder, {"second.yaml": manifest("second", None)})
        git(fleet.folder, "add", "second.yaml")
        git(fleet.folder, "commit", "--quiet", "--message", "second")
        write(fleet.folder, {"dirty.yaml": manifest("dirty", None)})  # uncommitted: not deployed
        _eventually(lambda: fleet.get(KIND, "second"))
        busy = fleet("sync")
        head = git(fleet.folder, "rev-parse", "HEAD")[:12]

        def heading() -> str:
            return fleet.run("status", "-n", fleet.name, "--source-id", fleet.name).out

        _eventually(
            lambda: re.match(rf"source {fleet.name} at {head}, agent seen [012]s", heading())
        )
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=200)
    assert process.returncode == 0
    assert err.count("the deployment notes were not pushed") == 1
    assert out == ""
    assert "created mcpserver/second; created deployment/second; created service/second" in err
    assert (busy.code, "held by agent-" in busy.error) == (2, True)
    live = fleet.get(KIND, "web")
    assert live is not None
    assert live["metadata"]["finalizers"] == ["mcp.example.com/finalizer"]
    assert fleet.get(KIND, "dirty") is None
    assert fleet("sync").code == 0  # the lease was given back


def test_an_agent_of_a_folder_inside_of_a_clone_enforces_head_too(fleet: Fleet) -> None:
    folder = fleet.folder / "servers"
    commit_all(fleet.folder, {"servers/second.yaml": manifest("second", None)})
    write(folder, {"dirty.yaml": manifest("dirty", None)})
    inside = replace(fleet, folder=folder)
    with _started(inside, "agent", "--interval", "300ms") as process:
        _eventually(lambda: fleet.get("Deployment", "second"))
        _eventually(lambda: (fleet.get(KIND, "second") or {}).get("status"))
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=200)
    assert process.returncode == 0
    assert (fleet.get(KIND, "dirty"), fleet.get(KIND, "web")) == (None, None)


def test_an_agent_without_a_source_runs_kubectls_servers_alone(
    fleet: Fleet, kubeconfig: Path
) -> None:
    assert fleet("sync").code == 0
    drifted = ObjectRef("apps/v1", "Deployment", fleet.name, "web")
    fleet.cluster.merge_patch(drifted, {"spec": {"minReadySeconds": 3}}, manager="kubectl-edit")
    fleet.cluster.apply(
        {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": "by-hand", "namespace": fleet.name},
            "spec": {"image": "example.com/by-hand:1", "transport": "stdio"},
        },
        manager="kubectl",
    )
    command = [*GITOPS, "agent", "-n", fleet.name, "--interval", "300ms"]
    command += ["--watch-namespace", fleet.name, "--kubeconfig", str(kubeconfig)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        _eventually(lambda: fleet.get("Deployment", "by-hand"))
        _eventually(lambda: (fleet.get(KIND, "by-hand") or {}).get("status"))
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=200)
    assert process.returncode == 0
    kept = fleet.get("Deployment", "web")
    assert kept is not None
    assert kept["spec"]["minReadySeconds"] == 3
    hand = fleet.get(KIND, "by-hand")
    assert hand is not None
    assert hand["metadata"]["finalizers"] == ["mcp.example.com/finalizer"]


# --- sandbox ------------------------------------------------------------------------------------


def test_the_sandbox_runs_a_command_and_ends_with_its_code() -> None:
    script = (
        "import json, os, sys;"
        "print(json.load(open(os.environ['KUBECONFIG']))['clusters'][0]['cluster']['server']);"
        "sys.exit(7)"
    )
    command = [*GITOPS, "sandbox", "--", sys.executable, "-c", script]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (7, "")
    assert ended.stdout.startswith("http://127.0.0.1:")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--port", "80000"), "'--port'"),
        (("--speed", "0"), "'--speed'"),
        (("--state", "/dev/null/x"), "the sandbox cannot start: /dev/null/x"),
    ],
)
def test_a_sandbox_that_cannot_be_is_an_error_and_no_bug(
    gitops: Run, option: tuple[str, str], message: str
) -> None:
    ended = gitops("sandbox", *option, "--", "true")
    assert ended.code == 2
    assert message in ended.error


def test_a_port_in_use_is_named(gitops: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = gitops("sandbox", "--port", str(port), "--", "true")
    assert ended.code == 2
    assert f"127.0.0.1:{port}" in ended.error


def test_a_command_that_is_not_there_is_2(gitops: Run) -> None:
    ended = gitops("sandbox", "--", "no-such-command")
    assert ended.code == 2
    assert "no-such-command" in ended.error


@pytest.fixture
def gitops(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


def test_the_sandbox_keeps_its_state_and_knows_mcpservers(tmp_path: Path) -> None:
    write(tmp_path / "fleet", {"web.yaml": manifest(namespace="default")})
    keep = [*GITOPS, "sandbox", "--speed", "20", "--state", str(tmp_path / "state"), "--"]
    sync = [*GITOPS, "sync", str(tmp_path / "fleet")]
    assert subprocess.run([*keep, *sync], check=False).returncode == 0
    status = subprocess.run(
        [*keep, *GITOPS, "status", "-o", "json"], capture_output=True, text=True, check=True
    )
    assert [item["metadata"]["name"] for item in json.loads(status.stdout)["items"]] == ["web"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_sandbox_serves_until_it_is_interrupted(number: signal.Signals) -> None:
    with subprocess.Popen(
        [*GITOPS, "sandbox"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        config = Path(line.removeprefix("export KUBECONFIG=").strip())
        assert json.loads(config.read_text())["kind"] == "Config"
        assert config.stat().st_mode & 0o077 == 0
        process.send_signal(number)
        process.communicate(timeout=200)
    assert process.returncode == 130
    assert not config.exists()


# --- names --------------------------------------------------------------------------------------


def test_servers_are_listed_by_name_and_named_so_again(fleet: Fleet) -> None:
    write(fleet.folder, {"api.yaml": manifest("api", namespace=None)})
    assert fleet("sync").code == 0
    names = [f"mcpserver.mcp.example.com/{name}" for name in ("api", "web")]
    there = fleet.run("status", "-n", fleet.name, "-o", "name")
    assert (there.code, there.out.splitlines()) == (0, names)
    everywhere = fleet.run("status", "-A", "--source-id", fleet.name, "-o", "name").out.splitlines()
    assert everywhere == [f"mcpserver.mcp.example.com/{fleet.name}/{n}" for n in ("api", "web")]
    assert fleet.run("suspend", *everywhere[:1]).code == 0
    assert fleet.run("resume", "-n", fleet.name, *names[:1]).code == 0
    rows = fleet.run("status", "-n", fleet.name, *names[:1], "--no-headers").out.splitlines()
    assert [row.split()[0] for row in rows] == ["api"]


def test_completion_completes_servers_and_namespaces_of_the_cluster(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(fleet.folder, {"api.yaml": manifest("api", namespace=None)})
    assert fleet("sync").code == 0
    completions = completer(capsys, monkeypatch)
    for verb in ("status", "reconcile", "suspend", "resume"):
        assert completions(f"gitops-mcp {verb} -n {fleet.name} ") == ["api", "web"]
    assert completions(f"gitops-mcp status {fleet.name}/w") == [f"{fleet.name}/web"]
    assert completions(f"gitops-mcp suspend -n {fleet.name} web ") == ["api"]
    assert completions("gitops-mcp status -n kube-sy") == ["kube-system"]
    assert completions("gitops-mcp status --context ") == ["sandbox"]
