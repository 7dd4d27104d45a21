"""What a user installs: the wheel, the pinned sets of requirements, the image's recipe."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from email.parser import Parser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from paths import ROOT

import gitops_mcp

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DATA = ("schemas", "templates", "repo-example")
"""Top-level in the checkout, inside the package in the wheel."""
SETS = ("build", "run", "dev")


@pytest.fixture(scope="module")
def dist(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the sdist, and the wheel that was built from it."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)],
        check=True,
        capture_output=True,
    )
    return out


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Iterator[zipfile.ZipFile]:
    (path,) = dist.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def tracked(*folders: str) -> list[str]:
    """The project's own files below the folders, POSIX paths from the root."""
    found = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    return sorted(
        path.relative_to(ROOT).as_posix()
        for path in found
        if path.is_file() and "__pycache__" not in path.parts
    )


def pins(name: str) -> Mapping[str, str]:
    """The pinned versions of one set, by normalised name."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", text, re.MULTILINE)
    return {canonicalize_name(package): version for package, version in found}


def group(name: str) -> list[Requirement]:
    """One dependency group of pyproject.toml, its included groups resolved."""
    entries = PROJECT["dependency-groups"][name]
    found: list[Requirement] = []
    for entry in entries:
        found += [Requirement(entry)] if isinstance(entry, str) else group(entry["include-group"])
    return found


def test_no_folder_of_data_stands_where_python_looks_for_a_module() -> None:
    modules = {path.stem for path in (ROOT / "gitops_mcp").iterdir()}
    assert not modules & set(DATA)


def test_the_wheel_holds_the_package_and_its_data(wheel: zipfile.ZipFile) -> None:
    expected = set(tracked("gitops_mcp")) | {f"gitops_mcp/{path}" for path in tracked(*DATA)}
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == expected
    assert "gitops_mcp/py.typed" in expected


def test_the_wheels_metadata_are_the_projects(wheel: zipfile.ZipFile) -> None:
    info = f"gitops_mcp-{gitops_mcp.__version__}.dist-info"
    metadata = Parser().parsestr(wheel.read(f"{info}/METADATA").decode())
    assert metadata["Version"] == gitops_mcp.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert wheel.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert b"gitops-mcp = gitops_mcp.cli.main:main" in wheel.read(f"{info}/entry_points.txt")


def test_the_version_is_written_once() -> None:
    assert "version" not in PROJECT["project"]
    assert PROJECT["project"]["dynamic"] == ["version"]


def test_the_sdist_holds_what_a_packager_needs(dist: Path) -> None:
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= {"LICENSE", "README.md", "CHANGELOG.md", "Makefile", "tests/conftest.py"}
    assert names >= {f"requirements/{name}.txt" for name in SETS}
    assert not {name for name in names if name.startswith((".venv", "dist"))}


@pytest.mark.parametrize("name", SETS)
def test_each_pin_has_hashes_and_names_no_host(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    entries = re.split(r"\n(?=[A-Za-z0-9])", text)[1:]
    assert len(entries) == len(pins(name))
    assert [entry for entry in entries if "--hash=sha256:" not in entry] == []
    assert "://" not in text
    assert "index" not in text


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("run", [Requirement(each) for each in PROJECT["project"]["dependencies"]]),
        ("build", [*group("build"), *map(Requirement, PROJECT["build-system"]["requires"])]),
        ("dev", [Requirement(each) for each in PROJECT["project"]["dependencies"]] + group("dev")),
    ],
    ids=SETS[1:2] + SETS[:1] + SETS[2:],
)
def test_the_pins_are_what_the_project_asks_for(name: str, wanted: list[Requirement]) -> None:
    pinned = pins(name)
    stale = [
        str(each)
        for each in wanted
        if not each.specifier.contains(pinned.get(canonicalize_name(each.name), "0"))
    ]
    assert stale == [], f"run `make lock`: requirements/{name}.txt does not answer {stale}"


def imported_packages() -> dict[str, set[str]]:
    """Each foreign top-level module that the package imports, with the packages that provide it."""
    trees = [ast.parse(path.read_text()) for path in (ROOT / "gitops_mcp").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    imported = {
        alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names
    }
    imported |= {
        node.module
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module and not node.level
    }
    foreign = {name.partition(".")[0] for name in imported}
    foreign -= sys.stdlib_module_names | {"gitops_mcp"}
    homes = packages_distributions()
    return {name: {canonicalize_name(each) for each in homes.get(name, [])} for name in foreign}


def test_every_library_that_is_imported_is_asked_for_and_no_other() -> None:
    asked = {
        canonicalize_name(Requirement(each).name) for each in PROJECT["project"]["dependencies"]
    }
    packages = imported_packages()
    assert {name for name, homes in packages.items() if not asked & homes} == set()
    assert asked - set().union(*packages.values()) == set()


def test_one_environment_can_hold_all_sets() -> None:
    everything = pins("dev")
    for name in ("run", "build"):
        assert pins(name).items() <= everything.items()


def dockerfile() -> list[tuple[str, str]]:
    """(instruction, arguments) in order, continued lines joined, comments dropped."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    parts = [line.split(maxsplit=1) for line in lines if line.strip()]
    return [(instruction, arguments) for instruction, arguments in parts]


def test_the_image_copies_only_what_exists_and_is_sent_to_the_engine() -> None:
    sent = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    copies = [arguments.split() for name, arguments in dockerfile() if name == "COPY"]
    sources = {
        source.rstrip("/")
        for arguments in copies
        if not arguments[0].startswith("--from")
        for source in arguments[:-1]
    }
    assert sources == sent
    assert [source for source in sources if not (ROOT / source).exists()] == []


def test_the_image_runs_as_a_numeric_user_under_an_init() -> None:
    last = dict(dockerfile())
    user, _, member = last["USER"].partition(":")
    assert int(user) > 0
    assert int(member) > 0
    assert last["ENTRYPOINT"] == '["tini", "--", "gitops-mcp"]'


def test_the_image_installs_nothing_that_is_not_pinned() -> None:
    installs = [
        part
        for name, arguments in dockerfile()
        if name == "RUN"
        for part in arguments.split("&&")
        if "pip install" in part
    ]
    assert len(installs) == 3
    for each in installs:
        assert "--require-hashes" in each or "--no-deps --no-index" in each
