"""Clusters that are not fit for us, and users who may not do everything: told before any change.

The sandbox knows no rights, so a proxy in front of it refuses what a test's user may not do.
"""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import pytest
from commandline import Ended, Run, manifest, runner
from gitfixtures import commit_all, worktree
from scripted import Answer, Asked, scripted

from gitops_mcp import sandbox
from gitops_mcp.cli.verbs.sandbox import install_crd

# One sandbox, one server a namespace.
_names = (f"team-{number}" for number in range(1, 100))


class Wish(NamedTuple):
    """What a request asks for; ``namespace`` is "" for all of them."""

    verb: str
    resource: str
    namespace: str = ""


May = Callable[[Wish], bool]
_URL = re.compile(
    r"/(?:api|apis/[^/]+)/[^/]+(?:/namespaces/(?P<namespace>[^/]+))?/(?P<resource>[a-z]+)"
    r"(?:/(?P<name>[^/]+))?(?:/(?P<sub>status|scale))?"
)


def wish(asked: Asked) -> Wish | None:
    """None for what everybody may ask."""
    address = urlsplit(asked.path)
    found = _URL.fullmatch(address.path)
    if found is None or found["resource"] == "selfsubjectaccessreviews":
        return None
    watching = "watch" in parse_qs(address.query)
    reading = "get" if found["name"] else "watch" if watching else "list"
    verbs = {"GET": reading, "POST": "create", "PUT": "update", "DELETE": "delete"}
    resource = found["resource"] + (f"/{found['sub']}" if found["sub"] else "")
    return Wish(verbs.get(asked.method, "patch"), resource, found["namespace"] or "")


def refusal(wanted: Wish) -> Answer:
    place = f'in the namespace "{wanted.namespace}"' if wanted.namespace else "at the cluster scope"
    message = f'{wanted.resource} is forbidden: User "ada" cannot {wanted.verb} resource {place}'
    status = {"kind": "Status", "status": "Failure", "reason": "Forbidden", "code": 403}
    return Answer(403, {**status, "message": message})


def proxy(url: str, may: May) -> Callable[[Asked], Answer]:
    def answer(asked: Asked) -> Answer:
        if asked.path.endswith("/selfsubjectaccessreviews") or "/selfsubject" in asked.path:
            wanted = asked.body["spec"]["resourceAttributes"]
            parts = (wanted["resource"], wanted.get("subresource"))
            resource = "/".join(part for part in parts if part)
            allowed = may(Wish(wanted["verb"], resource, wanted.get("namespace", "")))
            return Answer(201, {**asked.body, "status": {"allowed": allowed}})
        wanted = wish(asked)
        if wanted is not None and not may(wanted):
            return refusal(wanted)
        return forward(url, asked)

    return answer


def forward(url: str, asked: Asked) -> Answer:
    request = urllib.request.Request(
        url + asked.path,
        data=json.dumps(asked.body).encode() if asked.body is not None else None,
        method=asked.method,
        headers={"content-type": asked.headers.get("content-type", "application/json")},
    )
    try:
        response = urllib.request.urlopen(request)
    except urllib.error.HTTPError as error:
        return Answer(error.code, json.loads(error.read()))
    if "watch=true" in asked.path:
        lines: Any = (line.decode() for line in response)
        return Answer(chunks=lines)
    with response:
        return Answer(response.status, json.loads(response.read()))


@pytest.fixture(scope="module")
def backend(processes: None) -> Iterator[str]:
    with sandbox.start(speed=20) as cluster:
        install_crd(cluster.url)
        yield cluster.url


@pytest.fixture
def gitops(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


def kubeconfig(folder: Path, url: str) -> Path:
    named = {"name": "test"}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [named | {"cluster": {"server": url}}],
        "users": [named | {"user": {}}],
        "contexts": [named | {"context": {"cluster": "test", "user": "test"}}],
        "current-context": "test",
    }
    file = folder / "kubeconfig"
    file.write_text(json.dumps(config))
    return file


class User:
    """Somebody with some rights, and a source whose server lives in a namespace of their own."""

    def __init__(self, run: Run, folder: Path, backend: str) -> None:
        self.name = next(_names)
        self._run = run
        self._folder = folder
        self._backend = backend
        self.asked: list[Asked] = []
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.name}}
        forward(backend, Asked("POST", "/api/v1/namespaces", {}, body))
        worktree(folder / "fleet", {"web.yaml": manifest(namespace=self.name)})

    def __call__(self, may: May, verb: str, *arguments: str) -> Ended:
        with scripted(proxy(self._backend, may)) as server:
            config = kubeconfig(self._folder, server.url)
            chosen = ("--source-id", self.name, "--kubeconfig", config, "-n", self.name)
            ended = self._run(verb, self._folder / "fleet", *chosen, *arguments)
            self.asked = server.asked
        return ended

    def change(self, **spec: Any) -> None:
        self.add({"web.yaml": manifest(namespace=self.name, **spec)})

    def add(self, files: dict[str, str]) -> None:
        commit_all(self._folder / "fleet", files)

    @property
    def writes(self) -> list[str]:
        return [
            f"{asked.method} {asked.path}"
            for asked in self.asked
            if asked.method != "GET" and "selfsubject" not in asked.path
        ]


@pytest.fixture
def user(gitops: Run, tmp_path: Path, backend: str) -> User:
    return User(gitops, tmp_path, backend)


def anything(_: Wish) -> bool:
    return True


@pytest.mark.parametrize(
    ("lacking", "told"),
    [
        (("delete", "services"), "delete services"),
        (("patch", "mcpservers/status"), "patch mcpservers/status"),
        (("create", "deployments"), "create deployments"),
        (("watch", "pods"), "watch pods"),
        (("get", "deployments"), "get deployments"),
    ],
)
def test_a_missing_right_is_named_before_any_change(
    user: User, lacking: tuple[str, str], told: str
) -> None:
    def may(wanted: Wish) -> bool:
        return "*" not in wanted and (wanted.verb, wanted.resource) != lacking

    ended = user(may, "sync")
    assert (ended.code, ended.out) == (2, "")
    assert f"missing rights: {told} in namespace {user.name}; " in ended.error
    assert [write for write in user.writes if "/leases" not in write] == []


@pytest.mark.parametrize(
    ("health", "probes", "code"),
    [({"gate": True}, "on", 2), ({"gate": True}, "off", 0), ({}, "on", 0)],
)
def test_who_opens_readiness_gates_may_patch_the_status_of_pods(
    user: User, health: dict[str, bool], probes: str, code: int
) -> None:
    def may(wanted: Wish) -> bool:
        return "*" not in wanted and wanted[:2] != ("patch", "pods/status")

    user.change(health=health)
    ended = user(may, "sync", f"--probes={probes}")
    assert ended.code == code, ended.err
    if code:
        assert f"missing rights: patch pods/status in namespace {user.name}; " in ended.error


def test_who_makes_namespaces_may_create_them(user: User) -> None:
    def may(wanted: Wish) -> bool:
        return "*" not in wanted and wanted[:2] != ("create", "namespaces")

    assert user(may, "sync", "--create-namespace").code == 0  # there is none to be made
    there = f"{user.name}-new"
    user.add({"api.yaml": manifest("api", there)})
    ended = user(may, "sync", "--create-namespace")
    assert ended.code == 2
    assert f"missing rights: create namespaces in namespace {there}; " in ended.error
    assert [write for write in user.writes if "/leases" not in write] == []


def test_all_missing_rights_are_one_line(user: User) -> None:
    ended = user(
        lambda wanted: wanted.verb in ("get", "list") or wanted.resource == "leases", "sync"
    )
    assert ended.code == 2
    assert "create mcpservers" in ended.error
    assert " more" in ended.error


def test_without_rights_on_leases_a_sync_does_not_begin(user: User) -> None:
    ended = user(lambda wanted: wanted.resource != "leases", "sync")
    assert (ended.code, ended.out) == (2, "")
    assert "lease" in ended.error
    assert user.writes == []


def test_without_the_right_to_read_it_is_told_which(user: User) -> None:
    for verb in ("diff", "sync"):
        ended = user(lambda wanted: wanted.resource not in ("mcpservers", "*"), verb)
        assert ended.code == 2
        assert "cannot list" in ended.err.splitlines()[-1]
        assert user.writes == [] or all("/leases" in write for write in user.writes)


def test_diff_compares_locally_where_a_dry_run_is_not_allowed(user: User) -> None:
    def reader(wanted: Wish) -> bool:
        return wanted.verb in ("get", "list", "watch")

    assert user(anything, "sync").code == 0
    same = user(reader, "diff")
    assert same.code == 0, same.out
    assert "the comparison is local, not a dry-run" in same.err
    assert user.writes == []
    user.change(replicas=2)
    ended = user(reader, "diff", "-o", "json")
    assert ended.code == 1
    assert {(c["kind"], c["action"]) for c in ended.json["changes"]} == {
        ("MCPServer", "update"),
        ("Deployment", "update"),
    }


def test_who_may_list_only_their_namespaces_can_diff_sync_and_prune_there(user: User) -> None:
    def member(wanted: Wish) -> bool:
        return wanted.namespace == user.name or wanted.resource == "namespaces"

    before = user(member, "diff")
    assert before.code == 1
    assert f"only those of the manifests are looked at: {user.name}" in before.err
    ended = user(member, "sync", "--wait")
    assert ended.code == 0, ended.err
    assert ended.out.splitlines()[-1].startswith("ok=0 changed=1 ")
    watched = [asked.path for asked in user.asked if "watch=true" in asked.path]
    assert watched
    assert all(f"/namespaces/{user.name}/" in path for path in watched)
    assert user(member, "diff").code == 0
    user.change(replicas=2)
    assert user(member, "sync", "--wait").code == 0


def test_status_of_all_namespaces_needs_the_right_to_list_them(
    user: User, gitops: Run, tmp_path: Path, backend: str
) -> None:
    def member(wanted: Wish) -> bool:
        return wanted.namespace == user.name

    with scripted(proxy(backend, member)) as server:
        config = kubeconfig(tmp_path, server.url)
        refused = gitops("status", "-A", "--kubeconfig", config)
        assert refused.code == 2
        assert "cannot list" in refused.error
        assert gitops("status", "-n", user.name, "--kubeconfig", config).code == 0


# --- clusters -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("verb", ["diff", "sync"])
def test_a_server_that_is_too_old_is_refused_by_name(
    gitops: Run, tmp_path: Path, verb: str
) -> None:
    worktree(tmp_path / "fleet", {"web.yaml": manifest()})

    def old(asked: Asked) -> Answer:
        if asked.path == "/version":
            return Answer(200, {"major": "1", "minor": "29+", "gitVersion": "v1.29.3"})
        return Answer(500, {"kind": "Status", "message": "not to be asked"})

    with scripted(old) as server:
        config = kubeconfig(tmp_path, server.url)
        ended = gitops(verb, tmp_path / "fleet", "--kubeconfig", config)
    assert (ended.code, ended.out) == (2, "")
    assert "the API server is 1.29; gitops-mcp needs 1.30 or newer" in ended.error
    assert {asked.method for asked in server.asked} == {"GET"}


@pytest.mark.parametrize("verb", ["diff", "sync", "status", "status -w", "suspend web"])
def test_an_api_server_that_does_not_answer_is_one_line(
    gitops: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = gitops(*verb.split(), "--kubeconfig", kubeconfig(tmp_path, "http://127.0.0.1:9"))
    assert (ended.code, ended.out) == (2, "")
    assert "connection refused or no route" in ended.error
    assert "is this the right context?" in ended.error


@pytest.mark.usefixtures("processes")
def test_a_crd_that_is_absent_or_older_is_told_with_the_way_to_install_it(
    gitops: Run, tmp_path: Path
) -> None:
    worktree(tmp_path / "fleet", {"web.yaml": manifest(namespace="default")})
    with sandbox.start(speed=20) as cluster:
        config = kubeconfig(tmp_path, cluster.url)
        for verb in ("diff", "sync", "status"):
            source = () if verb == "status" else (tmp_path / "fleet",)
            ended = gitops(verb, *source, "--kubeconfig", config)
            assert ended.code == 2
            assert "MCPServer" in ended.error
            assert "kubectl apply" in ended.error
        install_crd(cluster.url)
        path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/mcpservers.mcp.example.com"
        answer = 409  # its status may be written meanwhile
        while answer == 409:
            body = forward(cluster.url, Asked("GET", path, {}, None)).body
            spec = body["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
            del spec["properties"]["suspend"]
            answer = forward(cluster.url, Asked("PUT", path, {}, body)).code
        assert answer == 200
        for verb in ("diff", "sync"):
            ended = gitops(verb, tmp_path / "fleet", "--kubeconfig", config)
            assert (ended.code, ended.out) == (2, "")
            assert "the CRD in the cluster is older than this version" in ended.error
            assert "suspend" in ended.error
