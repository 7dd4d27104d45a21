"""What is too much to be read: repositories and servers that a stranger made, within bounds."""

from __future__ import annotations

import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gitfixtures import ADVERTISED, GitServer, OddServer, bare, commit, git, packet

from gitops_mcp.base import limits
from gitops_mcp.base.errors import OverLimit, SourceError, Unanswered
from gitops_mcp.base.model import NoteRecord
from gitops_mcp.git import complaints, gitcommand, gitmirror, gitrepo, scratch
from gitops_mcp.git.gitcommand import Git
from gitops_mcp.git.gitrepo import open_source

pytestmark = pytest.mark.usefixtures("processes")

FILES = {"web.yaml": "kind: Web\n"}


@pytest.fixture
def repository(processes: None, tmp_path: Path) -> Path:
    folder = bare(tmp_path / "fleet.git")
    commit(folder, FILES)
    return folder


def tree(repository: Path, *entries: str) -> str:
    return git(repository, "mktree", stdin="".join(f"{entry}\n" for entry in entries).encode())


def bomb(repository: Path, levels: int = 9, width: int = 10, ending: str = ".yaml") -> str:
    """A tree of ``width ** levels`` paths, of a few objects."""
    blob = git(repository, "hash-object", "-w", "--stdin", stdin=b"a: 1\n")
    made = tree(repository, *(f"100644 blob {blob}\tf{n}{ending}" for n in range(width)))
    for _ in range(levels - 1):
        made = tree(repository, *(f"040000 tree {made}\td{n}" for n in range(width)))
    return made


def commit_tree(repository: Path, made: str, ref: str, *parents: str) -> str:
    options = [part for parent in parents for part in ("-p", parent)]
    sha = git(repository, "commit-tree", *options, "-m", "docs", made)
    git(repository, "update-ref", ref, sha)
    return sha


def run(*arguments: str, memory: int = 400 * limits.MIB) -> subprocess.CompletedProcess[str]:
    """A verb in a process of its own, which may not take more memory than that."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))

    return subprocess.run(
        [sys.executable, "-m", "gitops_mcp", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        preexec_fn=limited,
    )


# --- repositories ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "told"), [(".yaml", "more than 50,000 YAML"), (".txt", "lists more than 1,000,000")]
)
def test_a_commit_of_a_billion_paths_is_one_error(repository: Path, ending: str, told: str) -> None:
    commit_tree(repository, bomb(repository, ending=ending), "refs/heads/main")
    done = run("validate", str(repository), "--ref", "main")
    assert done.returncode == 2
    assert told in done.stderr
    assert "--path" in done.stderr


def test_a_path_beside_a_billion_others_is_read(repository: Path) -> None:
    manifest = git(repository, "hash-object", "-w", "--stdin", stdin=b"kind: Web\n")
    servers = tree(repository, f"100644 blob {manifest}\tweb.yaml")
    entries = (f"040000 tree {bomb(repository)}\tdata", f"040000 tree {servers}\tservers")
    commit_tree(repository, tree(repository, *entries), "refs/heads/main")
    snapshot = open_source(str(repository)).snapshot("servers")
    assert [file.path for file in snapshot.files] == ["servers/web.yaml"]


@pytest.mark.parametrize("ending", [".yaml", ".txt"])
def test_what_was_read_stays_when_a_billion_paths_are_pushed(
    repository: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setattr(limits, "PATHS", 100_000)
    monkeypatch.setattr(limits, "FILES", 1000)
    monkeypatch.setattr(limits, "GIT_MEMORY", 64 * limits.MIB)  # of git diff-tree, before it lists
    opened = open_source(str(repository))
    before = opened.snapshot()
    first = before.revision.sha
    large = commit_tree(repository, bomb(repository, ending=ending), "refs/heads/main", first)
    assert opened.poll().new == large
    with pytest.raises(OverLimit):
        opened.snapshot()
    listed: list[str] = []
    start = Git.start

    def started(git: Git, *args: str, **options: Any) -> Any:
        listed.append(args[0])
        return start(git, *args, **options)

    monkeypatch.setattr(Git, "start", started)
    with pytest.raises(OverLimit):  # known by now
        opened.snapshot()
    assert listed == []
    commit(repository, {"web.yaml": "kind: Other\n"}, parent=first)
    opened.poll()
    assert [file.path for file in opened.snapshot().files] == ["web.yaml"]


def test_names_without_end_are_an_error(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PATH", 200)
    made = tree(repository, f"100644 blob {git(repository, 'rev-parse', 'main:web.yaml')}\tx.yaml")
    for _ in range(300):
        made = tree(repository, f"040000 tree {made}\tdeep")
    commit_tree(repository, made, "refs/heads/main")
    with pytest.raises(OverLimit, match="a name of more than"):
        open_source(str(repository)).snapshot()


def test_an_object_larger_than_the_memory_is_one_error(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "GIT_MEMORY", 24 * limits.MIB)
    entry = git(repository, "ls-tree", "main").split("\t")[0].encode()
    mode, _, blob = entry.split(b" ")
    raw = b"".join(
        b"%s f%07d.txt\0%s" % (mode, number, bytes.fromhex(blob.decode()))
        for number in range(1_000_000)
    )
    made = git(repository, "hash-object", "-w", "-t", "tree", "--stdin", "--literally", stdin=raw)
    commit_tree(repository, made, "refs/heads/main")
    with pytest.raises(OverLimit, match="memory"):
        open_source(str(repository)).snapshot()


def test_a_command_that_takes_too_long_is_ended(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = git(repository, "hash-object", "-w", "-t", "tree", "--stdin")
    made = tree(repository, f"040000 tree {empty}\td")
    for _ in range(12):  # nothing to list, and no end of it
        made = tree(repository, *(f"040000 tree {made}\td{n}" for n in range(10)))
    commit_tree(repository, made, "refs/heads/main")
    monkeypatch.setattr(limits, "GIT_SECONDS", 0.5)
    with pytest.raises(SourceError, match="git ls-tree took too long"):
        open_source(str(repository)).snapshot()


def test_a_commit_message_without_end_is_cut(repository: Path) -> None:
    start = git(repository, "rev-parse", "main")
    end = commit(repository, {"x.yaml": "1"}, message="x" * (4 * limits.MIB))
    (found,) = open_source(str(repository)).commits_between(start, end)
    assert found.sha == end
    assert len(found.subject) <= limits.MESSAGE


# --- servers -----------------------------------------------------------------------------------


def endless_refs() -> Iterator[bytes]:
    yield ADVERTISED
    yield packet(
        f"{1:040x} HEAD\0multi_ack side-band-64k symref=HEAD:refs/heads/main agent=git/2\n"
    )
    block = b"".join(packet(f"{n + 1:040x} refs/heads/{n:0900d}\n") for n in range(1000))
    yield from itertools.repeat(block)


class Endless:
    """``endless_refs`` for each request."""

    def __iter__(self) -> Iterator[bytes]:
        return endless_refs()


def test_a_list_of_refs_without_end_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "GIT_MEMORY", 64 * limits.MIB)
    with OddServer(Endless()) as server, open_source(server.url) as opened:
        with pytest.raises(OverLimit, match="memory") as caught:
            opened.poll()
        assert caught.value.hint
    assert server.sent < 300 * limits.MIB


def test_more_refs_than_are_read_are_one_error(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = git(repository, "rev-parse", "main")
    refs = "".join(f"create refs/heads/b{n} {head}\n" for n in range(3000))
    git(repository, "update-ref", "--stdin", stdin=refs.encode())
    monkeypatch.setattr(limits, "GIT_ANSWER", limits.KIB)
    with (
        open_source(f"file://{repository}", ref="main", allow_file=True) as opened,
        pytest.raises(OverLimit, match="git ls-remote brought more than 1 KiB"),
    ):
        opened.poll()


def test_words_without_end_are_forgotten_but_the_last() -> None:
    script = "yes remote: so it is | head -n 900000 >&2; echo fatal: that is why >&2; exit 128"
    process = subprocess.Popen(["sh", "-c", script], stdout=-1, stderr=-1)
    with gitcommand.Running(process, "x", seconds=30, most=1) as running:
        assert list(running) == []
    assert running.status == 128
    assert len(running.err) <= limits.GIT_WORDS
    assert str(complaints.complaint(running.err, "S")) == "S: remote: so it is; that is why"


def test_a_repository_that_is_too_large_is_ended_while_it_arrives(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MIRROR", 2 * limits.MIB)
    with (
        GitServer(repository.parent) as server,
        open_source(f"{server.url}/{repository.name}") as opened,
    ):
        before = opened.poll().new
        files: dict[str, str | bytes | None] = {
            f"{n}.bin": os.urandom(limits.MIB) for n in range(8)
        }
        commit(repository, files)
        with pytest.raises(OverLimit, match="the repository is larger than"):
            opened.poll()
        assert leftovers(opened) == []
        assert opened.snapshot().revision.sha == before
        small = commit(repository, {"web.yaml": "2"}, parent=before)
        assert opened.poll().new == small


def leftovers(opened: gitrepo.Repository) -> list[str]:
    """What ended commands left in a mirror."""
    assert opened._mirror is not None
    names = (path.name for path in Path(opened._mirror.folder).rglob("*"))
    return [name for name in names if name.startswith("tmp_") or name.endswith(".lock")]


def test_a_fetch_that_breaks_leaves_nothing_and_is_not_repeated_at_once(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "GIT_RETRY_SECONDS", (60.0, 300.0))
    with (
        GitServer(repository.parent) as server,
        open_source(f"{server.url}/{repository.name}") as opened,
    ):
        opened.poll()
        files: dict[str, str | bytes | None] = {f"{n}.bin": os.urandom(9000) for n in range(200)}
        commit(repository, files)
        server.cut = 0.75
        for attempt in range(4):
            server.seen.clear()
            with pytest.raises(Unanswered):
                opened.poll()
            fetched = sum(request.path.endswith("/git-upload-pack") for request in server.seen)
            assert (fetched > 2) == (attempt == 0)
            assert leftovers(opened) == []
        opened.hurry()  # somebody who asks for it
        server.seen.clear()
        with pytest.raises(Unanswered):
            opened.poll()
        assert len(server.seen) > 2
        server.cut = 1.0
        moved = commit(repository, {"web.yaml": "2"})  # a new commit
        assert opened.poll().new == moved


FULL = """#!/bin/sh
case " $* " in *" fetch "*)
  echo >> {log}
  for each; do case $each in *mirror.git) echo > $each/objects/pack/tmp_pack_1;; esac; done
  echo "fatal: write error: No space left on device" >&2
  exit 128
esac
exec {git} "$@"
"""


def test_a_full_disk_is_cleared_and_not_filled_again(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, stand_in = tmp_path / "log", tmp_path / "bin" / "git"
    with open_source(f"file://{repository}", allow_file=True) as opened:
        before = opened.poll().new
        moved = commit(repository, {"x.yaml": "1"})
        stand_in.parent.mkdir()
        stand_in.write_text(FULL.format(log=log, git=shutil.which("git")))
        stand_in.chmod(0o755)
        with monkeypatch.context() as patch:
            patch.setenv("PATH", f"{stand_in.parent}:{os.environ['PATH']}")
            with pytest.raises(SourceError, match="the disk is full: write error"):
                opened.poll()
        assert log.read_text() == "\n"
        assert leftovers(opened) == []
        assert opened.snapshot().revision.sha == before
        opened.hurry()
        assert opened.poll().new == moved


def test_the_wait_after_a_failed_fetch_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    patience = gitmirror.Patience()
    waits = []
    for _ in range(9):
        patience.failed({"HEAD": "a"}, SourceError("no"))
        waits.append(patience._until - 1000)
    assert waits[0] <= 5
    assert 140 < waits[-1] <= 300
    with pytest.raises(SourceError):
        patience.check({"HEAD": "a"})
    patience.check({"HEAD": "b"})
    for _ in range(9):
        patience.nudge()  # a webhook, replayed
        assert 70 < patience._until - 1000 <= 150
    patience.hurry()
    patience.check({"HEAD": "a"})


def broken_pack(folder: Path) -> None:
    for pack in folder.glob("objects/pack/*.pack"):
        pack.chmod(0o600)
        os.truncate(pack, 60)


def stale_locks(folder: Path) -> None:
    for name in ("shallow.lock", "packed-refs.lock", "HEAD.lock", "refs/heads/main.lock"):
        (folder / name).touch()


def no_objects(folder: Path) -> None:
    shutil.rmtree(folder / "objects")


def emptied(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o600)
            os.truncate(path, 0)


@pytest.mark.parametrize("broken", [broken_pack, stale_locks, no_objects, emptied])
def test_a_mirror_that_cannot_be_fetched_into_is_made_anew(
    repository: Path, broken: object
) -> None:
    with (
        GitServer(repository.parent) as server,
        open_source(f"{server.url}/{repository.name}") as opened,
    ):
        before = opened.snapshot()
        opened.notes().append([record(before.revision.sha)])
        assert opened._mirror is not None
        broken(Path(opened._mirror.folder))  # type: ignore[operator]
        moved = commit(repository, {"web.yaml": "2"})
        for _ in range(2):
            try:
                if opened.poll().new == moved and opened.snapshot().revision.sha == moved:
                    break
            except SourceError:
                pass
        assert opened.snapshot().revision.sha == moved
        assert leftovers(opened) == []
        if broken is stale_locks:
            assert len(opened.notes().read()) == 1


def test_a_lock_of_a_git_that_runs_stays(repository: Path) -> None:
    with open_source(f"file://{repository}", allow_file=True) as opened:
        opened.poll()
        mirror = opened._mirror
        assert mirror is not None
        lock = Path(mirror.folder, "HEAD.lock")
        lock.touch()
        with mirror.git.start("cat-file", "--batch", stdin=b"x\n"):
            mirror._clear()
            assert lock.exists()
        mirror._clear()
        assert not lock.exists()


# --- notes ---------------------------------------------------------------------------------------


def record(sha: str, number: int = 0, message: str = "") -> NoteRecord:
    time = f"2026-01-01T00:00:{number % 60:02}.{number:06}Z"
    return NoteRecord(time, "default", "default", "ready", "ai/web", "ok", message, commit=sha)


def test_notes_of_a_billion_commits_are_one_error(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = git(repository, "hash-object", "-w", "--stdin", stdin=b"{}\n")
    pairs = [f"{n:02x}" for n in range(256)]
    made = tree(repository, *(f"100644 blob {blob}\t{pair}{'0' * 30}" for pair in pairs))
    for _ in range(4):
        made = tree(repository, *(f"040000 tree {made}\t{pair}" for pair in pairs))
    commit_tree(repository, made, "refs/notes/gitops-mcp/default")
    done = run("history", str(repository))
    assert done.returncode == 2
    assert "lists more than 200,000" in done.stderr
    monkeypatch.setattr(limits, "NOTED", 1000)
    notes = open_source(str(repository)).notes()
    (warning,) = notes.append([record(git(repository, "rev-parse", "main"))])
    assert "could not be written" in warning


def test_many_notes_are_read_from_the_newest_on(repository: Path) -> None:
    """150,000 lines on one commit, and only the end of them fits."""
    head = git(repository, "rev-parse", "main")
    lines = []
    for number in range(150_000):
        when = f"2026-01-01T{number // 3600 % 24:02}:{number // 60 % 60:02}:00.{number:06}Z"
        line = {"time": when, "cluster": "default", "source": "default", "event": "ready"}
        lines.append(json.dumps({**line, "server": "ai/web", "result": "ok", "message": "x" * 40}))
    blob = git(repository, "hash-object", "-w", "--stdin", stdin="\n".join(sorted(lines)).encode())
    made = tree(repository, f"100644 blob {blob}\t{head}")
    commit_tree(repository, made, "refs/notes/gitops-mcp/default")
    notes = open_source(str(repository)).notes()
    found = notes.read()
    assert "only the newest 16 MiB were read" in notes.left_out
    assert found[0].time == max(lines)[10:37]
    assert 50_000 < len(found) < 150_000
    assert sum(1 for _ in notes.stream()) == len(found)
    (warning,) = notes.append([record(head)])
    assert "larger than 8 MiB" in warning


def test_the_notes_of_the_newest_commits_come_first(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_source(str(repository))
    notes = opened.notes()
    shas = [git(repository, "rev-parse", "main")]
    for _ in range(9):  # a second apart: fast-import's "now" would be one
        date = f"{1_800_000_000 + len(shas)} +0000"
        stream = (
            f"commit refs/heads/main\ncommitter A <a@example.com> {date}\ndata 0\nfrom {shas[-1]}\n"
        )
        git(repository, "fast-import", "--quiet", stdin=stream.encode())
        shas.append(git(repository, "rev-parse", "main"))
    notes.append([record(sha, number, "x" * 100) for number, sha in enumerate(shas)])
    assert len(notes.read()) == 10
    assert notes.left_out == ""
    monkeypatch.setattr(limits, "NOTES", 700)
    found = [one.commit for one in notes.read()]
    assert 0 < len(found) < 9
    assert found == shas[::-1][: len(found)]
    assert notes.left_out


# --- what killed processes leave ---------------------------------------------------------------


HOLD = (
    "from gitops_mcp.git.scratch import Scratch; s = Scratch(); print(s.path, flush=True); input()"
)


def test_the_folders_of_dead_processes_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    command = [sys.executable, "-c", HOLD]
    with (
        subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as dead,
        subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as alive,
    ):
        folders = [Path(each.stdout.readline().strip()) for each in (dead, alive) if each.stdout]
        strange = tmp_path / "gitops-mcp-strange"
        strange.mkdir()
        (tmp_path / "gitops-mcp-link").symlink_to(strange)
        dead.kill()
        dead.wait()
        scratch.sweep(str(tmp_path))
        assert [folder.exists() for folder in folders] == [False, True]
        assert strange.exists()
        alive.communicate("\n")
        assert not folders[1].exists()


def test_folders_that_are_made_while_others_are_removed_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ended = threading.Event()

    def keep_sweeping() -> None:
        while not ended.is_set():
            scratch.sweep(str(tmp_path))

    sweeper = threading.Thread(target=keep_sweeping)
    sweeper.start()
    made = [scratch.Scratch() for _ in range(200)]
    ended.set()
    sweeper.join()
    assert all(Path(each.path, "owner").exists() for each in made)
    for each in made:
        each.remove()
    assert list(tmp_path.iterdir()) == []
