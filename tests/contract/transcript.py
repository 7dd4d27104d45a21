"""Requests played against an API server, and its answers in a form that can be compared.

Receives a cluster (the sandbox or a real plane) and cases: lists of requests from
`cases/*.yaml`. Returns the answers with everything that differs from run to run named instead:
uids, times, resourceVersions (`r1`, `r2`, … by first appearance, so "nothing changed" shows as the
same name again), addresses. `answers/` holds what a real kube-apiserver answered; the sandbox must
answer the same, and the real one is asked again where it is available. Cases that say `only: plane`
show what the sandbox does without on purpose.
"""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import plane
import urllib3
import yaml

HERE = Path(__file__).parent
CASES = HERE / "cases"
ANSWERS = HERE / "answers"

CONTENT_TYPES = {
    "json": "application/json",
    "yaml": "application/yaml",
    "apply": "application/apply-patch+yaml",
    "merge": "application/merge-patch+json",
    "json-patch": "application/json-patch+json",
    "strategic": "application/strategic-merge-patch+json",
}
SHORT = {
    "configmaps": "/api/v1",
    "endpoints": "/api/v1",
    "events": "/api/v1",
    "pods": "/api/v1",
    "secrets": "/api/v1",
    "services": "/api/v1",
    "deployments": "/apis/apps/v1",
    "replicasets": "/apis/apps/v1",
    "leases": "/apis/coordination.k8s.io/v1",
    "widgets": "/apis/example.com/v1",
}
"""Paths may begin with one of these; anything else begins with a slash."""

# Deployments stay as they are written here; what controllers do has tests of its own.
QUIET = "--controllers=" + ",".join(
    f"-{name}-controller"
    for name in (
        "deployment",
        "replicaset",
        "endpoints",
        "endpointslice",
        "root-ca-certificate-publisher",
        "disruption",
        "resourcequota",
    )
)

_numbers = itertools.count(1)


@dataclass
class Answer:
    """What came back: the code, warnings, and the body as JSON or text."""

    code: int
    body: Any
    warnings: list[str]
    headers: Mapping[str, str]


@dataclass
class Cluster:
    """An API server under test."""

    name: str
    url: str
    headers: dict[str, str] = field(default_factory=dict)
    ca: str | None = None
    tokens: Mapping[str, str] = field(default_factory=dict)
    """Of the users that a step may name; nobody else has any token."""

    def __post_init__(self) -> None:
        self._pool = urllib3.PoolManager(
            ca_certs=self.ca, maxsize=4, retries=False, timeout=urllib3.Timeout(30)
        )

    def close(self) -> None:
        self._pool.clear()

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        kind: str = "json",
        accept: str = "application/json",
        user: str | None = None,
    ) -> Answer:
        """One raw request; a body of bytes is sent as it is."""
        answer = self._open(method, path, body, kind, accept, user=user)
        raw = answer.data
        try:
            parsed: Any = json.loads(raw)
        except ValueError:
            parsed = raw.decode()
        warnings = answer.headers.getlist("Warning")
        return Answer(answer.status, parsed, warnings, dict(answer.headers))

    def lines(self, path: str) -> Iterator[Any]:
        """The events of a watch, until the server ends it."""
        answer = self._open("GET", path, None, "json", "application/json", stream=True)
        buffer = b""
        try:
            for chunk in answer.stream(65536):
                buffer += chunk
                *complete, buffer = buffer.split(b"\n")
                for line in complete:
                    yield json.loads(line)
        finally:
            answer.close()

    def namespace(self) -> str:
        """A new, empty namespace."""
        name = f"case-{next(_numbers)}"
        answer = self.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        assert answer.code == 201, answer.body
        return name

    def _open(
        self,
        method: str,
        path: str,
        body: Any,
        kind: str,
        accept: str,
        *,
        stream: bool = False,
        user: str | None = None,
    ) -> urllib3.BaseHTTPResponse:
        raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        headers = {**self.headers, "Accept": accept, "User-Agent": "contract/1"}
        if user is not None:
            headers.pop("Authorization", None)
            if token := self.tokens.get(user):
                headers["Authorization"] = f"Bearer {token}"
        if raw is not None:
            headers["Content-Type"] = CONTENT_TYPES.get(kind, kind)
        return self._pool.request(
            method, self.url + path, body=raw, headers=headers, preload_content=not stream
        )


def of_plane(started: plane.Plane) -> Cluster:
    """A real API server, its administrator and its users, of whom bob has a few rights."""
    tokens = {user: started.token(user) for user in ("admin", *started.users)}
    tokens["stranger"] = "not a token of anybody"
    headers = {"Authorization": f"Bearer {tokens['admin']}"}
    read = {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list", "patch"]}
    started.grant("bob", [read])
    cluster = prepared(Cluster("plane", started.url, headers, str(started.ca), tokens))
    maps = "/api/v1/namespaces/default/configmaps"
    while cluster.request("GET", maps, user="bob").code == 403:
        time.sleep(0.02)  # the authorizer sees a grant through a watch
    return cluster


def prepared(cluster: Cluster) -> Cluster:
    """The cluster, once it serves the kind Widget."""
    crd = yaml.safe_load((HERE / "widgets.yaml").read_text())
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    assert cluster.request("POST", path, crd).code == 201
    for _ in range(500):
        if cluster.request("GET", "/apis/example.com/v1/widgets").code == 200:
            break
        time.sleep(0.01)
    return cluster


def load(path: Path) -> list[dict[str, Any]]:
    """The cases of one file."""
    cases: list[dict[str, Any]] = [
        case for case in yaml.safe_load(path.read_text()) if "case" in case
    ]
    return cases


def play(cluster: Cluster, case: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Make the case's requests; returns the comparable answers."""
    namespace = cluster.namespace()
    names = _Names(namespace)
    seen: list[Answer] = []
    out = []
    for step in case["steps"]:
        method, _, path = step["do"].partition(" ")
        time.sleep(step.get("wait", 0))
        body = step["raw"].encode() if "raw" in step else _fill(step.get("body"), namespace, seen)
        answer = cluster.request(
            method,
            _path(_fill(path, namespace, seen), namespace),
            body,
            kind=step.get("as", "json"),
            accept=step.get("accept", "application/json"),
            user=step.get("user"),
        )
        seen.append(answer)
        entry: dict[str, Any] = {"code": answer.code}
        if "Retry-After" in answer.headers:
            entry["retry_after"] = answer.headers["Retry-After"]
        if answer.warnings:
            entry["warnings"] = [names.text(text) for text in answer.warnings]
        if "show" in step and answer.code < 400:
            entry |= {
                path: names.value(_look(answer.body, path), path.rpartition(".")[2])
                for path in step["show"]
            }
        else:
            entry["body"] = names.value(answer.body)
        out.append(entry)
    cluster.request("DELETE", f"/api/v1/namespaces/{namespace}")
    return out


def _path(path: str, namespace: str) -> str:
    if path.startswith("/"):
        return path
    prefix = SHORT[re.split(r"[/?]", path)[0]]
    return f"{prefix}/namespaces/{namespace}/{path}"


def _fill(value: Any, namespace: str, seen: list[Answer]) -> Any:
    """Replace `{ns}` by the namespace, `{1.metadata.uid}` by what the first step answered, and
    `{1000 x}` by so many letters."""
    if isinstance(value, dict):
        return {
            _fill(key, namespace, seen): _fill(one, namespace, seen) for key, one in value.items()
        }
    if isinstance(value, list):
        return [_fill(one, namespace, seen) for one in value]
    if not isinstance(value, str):
        return value
    whole = re.fullmatch(r"\{(\d+)\.([\w.]+)\}", value)
    if whole:
        return _look(seen[int(whole[1]) - 1].body, whole[2])
    return re.sub(
        r"\{(\d+)\.([\w.]+)\}",
        lambda match: str(_look(seen[int(match[1]) - 1].body, match[2])),
        re.sub(r"\{(\d+) x\}", lambda match: "x" * int(match[1]), value.replace("{ns}", namespace)),
    )


def _look(value: Any, path: str) -> Any:
    for part in path.split("."):
        if isinstance(value, list) and part.isdigit():
            value = value[int(part)] if int(part) < len(value) else None
        else:
            value = value.get(part) if isinstance(value, dict) else None
    return value


QUOTED = re.compile(r'"\{\\"\w.*\}"')
UID = re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b")
MICRO_TIME = re.compile(r"\b20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
TIME = re.compile(r"\b20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ")
RECORD = re.compile(r"record \(\d+\)")
ADDRESS = re.compile(r"\b10\.(?!0\.0\.0\b)\d+\.\d+\.\d+\b")


class _Names:
    """What stands for what differs from run to run."""

    def __init__(self, namespace: str) -> None:
        self._namespace = re.compile(rf"\b{namespace}\b")
        self._uids: dict[str, str] = {}
        self._versions: dict[str, str] = {}

    def value(self, value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            if value.get("kind") == "Status":
                value = _sorted_causes(value)
            return {self.text(one): self.value(value[one], one) for one in sorted(value)}
        if isinstance(value, list):
            if key == "managedFields":
                value = sorted(value, key=_manager)
            return [self.value(one) for one in value]
        if isinstance(value, str):
            if key == "resourceVersion":
                return self._versions.setdefault(value, f"r{len(self._versions) + 1}")
            return self.text(value)
        if key == "nodePort":
            return "<port>"
        return value

    def text(self, text: str) -> str:
        text = QUOTED.sub('"<object>"', text)
        text = UID.sub(
            lambda match: self._uids.setdefault(match[0], f"<uid {len(self._uids) + 1}>"), text
        )
        text = MICRO_TIME.sub("<micro time>", text)
        text = RECORD.sub("record (<version>)", text)
        text = TIME.sub("<time>", text)
        text = ADDRESS.sub("<address>", text)
        return self._namespace.sub("{ns}", text)


def _sorted_causes(status: dict[str, Any]) -> dict[str, Any]:
    """The real server lists errors and conflicts in no certain order, and some several times."""
    causes = status.get("details", {}).get("causes", [])
    if len(causes) < 2:
        return status
    different = {(cause["field"], cause["message"]): cause for cause in causes}
    ordered = [different[key] for key in sorted(different)]
    message = re.sub(r"is invalid: \[.*\]$", "is invalid: [<causes>]", status["message"])
    return {**status, "message": message, "details": {**status["details"], "causes": ordered}}


def _manager(entry: Any) -> tuple[str, ...]:
    keys = ("operation", "manager", "subresource")
    return tuple(str(entry.get(key, "")) for key in keys)
