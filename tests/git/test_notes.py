"""Deployment notes in real repositories: what is written, by how many, and what can go wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import paths
import pytest
from gitfixtures import GitServer, bare, commit, commit_all, git, worktree, write

from gitops_mcp.base.errors import UsageError
from gitops_mcp.base.model import NoteRecord
from gitops_mcp.git import gitnotes
from gitops_mcp.git.gitrepo import Credentials, Repository, open_source

pytestmark = pytest.mark.usefixtures("processes")

REF = "refs/notes/gitops-mcp/default"


def record(sha: str, second: int = 0, **changes: Any) -> NoteRecord:
    values: dict[str, Any] = {
        "time": f"2025-06-01T12:00:{second:02}.000000Z",
        "cluster": "default",
        "source": "fleet",
        "event": "applied",
        "server": "ai/web",
        "result": "changed",
        "message": "image changed",
        "commit": sha,
    }
    return NoteRecord(**{**values, **changes})


def note(repository: Path, sha: str, ref: str = REF) -> list[str]:
    return git(repository, "notes", "--ref", ref, "show", sha, check=False).splitlines()


@pytest.fixture
def origin(processes: None, tmp_path: Path) -> Path:
    return bare(tmp_path / "origin.git")


@pytest.fixture
def sha(origin: Path) -> str:
    return commit(origin, {"a.yaml": "1"})


@pytest.fixture
def clone(tmp_path: Path, origin: Path, sha: str) -> Path:  # noqa: ARG001 - after its commit
    git(tmp_path, "clone", "--quiet", str(origin), "clone")
    return tmp_path / "clone"


# --- what is written -----------------------------------------------------------------------------


def test_a_record_is_one_json_line_with_its_keys_in_order(origin: Path, sha: str) -> None:
    written = record(sha, extra={"line": 3, "file": "a.yaml", "changes": [{"b": 1, "a": 2}]})
    assert open_source(str(origin)).notes().append([written]) == ()
    (line,) = note(origin, sha)
    assert line == (
        '{"time":"2025-06-01T12:00:00.000000Z","cluster":"default","source":"fleet",'
        '"event":"applied","server":"ai/web","result":"changed","message":"image changed",'
        '"line":3,"file":"a.yaml","changes":[{"b":1,"a":2}]}'
    )
    assert open_source(str(origin)).notes().read() == [written]


@pytest.mark.parametrize("text", ["two\nlines\r\n", "tür\u2028x", '"}\\', "\x00", ""])
def test_any_text_stays_one_line(origin: Path, sha: str, text: str) -> None:
    notes = open_source(str(origin)).notes()
    assert notes.append([record(sha, message=text), record(sha, 1, event="ready")]) == ()
    assert len(note(origin, sha)) == 2
    assert [known.message for known in notes.read()] == ["image changed", text]


def test_records_of_several_commits_are_read_newest_first(origin: Path, sha: str) -> None:
    newer = commit(origin, {"a.yaml": "2"})
    notes = open_source(str(origin)).notes()
    records = [
        record(newer, 5),
        record(sha, 1),
        record(sha, 3, event="synced", server=None),
        record(newer, 4, event="pruned"),
    ]
    notes.append(records[:2])
    notes.append(records[2:])
    assert notes.read() == sorted(records, key=lambda known: known.time, reverse=True)
    assert git(origin, "rev-list", "--count", REF) == "2"  # one commit for each append


def test_each_cluster_has_its_own_notes(origin: Path, sha: str) -> None:
    opened = open_source(str(origin))
    opened.notes("prod-1.eu").append([record(sha, cluster="prod-1.eu")])
    assert opened.notes("default").read() == []
    assert len(note(origin, sha, "refs/notes/gitops-mcp/prod-1.eu")) == 1


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a..b", "x.lock", "-x", "a b", "x.", "é"])
def test_a_cluster_name_that_git_cannot_hold_is_refused(origin: Path, name: str) -> None:
    with pytest.raises(UsageError, match="--cluster"):
        open_source(str(origin)).notes(name)


AGAIN = {
    "later": ({}, False),
    "another message": ({"message": "config changed"}, True),
    "another server": ({"server": "ai/db"}, True),
    "another event": ({"event": "failed"}, True),
    "another source": ({"source": "other"}, True),
    "more to say": ({"extra": {"file": "a.yaml"}}, True),
}


@pytest.mark.parametrize(("changes", "written"), AGAIN.values(), ids=AGAIN.keys())
def test_the_same_fact_is_not_written_twice(
    origin: Path, sha: str, changes: dict[str, Any], written: bool
) -> None:
    notes = open_source(str(origin)).notes()
    notes.append([record(sha), replace(record(sha, 1), **changes)])
    notes.append([replace(record(sha, 2), **changes)])
    assert len(notes.read()) == (2 if written else 1)


def test_a_fact_that_came_back_is_written_again(origin: Path, sha: str) -> None:
    notes = open_source(str(origin)).notes()
    for second, message in enumerate(["image changed", "other", "image changed"]):
        notes.append([record(sha, second, message=message)])
    assert [known.message for known in notes.read()] == ["image changed", "other", "image changed"]


def test_several_problems_of_one_server_are_not_repeated_by_each_pass(
    origin: Path, sha: str
) -> None:
    notes = open_source(str(origin)).notes()
    for second, problems in enumerate([("a", "b"), ("a", "b"), ("a", "c"), ("a", "c"), ("a", "b")]):
        notes.append([record(sha, second, event="failed", message=text) for text in problems])
    said = sorted((known.time[18:19], known.message) for known in notes.read())
    assert said == [("0", "a"), ("0", "b"), ("2", "a"), ("2", "c"), ("4", "a"), ("4", "b")]


def test_ready_is_said_once_for_a_server_and_commit(origin: Path, sha: str) -> None:
    newer = commit(origin, {"a.yaml": "2"})
    notes = open_source(str(origin)).notes()
    for second, where in enumerate([sha, sha, newer]):
        notes.append([record(where, second, event="ready", message=f"take {second}")])
    assert [(known.commit, known.message) for known in notes.read()] == [
        (newer, "take 2"),
        (sha, "take 0"),
    ]


def test_without_a_commit_nothing_is_written(tmp_path: Path) -> None:
    write(tmp_path / "plain", {"a.yaml": "1"})
    head = worktree(tmp_path / "tree", {"a.yaml": "1"})
    for folder in ("plain", "tree"):
        notes = open_source(str(tmp_path / folder)).notes()
        assert notes.append([record(""), record(f"{head}-dirty")]) == ()
        assert notes.read() == []
    assert open_source(str(tmp_path / "plain")).notes().append([record(head)]) == ()


def test_a_commit_of_another_repository_is_a_warning_and_the_others_are_written(
    origin: Path, sha: str
) -> None:
    notes = open_source(str(origin)).notes()
    (warning,) = notes.append([record("1" * 40), record(sha)])
    assert warning == "commit 111111111111 is not in this repository: no note was written"
    assert [known.commit for known in notes.read()] == [sha]


def test_lines_of_others_are_kept_and_not_shown(origin: Path, sha: str) -> None:
    foreign = ["hello", "[1]", '{"time":"x"}', "{" * 3000, "null"]
    git(origin, "notes", "--ref", REF, "add", "-F", "-", sha, stdin="\n".join(foreign).encode())
    notes = open_source(str(origin)).notes()
    assert notes.append([record(sha)]) == ()
    assert len(notes.read()) == 1
    assert set(foreign) < set(note(origin, sha))


def test_notes_that_git_wrote_and_spread_are_found(origin: Path, sha: str) -> None:
    """Flat names as `git notes` writes few notes, folders as it writes many."""
    newer = commit(origin, {"a.yaml": "2"})
    notes = open_source(str(origin)).notes()
    line = json.dumps({"time": "2025", **dict.fromkeys(gitnotes._KEYS[1:], "x/x")})
    git(origin, "notes", "--ref", REF, "add", "-m", line, sha)
    notes.append([record(newer)])
    notes.append([record(sha)])
    names = git(origin, "ls-tree", "-r", "--name-only", REF).splitlines()
    assert sorted(names) == sorted([sha, f"{newer[:2]}/{newer[2:]}"])
    git(origin, "notes", "--ref", REF, "append", "-m", line.replace("2025", "2024"), newer)
    assert len(notes.read()) == 4
    assert len(note(origin, sha)) == 2


def test_hooks_do_not_run_and_a_hooks_environment_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "src"
    head = worktree(folder, {"a.yaml": "1"})
    hook = folder / ".git/hooks/reference-transaction"
    write(folder, {".git/hooks/reference-transaction": f"#!/bin/sh\ntouch {tmp_path}/ran\n"})
    hook.chmod(0o755)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert open_source(str(folder)).notes().append([record(head)]) == ()
    monkeypatch.delenv("GIT_DIR")
    assert len(note(folder, head)) == 1
    assert not (tmp_path / "ran").exists()


# --- where it is written --------------------------------------------------------------------------


def test_a_directory_pushes_only_when_asked(origin: Path, clone: Path, sha: str) -> None:
    notes = open_source(str(clone)).notes()
    assert notes.append([record(sha)]) == ()
    assert (len(note(clone, sha)), note(origin, sha)) == (1, [])
    assert notes.append([record(sha, 1, event="ready")], push=True) == ()
    assert note(origin, sha) == note(clone, sha)
    assert len(note(origin, sha)) == 2


def test_a_url_gets_its_notes_pushed(origin: Path, sha: str) -> None:
    with GitServer(origin.parent, password="s3cret") as server:
        location = f"{server.url}/origin.git"
        with open_source(location, credentials=Credentials(password="s3cret")) as opened:
            opened.poll()
            assert opened.notes().append([record(sha)], push=True) == ()
            assert opened.notes().read() == [record(sha)]
    assert len(note(origin, sha)) == 1


def test_a_fact_is_not_repeated_by_a_new_process(origin: Path, sha: str) -> None:
    for second in range(2):
        with open_source(f"file://{origin}", allow_file=True) as opened:
            opened.poll()
            assert opened.notes().append([record(sha, second)], push=True) == ()
    assert len(note(origin, sha)) == 1


def test_a_clone_shows_what_the_agent_pushed(origin: Path, clone: Path, sha: str) -> None:
    open_source(str(origin)).notes().append([record(sha)])
    notes = open_source(str(clone)).notes()
    assert notes.read() == []
    assert notes.fetch() == ""
    assert notes.read() == [record(sha)]
    assert note(clone, sha) == []  # its own notes are left alone


def test_history_keeps_commits_that_a_force_push_removed(origin: Path, sha: str) -> None:
    with open_source(f"file://{origin}", allow_file=True) as opened:
        opened.poll()
        opened.notes().append([record(sha)], push=True)
        forced = commit(origin, {"a.yaml": "other"}, parent="")
        assert opened.poll().forced
        opened.notes().append([record(forced, 1)], push=True)
    git(origin, "reflog", "expire", "--expire=now", "--all")
    git(origin, "gc", "--quiet", "--prune=now")
    with open_source(f"file://{origin}", allow_file=True) as fresh:
        fresh.poll()
        notes = fresh.notes()
        notes.fetch()
        assert [known.commit for known in notes.read()] == [forced, sha]
        assert notes.append([record(forced, 2, event="ready")], push=True) == ()
    assert len(open_source(str(origin)).notes().read()) == 3


def test_notes_of_unknown_commits_survive_a_join(origin: Path, clone: Path, sha: str) -> None:
    later = commit(origin, {"a.yaml": "2"})  # the clone does not have it
    open_source(str(origin)).notes().append([record(later, 1), record(sha, 2, event="ready")])
    notes = open_source(str(clone)).notes()
    notes.append([record(sha)])
    assert notes.append([record(sha, 3, event="failed")], push=True) == ()
    assert [known.time[17:19] for known in notes.read()] == ["03", "02", "01", "00"]
    assert len(note(origin, sha)) == 3
    assert len(note(origin, later)) == 1


# --- what can go wrong ----------------------------------------------------------------------


def test_a_refused_push_is_a_warning_and_the_note_stays(
    origin: Path, clone: Path, sha: str
) -> None:
    write(origin, {"hooks/pre-receive": "#!/bin/sh\necho 'no notes, token=abc' >&2\nexit 1\n"})
    (origin / "hooks/pre-receive").chmod(0o755)
    notes = open_source(str(clone)).notes()
    (warning,) = notes.append([record(sha)], push=True)
    assert warning == (
        f"the deployment notes were not pushed: {clone} refused them: pre-receive hook declined"
    )
    assert notes.read() == [record(sha)]
    (origin / "hooks/pre-receive").unlink()
    assert notes.append([record(sha, 1, event="ready")], push=True) == ()
    assert len(note(origin, sha)) == 2  # the first one is delivered with the next


def test_an_unreachable_or_missing_remote_is_a_warning(tmp_path: Path, sha: str) -> None:
    with GitServer(tmp_path) as server:
        opened = open_source(f"{server.url}/origin.git")
        opened.poll()
    (warning,) = opened.notes().append([record(sha)], push=True)
    assert "the git server does not answer" in warning
    assert opened.notes().read() == [record(sha)]
    assert "does not answer" in opened.notes().fetch()
    opened.close()
    head = worktree(tmp_path / "lonely", {"a.yaml": "1"})
    lonely = open_source(str(tmp_path / "lonely")).notes()
    assert lonely.append([record(head)], push=True) == (
        f"the deployment notes were not pushed: {tmp_path / 'lonely'} has no remote",
    )
    assert lonely.fetch() == ""


def test_refused_credentials_are_a_warning_without_them(origin: Path, sha: str) -> None:
    with GitServer(origin.parent) as server:
        host = server.url.removeprefix("http://")
        opened = open_source(f"http://ada:tok-9@{host}/origin.git")
        opened.poll()
        server.password = "other"
        (warning,) = opened.notes().append([record(sha)], push=True)
        assert "refused the credentials" in warning
        assert "tok-9" not in warning
        opened.close()


def test_a_repository_that_cannot_be_written_is_a_warning(
    origin: Path, sha: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gitnotes, "WRITE_ATTEMPTS", 2)
    write(origin, {f"{REF}.lock": ""})
    (warning,) = open_source(str(origin)).notes().append([record(sha)])
    assert "could not be written" in warning
    shutil.rmtree(origin)
    (warning,) = open_source(str(bare(origin).parent / "origin.git")).notes().append([record(sha)])
    assert "is not in this repository" in warning


def test_the_remote_of_the_current_branch_is_chosen(tmp_path: Path, clone: Path, sha: str) -> None:
    bare(tmp_path / "upstream.git")
    git(clone, "remote", "add", "upstream", str(tmp_path / "upstream.git"))
    git(clone, "push", "--quiet", "--set-upstream", "upstream", "main")
    assert open_source(str(clone)).notes().append([record(sha)], push=True) == ()
    assert len(note(tmp_path / "upstream.git", sha)) == 1
    assert note(tmp_path / "origin.git", sha) == []


# --- several writers ---------------------------------------------------------------------------


def hammer(opened: Repository, sha: str, writer: int, count: int, warnings: list[str]) -> None:
    notes = opened.notes()
    for number in range(count):
        warnings += notes.append(
            [record(sha, number, server=f"ai/w{writer}", message=f"{number}")], push=True
        )


def together(sources: list[Repository], sha: str, count: int) -> list[str]:
    warnings: list[str] = []
    threads = [
        threading.Thread(target=hammer, args=(opened, sha, writer, count, warnings))
        for writer, opened in enumerate(sources)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return warnings


def test_writers_of_one_repository_lose_nothing(origin: Path, sha: str) -> None:
    assert together([open_source(str(origin)) for _ in range(4)], sha, 4) == []
    assert len(note(origin, sha)) == 16


def test_writers_through_a_server_and_beside_it_lose_nothing(
    tmp_path: Path, origin: Path, clone: Path, sha: str
) -> None:
    address = f"file://{origin}"
    cache = tmp_path / "cache"
    sources = [
        open_source(str(origin)),
        open_source(str(clone)),
        open_source(address, allow_file=True),
        open_source(address, allow_file=True, cache_dir=cache),
        open_source(address, allow_file=True, cache_dir=cache),
    ]
    for opened in sources:
        opened.poll()
    assert together(sources, sha, 3) == []
    assert len(note(origin, sha)) == 15


def test_processes_lose_nothing(origin: Path, sha: str) -> None:
    script = f"""
import sys
from gitops_mcp.git.gitrepo import open_source
from gitops_mcp.base.model import NoteRecord
opened = open_source("file://{origin}", allow_file=True)
opened.poll()
for number in range(3):
    time = f"2025-06-01T12:00:0{{number}}.000000Z"
    server = "ai/" + sys.argv[1]
    record = NoteRecord(time, "default", "s", "applied", server, "ok", str(number), {{}}, "{sha}")
    assert opened.notes().append([record], push=True) == ()
"""
    root = paths.ROOT
    writers = [subprocess.Popen([sys.executable, "-c", script, str(n)], cwd=root) for n in range(3)]
    assert [writer.wait(timeout=200) for writer in writers] == [0, 0, 0]
    assert len(note(origin, sha)) == 9


def test_a_newer_commit_is_noted_from_a_clone_that_just_got_it(
    origin: Path, clone: Path, sha: str
) -> None:
    open_source(str(origin)).notes().append([record(sha)])
    newer = commit_all(clone, {"a.yaml": "2"})
    git(clone, "push", "--quiet", "origin", "main")
    assert open_source(str(clone)).notes().append([record(newer, 1)], push=True) == ()
    assert [known.commit for known in open_source(str(origin)).notes().read()] == [newer, sha]


def test_a_pass_that_did_something_is_said_though_one_before_ended_alike(
    origin: Path, sha: str
) -> None:
    """Two deeds at one commit, each with the same recap: each pass has its record."""

    def synced(second: int) -> NoteRecord:
        return replace(record(sha, second), event="synced", server=None, message="changed=1")

    with open_source(f"file://{origin}", allow_file=True) as opened:
        opened.poll()
        notes = opened.notes()
        notes.append([record(sha, 0), synced(0)])
        notes.append([synced(1)])  # nothing new: not said
        notes.append([replace(record(sha, 2), server="ai/other"), synced(2)])
        times = [one.time[17:19] for one in notes.read() if one.event == "synced"]
    assert times == ["02", "00"]
