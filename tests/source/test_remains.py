"""Silence is not removal: what is still in git where a server came from protects it, and says why;
what was removed on purpose does not. In a bare repository, at once and after the commit before, and
in a work tree."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from commandline import manifest
from gitfixtures import bare, commit, git, write
from stage import CONTEXT, NOW, cr

from gitops_mcp.base import limits
from gitops_mcp.base.names import ANNOTATION_FILE, ServerKey
from gitops_mcp.base.source import Loaded, Remains
from gitops_mcp.cluster.view import View
from gitops_mcp.decide.books import Books
from gitops_mcp.decide.record import Fingerprint, Identity
from gitops_mcp.source.manifests import Cache
from gitops_mcp.source.settings import SourceOptions
from gitops_mcp.sync import reading
from gitops_mcp.sync.guard import PruneGuard

pytestmark = pytest.mark.usefixtures("processes")

FILE = "s/c.yaml"
TEXT = manifest("c")
FLEET = {f"s/{name}.yaml": manifest(name) for name in "abcd"}
ENC = "ENC[AES256_GCM,data:p1A=,iv:x=,tag:y=,type:str]"
INDENTED = "".join(f"  {line}\n" for line in TEXT.splitlines())
SECRET = "apiVersion: v1\nkind: Secret\nmetadata: {name: x}\n"


class Case(NamedTuple):
    """What a commit makes of the fleet; ``says`` what stands there then ("": nothing does)."""

    files: Mapping[str, str | bytes | None]
    says: str
    modes: Mapping[str, str] = {}
    where: str = FILE


def to(path: str, content: str | bytes = TEXT) -> dict[str, str | bytes | None]:
    return {FILE: None, path: content}


CASES = {
    "a Git LFS pointer": Case(
        {FILE: "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n"},
        "a Git LFS pointer",
    ),
    "Ansible Vault": Case({FILE: "$ANSIBLE_VAULT;1.1;AES256\n6162\n"}, "Ansible Vault"),
    "SOPS": Case(
        {FILE: f"apiVersion: {ENC}\nkind: {ENC}\nmetadata:\n  name: {ENC}\nsops:\n  mac: x\n"},
        "encrypted with SOPS",
    ),
    "git-crypt": Case({FILE: b"\0GITCRYPT\0\xff\xfe"}, "encrypted with git-crypt"),
    "a list": Case({FILE: f"- {INDENTED[2:]}"}, "a list of objects"),
    "a list in JSON": Case({FILE: '[{"kind": "MCPServer"}]'}, "a list of objects"),
    "wrapped in a text": Case({FILE: f"manifest: |\n{INDENTED}"}, "inside a block of text"),
    "keys in capitals": Case(
        {FILE: TEXT.replace("apiVersion", "ApiVersion").replace("kind", "Kind")}, "must be spelt"
    ),
    "emptied": Case({FILE: ""}, "holds no document"),
    "comments only": Case({FILE: "# was: a server\n---\n# and nothing else\n"}, "no document"),
    "noise that names nothing of ours": Case({FILE: "a: [\n"}, "not YAML"),
    "bytes": Case({FILE: b"\xff\x00\xff"}, "not UTF-8 text"),
    "a suffix in capitals": Case(to("s/c.YAML"), "small letters", where="s/c.YAML"),
    "another suffix in capitals": Case(to("s/c.Yml"), "", where="s/c.Yml"),
    "other letters, and empty": Case(to("S/C.yaml", ""), "no document", where="S/C.yaml"),
    "below templates": Case(to("s/templates/c.yaml"), "templates/", where="s/templates/c.yaml"),
    "templates in its place": Case(
        to("templates/c.yaml"), "move it back", where="templates/c.yaml"
    ),
    "below a hidden folder": Case(to("s/.old/c.yaml"), "hidden", where="s/.old/c.yaml"),
    "hidden itself": Case(to("s/.c.yaml"), "hidden", where="s/.c.yaml"),
    "a folder that is hidden": Case(
        {**dict.fromkeys(FLEET), **{f".{path}": text for path, text in FLEET.items()}},
        "hidden",
        where=".s/c.yaml",
    ),
    "a folder that is a symbolic link": Case(
        {**dict.fromkeys(FLEET), "s": "teams/s", "teams/s/x.yaml": manifest("x")},
        "a symbolic link is not followed",
        {"s": "120000"},
        "s",
    ),
    "a folder that is a submodule": Case(
        {**dict.fromkeys(FLEET), "s": "1" * 40, "x.yaml": manifest("x")},
        "a submodule is not read",
        {"s": "160000"},
        "s",
    ),
    "a file that is large and none": Case(
        {FILE: "a: b\n" * (limits.FILE // 5 + 1)}, "names no MCPServer"
    ),
    # These were meant.
    "removed": Case({FILE: None}, ""),
    "switched off": Case(to("s/c.yaml.disabled"), ""),
    "moved elsewhere": Case(to("t/c.yaml"), ""),
    "a chart's template of that name": Case(to("t/templates/c.yaml", SECRET), ""),
    "an object of another kind in its place": Case({FILE: SECRET}, ""),
    "an empty List in its place": Case({FILE: "apiVersion: v1\nkind: List\nitems: []\n"}, ""),
    "another server in its place": Case({FILE: manifest("e")}, ""),
    "one document of two": Case({FILE: f"# c is gone\n---\n{manifest('e')}"}, ""),
}
CASES["another suffix in capitals"] = Case(to("s/c.YAML.bak"), "")


def read(folder: Path, **more: Any) -> reading.Source:
    options = SourceOptions(location=str(folder))
    with reading.open_repository(options) as repository:
        return reading.read(options, repository, **more)


def check(loaded: Loaded, case: Case) -> None:
    problem = loaded.remains.of(FILE)
    if not case.says:
        assert problem is None
        return
    assert problem is not None
    assert problem.file == case.where
    assert case.says in problem.message


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_is_still_in_git_is_told(tmp_path: Path, case: Case) -> None:
    folder = bare(tmp_path / "source.git")
    commit(folder, FLEET)
    options = SourceOptions(location=str(folder))
    with reading.open_repository(options) as repository:
        cache = Cache()
        before = reading.read(options, repository, cache=cache)
        assert before.loaded.remains.of(FILE) is None
        commit(folder, case.files, modes=case.modes)
        repository.poll()
        followed = reading.read(options, repository, cache=cache)
        check(followed.loaded, case)
        assert followed.loaded == read(folder).loaded
        commit(folder, {"z.yaml": manifest("z")})
        repository.poll()
        check(reading.read(options, repository, cache=cache).loaded, case)
    check(read(folder).loaded, case)


@pytest.mark.parametrize(
    "case",
    [case for name, case in CASES.items() if "submodule" not in name],
    ids=[name for name in CASES if "submodule" not in name],
)
def test_what_is_still_in_a_work_tree_is_told(tmp_path: Path, case: Case) -> None:
    git(tmp_path, "init", "--quiet", "--template=")
    write(tmp_path, {path: None if text is None else text for path, text in FLEET.items()})
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "-m", "Start")
    links = [path for path, mode in case.modes.items() if mode == "120000"]
    for path, content in case.files.items():
        if content is None:
            (tmp_path / path).unlink()
    if links:
        (tmp_path / "s").rmdir()
    write(tmp_path, {p: c for p, c in case.files.items() if c is not None and p not in links})
    for path in links:
        (tmp_path / path).symlink_to(str(case.files[path]))
    check(read(tmp_path).loaded, case)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a folder that is a submodule", "s: a submodule is not read; remove the submodule to"),
        ("a folder that is a symbolic link", "s: a symbolic link is not followed; remove the link"),
        ("emptied", "s/c.yaml:1: it holds no document; remove the file to have the server removed"),
        ("removed", ""),
    ],
)
def test_the_remedy_names_what_is_to_be_removed(tmp_path: Path, name: str, told: str) -> None:
    folder = bare(tmp_path / "source.git")
    commit(folder, FLEET)
    commit(folder, CASES[name].files, modes=CASES[name].modes)
    said = read(folder).loaded.remains.keeps(FILE)
    assert said.startswith(told) if told else not said


WARNED = [
    "a Git LFS pointer",
    "Ansible Vault",
    "SOPS",
    "git-crypt",
    "a list",
    "a suffix in capitals",
    "wrapped in a text",
    "emptied",
    "below templates",
    "templates in its place",
    "a folder that is a symbolic link",
    "a folder that is a submodule",
]


@pytest.mark.parametrize("name", WARNED)
def test_what_looks_like_a_lost_manifest_is_a_warning_without_a_cluster(
    tmp_path: Path, name: str
) -> None:
    case = CASES[name]
    folder = bare(tmp_path / "source.git")
    commit(folder, {**FLEET, **case.files}, modes=case.modes)
    [problem] = read(folder).loaded.problems
    assert (problem.severity, problem.file) == ("warning", case.where)
    assert case.says in problem.message


DEEPER = "".join(f"  {line}\n" for line in INDENTED.splitlines())
SCRIPT = f"deploy:\n  script: |\n    kubectl apply -f - <<EOF\n{DEEPER}    EOF\n"
QUIET: dict[str, tuple[str, str | bytes]] = {
    "values of a chart, all commented out": ("chart/values.yaml", "# kind: MCPServer\n"),
    "values for one cluster": ("chart/values-eu.yaml", ""),
    "values with another prefix": ("prod.values.yaml", ""),
    "a kustomization": ("kustomization.yaml", ""),
    "notes": ("notes.yaml", "# nothing yet\n---\n"),
    "a script of CI": ("ci.yaml", SCRIPT),
    "a text that speaks of manifests": ("faq.yaml", "a: |\n  Each has a\n  kind: MCPServer\n"),
    "another object that carries one": (
        "map.yaml",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndata:\n  s: |\n" + DEEPER,
    ),
    "a chart's template": (
        "chart/templates/s.yaml",
        TEXT.replace('"ai"', '"{{ .Release.Namespace }}"'),
    ),
    "an empty list of objects": ("l.yaml", "apiVersion: v1\nkind: List\nitems: []\n"),
}


@pytest.mark.parametrize(("path", "content"), QUIET.values(), ids=QUIET)
def test_what_was_never_meant_as_a_manifest_is_no_warning(
    tmp_path: Path, path: str, content: str | bytes
) -> None:
    folder = bare(tmp_path / "source.git")
    commit(folder, {**FLEET, path: content})
    assert read(folder).loaded.problems == ()


@pytest.mark.parametrize("name", ["LICENSE", "AGENTS.md", "docs/latest.txt"])
def test_a_link_that_is_named_as_a_file_is_no_warning(tmp_path: Path, name: str) -> None:
    folder = bare(tmp_path / "source.git")
    commit(folder, {**FLEET, name: "x"}, modes={name: "120000"})
    loaded = read(folder).loaded
    assert (loaded.problems, loaded.unknown) == ((), False)


def test_a_manifest_that_is_commented_out_is_a_warning(tmp_path: Path) -> None:
    folder = bare(tmp_path / "source.git")
    commit(folder, {**FLEET, FILE: "".join(f"# {line}\n" for line in TEXT.splitlines())})
    [problem] = read(folder).loaded.problems
    assert (problem.file, problem.severity) == (FILE, "warning")


def test_a_large_file_that_names_our_kind_stays_a_problem(tmp_path: Path) -> None:
    folder = bare(tmp_path / "source.git")
    lock = "a: b\n" * (limits.FILE // 5 + 1)
    commit(folder, {"s/a.yaml": manifest("a"), "lock.yaml": lock})
    fine = read(folder)
    assert (fine.loaded.problems, fine.loaded.unknown) == ((), False)
    assert ("lock.yaml", "larger than 1 MiB, and names no MCPServer") in fine.loaded.ignored
    commit(folder, {"big.yaml": f"{lock}kind: MCPServer\n"})
    stopped = read(folder).loaded
    assert stopped.unknown
    assert [problem.message for problem in stopped.problems] == ["not read: larger than 1 MiB"]


def test_who_is_protected_so_counts_for_no_guard() -> None:
    """Two of three servers' files are empty: only the third is a prune, and one of one is none that
    the guard holds."""
    view = View()
    keys = [ServerKey("ai", name) for name in "abc"]
    for key in keys:
        live = cr(name=key.name, uid=key.name)
        live["metadata"]["annotations"] = {ANNOTATION_FILE: f"s/{key.name}.yaml"}
        view.put(live)
    lost = {"s/a.yaml": (1, "it holds no document"), "s/b.yaml": (1, "it holds no document")}
    other = ServerKey("ai", "z")
    loaded = Loaded({}, protected=frozenset({other}), remains=Remains(lost))
    books = Books(None, clock=lambda: NOW)
    mine = Identity("fleet", Fingerprint("/fleet"), "default")
    books.open(mine, revision="", live=lambda: dict.fromkeys(keys, "fleet.yaml"))
    guard = PruneGuard(
        view, CONTEXT, loaded, books, selects=lambda _: True, allowed=lambda *_: None
    )
    assert [guard.prune(key) for key in keys] == [
        "s/a.yaml:1: it holds no document; remove the file to have the server removed",
        "s/b.yaml:1: it holds no document; remove the file to have the server removed",
        "",
    ]
    assert guard.held == frozenset()


@pytest.mark.parametrize(
    "path", ["group_vars/all.YAML", "group_vars/all", "group_vars/default.Yml"]
)
def test_group_vars_that_no_rule_reads_are_a_warning(tmp_path: Path, path: str) -> None:
    folder = bare(tmp_path / "source.git")
    commit(folder, {"a.yaml": manifest("a"), path: "spec: {port: 1}\n", "group_vars/eu": "a: 1\n"})
    [problem] = read(folder).loaded.problems
    assert (problem.file, problem.severity) == (path, "warning")
    assert "rename it" in problem.message
