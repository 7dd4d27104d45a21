"""Reading sources: real repositories, real work trees, a real git HTTP server on 127.0.0.1."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gitfixtures import GitServer, bare, commit, commit_all, git, worktree, write
from paths import ROOT

from gitops_mcp.base import limits
from gitops_mcp.base.errors import SourceError, UsageError
from gitops_mcp.base.source import Revision, Snapshot
from gitops_mcp.git import gitmirror, gitrepo, history, trailers, trees
from gitops_mcp.git.gitrepo import Credentials, Repository, open_source

pytestmark = pytest.mark.usefixtures("processes")

FILES = {"web.yaml": "kind: Web\n", "apps/db.yml": "kind: Db\n", "apps/x.json": "{}\n"}
SECRET = "tok-5f1a9c"

Opener = Callable[..., Repository]
"""``open_source`` with its location filled in."""


def paths(snapshot: Snapshot) -> list[str]:
    return [file.path for file in snapshot.files]


def content(opened: Repository, snapshot: Snapshot | None = None) -> bytes:
    """What the last file of a snapshot holds."""
    file = (snapshot or opened.snapshot()).files[-1]
    return opened.contents([file])[file.blob] if file.data is None else file.data


@pytest.fixture
def repository(processes: None, tmp_path: Path) -> Path:
    folder = bare(tmp_path / "fleet.git")
    commit(folder, FILES)
    return folder


# --- which files -------------------------------------------------------------------------------

TREE = {
    "a.yaml": "1",
    "b.yml": "2",
    "c.json": "3",
    "d.txt": "4",
    "gitops-mcp.yaml": "5",
    "group_vars/all.yaml": "6",
    ".hidden.yaml": "7",
    ".github/ci.yaml": "8",
    "templates/t.yaml": "9",
    "chart/templates/deploy.yaml": "10",
    "prod/web.yaml": "11",
    "prod/group_vars/all.yaml": "12",
    "prod/.cache/x.yaml": "13",
    "prodigy/web.yaml": "14",
}
ALL = [
    "a.yaml",
    "b.yml",
    "c.json",
    "gitops-mcp.yaml",
    "group_vars/all.yaml",
    "prod/group_vars/all.yaml",
    "prod/web.yaml",
    "prodigy/web.yaml",
]
PROD = ["gitops-mcp.yaml", "group_vars/all.yaml", "prod/group_vars/all.yaml", "prod/web.yaml"]


def make(kind: str, folder: Path, files: dict[str, str]) -> str:
    if kind == "bare":
        commit(bare(folder), files)
    elif kind == "worktree":
        worktree(folder, files)
    else:
        write(folder, files)
    return str(folder)


@pytest.mark.parametrize("kind", ["bare", "worktree", "plain"])
@pytest.mark.parametrize(("path", "expected"), [("", ALL), ("prod", PROD), ("./prod/", PROD)])
def test_reads_manifests_and_settings_below_the_path(
    tmp_path: Path, kind: str, path: str, expected: list[str]
) -> None:
    snapshot = open_source(make(kind, tmp_path / "src", TREE)).snapshot(path)
    assert paths(snapshot) == expected
    assert snapshot.skipped == ()


@pytest.mark.parametrize("kind", ["bare", "worktree", "plain"])
def test_a_file_has_its_content_and_gits_object_id(tmp_path: Path, kind: str) -> None:
    source = make(kind, tmp_path / "src", {"ä b/-x*.yaml": "tür: 1\n"})
    opened = open_source(source)
    (file,) = opened.snapshot().files
    assert (file.path, content(opened)) == ("ä b/-x*.yaml", "tür: 1\n".encode())
    assert file.blob == git(tmp_path, "hash-object", "--stdin", stdin="tür: 1\n".encode())


@pytest.mark.parametrize("kind", ["bare", "worktree", "plain"])
def test_a_path_that_does_not_exist_is_an_error(tmp_path: Path, kind: str) -> None:
    source = open_source(make(kind, tmp_path / "src", TREE))
    with pytest.raises(SourceError, match="no folder nowhere"):
        source.snapshot("nowhere")


@pytest.mark.parametrize("path", ["../x", "/etc", "a/../../b", "a\0b"])
def test_a_path_out_of_the_source_is_refused(repository: Path, path: str) -> None:
    with pytest.raises(UsageError, match="leads out of the source"):
        open_source(str(repository)).snapshot(path)


def test_a_commit_names_what_it_does_not_read(tmp_path: Path) -> None:
    folder = bare(tmp_path / "src")
    inner = commit(folder, {"x.yaml": "1"}, branch="inner")
    commit(
        folder,
        {
            "link.yaml": "/etc/passwd",
            "vendor/lib": inner,
            "run.yaml": "ok",
            "big.yaml": b"kind: MCPServer\n" + b"x" * limits.FILE,
            "bell\a.yaml": "1",
            os.fsdecode(b"latin\xe4.yaml"): "1",
        },
        modes={"link.yaml": "120000", "vendor/lib": "160000", "run.yaml": "100755"},
    )
    snapshot = open_source(str(folder)).snapshot()
    assert paths(snapshot) == ["run.yaml"]
    assert dict(snapshot.skipped) == {
        "link.yaml": "a symbolic link is not followed",
        "vendor/lib": "a submodule is not read",
        "big.yaml": "larger than 1 MiB",
        "bell\\x07.yaml": "its name holds characters that are not printable UTF-8",
        "latin\\udce4.yaml": "its name holds characters that are not printable UTF-8",
    }


@pytest.mark.parametrize("kind", ["worktree", "plain"])
def test_a_directory_names_what_it_does_not_read(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "src"
    make(kind, folder, {"ok.yaml": "1"})
    write(tmp_path / "elsewhere", {"secret.yaml": "s"})
    (folder / "link.yaml").symlink_to(tmp_path / "elsewhere/secret.yaml")
    (folder / "big.yaml").write_bytes(b"kind: MCPServer\n" + b"x" * limits.FILE)
    os.mkfifo(folder / "pipe.yaml")
    snapshot = open_source(str(folder)).snapshot()
    assert paths(snapshot) == ["ok.yaml"]
    skipped = dict(snapshot.skipped)
    assert skipped["link.yaml"] == "a symbolic link is not followed"
    assert skipped["big.yaml"] == "larger than 1 MiB"
    if kind == "plain":  # git does not list a FIFO
        assert skipped["pipe.yaml"] == "not a plain file"


def test_a_folder_that_became_a_link_is_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "src"
    worktree(folder, {"a/x.yaml": "1", "b.yaml": "2"})
    write(tmp_path / "elsewhere", {"x.yaml": "secret"})
    shutil.rmtree(folder / "a")
    (folder / "a").symlink_to(tmp_path / "elsewhere")
    snapshot = open_source(str(folder)).snapshot()
    assert paths(snapshot) == ["b.yaml"]
    assert snapshot.revision.dirty
    with pytest.raises(SourceError, match="no folder a"):
        open_source(str(folder)).snapshot("a")


def test_a_source_that_would_fill_the_memory_is_refused(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SNAPSHOT", 5)
    with pytest.raises(SourceError, match="MiB of YAML"):
        open_source(str(repository)).snapshot()


# --- a directory ---------------------------------------------------------------------------------


def test_a_plain_directory_has_no_revision_and_runs_no_git(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "src", {"a.yaml": "1"})
    monkeypatch.setenv("PATH", "/nonexistent")
    snapshot = open_source(str(tmp_path / "src")).snapshot()
    assert (snapshot.revision, snapshot.branch, paths(snapshot)) == (Revision(""), None, ["a.yaml"])


def test_a_plain_directory_has_moved_when_its_files_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a"
    write(folder, {"a.yaml": "1", "b/c.yaml": "2", "templates/x": "3"})
    (tmp_path / "current").symlink_to(folder)
    monkeypatch.setattr(trees, "YOUNG", -(10**12))  # nothing is
    opened = open_source(str(tmp_path / "current"))
    assert opened.poll().kind == "moved"
    opened.snapshot()
    changes: list[Callable[[], object]] = [
        lambda: write(folder, {"b/c.yaml": "22"}),
        lambda: write(folder, {"new.yaml": "1"}),
        lambda: write(folder, {"new.yaml": None}),
        lambda: (folder / "a.yaml").rename(folder / "d.yaml"),
        lambda: os.utime(folder / "d.yaml", ns=(1, 1)),
        lambda: shutil.copytree(folder, tmp_path / "b"),
    ]
    for change in changes:
        change()
        if change is changes[-1]:  # the link is flipped
            (tmp_path / "current").unlink()
            (tmp_path / "current").symlink_to(tmp_path / "b")
        assert [opened.poll().kind for _ in range(2)] == ["moved", "unchanged"]
    write(tmp_path / "b", {"templates/x": "4"})  # nobody reads it
    assert opened.poll().kind == "unchanged"
    shutil.rmtree(tmp_path / "b")
    with pytest.raises(SourceError, match="no such directory"):
        opened.poll()


def test_a_file_that_was_just_written_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trees, "YOUNG", 10**12)
    write(tmp_path, {"a.yaml": "1"})
    opened = open_source(str(tmp_path))
    opened.snapshot()
    assert opened.poll().kind == "moved"  # within a tick of the clock it might have changed again
    os.utime(tmp_path / "a.yaml", ns=(1, 1))
    opened.snapshot()
    assert opened.poll().kind == "unchanged"


def test_reading_a_work_tree_does_not_import_gitpython(tmp_path: Path) -> None:
    worktree(tmp_path / "src", {"a.yaml": "1"})
    script = (
        "import sys; from gitops_mcp.git.gitrepo import open_source;"
        f"open_source({str(tmp_path / 'src')!r}).snapshot(); print('git' in sys.modules)"
    )
    root = ROOT
    out = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True
    )
    assert out.stdout == "False\n"


CHANGES = {
    "edited": ({"a.yaml": "2\n"}, True),
    "new": ({"new.yaml": "1\n"}, True),
    "removed": ({"a.yaml": None}, True),
    "new text file": ({"note.txt": "1\n"}, False),
    "edited text file": ({"read.me": "2\n"}, False),
    "ignored": ({"build/out.yaml": "1\n"}, False),
    "hidden": ({".x/a.yaml": "1\n"}, False),
    "windows line ends": ({"a.yaml": "1\r\n"}, False),
    "same": ({"a.yaml": "1\n"}, False),
}


@pytest.mark.parametrize(("files", "dirty"), CHANGES.values(), ids=CHANGES.keys())
def test_a_work_tree_is_dirty_when_what_is_read_differs_from_head(
    tmp_path: Path, files: dict[str, str | None], dirty: bool
) -> None:
    folder = tmp_path / "src"
    start = {"a.yaml": "1\n", "b.yaml": "1\n", "read.me": "1\n", ".gitignore": "build/\n"}
    sha = worktree(folder, start)
    write(folder, files)
    snapshot = open_source(str(folder)).snapshot()
    assert snapshot.revision == Revision(sha, dirty=dirty)
    assert snapshot.branch == "main"
    assert "build/out.yaml" not in paths(snapshot)


def test_a_change_outside_the_path_leaves_it_clean(tmp_path: Path) -> None:
    worktree(tmp_path, {"a/x.yaml": "1", "b/x.yaml": "1"})
    write(tmp_path, {"b/x.yaml": "2"})
    assert not open_source(str(tmp_path)).snapshot("a").revision.dirty
    assert open_source(str(tmp_path)).snapshot("b").revision.dirty


def test_a_staged_but_uncommitted_change_is_dirty(tmp_path: Path) -> None:
    worktree(tmp_path, {"a.yaml": "1"})
    write(tmp_path, {"a.yaml": "2"})
    git(tmp_path, "add", "a.yaml")
    assert open_source(str(tmp_path)).snapshot().revision.dirty


def test_a_folder_of_a_work_tree_is_a_source_of_its_own(tmp_path: Path) -> None:
    sha = worktree(tmp_path, {"fleet/a.yaml": "1", "other.yaml": "2", "fleet/p/b.yaml": "3"})
    lying = open_source(str(tmp_path / "fleet")).snapshot()
    committed = open_source(str(tmp_path / "fleet"), ref="HEAD").snapshot()
    assert paths(lying) == paths(committed) == ["a.yaml", "p/b.yaml"]
    assert lying.revision == committed.revision == Revision(sha)
    assert paths(open_source(str(tmp_path / "fleet"), ref="HEAD").snapshot("p")) == ["p/b.yaml"]


def test_an_ignored_folder_is_read_as_a_plain_directory(tmp_path: Path) -> None:
    worktree(tmp_path, {".gitignore": "build/\n"})
    write(tmp_path, {"build/a.yaml": "1"})
    snapshot = open_source(str(tmp_path / "build")).snapshot()
    assert (snapshot.revision, paths(snapshot)) == (Revision(""), ["a.yaml"])


def test_what_a_sparse_checkout_leaves_out_is_skipped_not_missing(tmp_path: Path) -> None:
    sha = worktree(tmp_path, {"a/x.yaml": "1", "b/x.yaml": "1"})
    git(tmp_path, "sparse-checkout", "set", "a")
    snapshot = open_source(str(tmp_path)).snapshot()
    assert snapshot.skipped == (("b/x.yaml", "not checked out (sparse checkout)"),)
    assert snapshot.revision == Revision(sha)


def test_another_repository_inside_is_named(tmp_path: Path) -> None:
    worktree(tmp_path, {"a.yaml": "1"})
    worktree(tmp_path / "inner", {"b.yaml": "1"})
    snapshot = open_source(str(tmp_path)).snapshot()
    assert paths(snapshot) == ["a.yaml"]
    assert snapshot.skipped == (("inner", "another git repository is not read"),)


def test_a_ref_of_a_directory_is_read_instead_of_what_lies_there(tmp_path: Path) -> None:
    first = worktree(tmp_path, {"a.yaml": "1"})
    commit_all(tmp_path, {"a.yaml": "2"})
    write(tmp_path, {"a.yaml": "3"})
    opened = open_source(str(tmp_path), ref=first[:9])
    snapshot = opened.snapshot()
    assert content(opened) == b"1"
    assert (snapshot.revision, snapshot.branch) == (Revision(first), None)


def test_a_linked_work_tree_and_a_detached_head_are_read(tmp_path: Path) -> None:
    sha = worktree(tmp_path / "main", {"a.yaml": "1"})
    git(tmp_path / "main", "worktree", "add", "--quiet", "--detach", str(tmp_path / "linked"))
    snapshot = open_source(str(tmp_path / "linked")).snapshot()
    assert (snapshot.revision, snapshot.branch) == (Revision(sha), None)
    # git-sync flips a symbolic link to such a work tree.
    (tmp_path / "current").symlink_to(tmp_path / "linked")
    source = open_source(str(tmp_path / "current"), ref="HEAD")
    assert source.poll().new == sha
    newer = commit_all(tmp_path / "main", {"a.yaml": "2"})
    git(tmp_path / "main", "worktree", "add", "--quiet", "--detach", str(tmp_path / "next"))
    (tmp_path / "current").unlink()
    (tmp_path / "current").symlink_to(tmp_path / "next")
    assert source.poll().new == newer
    assert content(source) == b"2"


def test_a_work_tree_whose_repository_is_gone_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, {"a.yaml": "1", ".git": "gitdir: /nowhere/repo\n"})
    with pytest.raises(SourceError, match="not a git repository: /nowhere/repo"):
        open_source(str(tmp_path)).snapshot()


def test_a_repository_without_commits_is_read_as_it_lies(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    write(tmp_path, {"a.yaml": "1"})
    snapshot = open_source(str(tmp_path)).snapshot()
    assert (snapshot.revision, paths(snapshot)) == (Revision("", dirty=True), ["a.yaml"])


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_repository_of_another_user_can_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "src"
    sha = worktree(folder, {"a.yaml": "1"})
    for path in (folder, folder / ".git"):
        os.chown(path, 12345, 12345)
    assert open_source(str(folder)).snapshot().revision == Revision(sha)


@pytest.mark.parametrize("variable", ["GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"])
def test_a_hooks_environment_does_not_lead_astray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    sha = worktree(tmp_path, {"a.yaml": "1"})
    monkeypatch.setenv(variable, "/nonexistent")
    assert open_source(str(tmp_path)).snapshot().revision == Revision(sha)


def test_a_hooks_environment_does_not_lead_astray_what_talks_to_a_server(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha = commit(repository, {"a.yaml": "1"})
    with GitServer(repository.parent) as server:
        for name in ("GIT_DIR", "GIT_OBJECT_DIRECTORY", "GIT_QUARANTINE_PATH", "GIT_INDEX_FILE"):
            monkeypatch.setenv(name, str(tmp_path / "elsewhere"))
        with open_source(f"{server.url}/{repository.name}") as opened:
            assert opened.snapshot().revision == Revision(sha)
    assert not (tmp_path / "elsewhere").exists()


def test_a_missing_git_is_an_error_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worktree(tmp_path, {"a.yaml": "1"})
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(SourceError, match="git is not installed"):
        open_source(str(tmp_path)).snapshot()


# --- what a repository brings along never runs -------------------------------------------------


def test_nothing_that_a_work_tree_configures_is_run(tmp_path: Path) -> None:
    folder = tmp_path / "src"
    worktree(folder, {"a.yaml": "1", ".gitattributes": "*.yaml filter=evil diff=evil\n"})
    marker = tmp_path / "ran"
    evil = tmp_path / "evil"
    evil.write_text(f"#!/bin/sh\ntouch {marker}\ncat\n")
    evil.chmod(0o755)
    hooks = folder / ".git/hooks"
    hooks.mkdir()
    for hook in ("post-index-change", "reference-transaction", "post-checkout", "fsmonitor"):
        shutil.copy(evil, hooks / hook)
    for key in (
        "core.fsmonitor",
        "filter.evil.clean",
        "filter.evil.smudge",
        "filter.evil.process",
        "diff.evil.textconv",
        "diff.external",
        "core.pager",
        "core.sshCommand",
        "gpg.program",
    ):
        git(folder, "config", key, str(evil))
    git(folder, "config", "log.showSignature", "true")
    write(folder, {"a.yaml": "2"})
    source = open_source(str(folder))
    assert source.snapshot().revision.dirty
    head = open_source(str(folder), ref="HEAD")
    assert paths(head.snapshot()) == ["a.yaml"]
    head.commits_between("", head.poll().new)
    head.base("HEAD")
    assert not marker.exists()


def test_a_partial_clone_is_not_completed_while_it_is_read(tmp_path: Path) -> None:
    origin = bare(tmp_path / "origin.git")
    commit(origin, {"a.yaml": "1"})
    git(origin, "config", "uploadpack.allowFilter", "true")
    clone = ("clone", "-q", "--bare", "--filter=blob:none", f"file://{origin}", "part.git")
    git(tmp_path, *clone)
    marker = tmp_path / "ran"
    git(tmp_path / "part.git", "config", "remote.origin.uploadpack", f"touch {marker};")
    with pytest.raises(SourceError, match="this partial clone lacks the files"):
        open_source(str(tmp_path / "part.git")).snapshot()
    assert not marker.exists()


@pytest.mark.parametrize(
    "location",
    [
        "ext::sh -c touch% /tmp/x",
        "ext://sh",
        "fd::17",
        "file:///srv/x.git",
        "git://example.com/x",
        "ftp://example.com/x",
        "ssh://-oProxyCommand=x/y",
        "https:///x.git",
        "https://h:port/x",
        "-oProxyCommand=x:y",
    ],
)
def test_an_address_that_git_should_not_open_is_refused(location: str) -> None:
    with pytest.raises(SourceError):
        open_source(location)


@pytest.mark.parametrize("name", ["-x", "--upload-pack=touch ran", "a b", "ü", "a:b", "x%41"])
def test_a_local_name_is_only_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    commit(bare(tmp_path / "src"), {"a.yaml": "1"})
    worktree(tmp_path / "tree", {"a.yaml": "1"})
    (tmp_path / "src").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert paths(open_source(name).snapshot()) == ["a.yaml"]
    shutil.rmtree(tmp_path / name)
    (tmp_path / "tree").rename(tmp_path / name)
    assert paths(open_source(name).snapshot()) == ["a.yaml"]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("ref", ["--output=ran", "-n", "--all", "main:a.yaml", "..", "main^{tree}"])
def test_a_ref_is_only_a_ref(repository: Path, ref: str) -> None:
    with pytest.raises(SourceError, match="no branch, tag or commit"):
        open_source(str(repository), ref=ref).snapshot()


# --- branches, tags, commits -------------------------------------------------------------------


def test_a_branch_tag_or_commit_is_found(repository: Path) -> None:
    first = git(repository, "rev-parse", "main")
    git(repository, "tag", "light", first)
    git(repository, "tag", "-a", "-m", "note", "heavy", first)
    second = commit(repository, {"web.yaml": "2"})
    other = commit(repository, {"web.yaml": "3"}, branch="release/1.0")
    expected = {
        "light": (first, None),
        "heavy": (first, None),
        first: (first, None),
        first[:8]: (first, None),
        "main~1": (first, None),
        "main": (second, "main"),
        "HEAD": (second, None),
        "refs/heads/main": (second, "main"),
        "heads/main": (second, "main"),
        "release/1.0": (other, "release/1.0"),
    }
    found = {}
    for ref in expected:
        snapshot = open_source(str(repository), ref=ref).snapshot()
        found[ref] = (snapshot.revision.sha, snapshot.branch)
    assert found == expected
    assert open_source(str(repository), branch="release/1.0").snapshot().branch == "release/1.0"
    assert open_source(str(repository)).snapshot().branch == "main"


@pytest.mark.parametrize("option", [{"ref": "nope"}, {"branch": "nope"}])
def test_what_is_not_there_is_named_with_what_is(repository: Path, option: dict[str, str]) -> None:
    with pytest.raises(SourceError, match="nope") as caught:
        open_source(str(repository), **option).snapshot()  # type: ignore[arg-type]
    assert caught.value.hint == "branches: main"


def test_options_that_make_no_sense_together_are_refused(tmp_path: Path, repository: Path) -> None:
    write(tmp_path / "plain", FILES)
    with pytest.raises(UsageError, match="exclude each other"):
        open_source(str(repository), ref="a", branch="b")
    with pytest.raises(UsageError, match="--branch is for"):
        open_source(str(tmp_path / "plain"), branch="b")
    with pytest.raises(SourceError, match="--ref has no meaning"):
        open_source(str(tmp_path / "plain"), ref="b")
    with pytest.raises(UsageError, match="unprintable"):
        open_source("a\nb")
    with pytest.raises(SourceError, match="no such directory"):
        open_source(str(tmp_path / "nowhere"))


# --- polling -------------------------------------------------------------------------------------


@pytest.fixture(params=["path", "file", "http"])
def source(request: pytest.FixtureRequest, repository: Path) -> Iterator[Opener]:
    """The same bare repository: by its path, as a file:// address, and over HTTP."""
    if request.param == "http":
        with GitServer(repository.parent) as server:
            yield lambda **options: open_source(f"{server.url}/{repository.name}", **options)
    else:
        where = str(repository) if request.param == "path" else f"file://{repository}"
        yield lambda **options: open_source(where, allow_file=True, **options)


def test_poll_sees_commits_force_pushes_and_deletions(source: Opener, repository: Path) -> None:
    first = git(repository, "rev-parse", "main")
    with source(branch="main") as opened:
        assert opened.poll() == gitrepo.Poll("moved", "", first)
        assert opened.poll() == gitrepo.Poll("unchanged", first, first)
        second = commit(repository, {"web.yaml": "2"})
        assert opened.snapshot().revision.sha == first  # until the next look
        assert opened.poll() == gitrepo.Poll("moved", first, second)
        assert content(opened) == b"2"
        forced = commit(repository, {"web.yaml": "3"}, parent=first)
        assert opened.poll() == gitrepo.Poll("moved", second, forced, forced=True)
        assert paths(opened.snapshot()) == ["apps/db.yml", "apps/x.json", "web.yaml"]
        git(repository, "update-ref", "refs/heads/other", forced)
        git(repository, "update-ref", "-d", "refs/heads/main")
        before = opened.snapshot()
        gone = opened.poll()
        assert gone == gitrepo.Poll("deleted", forced)
        assert "no branch main" in str(gone.error)
        with pytest.raises(SourceError, match="no branch main"):
            opened.snapshot()
        assert content(opened, before) == b"3"  # what was read stays good
        git(repository, "update-ref", "refs/heads/main", forced)
        assert opened.poll() == gitrepo.Poll("moved", forced, forced)
        assert opened.snapshot().revision.sha == forced


def test_a_source_says_which_branch_it_follows(source: Opener, repository: Path) -> None:
    git(repository, "tag", "live", "main")
    for option, unasked, asked in (
        ({}, None, "main"),
        ({"branch": "main"}, "main", "main"),
        ({"ref": "main"}, None, "main"),
        ({"ref": "live"}, None, None),
    ):
        with source(**option) as opened:
            assert opened.branch == unasked
            opened.poll()
            assert opened.branch == asked


def test_poll_follows_the_default_branch(source: Opener, repository: Path) -> None:
    with source() as opened:
        assert opened.snapshot().branch == "main"
        other = commit(repository, {"web.yaml": "2"}, branch="trunk")
        git(repository, "symbolic-ref", "HEAD", "refs/heads/trunk")
        assert opened.poll().new == other
        assert opened.snapshot().branch == "trunk"


def test_a_branch_may_take_the_place_of_a_folder_of_branches(
    source: Opener, repository: Path
) -> None:
    sha = git(repository, "rev-parse", "main")
    with source() as opened:
        opened.poll()
        git(repository, "branch", "-m", "main", "trunk")
        git(repository, "branch", "-m", "trunk", "main/next")
        assert opened.poll() == gitrepo.Poll("unchanged", sha, sha)
        assert opened.snapshot().branch == "main/next"


def test_a_tag_named_as_the_branch_changes_nothing(source: Opener, repository: Path) -> None:
    git(repository, "tag", "main", "main")
    moved = commit(repository, {"web.yaml": "2"})
    with source() as opened:
        snapshot = opened.snapshot()
        assert (snapshot.revision.sha, snapshot.branch) == (moved, "main")


def test_poll_follows_a_moving_tag_and_stays_on_a_commit(source: Opener, repository: Path) -> None:
    first = git(repository, "rev-parse", "main")
    git(repository, "tag", "live", first)
    with source(ref="live") as tag, source(ref=first) as fixed, source(ref=first[:10]) as short:
        assert [opened.poll().new for opened in (tag, fixed, short)] == [first] * 3
        second = commit(repository, {"web.yaml": "2"})
        git(repository, "tag", "-f", "live", second)
        assert tag.poll() == gitrepo.Poll("moved", first, second)
        assert fixed.poll().kind == short.poll().kind == "unchanged"
        git(repository, "tag", "-d", "live")
        assert tag.poll() == gitrepo.Poll("deleted", second)


def test_an_empty_repository_is_no_empty_fleet(source: Opener, repository: Path) -> None:
    git(repository, "update-ref", "-d", "refs/heads/main")
    with source() as opened:
        assert opened.poll() == gitrepo.Poll("empty")
        with pytest.raises(SourceError, match="there is no commit yet"):
            opened.snapshot()
        sha = commit(repository, {"a.yaml": "1"})
        assert opened.poll() == gitrepo.Poll("moved", "", sha)
        assert paths(opened.snapshot()) == ["a.yaml"]


def test_a_bare_repository_that_was_moved_away_is_not_said_to_be_empty(repository: Path) -> None:
    away = repository.with_name("away.git")
    with open_source(str(repository)) as opened:
        sha = opened.poll().new
        repository.rename(away)
        with pytest.raises(SourceError, match=r"fleet\.git: no such directory"):
            opened.poll()
        repository.mkdir()
        with pytest.raises(SourceError, match="not a git repository"):
            opened.poll()
        repository.rmdir()
        away.rename(repository)
        assert opened.poll() == gitrepo.Poll("unchanged", sha, sha)


def test_a_commit_without_manifests_is_an_empty_snapshot(source: Opener, repository: Path) -> None:
    commit(repository, {"README": "x"}, branch="bare", parent="")
    with source(branch="bare") as opened:
        assert opened.snapshot().files == ()


def test_a_branch_that_never_was_is_an_error(source: Opener) -> None:
    with source(branch="nope") as opened, pytest.raises(SourceError, match="no branch nope") as e:
        opened.poll()
    assert "main" in e.value.hint
    with source(ref="nope") as opened, pytest.raises(SourceError, match="no branch, tag or commit"):
        opened.poll()


def test_the_servers_detached_head_is_read(source: Opener, repository: Path) -> None:
    sha = commit(repository, {"web.yaml": "detached"}, branch="side")
    git(repository, "update-ref", "--no-deref", "HEAD", sha)
    with source() as opened:
        assert opened.poll().new == sha


# --- comparing ----------------------------------------------------------------------------------


def test_the_base_is_where_the_branches_parted(source: Opener, repository: Path) -> None:
    fork = git(repository, "rev-parse", "main")
    git(repository, "branch", "topic", fork)
    commit(repository, {"web.yaml": "main moved on"})
    commit(repository, {"web.yaml": "topic"}, branch="topic")
    with source(branch="topic") as opened:
        base = opened.base("main")
        assert (base.revision, content(opened, base)) == (Revision(fork), b"kind: Web\n")
        with pytest.raises(SourceError, match="no branch, tag or commit nope"):
            opened.base("nope")
        commit(repository, {"x.yaml": "1"}, branch="island", parent="")
        with pytest.raises(SourceError, match="no common commit"):
            opened.base("island")


def test_the_base_of_a_directory_may_be_the_remotes_branch(
    tmp_path: Path, repository: Path
) -> None:
    git(tmp_path, "clone", "-q", str(repository), "clone")
    clone = tmp_path / "clone"
    git(clone, "checkout", "-q", "-b", "topic")
    git(clone, "branch", "-q", "-D", "main")
    commit_all(clone, {"web.yaml": "topic"})
    opened = open_source(str(clone))
    assert content(opened, opened.base("main")) == b"kind: Web\n"
    assert content(open_source(str(clone), ref="main")) == b"kind: Web\n"


def test_a_shallow_clone_is_told_how_to_get_the_base(tmp_path: Path, repository: Path) -> None:
    git(repository, "branch", "topic")
    commit(repository, {"web.yaml": "m"})
    commit(repository, {"web.yaml": "t"}, branch="topic")
    options = ("clone", "-q", "--depth=1", "--no-single-branch", f"file://{repository}", "clone")
    git(tmp_path, *options)
    with pytest.raises(SourceError) as caught:
        open_source(str(tmp_path / "clone")).base("origin/topic")
    assert caught.value.hint == "this clone is shallow: git fetch --unshallow"


def test_a_source_says_which_repository_it_is(source: Opener, repository: Path) -> None:
    with source() as opened:
        first = opened.roots()
        assert first == (git(repository, "rev-parse", "main"),)
        commit(repository, {"x.yaml": "1"})
        assert opened.poll().kind == "moved"
        assert opened.roots() == first
        other = commit(repository, {"y.yaml": "1"}, branch="other", parent="")
        git(repository, "config", "user.name", "Ada")
        merged = git(
            repository, "commit-tree", "-p", "main", "-p", other, "-m", "Join", "main^{tree}"
        )
        git(repository, "update-ref", "refs/heads/main", merged)
        assert opened.poll().kind == "moved"
        assert opened.roots() == tuple(sorted((*first, other)))
        assert [opened.knows(each) for each in (merged, other)] == [True, True]
        assert not any(opened.knows(each) for each in ("0" * 40, "main", ""))
        assert opened.remembers(other)
        alone = commit(repository, {"z.yaml": "1"}, parent="")
        assert opened.poll().forced
        assert opened.roots() == (alone,)
        assert opened.remembers(alone)
        assert not any(opened.remembers(each) for each in (merged, "0" * 40))
        assert [opened.may_hold(each) for each in (alone, "0" * 40, "")] == [True, False, True]


def test_a_directory_says_which_repository_it_is(tmp_path: Path, repository: Path) -> None:
    assert open_source(str(repository)).address == str(repository)
    clone = tmp_path / "clone"
    head = worktree(clone, FILES)
    opened = open_source(str(clone / "apps"))
    assert (opened.address, opened.roots()) == (str(clone / "apps"), (head,))
    assert opened.knows(head)
    git(clone, "remote", "add", "origin", f"https://ada:{SECRET}@git.example.com/fleet.git")
    assert open_source(str(clone)).address == "https://git.example.com/fleet.git"


def test_a_clone_without_its_whole_history_has_no_known_roots(
    tmp_path: Path, repository: Path
) -> None:
    commit(repository, {"x.yaml": "1"})
    git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{repository}", "shallow")
    shallow = open_source(str(tmp_path / "shallow"))
    assert (shallow.roots(), shallow.may_hold("0" * 40)) == ((), True)
    plain = tmp_path / "plain"
    write(plain, FILES)
    assert (open_source(str(plain)).roots(), open_source(str(plain)).knows("0" * 40)) == ((), False)
    assert not open_source(str(plain)).may_hold("0" * 40)
    empty = tmp_path / "empty"
    empty.mkdir()
    git(empty, "init", "--quiet")
    assert open_source(str(empty)).roots() == ()


def test_commits_between_carry_the_prune_trailer(repository: Path) -> None:
    start = git(repository, "rev-parse", "main")
    commit(repository, {"a.yaml": "1"}, "Add a\n\nAllow-Prune: 3")
    commit(repository, {"a.yaml": "2"}, "Talk\n\nAllow-Prune: 9 is only mentioned here\n\nBye.")
    end = commit(repository, {"a.yaml": "3"}, "Drop\n\nWhy.\n\nSigned-off-by: A\nallow-prune: 12")
    opened = open_source(str(repository))
    expected = [("Drop", 12), ("Talk", None), ("Add a", 3)]
    found = opened.commits_between(start, end)
    assert [(c.subject, c.allow_prune) for c in found] == expected
    assert found[0].sha == end
    assert opened.commits_between(end, end) == ()


SQUASHED = {
    "github": "Retire search (#12)\n\n* Remove three\n\nAllow-Prune: 3\n\n* Fix a typo\n\n"
    "---------\n\nCo-authored-by: Ada <ada@example.com>",
    "github, one commit": "Retire (#12)\n\nAllow-Prune: 3\n\nCo-authored-by: Ada <a@example.com>",
    "gitlab": "Retire\n\nAllow-Prune: 3\n\nSee merge request ops/fleet!12",
    "gitlab, one paragraph": "Retire\n\nAllow-Prune: 3\nSee merge request ops/fleet!12",
    "gitea": "Retire (#12)\n\nAllow-Prune: 3\n---------\n\nCo-authored-by: Ada <ada@example.com>",
    "crlf and case": "Retire\r\n\r\nWhy.\r\n\r\nallow-PRUNE:3 \r\nSigned-off-by: Ada\r\n",
    "twice the same": "Retire\n\nAllow-Prune: 3\n\nAllow-Prune: 3",
}


@pytest.mark.parametrize("message", SQUASHED.values(), ids=SQUASHED)
def test_a_prune_trailer_survives_the_squash_buttons_of_forges(message: str) -> None:
    assert trailers.allow_prune(message) == (3, ())


@pytest.mark.parametrize(
    ("message", "ignored"),
    [
        ("Retire\n\nAllow-Prune: 3 servers", ("Allow-Prune: 3 servers",)),
        ("Retire\n\nAllow-Prune: three", ("Allow-Prune: three",)),
        ("Retire\n\nAllow Prune: 3", ("Allow Prune: 3",)),
        ("Retire\n\n* Allow-Prune: 3", ("* Allow-Prune: 3",)),
        ("Retire\n\nAllow-Prune: 3\nas we said.", ("Allow-Prune: 3",)),
        ("Allow-Prune: 3", ("Allow-Prune: 3",)),
        ("Two\n\nAllow-Prune: 3\n\nAllow-Prune: 4", ("Allow-Prune: 3", "Allow-Prune: 4")),
        ("Retire\n\nWe allow no prune.", ()),
    ],
)
def test_what_only_looks_like_a_prune_trailer_is_named(
    message: str, ignored: tuple[str, ...]
) -> None:
    assert trailers.allow_prune(message) == (None, ignored)


@pytest.mark.parametrize("old", ["", "0" * 40, "--all", "other"])
def test_without_a_known_ancestor_only_head_counts(repository: Path, old: str) -> None:
    other = commit(repository, {"a.yaml": "1"}, branch="other", parent="")
    end = commit(repository, {"a.yaml": "1"}, "Now\n\nAllow-Prune: 2")
    found = open_source(str(repository)).commits_between(other if old == "other" else old, end)
    assert found == (history.Commit(end, "Now", 2),)


# --- servers --------------------------------------------------------------------------------------


def test_a_password_opens_the_server_and_shows_nowhere(tmp_path: Path, repository: Path) -> None:
    (tmp_path / "password").write_text(f"{SECRET}\n")
    with GitServer(repository.parent, password=SECRET) as server:
        address = f"{server.url}/{repository.name}"
        host = address.removeprefix("http://")
        for location, credentials in (
            (address, Credentials(password=SECRET)),
            (address, Credentials(password_file=tmp_path / "password")),
            (f"http://ada:{SECRET}@{host}", None),
            (f"http://{SECRET}@{host}", None),
        ):
            with open_source(location, credentials=credentials) as opened:
                snapshot = opened.snapshot()
                assert len(snapshot.files) == 3
                assert snapshot.root == address
                assert SECRET not in repr(credentials) + repr(vars(opened))


def test_a_token_that_changes_is_used_at_the_next_poll(
    tmp_path: Path, repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    token = tmp_path / "token"
    token.write_text(f"{SECRET}\n")
    with GitServer(repository.parent, password=SECRET) as server:
        credentials = Credentials(username="bot", password_file=token)
        with open_source(f"{server.url}/{repository.name}", credentials=credentials) as opened:
            before = opened.snapshot()
            server.password = f"{SECRET}-rotated"
            moved = commit(repository, {"web.yaml": "2"})
            with pytest.raises(SourceError, match="refused the credentials") as refused:
                opened.poll()
            assert opened.snapshot() is before
            token.unlink()
            with pytest.raises(SourceError, match="password file cannot be read") as missing:
                opened.poll()
            token.write_text(f"{SECRET}-rotated\n")
            assert opened.poll().new == moved
            assert content(opened) == b"2"
    for shown in (caplog.text, repr(refused.value), repr(missing.value), repr(credentials)):
        assert SECRET not in shown


def test_refused_credentials_are_one_line_without_the_password(repository: Path) -> None:
    with GitServer(repository.parent, password="other") as server:
        host = server.url.removeprefix("http://")
        for location in (server.url, f"http://ada:{SECRET}@{host}"):
            with pytest.raises(SourceError, match="refused the credentials") as caught:
                open_source(f"{location}/{repository.name}").poll()
            assert SECRET not in str(caught.value) + caught.value.hint


def test_a_password_does_not_follow_a_redirect(repository: Path) -> None:
    with (
        GitServer(repository.parent, password=SECRET) as thief,
        GitServer(repository.parent, redirect=thief.url) as server,
        open_source(
            f"{server.url}/{repository.name}", credentials=Credentials(password=SECRET)
        ) as opened,
    ):
        with pytest.raises(SourceError):
            opened.poll()
        assert thief.seen
        assert all(request.authorization is None for request in thief.seen)


def test_a_password_is_never_an_argument(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.which("git")
    log = tmp_path / "argv"
    wrapper = tmp_path / "bin/git"
    write(tmp_path, {"bin/git": f'#!/bin/sh\nprintf "%s\\n" "$*" >> {log}\nexec {real} "$@"\n'})
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
    with GitServer(repository.parent, password=SECRET) as server:
        host = server.url.removeprefix("http://")
        with open_source(f"http://ada:{SECRET}@{host}/{repository.name}") as opened:
            opened.snapshot()
    assert "ls-remote" in log.read_text()
    assert SECRET not in log.read_text()


@pytest.mark.parametrize("style", ["ada@fleet.example:{}", "ssh://ada@fleet.example:2222{}"])
def test_ssh_asks_nothing_and_uses_the_key_it_was_given(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, style: str
) -> None:
    log = tmp_path / "argv"
    # Stands in for ssh: logs its arguments and runs the last one here.
    script = f'#!/bin/sh\nprintf "%s\\n" "$*" >> {log}\nfor last; do :; done\neval "$last"\n'
    write(tmp_path, {"bin/ssh": script})
    (tmp_path / "bin/ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    write(tmp_path, {"keys/my id": f"{SECRET}\n", "keys/hosts": ""})
    folder = tmp_path / "keys"
    keys = Credentials(ssh_key=folder / "my id", known_hosts=folder / "hosts")
    location = style.format(repository)
    with open_source(location, credentials=keys) as opened:
        assert len(opened.snapshot().files) == 3
        assert opened.root == location
    arguments = log.read_text().splitlines()[0]
    assert "-oBatchMode=yes" in arguments
    assert f"-i {folder}/my id -oIdentitiesOnly=yes" in arguments
    assert f"-oUserKnownHostsFile={folder}/hosts -oStrictHostKeyChecking=yes" in arguments
    assert "ada@fleet.example" in arguments
    monkeypatch.setenv("GIT_SSH_COMMAND", f"{tmp_path / 'bin/ssh'} --own")
    with open_source(location) as opened:
        opened.poll()
    assert "--own" in log.read_text().splitlines()[-1]


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ({"ssh_key": Path("/nosuch")}, "the git ssh key /nosuch cannot be read: No such file"),
        ({"known_hosts": Path("/nosuch")}, "the git ssh known_hosts file /nosuch cannot be read"),
    ],
)
def test_an_ssh_file_that_is_not_there_is_named(missing: dict[str, Path], says: str) -> None:
    keys = Credentials(**missing)  # type: ignore[arg-type]
    with (
        pytest.raises(SourceError, match=says),
        open_source("ssh://git@127.0.0.1:1/fleet.git", credentials=keys) as opened,
    ):
        opened.snapshot()


def test_a_missing_repository_is_named(repository: Path) -> None:
    with (
        GitServer(repository.parent) as server,
        open_source(f"{server.url}/nope.git") as opened,
        pytest.raises(SourceError, match="there is no such git repository"),
    ):
        opened.poll()


def test_an_unreachable_server_is_an_error_and_the_last_snapshot_stays(repository: Path) -> None:
    with GitServer(repository.parent) as server:
        opened = open_source(f"{server.url}/{repository.name}")
        before = opened.snapshot()
    with pytest.raises(SourceError, match="does not answer"):
        opened.poll()
    assert opened.snapshot() is before
    opened.close()


@pytest.mark.parametrize(
    ("trouble", "message"), [(503, "does not answer"), (429, "limits how often"), (403, "refused")]
)
def test_a_server_in_trouble_loses_nothing(repository: Path, trouble: int, message: str) -> None:
    first = git(repository, "rev-parse", "main")
    with (
        GitServer(repository.parent) as server,
        open_source(f"{server.url}/{repository.name}") as opened,
    ):
        before = opened.snapshot()
        second = commit(repository, {"web.yaml": "2"})
        opened.poll()
        server.trouble = trouble
        forced = commit(repository, {"web.yaml": "3"}, parent=first)
        for _ in range(2):
            with pytest.raises(SourceError, match=message) as caught:
                opened.poll()
            assert caught.value.hint
            assert opened.snapshot().revision.sha == second
            assert content(opened) == b"2"
        server.trouble = 0
        assert opened.poll() == gitrepo.Poll("moved", second, forced, forced=True)
        assert content(opened) == b"3"
        assert content(opened, before) == b"kind: Web\n"  # a rewritten history's, too


@pytest.mark.parametrize("hang", [b"command=ls-refs", b"command=fetch"])
def test_a_server_that_hangs_is_given_up_and_asked_again(
    repository: Path, monkeypatch: pytest.MonkeyPatch, hang: bytes
) -> None:
    with (
        GitServer(repository.parent) as server,
        open_source(f"{server.url}/{repository.name}") as opened,
    ):
        before = opened.snapshot()
        moved = commit(repository, {"web.yaml": "2"})
        server.hang = hang
        with monkeypatch.context() as patch:
            patch.setattr(limits, LIMITS[hang], 1.0)
            with pytest.raises(SourceError, match="took too long"):
                opened.poll()
        assert opened.snapshot() is before
        server.hang = b""
        opened.hurry()
        assert opened.poll() == gitrepo.Poll("moved", before.revision.sha, moved)
        assert content(opened) == b"2"


LIMITS = {b"command=ls-refs": "GIT_ASK_SECONDS", b"command=fetch": "GIT_FETCH_SECONDS"}


def test_a_copy_that_lost_objects_is_fetched_anew(tmp_path: Path, repository: Path) -> None:
    cache = tmp_path / "cache"
    with (
        GitServer(repository.parent) as server,
        open_source(f"{server.url}/{repository.name}", cache_dir=cache) as opened,
    ):
        sha = opened.poll().new
        before = opened.snapshot()
        for folder in cache.glob("*.git/objects/*"):
            shutil.rmtree(folder)
        with pytest.raises(SourceError):
            opened.contents(before.files)
        assert opened.poll() == gitrepo.Poll("moved", "", sha)
        assert opened.snapshot() == before
        assert content(opened) == b"kind: Web\n"


# --- refs and formats --------------------------------------------------------------------------


@pytest.mark.parametrize("option", [{}, {"branch": "main"}, {"ref": "main"}, {"ref": "id"}])
def test_a_sha256_repository_is_read_from_its_server(
    tmp_path: Path, option: dict[str, str]
) -> None:
    folder = tmp_path / "new.git"
    git(tmp_path, "init", "--quiet", "--bare", "--object-format=sha256", "-b", "main", str(folder))
    sha = commit(folder, FILES)
    option = {"ref": sha} if option.get("ref") == "id" else option
    with (
        GitServer(tmp_path) as server,
        open_source(f"{server.url}/new.git", **option) as opened,  # type: ignore[arg-type]
    ):
        assert opened.snapshot().revision.sha == sha
        assert len(sha) == 64
        assert opened.notes().append([], push=True) == ()
        moved = commit(folder, {"web.yaml": "2"})
        if option.get("ref") != sha:
            assert opened.poll().new == moved
            assert opened.commits_between(sha, moved)[0].sha == moved
    with GitServer(tmp_path) as server, open_source(f"{server.url}/new.git") as opened:
        assert opened.notes().fetch() == ""  # history asks for nothing else


def test_a_repository_that_is_made_anew_in_another_format_is_followed(
    tmp_path: Path, repository: Path
) -> None:
    with (
        GitServer(tmp_path) as server,
        open_source(f"{server.url}/{repository.name}") as opened,
    ):
        old = opened.poll().new
        shutil.rmtree(repository)
        command = ("init", "--quiet", "--bare", "--object-format=sha256", "-b", "main")
        git(tmp_path, *command, str(repository))
        new = commit(repository, FILES)
        assert opened.poll() == gitrepo.Poll("moved", old, new, forced=True)
        assert opened.snapshot().revision.sha == new


@pytest.mark.parametrize("option", [{}, {"branch": "main"}, {"ref": "main"}, {"ref": "main~1"}])
def test_without_history_a_server_sends_one_commit_until_a_base_is_asked_for(
    repository: Path, option: dict[str, str]
) -> None:
    first = git(repository, "rev-parse", "main")
    git(repository, "branch", "base", first)
    shas = [commit(repository, {"web.yaml": f"{number}"}) for number in range(3)]
    wanted = shas[1] if option.get("ref") == "main~1" else shas[2]
    with (
        GitServer(repository.parent) as server,
        open_source(f"{server.url}/fleet.git", history=False, **option) as opened,  # type: ignore[arg-type]
    ):
        assert opened.snapshot().revision.sha == wanted
        assert opened.knows(shas[0]) == ("ref" in option)
        moved = commit(repository, {"web.yaml": "9"})
        wanted = shas[2] if option.get("ref") == "main~1" else moved
        assert opened.poll().new == wanted
        assert content(opened) == (b"2" if wanted == shas[2] else b"9")
        assert opened.base("base").revision.sha == first
        assert opened.knows(shas[0])


def test_a_tag_with_the_name_of_a_followed_branch_is_an_error(
    source: Opener, repository: Path
) -> None:
    old = git(repository, "rev-parse", "main")
    git(repository, "branch", "prod", "main")
    with source(ref="prod") as opened:
        assert opened.poll().new == old
        new = commit(repository, {"web.yaml": "2"}, branch="prod")
        git(repository, "tag", "prod", old)
        with pytest.raises(
            SourceError, match="prod is the name of a branch and of a tag"
        ) as caught:
            opened.poll()
        assert caught.value.hint == "say heads/prod or tags/prod"
        assert opened.snapshot().revision.sha == old
        git(repository, "tag", "-d", "prod")
        assert opened.poll().new == new
        git(repository, "tag", "prod", old)
    for ref, sha, branch in (("heads/prod", new, "prod"), ("tags/prod", old, None)):
        with source(ref=ref) as opened:
            snapshot = opened.snapshot()
            assert (snapshot.revision.sha, snapshot.branch) == (sha, branch)


@pytest.mark.parametrize("ref", ["refs/pull/7/head", "refs/merge-requests/7/head", "refs/heads/x"])
def test_a_full_ref_of_a_server_is_followed(source: Opener, repository: Path, ref: str) -> None:
    old = commit(repository, {"web.yaml": "2"}, branch="other")
    git(repository, "update-ref", ref, old)
    with source(ref=ref) as opened:
        assert opened.poll().new == old
        new = commit(repository, {"web.yaml": "3"}, branch="other")
        git(repository, "update-ref", ref, new)
        assert opened.poll() == gitrepo.Poll("moved", old, new)
        assert content(opened) == b"3"
        git(repository, "update-ref", "-d", ref)
        found = opened.poll()
        assert (found.kind, found.old) == ("deleted", new)
        git(repository, "update-ref", ref, old)
        assert opened.poll() == gitrepo.Poll("moved", new, old, forced=True)


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "GIT_ASK_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/x.git"
        with (
            open_source(address) as opened,
            pytest.raises(SourceError, match="took too long"),
        ):
            opened.poll()


def test_a_mirror_is_kept_and_shared_where_there_is_a_cache(
    tmp_path: Path, repository: Path
) -> None:
    cache = tmp_path / "cache"
    shas = []

    def read(server: GitServer) -> None:
        with open_source(f"{server.url}/{repository.name}", cache_dir=cache) as opened:
            shas.append(opened.poll().new)

    with GitServer(repository.parent) as server:
        threads = [threading.Thread(target=read, args=(server,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert shas == [git(repository, "rev-parse", "main")] * 4
        server.seen.clear()
        read(server)
        assert not any(request.path.endswith("git-upload-pack") for request in server.seen[2:])
        (mirror,) = cache.glob("*.git")
        (mirror / "HEAD").unlink()
        newer = commit(repository, {"web.yaml": "2"})
        read(server)
        (mirror / "refs/heads/main.lock").touch()  # a process was killed, long ago
        os.utime(mirror / "refs/heads/main.lock", (0, 0))
        newest = commit(repository, {"web.yaml": "3"})
        read(server)
    assert shas[-2:] == [newer, newest]


def test_a_temporary_mirror_is_removed(repository: Path) -> None:
    with GitServer(repository.parent) as server:
        opened = open_source(f"{server.url}/{repository.name}")
        opened.poll()
        assert opened._mirror is not None
        folder = Path(opened._mirror.folder)
        assert folder.is_dir()
        opened.close()
        assert not folder.parent.exists()


@pytest.mark.parametrize("pushes", [0, 1], ids=["idle", "busy"])
def test_a_mirror_is_tidied_also_where_every_look_brings_a_commit(
    repository: Path, monkeypatch: pytest.MonkeyPatch, pushes: int
) -> None:
    monkeypatch.setattr(gitmirror, "TIDY_BUSY" if pushes else "TIDY_AFTER", 12)
    with (
        GitServer(repository.parent) as server,
        open_source(f"{server.url}/{repository.name}") as opened,
    ):
        opened.poll()
        assert opened._mirror is not None
        mirror = Path(opened._mirror.folder)
        for setting in ("gc.autoPackLimit=2", "gc.autoDetach=false", "fetch.unpackLimit=1"):
            git(mirror, "config", *setting.split("="))
        for number in range(4):
            commit(repository, {"web.yaml": f"{number}"})
            opened.poll()
        assert len([*mirror.glob("objects/pack/*.pack")]) > 3
        for number in range(12):
            if pushes:
                commit(repository, {"web.yaml": f"again {number}"})
            opened.poll()
        assert len([*mirror.glob("objects/pack/*.pack")]) < 12


def test_a_commit_that_no_branch_holds_is_still_fetched_by_its_id(
    source: Opener, repository: Path
) -> None:
    gone = commit(repository, {"web.yaml": "gone"}, branch="topic")
    git(repository, "update-ref", "-d", "refs/heads/topic")
    git(repository, "config", "uploadpack.allowAnySHA1InWant", "true")
    with source(ref=gone) as opened:
        assert content(opened) == b"gone"


def test_a_private_certificate_authority_is_trusted_where_the_operator_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = bare(tmp_path / "served" / "fleet.git")
    sha = commit(repository, {"a.yaml": "a"})
    identity, authority = tmp_path / "server.pem", tmp_path / "ca.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(identity), "-out", str(authority)),
        ],
        check=True,
        capture_output=True,
    )
    identity.write_text(identity.read_text() + authority.read_text())
    with GitServer(repository.parent, tls=identity) as server:
        with (
            open_source(f"{server.url}/fleet.git") as source,
            pytest.raises(SourceError, match="TLS certificate is not trusted") as refused,
        ):
            source.snapshot()
        assert "GIT_SSL_CAINFO" in (refused.value.hint or "")
        monkeypatch.setenv("GIT_SSL_CAINFO", str(authority))
        with open_source(f"{server.url}/fleet.git") as source:
            assert source.snapshot().revision.sha == sha
