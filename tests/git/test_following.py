"""A source followed from commit to commit: the same as one read anew, at the cost of the change."""

from __future__ import annotations

import gc
import json
import random
import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from gitfixtures import GitServer, bare, commit, git, worktree

from gitops_mcp.base.errors import GitOpsError, SourceError
from gitops_mcp.base.names import ServerKey
from gitops_mcp.base.source import Loaded, SourceFile
from gitops_mcp.git import gitcommand, gitmirror, gitrepo
from gitops_mcp.git.gitcommand import Git
from gitops_mcp.source import documents, manifests, terms
from gitops_mcp.source.settings import SourceOptions
from gitops_mcp.sync import reading

pytestmark = pytest.mark.usefixtures("processes")

HEAD = "apiVersion: mcp.example.com/v1alpha1\nkind: MCPServer\n"


def manifest(name: str, *lines: str) -> str:
    head = f"{HEAD}metadata: {{name: {name}}}\n"
    return head + "spec:\n  image: ghcr.io/example/web:1.0\n" + "".join(f"  {x}\n" for x in lines)


# --- random histories -----------------------------------------------------------------------


class Author:
    """Writes commits as people and accidents do: from one seed always the same."""

    FOLDERS = ("", "a/", "b/", "b/c/", "prod/", "templates/", ".hidden/")
    NAMES = tuple(f"web-{number}" for number in range(8))

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.tree: dict[str, str] = {}

    def next(self) -> dict[str, str | None]:
        """The files of one commit; None for one that is gone."""
        changes: dict[str, str | None] = {}
        for _ in range(self.dice.choice((1, 1, 1, 2, 5))):
            self.dice.choice(
                (self.write, self.write, self.write, self.remove, self.rename, self.settle)
            )(changes)
        for path, text in changes.items():
            if text is None:
                del self.tree[path]
            else:
                self.tree[path] = text
        return changes

    def write(self, changes: dict[str, str | None]) -> None:
        ending = self.dice.choice((".yaml", ".yaml", ".yml", ".json", ".txt"))
        path = f"{self.dice.choice(self.FOLDERS)}f{self.dice.randrange(6)}{ending}"
        changes[path] = "---\n".join(self.text() for _ in range(self.dice.choice((1, 1, 1, 2))))

    def text(self) -> str:
        name, number = self.dice.choice(self.NAMES), self.dice.randrange(1, 4)
        return self.dice.choice(
            (
                manifest(name),
                manifest(name),
                manifest(name, f"port: {number}"),
                manifest(name, f"env: [{{name: A, value: '{number}'}}]"),
                manifest(name, "# the same, elsewhere"),
                "\n" * number + manifest(name, f"replicas: {number}"),
                manifest(name, f"port: {number}", "prot: 1"),
                manifest(name, "config: {A: yes}"),
                manifest(name).replace("{name", "{uid: x, name"),
                manifest(name) + "  config: [\n",
                f"{HEAD}spec: {{}}\n",
                f"{HEAD}metadata: {{name: {name}}}\nspec: {{}}\n",
                "kind: [broken\n",
                f"apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\n",
                "just: words\n",
                json.dumps(
                    {
                        "apiVersion": "v1",
                        "kind": "List",
                        "items": [
                            {
                                "apiVersion": "mcp.example.com/v1alpha1",
                                "kind": "MCPServer",
                                "metadata": {"name": self.dice.choice(self.NAMES)},
                                "spec": {"image": "web", "port": number},
                            }
                            for _ in range(2)
                        ],
                    }
                )
                + "\n",
            )
        )

    def remove(self, changes: dict[str, str | None]) -> None:
        there = [path for path in self.tree if path not in changes]
        if there:
            changes[self.dice.choice(there)] = None

    def rename(self, changes: dict[str, str | None]) -> None:
        there = [path for path in self.tree if path not in changes]
        if there:
            path = self.dice.choice(there)
            changes[f"{self.dice.choice(self.FOLDERS)}moved{self.dice.randrange(9)}.yaml"] = (
                self.tree[path]
            )
            changes[path] = None

    def settle(self, changes: dict[str, str | None]) -> None:
        """Something that concerns them all."""
        if self.dice.random() < 0.5:
            return
        number = self.dice.randrange(3)
        path, text = self.dice.choice(
            (
                ("group_vars/all.yaml", f"spec: {{port: {number + 8000}}}\ncolour: c{number}\n"),
                ("group_vars/all.yaml", "spec: {prot: 1}\n"),
                ("group_vars/all.yaml", "a: [\n"),
                ("group_vars/all.yml", f"colour: y{number}\n"),
                ("group_vars/eu.yaml", f"spec: {{config: {{N: '{number}'}}}}\n"),
                ("group_vars/other.yaml", f"spec: {{port: {number}}}\n"),
                ("prod/group_vars/all.yaml", f"spec: {{podLabels: {{n: 'n{number}'}}}}\n"),
                ("gitops-mcp.yaml", f"drain: {{timeout: {number + 1}s}}\n"),
                ("gitops-mcp.yaml", f"sourceId: fleet-{number}\n"),
                ("gitops-mcp.yaml", "path: prod\n"),
                ("gitops-mcp.yaml", "odd: 1\n"),
            )
        )
        changes[path] = text


def told(loaded: Loaded) -> Any:
    """A load, as a value that shows the order of every map and the type of every number."""
    return (
        {
            str(key): (server, json.dumps([server.spec, server.labels, server.annotations]))
            for key, server in loaded.servers.items()
        },
        loaded,
    )


def differing(old: Loaded, new: Loaded) -> set[ServerKey]:
    """What ``changed`` has to say, found by looking at everything."""
    keys = {*old.servers, *old.protected, *new.servers, *new.protected}
    if old.variables != new.variables:
        return keys

    def meaning(loaded: Loaded, key: ServerKey) -> Any:
        server = loaded.servers.get(key)
        return (
            server and server.digest,
            key in loaded.protected,
            {problem for problem in loaded.problems if problem.server == str(key)},
        )

    return {key for key in keys if meaning(old, key) != meaning(new, key)}


class Follower:
    """Reads a source again and again as the agent does, and beside that anew."""

    def __init__(self, options: SourceOptions) -> None:
        self.options = options
        self.repository = reading.open_repository(options)
        self.cache = manifests.Cache()
        self.last: Loaded | None = None
        self.good = 0

    def look(self) -> None:
        self.repository.poll()
        anew = self._read(reading.open_repository(self.options), manifests.Cache())
        followed = self._read(self.repository, self.cache)
        if isinstance(anew, GitOpsError) or isinstance(followed, GitOpsError):
            assert str(followed) == str(anew)
            return
        self.good += 1
        assert followed.snapshot == anew.snapshot
        assert told(followed.loaded) == told(anew.loaded)
        assert (followed.source_id, followed.path) == (anew.source_id, anew.path)
        if self.last is not None:
            expected = differing(self.last, followed.loaded)
            assert manifests.changed(self.last, followed.loaded) == expected
            assert manifests.changed(self.last, anew.loaded) == expected
        self.last = followed.loaded

    def _read(
        self, repository: gitrepo.Repository, cache: manifests.Cache
    ) -> reading.Source | GitOpsError:
        try:
            return reading.read(self.options, repository, cache=cache)
        except GitOpsError as error:
            return error


@pytest.mark.parametrize("path", [None, "prod"])
@pytest.mark.parametrize("seed", range(3))
def test_a_source_that_is_followed_reads_as_one_that_is_read_anew(
    tmp_path: Path, seed: int, path: str | None
) -> None:
    author = Author(seed)
    dice = random.Random(seed)
    work = tmp_path / "clone"
    worktree(work, {"b/README": "a folder of the clone is a source, too"})
    folder = work / ".git"
    tips = [(commit(folder, author.next()), dict(author.tree))]
    followers = [
        Follower(SourceOptions(str(folder), cluster="eu", path=path)),
        Follower(SourceOptions(str(work / "b"), ref="HEAD", cluster="eu", path=path and "c")),
    ]
    for _ in range(30):
        chance = dice.random()
        if chance < 0.1:  # somebody rewrites history: to any former commit, and on from there
            sha, author.tree = dice.choice(tips)
            author.tree = dict(author.tree)
            git(folder, "update-ref", "refs/heads/main", sha)
        elif chance < 0.15:
            author.tree = {}
            commit(folder, author.next(), parent="")
        elif chance < 0.25:
            odd = dice.choice(("link.yaml", "prod/link.yaml", "prod/run.yaml", "a\ab.yaml"))
            commit(folder, {odd: manifest("odd")}, modes={odd: dice.choice(("120000", "100755"))})
            author.tree[odd] = manifest("odd")
        else:
            commit(folder, author.next())
        tips.append((git(folder, "rev-parse", "main"), dict(author.tree)))
        for follower in followers:
            if dice.random() < 0.7:  # else it moves on before anybody has looked
                follower.look()
    for follower in followers:
        follower.look()
    assert min(follower.good for follower in followers) > 5


def test_random_changes_load_as_what_is_loaded_anew() -> None:
    """Without git, and so the faster: what is kept from load to load, against nothing kept."""
    for seed in range(12):
        author, cache, last = Author(seed), manifests.Cache(), Loaded({})
        before: dict[str, SourceFile] = {}
        for step in range(50):
            author.next()
            files = {}
            for path, text in sorted(author.tree.items()):
                file = SourceFile(path, text, text.encode())
                # What a snapshot has in common with the last are the same objects, mostly.
                files[path] = before[path] if before.get(path) == file and step % 7 else file
            before = files
            options: dict[str, Any] = {
                "cluster": "eu",
                "path": "b" * (seed % 2),
                "skipped": [("z.yaml", "odd")] if step % 10 < 3 else [],
            }
            kept = manifests.load([*files.values()], cache=cache, **options)
            anew = manifests.load([*files.values()], **options)
            assert told(kept) == told(anew), (seed, step)
            assert manifests.changed(last, kept) == differing(last, kept), (seed, step)
            last = kept


# --- the cost of a change -------------------------------------------------------------------


def fleet(tmp_path: Path, count: int) -> Path:
    """A bare repository of so many servers."""
    folder = bare(tmp_path / f"fleet-{count}.git")
    commit(folder, {f"s/{n}.yaml": manifest(f"web-{n}") for n in range(count)})
    return folder


class Ledger:
    """What one change costs, in things that can be counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.git: list[tuple[str, int]] = []
        self.parsed = 0
        start, talk, parse = Git.start, Git.talk, documents.parse

        def started(git: Git, *args: str, stdin: bytes = b"", **options: Any) -> Any:
            self.git.append((args[0], stdin.count(b"\n")))
            return start(git, *args, stdin=stdin, **options)

        def talked(git: Git, *args: str, **options: Any) -> gitcommand.Answer:
            self.git.append((args[0], 0))
            return talk(git, *args, **options)

        def read(text: str, **options: Any) -> Iterator[documents.Document]:
            self.parsed += 1
            return parse(text, **options)

        monkeypatch.setattr(Git, "start", started)
        monkeypatch.setattr(Git, "talk", talked)
        monkeypatch.setattr(terms, "parse", read)

    def clear(self) -> None:
        self.git.clear()
        self.parsed = 0


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> Ledger:
    return Ledger(monkeypatch)


def test_one_change_costs_the_same_in_a_small_and_a_large_fleet(
    tmp_path: Path, ledger: Ledger
) -> None:
    costs = []
    with GitServer(tmp_path) as server:
        for count in (3, 400):
            folder = fleet(tmp_path, count)
            options = SourceOptions(f"{server.url}/{folder.name}")
            with reading.open_repository(options) as opened:
                cache = manifests.Cache()
                first = reading.read(options, opened, cache=cache)
                commit(folder, {"s/1.yaml": manifest("web-1", "port: 1")})
                ledger.clear()
                assert opened.poll().kind == "moved"
                second = reading.read(options, opened, cache=cache)
            costs.append(([*ledger.git], ledger.parsed))
            assert manifests.changed(first.loaded, second.loaded) == {ServerKey("default", "web-1")}
            assert len(second.loaded.servers) == count
    assert costs[0] == costs[1]
    assert costs[1][1] == 1
    assert ("cat-file", 1) in costs[1][0]


@pytest.mark.parametrize("option", [{}, {"branch": "main"}, {"ref": "live"}])
def test_a_poll_that_finds_nothing_is_one_question_to_the_server(
    tmp_path: Path, ledger: Ledger, option: dict[str, str]
) -> None:
    folder = fleet(tmp_path, 3)
    git(folder, "tag", "live", "main")
    with GitServer(tmp_path) as server:
        options = SourceOptions(f"{server.url}/{folder.name}", **option)  # type: ignore[arg-type]
        with reading.open_repository(options) as opened:
            opened.poll()
            before = opened.snapshot()
            ledger.clear()
            server.seen.clear()
            assert opened.poll().kind == "unchanged"
            assert opened.snapshot() is before
            assert ledger.git == [("ls-remote", 0)]
            assert all("upload-pack" in request.path for request in server.seen)
            assert len(server.seen) == 2  # what the protocol's second version takes


def test_a_copy_is_tidied_while_nothing_else_is_to_be_done(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gitmirror, "TIDY_AFTER", 6)
    folder = fleet(tmp_path, 3)
    ran = []
    with gitrepo.open_source(f"file://{folder}", allow_file=True) as opened:
        for number in range(4):
            commit(folder, {"s/1.yaml": manifest("web-1", f"port: {number + 1}")})
            for kind in ("moved", "unchanged"):
                ledger.clear()
                assert opened.poll().kind == kind
                ran.append((kind, "gc" in [name for name, _ in ledger.git]))
    assert ran.count(("unchanged", True)) == 2
    assert ran.count(("moved", True)) == 0


def test_a_commit_by_its_id_is_never_asked_for_again(tmp_path: Path, ledger: Ledger) -> None:
    folder = fleet(tmp_path, 3)
    with GitServer(tmp_path) as server:
        sha = git(folder, "rev-parse", "main")
        with gitrepo.open_source(f"{server.url}/{folder.name}", ref=sha) as opened:
            opened.poll()
            ledger.clear()
            assert opened.poll().kind == "unchanged"
            assert ledger.git == []


def test_a_poll_of_a_local_repository_asks_for_its_branch_and_no_more(
    tmp_path: Path, ledger: Ledger
) -> None:
    opened = gitrepo.open_source(str(fleet(tmp_path, 3)))
    opened.poll()
    ledger.clear()
    assert opened.poll().kind == "unchanged"
    assert [name for name, _ in ledger.git] == ["symbolic-ref", "rev-parse"]


def test_a_load_that_follows_keeps_what_it_has_in_common_with_the_last() -> None:
    files = [
        SourceFile(f"{n}.yaml", f"{n}", manifest(f"web-{n}", f"port: {n + 1}").encode())
        for n in range(9)
    ]
    cache = manifests.Cache()
    first = manifests.load(files, cluster="eu", cache=cache)
    assert manifests.load(list(files), cluster="eu", cache=cache) is first
    files[3] = SourceFile("3.yaml", "other", manifest("web-3", "port: 77").encode())
    second = manifests.load(files, cluster="eu", cache=cache)
    for key, server in second.servers.items():
        assert (server is first.servers[key]) == (key.name != "web-3")
    assert first.servers[ServerKey("default", "web-3")].spec["port"] == 4  # a value stays


def test_what_cannot_be_read_leaves_the_last_load_as_it_was(tmp_path: Path) -> None:
    folder = fleet(tmp_path, 3)
    opened = gitrepo.open_source(str(folder))
    cache = manifests.Cache()
    files = opened.snapshot().files
    first = manifests.load(files, cluster="eu", cache=cache, read=opened.contents)

    def fails(_: Sequence[SourceFile]) -> Mapping[str, bytes]:
        raise SourceError("git is away")

    commit(folder, {"s/1.yaml": manifest("web-1", "port: 5"), "s/2.yaml": None})
    opened.poll()
    for _ in range(2):
        with pytest.raises(SourceError, match="git is away"):
            manifests.load(opened.snapshot().files, cluster="eu", cache=cache, read=fails)
    second = manifests.load(
        opened.snapshot().files, cluster="eu", cache=cache, read=opened.contents
    )
    assert manifests.changed(first, second) == {
        ServerKey("default", "web-1"),
        ServerKey("default", "web-2"),
    }
    assert second.since is not None
    assert second.since[0] is first.identity


def test_another_look_at_the_variables_is_a_look_at_every_server() -> None:
    text = SourceFile("a.yaml", "1", manifest("web").encode())
    cache = manifests.Cache()
    loads = [
        manifests.load(
            [text, SourceFile("group_vars/all.yaml", colour, f"colour: {colour}\n".encode())],
            cluster="eu",
            cache=cache,
        )
        for colour in ("red", "green")
    ]
    assert manifests.changed(*loads) == {ServerKey("default", "web")}
    assert manifests.changed(loads[1], loads[1]) == frozenset()


def test_a_renderer_is_lent_on_while_a_new_one_would_be_its_equal(tmp_path: Path) -> None:
    folder = fleet(tmp_path, 3)
    options, cache = SourceOptions(str(folder)), manifests.Cache()
    opened = reading.open_repository(options)
    sources = [reading.read(options, opened, cache=cache)]
    for path, text in (
        ("s/1.yaml", manifest("web-1", "port: 1")),
        ("group_vars/all.yaml", "colour: red\n"),
        ("gitops-mcp.yaml", "sourceId: other\n"),
        ("gitops-mcp.yaml", "sourceId: other\npath: s\n"),
    ):
        commit(folder, {path: text})
        opened.poll()
        sources.append(reading.read(options, opened, cache=cache, former=sources[-1]))
        alone = reading.read(options, opened)
        assert sources[-1].renderer.digest == alone.renderer.digest
        assert sources[-1].rendered() == alone.rendered()
    lent = [new.renderer is old.renderer for old, new in pairwise(sources)]
    assert lent == [True, False, False, True]


# --- memory ---------------------------------------------------------------------------------


def text(number: int, version: int) -> str:
    """A manifest of a kilobyte."""
    return manifest(
        f"web-{number}",
        f"port: {number % 30 + 8000 + version}",
        "config: {LOG_LEVEL: info, UPSTREAM_URL: https://api.example.com/v1}",
        "resources: {limits: {cpu: '1', memory: 512Mi}, requests: {cpu: 100m}}",
        "nodeSelector: {kubernetes.io/arch: amd64}",
        f"env: [{{name: TOKEN, valueFrom: {{secretKeyRef: {{name: s{number}, key: k}}}}}}]",
        *(f"# {'why ' * 20}{line}" for line in range(7)),
    )


def test_a_source_is_kept_in_a_few_kilobytes_a_server_for_months(tmp_path: Path) -> None:
    count = 150
    folder = bare(tmp_path / "fleet.git")
    commit(folder, {f"s/{n}.yaml": text(n, 0) for n in range(count)})
    options = SourceOptions(str(folder))
    reading.read(options, reading.open_repository(options))  # what is loaded once, is
    gc.collect()
    tracemalloc.start()
    try:
        opened, cache = reading.open_repository(options), manifests.Cache()
        source = reading.read(options, opened, cache=cache)
        gc.collect()
        kept = tracemalloc.get_traced_memory()[0] / count
        for version in range(3):
            commit(folder, {f"s/{n}.yaml": text(n, version) for n in range(version, count)})
            opened.poll()
            source = reading.read(options, opened, cache=cache)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] / count
    finally:
        tracemalloc.stop()
    assert not source.loaded.problems
    assert kept < 3500
    assert grown < kept + 400
