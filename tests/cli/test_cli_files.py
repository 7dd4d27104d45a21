"""The verbs that need no cluster, as users, scripts and CI meet them."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from commandline import BROKEN, Run, completer, manifest, runner
from gitfixtures import GitServer, bare, commit, commit_all, git, worktree, write

from gitops_mcp import __version__
from gitops_mcp.base import resources
from gitops_mcp.base.errors import UsageError
from gitops_mcp.base.names import KIND
from gitops_mcp.cli import completion
from gitops_mcp.cli import main as cli
from gitops_mcp.source import serverschema
from gitops_mcp.source.settings import SourceOptions
from gitops_mcp.sync import reading

pytestmark = pytest.mark.usefixtures("processes")

GITOPS = [sys.executable, "-m", "gitops_mcp"]
SECRET = "hunter2-do-not-tell"


@pytest.fixture
def gitops(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


def servers(stream: str) -> list[str]:
    bodies = yaml.safe_load_all(stream)
    return [body["metadata"]["name"] for body in bodies if body["kind"] == "MCPServer"]


# --- validate ---------------------------------------------------------------------------------


def test_validate_ends_with_0_when_all_is_valid(gitops: Run, tmp_path: Path) -> None:
    write(tmp_path, {"web.yaml": manifest()})
    ended = gitops("validate", tmp_path)
    assert (ended.code, ended.out, ended.err) == (0, "1 server: valid\n", "")


def test_validate_names_the_place_of_every_problem(gitops: Run, tmp_path: Path) -> None:
    write(tmp_path, {"a/web.yaml": manifest(replicas=-1), "broken.yaml": BROKEN})
    ended = gitops("validate", tmp_path)
    assert ended.code == 1
    lines = ended.out.splitlines()
    assert lines[0].startswith("a/web.yaml:10:15: error: ")
    assert lines[1] == (
        'broken.yaml:8:3: error: unknown field "prot": did you mean "port"? [ai/broken /spec/prot]'
    )
    assert lines[2] == "2 servers: not valid (2 errors)"


def test_validate_in_json(gitops: Run, tmp_path: Path) -> None:
    write(tmp_path, {"web.yaml": manifest(), "broken.yaml": BROKEN})
    ended = gitops("validate", tmp_path, "-o", "json")
    assert (ended.code, ended.err) == (1, "")
    assert ended.json == {
        "valid": False,
        "servers": 2,
        "problems": [
            {
                "file": "broken.yaml",
                "line": 8,
                "column": 3,
                "server": "ai/broken",
                "path": "/spec/prot",
                "message": 'unknown field "prot": did you mean "port"?',
                "severity": "error",
            }
        ],
    }


def test_what_a_cluster_shows_can_be_committed(gitops: Run, tmp_path: Path) -> None:
    def rendered(*arguments: object) -> tuple[list[Any], list[Any]]:
        bodies = gitops("render", "-o", "json", *arguments).json["items"]
        ours = [body for body in bodies if body["kind"] == "MCPServer"]
        return ours, [body for body in bodies if body["kind"] != "MCPServer"]

    servers, children = rendered(resources.folder("repo-example"), "--cluster", "default")
    shown = [serverschema.defaulted(body) for body in servers]
    for body in shown:
        body["metadata"] |= {"uid": "0e1b", "resourceVersion": "12", "generation": 1}
        body["status"] = {"phase": "Ready"}
    export = {"apiVersion": "v1", "kind": "List", "metadata": {}, "items": shown}
    write(tmp_path, {"all.yaml": yaml.safe_dump(export)})
    ended = gitops("validate", "-o", "json", tmp_path)
    assert ended.code == 0, ended.out
    assert {problem["severity"] for problem in ended.json["problems"]} == {"warning"}
    assert rendered(tmp_path)[1] == children


def test_validate_annotates_a_workflow(gitops: Run, tmp_path: Path) -> None:
    write(tmp_path, {"broken.yaml": BROKEN})
    ended = gitops("validate", tmp_path, "-o", "github")
    assert ended.code == 1
    assert ended.out.startswith(
        "::error file=broken.yaml,line=8,col=3,title=ai/broken /spec/prot::"
    )
    assert ended.out.count("\n") == 1


def test_validate_names_what_is_not_ours_only_when_asked(gitops: Run, tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "web.yaml": manifest(),
            "other.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n",
            ".hidden/web.yaml": manifest("hidden"),
        },
    )
    assert gitops("validate", tmp_path).err == ""
    told = gitops("validate", "-v", tmp_path)
    assert told.code == 0
    assert "other.yaml: left alone" in told.err
    assert ".hidden" not in told.err


def test_a_file_that_is_not_read_is_a_problem_and_stops_pruning(
    gitops: Run, tmp_path: Path
) -> None:
    write(tmp_path, {"web.yaml": manifest()})
    (tmp_path / "linked.yaml").symlink_to("web.yaml")
    ended = gitops("validate", tmp_path, "-o", "json")
    assert ended.code == 1
    (problem,) = ended.json["problems"]
    assert (problem["file"], problem["severity"]) == ("linked.yaml", "error")
    assert "symbolic link" in problem["message"]
    source = SourceOptions(location=str(tmp_path))
    with reading.open_repository(source) as repository:
        assert reading.read(source, repository).loaded.unknown


def test_validate_warns_of_what_was_a_manifest_and_ends_with_0(gitops: Run, tmp_path: Path) -> None:
    worktree(tmp_path, {"web.yaml": manifest(), "gone.yaml": "", "templates/x.yaml": manifest("x")})
    (tmp_path / "teams").symlink_to("elsewhere")
    ended = gitops("validate", tmp_path, "-o", "json")
    assert (ended.code, ended.json["valid"]) == (0, True)
    told = {(p["file"], p["line"], p["severity"]) for p in ended.json["problems"]}
    assert told == {(f, 1, "warning") for f in ("gone.yaml", "teams", "templates/x.yaml")}
    shown = gitops("validate", tmp_path)
    assert shown.out.splitlines()[0] == "gone.yaml:1:1: warning: it holds no document"
    assert shown.out.splitlines()[-1] == "1 server: valid (3 warnings)"


# --- render -----------------------------------------------------------------------------------


def test_render_prints_each_server_before_its_children(gitops: Run, tmp_path: Path) -> None:
    write(tmp_path, {"web.yaml": manifest(), "cli.yaml": manifest("cli", transport="stdio")})
    ended = gitops("render", tmp_path)
    assert (ended.code, ended.err) == (0, "")
    found = [(b["kind"], b["metadata"]["name"]) for b in yaml.safe_load_all(ended.out)]
    assert found == [
        ("MCPServer", "cli"),
        ("Deployment", "cli"),
        ("MCPServer", "web"),
        ("Deployment", "web"),
        ("Service", "web"),
    ]
    listed = gitops("render", tmp_path, "-o", "json").json
    assert (listed["kind"], len(listed["items"])) == ("List", 5)


def test_render_prints_what_is_valid_and_tells_of_the_rest(gitops: Run, tmp_path: Path) -> None:
    write(tmp_path, {"web.yaml": manifest(), "broken.yaml": BROKEN})
    ended = gitops("render", tmp_path)
    assert ended.code == 1
    assert servers(ended.out) == ["web"]
    assert ended.err.startswith("broken.yaml:8:3: error: ")


@pytest.mark.parametrize(
    ("pattern", "chosen"),
    [
        ("web", ["web"]),
        ("web*", ["web", "web-canary"]),
        ("web*,!*-canary", ["web"]),
        ("!ai/*", ["db"]),
        ("data/*", ["db"]),
        ("ai/web,db", ["web", "db"]),
    ],
)
def test_the_limit_is_ansibles(
    gitops: Run, tmp_path: Path, pattern: str, chosen: list[str]
) -> None:
    files = {
        "a.yaml": manifest(),
        "b.yaml": manifest("web-canary"),
        "c.yaml": manifest("db", "data"),
    }
    write(tmp_path, files)
    ended = gitops("render", tmp_path, "--limit", pattern)
    assert ended.code == 0
    assert servers(ended.out) == chosen
    checked = gitops("validate", tmp_path, "--limit", pattern, "-o", "json").json
    assert checked["servers"] == len(chosen)


@pytest.mark.parametrize("verb", [("validate",), ("render",), ("diff", "--base", "HEAD")])
def test_a_limit_that_leaves_no_server_is_a_mistake(
    gitops: Run, tmp_path: Path, verb: tuple[str, ...]
) -> None:
    worktree(tmp_path, {"web.yaml": manifest(), "broken.yaml": BROKEN})
    ended = gitops(*verb, tmp_path, "--limit", "zzz")
    assert (ended.code, ended.out) == (2, "")
    assert "error: --limit matches no server; globs match name" in ended.err
    assert gitops("validate", tmp_path, "--limit", "broken").out.endswith(
        "1 server: not valid (1 error)\n"
    )


def test_the_cluster_picks_its_group_vars(gitops: Run, tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "web.yaml": manifest(),
            "group_vars/all.yaml": "spec: {replicas: 2}\n",
            "group_vars/prod.yaml": "spec: {replicas: 5}\n",
        },
    )

    def replicas(*arguments: object) -> int:
        items = gitops("render", tmp_path, "-o", "json", *arguments).json["items"]
        count: int = items[0]["spec"]["replicas"]
        return count

    assert replicas("--cluster", "default") == 2
    assert replicas("--cluster", "prod") == 5


@pytest.mark.parametrize("verb", ["render", "diff", "sync"])
def test_group_vars_of_named_clusters_are_not_left_out_because_nobody_named_one(
    gitops: Run, tmp_path: Path, verb: str
) -> None:
    worktree(tmp_path, {"servers/web.yaml": manifest(), "group_vars/prod.yaml": "{}\n"})
    ended = gitops(verb, tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert "group_vars for prod, and no --cluster was given; use --cluster NAME" in ended.err
    ended = gitops(verb, tmp_path / "servers", "--cluster", "prod")
    assert (ended.code, ended.out) == (2, "")
    assert f"group_vars of this repository are in {tmp_path}, above SOURCE" in ended.err
    for arguments in (
        (tmp_path, "--cluster", "default"),
        (tmp_path, "--cluster", "prod"),
        (tmp_path / "servers", "--cluster", "default"),
    ):
        assert "group_vars" not in gitops(verb, *arguments).err


def test_validate_warns_of_group_vars_above_the_source(gitops: Run, tmp_path: Path) -> None:
    worktree(tmp_path, {"servers/web.yaml": manifest(), "group_vars/all.yaml": "{}\n"})
    ended = gitops("validate", tmp_path / "servers")
    assert (ended.code, ended.out) == (0, "1 server: valid\n")
    (said,) = ended.err.splitlines()
    assert said.startswith(f"warning: the group_vars of this repository are in {tmp_path}, above")
    assert "--path for the folder below it; or --cluster default" in said
    assert gitops("validate", tmp_path / "servers", "--cluster", "default").err == ""
    assert gitops("validate", tmp_path, "--path", "servers").err == ""


# --- sources ----------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["validate", "render", "diff", "sync"])
def test_a_cluster_that_nothing_is_said_about_is_doubted(
    gitops: Run, tmp_path: Path, verb: str
) -> None:
    write(tmp_path, {"fleet/web.yaml": manifest(), "group_vars/all.yaml": "tier: one\n"})
    assert "group_vars" not in gitops(verb, tmp_path, "--cluster", "staging3").err
    write(tmp_path, {"group_vars/staging.yaml": "{}\n", "fleet/group_vars/prod.yml": "{}\n"})
    ended = gitops(verb, tmp_path, "--cluster", "staging3", "--path", "fleet")
    said = "warning: no group_vars for cluster 'staging3': there are some for prod, staging"
    assert said in ended.err.splitlines()
    assert ended.code == (2 if verb in ("diff", "sync") else 0)  # there is no cluster here
    for known in ("staging", "prod", "default"):
        arguments = (verb, tmp_path, "--cluster", known, "--path", "fleet")
        assert "group_vars" not in gitops(*arguments).err


def test_a_directory_is_read_as_it_lies_or_at_a_ref(gitops: Run, tmp_path: Path) -> None:
    worktree(tmp_path, {"web.yaml": manifest()})
    git(tmp_path, "tag", "v1")
    write(tmp_path, {"new.yaml": manifest("new")})
    assert servers(gitops("render", tmp_path).out) == ["new", "web"]
    assert servers(gitops("render", tmp_path, "--ref", "v1").out) == ["web"]
    assert servers(gitops("render", tmp_path, "--ref", "HEAD").out) == ["web"]


@pytest.fixture
def remote(processes: None, tmp_path: Path) -> Path:
    """A bare repository whose branches differ."""
    repository = bare(tmp_path / "served" / "fleet.git")
    commit(repository, {"servers/web.yaml": manifest()})
    commit(repository, {"servers/next.yaml": manifest("next")}, branch="next")
    return repository


@pytest.mark.parametrize("over_http", [False, True], ids=["path", "url"])
def test_a_bare_repository_and_a_url_are_read_at_a_branch(
    gitops: Run, remote: Path, over_http: bool
) -> None:
    with GitServer(remote.parent) as server:
        location = f"{server.url}/fleet.git" if over_http else str(remote)
        assert servers(gitops("render", location).out) == ["web"]
        assert servers(gitops("render", location, "--branch", "next").out) == ["next"]
        assert servers(gitops("render", location, "--ref", "next", "--path", "servers").out) == [
            "next"
        ]
        missing = gitops("render", location, "--branch", "nope")
        assert missing.code == 2
        assert "nope" in missing.error
        assert "next" in missing.error  # what there is instead


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "no such directory"),
        (
            ["web.yaml"],
            "web.yaml is no directory; SOURCE is the directory of all manifests; --limit",
        ),
        ([".", "--ref", "HEAD"], "not a git repository"),
        ([".", "--path", "../x"], "leads out of the source"),
        ([".", "--path", "none"], "no folder none"),
        ([".", "--branch", "main"], "--ref main reads that branch"),
        (["http://127.0.0.1:9/fleet.git"], "127.0.0.1"),
        (["ftp://example.com/fleet.git"], "ftp"),
    ],
)
def test_a_source_that_cannot_be_read_is_one_line_and_2(
    gitops: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {"web.yaml": manifest()})
    ended = gitops("validate", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert says in ended.error


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("nosuch", "no folder nosuch; check path in gitops-mcp.yaml"),
        ("web.yaml", "no folder web.yaml"),
        ("../..", "gitops-mcp.yaml: path '../..' leads out of the source"),
        ("/etc", "gitops-mcp.yaml: path '/etc' leads out of the source"),
    ],
)
@pytest.mark.parametrize("how", ["plain", "as it lies", "HEAD"])
def test_a_path_in_the_sources_own_file_is_checked_as_the_options_is(
    gitops: Run, tmp_path: Path, how: str, path: str, says: str
) -> None:
    files = {"web.yaml": manifest(), "gitops-mcp.yaml": f"path: {path}\n"}
    if how == "plain":
        write(tmp_path, files)
    else:
        worktree(tmp_path, files)
    ended = gitops("validate", tmp_path, *(("--ref", "HEAD") if how == "HEAD" else ()))
    assert (ended.code, ended.out) == (2, "")
    assert says in ended.error
    mended = gitops("validate", tmp_path, "--path", "")
    assert mended.code == 0


@pytest.mark.parametrize("ref", [(), ("--ref", "HEAD")])
def test_a_folder_without_manifests_is_a_path_too(
    gitops: Run, tmp_path: Path, ref: tuple[str, ...]
) -> None:
    worktree(tmp_path, {"gitops-mcp.yaml": "path: ./empty/\n", "empty/README.md": "later"})
    assert gitops("validate", tmp_path, *ref).code == 0


# --- diff --base ------------------------------------------------------------------------------


@pytest.fixture
def branch(processes: None, tmp_path: Path) -> Path:
    """A work tree on a branch that changes, adds and removes a server of main."""
    folder = tmp_path / "clone"
    worktree(
        folder,
        {
            "web.yaml": manifest(config={"API_TOKEN": SECRET, "MODE": "a"}),
            "old.yaml": manifest("old"),
            "same.yaml": manifest("same"),
        },
    )
    git(folder, "switch", "--quiet", "-c", "feature")
    commit_all(
        folder,
        {
            "web.yaml": manifest(config={"API_TOKEN": SECRET + "2", "MODE": "b"}),
            "old.yaml": None,
            "new.yaml": manifest("new"),
        },
    )
    git(folder, "switch", "--quiet", "main")
    commit_all(folder, {"later.yaml": manifest("later")})
    git(folder, "switch", "--quiet", "feature")
    return folder


def test_diff_against_a_branch_needs_no_cluster(gitops: Run, branch: Path) -> None:
    ended = gitops("diff", branch, "--base", "main", "-o", "json")
    assert (ended.code, ended.err) == (1, "")
    found = ended.json
    assert found["base"] == git(branch, "merge-base", "main", "HEAD")
    assert found["head"] == git(branch, "rev-parse", "HEAD")
    assert found["summary"] == {
        "create": 1, "update": 1, "replace": 0, "delete": 1, "unchanged": 1, "blocked": 0,
        "skipped": 0,
    }  # fmt: skip
    told = {(change["server"], change["action"], change["kind"]) for change in found["changes"]}
    assert told == {
        ("ai/new", "create", "MCPServer"),
        ("ai/new", "create", "Deployment"),
        ("ai/new", "create", "Service"),
        ("ai/old", "delete", "MCPServer"),
        ("ai/old", "delete", "Deployment"),
        ("ai/old", "delete", "Service"),
        ("ai/web", "update", "MCPServer"),
        ("ai/web", "update", "Deployment"),
    }
    change = next(
        c for c in found["changes"] if (c["server"], c["kind"]) == ("ai/web", "MCPServer")
    )
    assert change.keys() == {"action", "server", "kind", "namespace", "name", "fields", "reason"}
    assert {"path": "/spec/config/MODE", "from": "a", "to": "b"} in change["fields"]
    assert SECRET not in ended.out


@pytest.mark.parametrize("output", ["text", "markdown", "json"])
def test_diff_never_shows_a_secret(gitops: Run, branch: Path, output: str) -> None:
    ended = gitops("diff", branch, "--base", "main", "-o", output)
    assert ended.code == 1
    assert "API_TOKEN" in ended.out
    assert SECRET not in ended.out + ended.err


def test_diff_as_a_comment_and_as_text(gitops: Run, branch: Path) -> None:
    comment = gitops("diff", branch, "--base", "main", "-o", "markdown").out
    assert "**gitops-mcp**" in comment
    assert "| | Server | Object | Fields |" in comment
    assert "<details>" in comment
    text = gitops("diff", branch, "--base", "main").out
    assert re.search(r"^--- [0-9a-f]{12}/MCPServer/ai/web$", text, re.MULTILINE)
    assert re.search(r"^@@ ", text, re.MULTILINE)
    assert text.splitlines()[-1] == "1 to create, 1 to update, 1 to delete, 1 unchanged"


def test_diff_stat_is_a_line_a_server_with_what_json_has_at_length(
    gitops: Run, branch: Path
) -> None:
    ended = gitops("diff", branch, "--base", "main", "--stat")
    fields: dict[str, int] = {}
    for change in gitops("diff", branch, "--base", "main", "-o", "json").json["changes"]:
        fields[change["server"]] = fields.get(change["server"], 0) + len(change["fields"])
    *lines, total = ended.out.splitlines()
    assert ended.code == 1
    assert [line.split() for line in lines] == [
        ["ai/new", "|", "create", str(fields["ai/new"])],
        ["ai/old", "|", "delete", str(fields["ai/old"])],
        ["ai/web", "|", "update", str(fields["ai/web"])],
    ]
    counts = "1 to create, 1 to update, 1 to delete, 1 unchanged"
    assert total == f"{counts}; {sum(fields.values())} fields"
    assert gitops("diff", branch, "--base", "HEAD", "--stat").out.startswith("no changes")
    assert "--stat is text" in gitops("diff", branch, "--stat", "-o", "json").error


def test_diff_ends_with_0_without_a_change_and_2_with_a_problem(gitops: Run, branch: Path) -> None:
    git(branch, "switch", "--quiet", "main")
    assert gitops("diff", branch, "--base", "main").code == 0
    write(branch, {"broken.yaml": BROKEN})
    ended = gitops("diff", branch, "--base", "main")
    assert ended.code == 2
    assert "broken.yaml:8:3" in ended.err
    asjson = gitops("diff", branch, "--base", "main", "-o", "json")
    assert (asjson.code, asjson.json["problems"][0]["file"]) == (2, "broken.yaml")


def test_a_broken_manifest_removes_nothing_from_a_diff(gitops: Run, branch: Path) -> None:
    write(branch, {"web.yaml": manifest(replicas="two")})
    found = gitops("diff", branch, "--base", "main", "-o", "json").json
    changes = [change for change in found["changes"] if change["server"] == "ai/web"]
    assert [(change["action"], change["kind"]) for change in changes] == [("blocked", KIND)]
    assert changes[0]["reason"] == next(p["message"] for p in found["problems"])
    assert found["summary"]["blocked"] == 1
    comment = gitops("diff", branch, "--base", "main", "-o", "markdown").out
    assert "no changes" not in comment


def test_a_diff_of_a_narrower_path_removes_nothing_from_outside_of_it(
    gitops: Run, tmp_path: Path
) -> None:
    worktree(tmp_path, {"a/web.yaml": manifest(), "b/old.yaml": manifest("old")})
    git(tmp_path, "branch", "base")
    commit_all(tmp_path, {"b/old.yaml": None, "gitops-mcp.yaml": "path: a\n"})
    found = gitops("diff", tmp_path, "--base", "base", "-o", "json")
    assert (found.code, found.json["changes"]) == (0, [])
    assert found.json["skipped"] == [{"server": "ai/old", "message": "outside of a"}]


def test_diff_against_what_is_no_commit_is_2(gitops: Run, branch: Path) -> None:
    ended = gitops("diff", branch, "--base", "nope")
    assert ended.code == 2
    assert "nope" in ended.err.splitlines()[-1]  # after the warnings


# --- schema, crd, history -----------------------------------------------------------------------


def test_schema_and_crd_are_printed(gitops: Run) -> None:
    schema = gitops("schema")
    assert (schema.code, schema.json["$schema"]) == (
        0,
        "https://json-schema.org/draft/2020-12/schema",
    )
    crd = gitops("crd")
    assert crd.code == 0
    assert yaml.safe_load(crd.out)["metadata"]["name"] == "mcpservers.mcp.example.com"


def note(repository: Path, revision: str, *records: dict[str, Any]) -> None:
    fixed = {"cluster": "default", "source": "default", "result": "ok", "message": ""}
    text = "\n".join(json.dumps(fixed | record) for record in records)
    git(repository, "notes", "--ref=gitops-mcp/default", "add", "-m", text, revision)


def test_history_is_newest_first_and_of_one_server(gitops: Run, tmp_path: Path) -> None:
    revision = worktree(tmp_path, {"web.yaml": manifest()})
    times = [f"2030-01-0{day}T00:00:00.000000Z" for day in (1, 2, 3)]
    note(
        tmp_path,
        revision,
        {"time": times[0], "event": "applied", "server": "ai/web"},
        {"time": times[2], "event": "applied", "server": "data/web"},
        {"time": times[1], "event": "synced", "server": None},
    )
    assert gitops("history", tmp_path).out.splitlines()[0].startswith("2030-01-03T00:00:00Z")
    found = gitops("history", tmp_path, "-o", "json").json
    assert [record["time"] for record in found] == times[::-1]
    assert list(found[0])[:7] == [
        "time", "cluster", "source", "event", "server", "result", "message",
    ]  # fmt: skip
    one = gitops("history", tmp_path, "-o", "json", "--server", "web").json
    assert [record["server"] for record in one] == ["data/web", "ai/web"]
    one = gitops("history", tmp_path, "-o", "json", "--server", "ai/web").json
    assert [record["server"] for record in one] == ["ai/web"]
    assert gitops("history", tmp_path, "--max-count", "1", "-o", "json").json == found[:1]
    assert gitops("history", tmp_path, "--since", "1h", "-o", "json").json == found
    misspelt = gitops("history", tmp_path, "--cluster", "other", "-o", "json")
    assert (misspelt.code, misspelt.out) == (2, "")
    assert "no deployment notes of cluster 'other'" in misspelt.err
    assert "it has notes of default: use --cluster NAME" in misspelt.err


@pytest.mark.parametrize(
    "odd",
    [
        {"server": "web"},
        {"message": "\ud800"},
        {"changes": ["\udfff"]},
        {"changes": 12345678901234567890123},
    ],
)
@pytest.mark.parametrize("how", [(), ("--server", "web"), ("-o", "json")])
def test_a_note_that_somebody_else_wrote_does_not_stop_history(
    odd: dict[str, Any], how: tuple[str, ...], gitops: Run, tmp_path: Path
) -> None:
    revision = worktree(tmp_path, {"web.yaml": manifest()})
    record = {"time": "2030-01-01T00:00:00.000000Z", "event": "applied", "server": "ai/web"}
    note(tmp_path, revision, record | {"message": "fine"}, record | odd)
    told = gitops("history", tmp_path, *how)
    assert told.code == 0
    assert told.out.count("applied") == told.out.count("fine") == 1


# --- help, errors, ends -------------------------------------------------------------------------


@pytest.mark.parametrize("verb", list(cli.VERBS))
def test_the_help_of_each_verb_teaches_by_example(gitops: Run, verb: str) -> None:
    ended = gitops(verb, "--help")
    assert (ended.code, ended.err) == (0, "")
    assert re.search(rf"Examples?:\n +\S*.*gitops-mcp {verb}", ended.out)
    assert max(map(len, ended.out.splitlines())) <= 100
    assert "``" not in ended.out
    if verb in ("validate", "render", "diff", "sync"):
        assert "Exit codes: 0 " in ended.out


def test_help_and_version(gitops: Run) -> None:
    assert gitops("--version").out == f"gitops-mcp {__version__}\n"
    ended = gitops("--help")
    assert ended.code == 0
    assert all(f"\n  {verb} " in ended.out for verb in cli.VERBS)
    bare_call = gitops()
    assert (bare_call.code, bare_call.err) == (0, "")
    assert bare_call.out == ended.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["validat"], "did you mean 'validate'?; see gitops-mcp --help"),
        (["nonsense"], "no verb 'nonsense'"),
        (["validate", "--rev"], "--ref"),
        (["validate", "-o", "xml"], "'text', 'json', 'github'"),
        (["sync", "--allow-prune=some"], "not a number of servers"),
        (["sync", "--allow-prune=²"], "not a number of servers"),
        (["sync", f"--allow-prune={'9' * 5000}"], "not a number of servers"),
        (["validate", "a", "b"], "unexpected extra argument (b)"),
        (["suspend"], "name the servers, or use --all"),
        (["suspend", "web", "--all"], "name the servers, or use --all"),
        (["get"], "no verb 'get'; use 'status'"),
        (["apply", "-f", "x"], "no verb 'apply'; use 'sync'"),
        (["sync", "--dry-run"], "no option --dry-run; use 'sync --check'"),
        (["diff", "-f", "web.yaml"], "the source is an argument"),
        (["sync", "-l", "team=a"], "use '--limit'"),
        (["sync", "--prune"], "servers removed from git are always pruned"),
        (["sync", "--force"], "mcp.example.com/adopt"),
    ],
)
def test_a_wrong_command_line_is_one_line_with_a_way_out(
    gitops: Run, arguments: list[str], says: str
) -> None:
    ended = gitops(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert says in ended.error


@pytest.mark.parametrize("verb", ["diff", "sync", "status", "agent .", "suspend web", "resume web"])
def test_without_a_cluster_a_verb_says_how_to_get_one(
    gitops: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = gitops(*verb.split())
    assert ended.code == 2
    assert "no cluster is configured" in ended.error
    assert "KUBECONFIG" in ended.error


def test_an_agent_without_a_source_says_so(
    gitops: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = "no SOURCE was given: only servers that kubectl made are run"
    assert said in gitops("agent", "--listen=127.0.0.1:0").err
    assert said not in gitops("agent", ".", "--listen=127.0.0.1:0").err


@pytest.mark.parametrize("secret", [None, "\n"])
def test_an_agent_says_at_its_start_that_it_has_no_secret_for_its_webhook(
    gitops: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secret: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    if secret is not None:
        Path("secret").write_text(secret)
    ended = gitops("agent", "--listen=127.0.0.1:0", "--webhook-secret-file=secret")
    assert ended.code == 2  # there is no cluster here
    assert "/webhook answers 404 until its secret is there" in ended.err
    assert ("No such file or directory: 'secret'" in ended.err) == (secret is None)


def test_a_bug_shows_its_traceback_only_to_the_owner_of_the_log(
    gitops: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(reading, "read", broken)
    ended = gitops("validate", tmp_path)
    assert (ended.code, ended.out) == (70, "")
    assert "a bug" not in ended.err.replace("this is a bug", "")
    (log,) = tmp_path.glob("gitops-mcp-*.log")
    assert str(log) in ended.error
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert "RuntimeError: a bug" in log.read_text()


def test_an_error_cannot_leave_its_line(
    gitops: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise UsageError("one\ntwo\x1b[2J\u202e")

    monkeypatch.setattr(reading, "read", refuse)
    ended = gitops("validate", tmp_path)
    assert ended.code == 2
    assert ended.error == "error: one two\\x1b[2J\\u202e"


def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    write(tmp_path, {f"{n}.yaml": manifest(f"server-{n}") for n in range(200)})
    # An unbuffered Python drops what a closed pipe left of a write, without an error.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [*GITOPS, "render", str(tmp_path)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


@pytest.mark.parametrize(
    "arguments", [["crd"], ["--help"], ["validate", "--help"], ["completion", "bash"]]
)
@pytest.mark.parametrize(
    ("redirected", "why"),
    [("> /dev/full", "No space left on device"), (">&-", "Bad file descriptor")],
)
def test_an_output_that_cannot_be_written_is_no_bug(
    arguments: list[str], redirected: str, why: str
) -> None:
    ended = _in_a_shell(arguments, redirected)
    assert (ended.returncode, ended.stderr) == (2, f"error: cannot write the output: {why}\n")


@pytest.mark.parametrize("redirected", ["2> /dev/full", "2>&-", "> /dev/full 2> /dev/full"])
def test_an_error_that_cannot_be_said_is_still_one(redirected: str) -> None:
    ended = _in_a_shell(["validate", "./nosuch"], redirected)
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", "")


def _in_a_shell(arguments: list[str], redirected: str) -> subprocess.CompletedProcess[str]:
    line = f"exec {shlex.join([*GITOPS, *arguments])} {redirected}"
    return subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)


def test_a_disk_that_is_full_elsewhere_is_not_taken_for_the_output(
    gitops: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(reading, "read", full)
    assert gitops("validate", tmp_path).code == 70


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_verb_says_so_and_ends_with_130(
    tmp_path: Path, number: signal.Signals
) -> None:
    fifo = tmp_path / "config"
    os.mkfifo(fifo)  # reading it blocks until the signal comes
    with subprocess.Popen(
        [*GITOPS, "validate", "--config", str(fifo)], stderr=subprocess.PIPE, text=True
    ) as process:
        writer = _once_it_reads(fifo)
        process.send_signal(number)
        os.close(writer)  # should the signal have come just before the read began
        _, err = process.communicate(timeout=200)
    assert process.returncode == 130
    assert err == "error: interrupted; run the same command again to go on\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_an_agent_is_interrupted_like_any_verb_but_told_to_end_by_sigterm(
    number: signal.Signals, code: int, tmp_path: Path, processes: None
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        cluster = {"clusters": [{"name": "c", "cluster": {"server": address}}]}
        context = {"contexts": [{"name": "c", "context": {"cluster": "c"}}]}
        write(tmp_path, {"config": json.dumps({**cluster, **context, "current-context": "c"})})
        source = (f"{address}/fleet.git", f"--kubeconfig={tmp_path / 'config'}")
        command = [*GITOPS, "agent", *source, "--listen=127.0.0.1:0"]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            silent.settimeout(60)
            asked, _ = silent.accept()
            with asked:
                process.send_signal(number)
                assert process.wait(200) == code


def _once_it_reads(fifo: Path) -> int:
    """The FIFO, opened for writing as soon as somebody reads it."""
    for _ in range(1000):
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            time.sleep(0.02)
    raise AssertionError("nobody reads it")


# --- colours ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "no_color", "coloured"),
    [
        ([], "", False),  # stdout is no terminal here
        (["--color", "always"], "", True),
        (["--color", "always"], "1", True),  # a flag beats the environment
        (["--color", "never"], "", False),
    ],
)
def test_colours_are_for_terminals_unless_asked_for(
    gitops: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    no_color: str,
    coloured: bool,
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    write(tmp_path, {"web.yaml": manifest()})
    assert ("\x1b[" in gitops("validate", tmp_path, *arguments).out) is coloured


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_no_color_is_obeyed_on_a_terminal(tmp_path: Path, no_color: str, coloured: bool) -> None:
    write(tmp_path, {"web.yaml": manifest()})
    ours, theirs = os.openpty()
    subprocess.run(
        [*GITOPS, "validate", str(tmp_path)],
        stdout=theirs,
        env=os.environ | {"NO_COLOR": no_color},
        check=True,
    )
    os.close(theirs)
    said = os.read(ours, 4096).decode()
    os.close(ours)
    assert ("\x1b[" in said) is coloured


# --- completion ---------------------------------------------------------------------------------

RECORD = json.dumps(
    {
        "time": "2026-11-24T12:00:00.123456Z",
        "cluster": "default",
        "source": "default",
        "event": "pruned",
        "server": "ai/old",
        "result": "pruned",
        "message": "",
    }
)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_printed_for_a_shell(gitops: Run, shell: str) -> None:
    ended = gitops("completion", shell)
    assert ended.code == 0
    assert f"{cli.COMPLETION}={shell}_complete" in ended.out


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("gitops-mcp va", "validate"),
        ("gitops-mcp sync --take", "--take-over"),
        ("gitops-mcp diff -o mark", "markdown"),
    ],
)
def test_completion_completes_verbs_options_and_values(line: str, completed: str) -> None:
    asked = {
        cli.COMPLETION: "bash_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split()) - 1),
    }
    ended = subprocess.run(
        GITOPS, env=os.environ | asked, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.split() == [f"plain,{completed}"]


@pytest.fixture
def completions(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], list[str]]:
    return completer(capsys, monkeypatch)


@pytest.mark.parametrize(
    ("verb", "begun", "completed"),
    [
        ("validate", "", ["api", "web", "web2"]),
        ("render", "we", ["web", "web2"]),
        ("diff", "ai/w", ["ai/web", "ai/web2"]),
        ("sync", "api,!we", ["api,!web", "api,!web2"]),
        ("agent", "none", []),
    ],
)
def test_completion_completes_the_servers_of_the_manifests(
    completions: Callable[[str], list[str]],
    tmp_path: Path,
    verb: str,
    begun: str,
    completed: list[str],
) -> None:
    fleet = {f"{name}.yaml": manifest(name) for name in ("web", "web2")}
    write(tmp_path, fleet | {"a.yaml": manifest("api", replicas=-1), "b.yaml": "a: [\n"})
    assert completions(f"gitops-mcp {verb} {tmp_path} --limit {begun}") == completed


def test_completion_completes_clusters_and_servers_with_a_history(
    completions: Callable[[str], list[str]], tmp_path: Path
) -> None:
    group_vars = {"group_vars/prod.yaml": "replicas: 2\n", "group_vars/stage.yaml": "{}\n"}
    worktree(tmp_path / "a", {"web.yaml": manifest()} | group_vars)
    folder = tmp_path / "a"
    assert completions(f"gitops-mcp diff {folder} --cluster ") == ["prod", "stage"]
    git(folder, "notes", "--ref", "refs/notes/gitops-mcp/default", "add", "-m", RECORD)
    assert completions(f"gitops-mcp history {folder} --server ") == ["old"]
    assert completions(f"gitops-mcp history {folder} --server ai/") == ["ai/old"]


@pytest.mark.parametrize(
    "line",
    [
        "gitops-mcp validate /nowhere --limit ",
        "gitops-mcp validate https://127.0.0.1:1/fleet.git --limit ",
        "gitops-mcp validate --config /nowhere --limit x",
        "gitops-mcp nothing ",
        "gitops-mcp status --kubeconfig /nowhere ",
        "gitops-mcp status -n ",
    ],
)
def test_what_cannot_be_read_completes_nothing_and_says_nothing(
    completions: Callable[[str], list[str]], line: str
) -> None:
    assert completions(line) == []


def test_a_cluster_that_does_not_answer_completes_nothing(
    completions: Callable[[str], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completion, "PATIENCE", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = {"server": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        config = {
            "clusters": [{"name": "c", "cluster": server}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "users": [{"name": "u", "user": {}}],
            "current-context": "c",
        }
        (tmp_path / "config").write_text(yaml.safe_dump(config))
        assert completions(f"gitops-mcp status --kubeconfig {tmp_path / 'config'} ") == []
        silent.settimeout(60)
        asked, _ = silent.accept()
        asked.close()


def test_bash_takes_the_completion(gitops: Run) -> None:
    script = gitops("completion", "bash").out + "\ncomplete -p gitops-mcp"
    ended = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.rstrip().endswith(" gitops-mcp")


# --- secrets ------------------------------------------------------------------------------------


def test_the_password_in_a_url_is_told_to_nobody(gitops: Run, remote: Path) -> None:
    with GitServer(remote.parent, password=SECRET) as server:
        address = server.url.replace("http://", f"http://ada:{SECRET}@") + "/fleet.git"
        read = gitops("render", "-v", address)
        assert (read.code, servers(read.out)) == (0, ["web"])
        wrong = gitops("validate", "-v", address.replace(SECRET, f"{SECRET}x"))
        assert wrong.code == 2
        nowhere = gitops("validate", "-v", address.replace("fleet", "none"))
        assert nowhere.code == 2
        said = read.out + read.err + wrong.out + wrong.err + nowhere.out + nowhere.err
    assert SECRET not in said


@pytest.mark.parametrize("output", ["text", "json", "github"])
def test_a_secret_in_a_broken_manifest_is_not_repeated(
    gitops: Run, tmp_path: Path, output: str
) -> None:
    write(
        tmp_path,
        {
            "a.yaml": manifest("a", config={"API_TOKEN": {"deep": SECRET}}),
            "b.yaml": manifest("b", apiToken=SECRET),
            "c.yaml": manifest("c", env=[{"name": "PASSWORD", "value": [SECRET]}]),
            "d.yaml": f"apiVersion: mcp.example.com/v1alpha1\nkind: MCPServer\n  x: {SECRET}\n",
            "e.yaml": manifest("e", port=SECRET, path=SECRET, replicas=SECRET),
        },
    )
    ended = gitops("validate", "-v", "-o", output, tmp_path)
    assert ended.code == 1
    assert SECRET not in ended.out + ended.err


def test_history_says_why_it_shows_nothing(gitops: Run, tmp_path: Path) -> None:
    plain = gitops("history", tmp_path)
    assert plain.code == 2
    assert "not a git repository, so it has no notes" in plain.error
    worktree(tmp_path / "fleet", {"web.yaml": manifest()})
    empty = gitops("history", tmp_path / "fleet", "--cluster", "nope")
    assert (empty.code, empty.out) == (0, "")
    assert empty.err == (
        "no cluster has written notes into this repository (a sandbox writes them only "
        "with --notes=on); notes that are kept elsewhere: "
        "git fetch origin 'refs/notes/*:refs/notes/*'\n"
    )
    assert gitops("history", tmp_path / "fleet", "--server", "web", "-o", "json").json == []
    git(tmp_path / "fleet", "remote", "add", "origin", str(tmp_path / "gone"))
    unread = gitops("history", tmp_path / "fleet")
    assert (unread.code, "could not be fetched" in unread.err) == (0, True)
    assert "no notes are in this repository" in unread.err


def test_a_diff_of_a_pull_request_says_what_the_prune_guard_would_hold(
    gitops: Run, tmp_path: Path
) -> None:
    names = [f"s{number}" for number in range(10)]
    worktree(tmp_path, {f"{name}.yaml": manifest(name) for name in names})
    git(tmp_path, "branch", "base")
    commit_all(tmp_path, {f"{name}.yaml": None for name in names[:6]}, "Retire six")
    ended = gitops("diff", tmp_path, "--base", "base", "-o", "json")
    assert ended.code == 1
    assert (ended.json["summary"]["blocked"], ended.json["summary"]["delete"]) == (6, 0)
    assert "this source's 10 servers" in ended.json["changes"][0]["reason"]
    shown = gitops("diff", tmp_path, "--base", "base", "-o", "markdown").out
    assert "\nAllow-Prune: 6\n" in shown
    reason = ended.json["changes"][0]["reason"]
    assert [c["reason"] for c in ended.json["changes"]] == [reason] * 6
    assert shown.count(reason) == 1
    assert "| blocked | `ai/s5` | `MCPServer s5` |  |" in shown.splitlines()
    lines = gitops("diff", tmp_path, "--base", "base").out.splitlines()
    assert lines[0] == f"! {reason}"
    assert lines[1:7] == [f"! ai/s{n}: blocked MCPServer s{n}" for n in range(6)]
    assert lines[7:] == ["4 unchanged, 6 blocked"]
    commit_all(tmp_path, {"README.md": "x"}, "Release\n\nAllow-Prune: 6\n\nSee merge request a!1")
    summary = gitops("diff", tmp_path, "--base", "base", "-o", "json").json["summary"]
    assert (summary["blocked"], summary["delete"]) == (0, 6)
