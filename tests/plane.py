"""A real Kubernetes control plane for tests: apiserver, controllers, scheduler, etcd and KWOK.

Receives nothing but a Go toolchain (or a cache that an earlier build filled); gives running planes
on free loopback ports, each with its own data directory, that end with the process that started
them. Never downloads or builds by itself unless asked to (`python tests/plane.py build`, or
GITOPS_MCP_PLANE=require, as CI sets it), and never listens on anything but 127.0.0.1.

Pods run no process: KWOK plays the kubelet by the rules of `plane/stages.yaml`. Their addresses are
not loopback ones, so an agent under test runs with `--probes off`.

    python tests/plane.py build      build once, print the directory of the binaries
    python tests/plane.py run        a plane for a curious developer, until Ctrl-C
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent / "plane"
KUBERNETES = "1.36.1"
# in the order of their start; etcd's program comes out of its module as "server"
PROGRAMS = ("server", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok")
BUILT = (*PROGRAMS, "kubectl")

# Runs argv[2:] so that the kernel kills it when its parent (argv[1]) ends, however that ends.
# The parent's *thread* counts: start planes from a thread that lives as long as they do.
_TIED = (
    "import ctypes, os, signal, sys; ctypes.CDLL(None).prctl(1, signal.SIGKILL); "
    "os.getppid() == int(sys.argv[1]) or sys.exit(1); os.execv(sys.argv[2], sys.argv[2:])"
)

_AUDIT_POLICY = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules: [{level: Metadata}]
"""

_SCHEDULER = """\
apiVersion: kubescheduler.config.k8s.io/v1
kind: KubeSchedulerConfiguration
leaderElection: {leaderElect: false}
clientConnection: {kubeconfig: %s, qps: 1000, burst: 2000}
"""

# nodes here have no kubelet: whether one is alive is nobody's business
_CONTROLLERS = "*,-node-lifecycle-controller,-node-ipam-controller,-taint-eviction-controller"

_NODE = "node-0"

# controllers have a user of their own, so that the requests of `admin` are those of the test
_CONTROLLER = "controller"
_MASTERS = ("admin", _CONTROLLER)


class Unavailable(Exception):
    """There is no control plane on this machine; the message is one line for the skipped test."""


class ProgramEnded(RuntimeError):
    """A program of a plane ended by itself; the message has the end of its log."""


# --- binaries -------------------------------------------------------------------------------


def directory() -> Path:
    """Where the binaries are or would be: one directory per set of module versions."""
    if override := os.environ.get("GITOPS_MCP_PLANE_DIR"):
        return Path(override)
    digest = hashlib.sha256((HERE / "go.mod").read_bytes() + (HERE / "go.sum").read_bytes())
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "gitops-mcp" / "plane" / digest.hexdigest()[:16]


def binaries() -> Path:
    """The directory of the built programs; raises Unavailable where there are none.

    GITOPS_MCP_PLANE=require builds what is missing (five minutes of two cores, once), and where it
    cannot raises what no test takes for a reason to be skipped.
    """
    target = directory()
    if all((target / program).exists() for program in BUILT):
        return target
    if os.environ.get("GITOPS_MCP_PLANE") != "require":
        raise Unavailable(f"no control plane in {target}: `python tests/plane.py build` makes it")
    try:
        return build()
    except Unavailable as error:
        raise RuntimeError(f"GITOPS_MCP_PLANE=require, but {error}") from error


def build() -> Path:
    """Build everything from Go modules into the cache; later calls return at once."""
    target = directory()
    if all((target / program).exists() for program in BUILT):
        return target
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if go is None:
        raise Unavailable("no Go toolchain (1.26 or newer) to build the control plane with")
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not all((target / program).exists() for program in BUILT):
            fresh = Path(tempfile.mkdtemp(dir=target.parent))
            _compile(go, fresh)
            fresh.rename(target)
    return target


def _compile(go: str, target: Path) -> None:
    version = "k8s.io/component-base/version"
    major, minor, _ = KUBERNETES.split(".")
    # kubectl refuses a server whose version is not stamped
    stamps = {"gitVersion": f"v{KUBERNETES}", "gitMajor": major, "gitMinor": minor}
    flags = "-s -w " + " ".join(f"-X {version}.{key}={value}" for key, value in stamps.items())
    output = f"{target}/"
    subprocess.run(
        [go, "build", "-buildvcs=false", "-trimpath", "-ldflags", flags, "-o", output, "tool"],
        cwd=HERE,
        env={**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly"},
        check=True,
    )


@functools.cache
def shared() -> Plane:
    """The one plane of this test process, for tests that leave its API server running.

    Tests keep apart by namespaces of their own; it ends with the process.
    """
    plane = Plane()
    atexit.register(plane.stop)
    return plane.__enter__()


# --- a running plane ------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """One request of the audit log: what a claim about requests is counted from."""

    verb: str
    """get, list, watch, create, update, patch, delete, deletecollection"""
    resource: str
    """`deployments` or `deployments/scale`; the path, for a request that names no resource"""
    namespace: str
    name: str
    user: str
    agent: str
    code: int
    uri: str
    message: str = ""
    """Why it was refused."""

    @property
    def denied(self) -> bool:
        """True where a right was missing. A namespace that is going away answers 403 as well."""
        return self.code == 403 and "being terminated" not in self.message

    @property
    def writes(self) -> bool:
        """True where the request may change something: no read, no dry run."""
        return self.verb not in {"get", "list", "watch"} and "dryRun=All" not in self.uri


@dataclass
class Plane:
    """A control plane; use as a context manager. All paths and ports are its own.

    `users` are token users without any right; `admin` (system:masters) always exists.
    `arguments` adds flags to a program, by the program's name.
    """

    users: Sequence[str] = ("alice", "bob")
    arguments: Mapping[str, Sequence[str]] = field(default_factory=dict)
    stages: Path = HERE / "stages.yaml"

    def __post_init__(self) -> None:
        self.bin = binaries()
        self._tokens = {user: secrets.token_hex(16) for user in (*_MASTERS, *self.users)}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Plane:
        for tries_left in (2, 1, 0):
            try:
                self._start()
                break
            except BaseException as error:
                self.stop()
                # a port may have been taken by somebody else between its choice and its use
                if not isinstance(error, ProgramEnded) or not tries_left:
                    raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- for tests

    def namespace(self, prefix: str = "test") -> str:
        """The name of a new namespace in which pods can be created."""
        body = {"metadata": {"generateName": f"{prefix}-"}}
        status, answer = self.request("POST", "/api/v1/namespaces", body)
        if status != 201:
            raise RuntimeError(f"no namespace: {status} {answer}")
        name = str(answer["metadata"]["name"])
        self._wait(lambda: self._has_default_account(name), "its default ServiceAccount")
        return name

    def kubeconfig(self, user: str = "admin", *, namespace: str = "default") -> Path:
        """Path of a kubeconfig for one of the users."""
        return self._kubeconfig(user, self._tokens[user], namespace)

    def account_kubeconfig(self, account: str, *, namespace: str) -> Path:
        """Path of a kubeconfig for a ServiceAccount, as a pod in its namespace would have it."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        status, answer = self.request("POST", path, {"spec": {"expirationSeconds": 7200}})
        if status != 201:
            raise RuntimeError(f"no token: {status} {answer}")
        return self._kubeconfig(account, answer["status"]["token"], namespace)

    def _kubeconfig(self, user: str, token: str, namespace: str) -> Path:
        path = self.home / f"{user}.{namespace}.kubeconfig"
        cluster = {"server": self.url, "certificate-authority": str(self.ca)}
        context = {"cluster": "plane", "user": user, "namespace": namespace}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "plane", "cluster": cluster}],
            "users": [{"name": user, "user": {"token": token}}],
            "contexts": [{"name": "plane", "context": context}],
            "current-context": "plane",
        }
        path.write_text(json.dumps(content))
        return path

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        content_type: str = "application/json",
        user: str = "admin",
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Any]:
        """One raw request: (status, parsed JSON, or text where the answer is not JSON)."""
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {self._tokens[user]}",
                "Content-Type": content_type,
                **(headers or {}),
            },
        )
        try:
            with urllib.request.urlopen(request, context=self._tls(), timeout=30) as answer:
                status, raw = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                status, raw = error.code, error.read()
        try:
            return status, json.loads(raw)
        except ValueError:
            return status, raw.decode()

    def token(self, user: str = "admin") -> str:
        """The bearer token of one of the users."""
        return self._tokens[user]

    def grant(self, user: str, rules: Sequence[object], *, namespace: str | None = None) -> None:
        """Give a user exactly these RBAC rules, cluster-wide or in one namespace."""
        kind = "Role" if namespace else "ClusterRole"
        where = f"/namespaces/{namespace}" if namespace else ""
        group = "rbac.authorization.k8s.io"
        role = {"rules": rules}
        binding = {
            "roleRef": {"apiGroup": group, "kind": kind, "name": user},
            "subjects": [{"apiGroup": group, "kind": "User", "name": user}],
        }
        for name, content in ((kind, role), (f"{kind}Binding", binding)):
            self._must(
                "PATCH",
                f"/apis/{group}/v1{where}/{name.lower()}s/{user}?fieldManager=plane&force=true",
                {"apiVersion": f"{group}/v1", "kind": name, "metadata": {"name": user}, **content},
                "application/apply-patch+yaml",
            )

    def requests(self, *, user: str | None = None) -> list[Request]:
        """The requests since the last call, oldest first, of one user or of all."""
        with (self.home / "audit.log").open("rb") as log:
            log.seek(self._seen)
            lines = log.readlines()
        if lines and not lines[-1].endswith(b"\n"):
            lines.pop()
        self._seen += sum(map(len, lines))
        every = [_request(json.loads(line)) for line in lines]
        return [one for one in every if user is None or one.user == user]

    def counts(self, *, user: str | None = None) -> Counter[tuple[str, str]]:
        """How many requests by (verb, resource) since the last call of this or `requests`."""
        return Counter((one.verb, one.resource) for one in self.requests(user=user))

    def stop_apiserver(self, *, drain: bool = False) -> None:
        """End the API server: every connection breaks. With `drain` it goes as on a SIGTERM."""
        self._end("kube-apiserver", signal.SIGTERM if drain else signal.SIGKILL)

    def start_apiserver(self) -> None:
        """Start the API server again, on the same port, with the same data, and wait for it."""
        self._start_apiserver()
        self._wait_ready()

    def snapshot(self) -> Path:
        """All that etcd holds now, copied while it is stopped for a moment."""
        copy = Path(tempfile.mkdtemp(prefix="snapshot-", dir=self.home))
        self._end("server", signal.SIGTERM)
        shutil.copytree(self.home / "etcd", copy, dirs_exist_ok=True)
        self._start_etcd()
        self._wait_ready()
        return copy

    def restore(self, copy: Path) -> None:
        """Go back to a snapshot as an administrator does: everything that holds a cache of the
        cluster is stopped, and started again. Versions go on from those of the snapshot."""
        for program in reversed(PROGRAMS):
            self._end(program, signal.SIGKILL)
        shutil.rmtree(self.home / "etcd")
        shutil.copytree(copy, self.home / "etcd")
        self._start_etcd()
        self.start_apiserver()
        self._start_controllers()

    def compact(self) -> None:
        """Compact etcd: older resourceVersions can no longer be read from it."""
        gateway = f"http://127.0.0.1:{self._etcd_port}/v3/kv/"
        header = _post(gateway + "range", {"key": "AA=="})["header"]
        _post(gateway + "compaction", {"revision": header["revision"], "physical": True})

    # --- start and stop

    def _start(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="plane-"))
        self.port, self._etcd_port, self._peer_port = free_ports(3)
        self.url = f"https://127.0.0.1:{self.port}"
        self.ca = self.home / "certs" / "apiserver.crt"
        self._seen = 0
        (self.home / "audit.yaml").write_text(_AUDIT_POLICY)
        (self.home / "tokens.csv").write_text(
            "".join(
                f'{token},{user},{user},"{"system:masters" if user in _MASTERS else ""}"\n'
                for user, token in self._tokens.items()
            )
        )
        self._start_etcd()
        self._start_apiserver()
        self._wait_ready()
        self._start_controllers()
        self._register_node()
        self._wait(self._has_default_account, "the default ServiceAccount")

    def _start_etcd(self) -> None:
        self._spawn(
            "server",
            "--unsafe-no-fsync",
            f"--data-dir={self.home}/etcd",
            f"--listen-client-urls=http://127.0.0.1:{self._etcd_port}",
            f"--advertise-client-urls=http://127.0.0.1:{self._etcd_port}",
            f"--listen-peer-urls=http://127.0.0.1:{self._peer_port}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{self._peer_port}",
            f"--initial-cluster=default=http://127.0.0.1:{self._peer_port}",
            "--log-level=warn",
        )

    def _start_controllers(self) -> None:
        config = self.kubeconfig(_CONTROLLER)
        key = self.home / "certs" / "apiserver.key"
        self._spawn(
            "kube-controller-manager",
            f"--kubeconfig={config}",
            "--leader-elect=false",
            "--secure-port=0",
            "--use-service-account-credentials=false",
            f"--service-account-private-key-file={key}",
            f"--root-ca-file={self.ca}",
            f"--controllers={_CONTROLLERS}",
            "--kube-api-qps=1000",
            "--kube-api-burst=2000",
            "--horizontal-pod-autoscaler-sync-period=2s",  # else half a minute
        )
        scheduler = self.home / "scheduler.yaml"
        scheduler.write_text(_SCHEDULER % config)
        self._spawn("kube-scheduler", f"--config={scheduler}", "--secure-port=0")
        self._spawn(
            "kwok",
            f"--kubeconfig={config}",
            f"--config={self.stages}",
            "--manage-all-nodes",
            "--node-lease-duration-seconds=0",
            "--node-ip=127.0.0.1",
            "--server-address=127.0.0.1:0",
        )

    def _start_apiserver(self) -> None:
        key = self.home / "certs" / "apiserver.key"
        self._spawn(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self.port}",
            f"--cert-dir={key.parent}",
            "--endpoint-reconciler-type=none",
            "--service-cluster-ip-range=10.0.0.0/16",
            "--allow-privileged",  # as every distribution sets it
            # some have it on: who sets owner references needs rights on the owners
            "--enable-admission-plugins=OwnerReferencesPermissionEnforcement",
            # the serving key, which the server makes for itself, signs tokens as well
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            "--service-account-issuer=https://plane.invalid",
            f"--token-auth-file={self.home}/tokens.csv",
            "--authorization-mode=RBAC",
            f"--audit-log-path={self.home}/audit.log",
            f"--audit-policy-file={self.home}/audit.yaml",
            "--audit-log-maxsize=100000",  # MB: a new file would hide the requests of the old one
        )

    def _spawn(self, program: str, *arguments: str) -> None:
        command = [str(self.bin / program), *arguments, *self.arguments.get(program, ())]
        with (self.home / f"{program}.log").open("ab") as log:
            self._processes[program] = subprocess.Popen(
                [sys.executable, "-S", "-c", _TIED, str(os.getpid()), *command],
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C is for the tests, which then stop the plane
            )

    def _register_node(self) -> None:
        # the labels are those that every kubelet gives its node
        labels = {"arch": "amd64", "os": "linux", "hostname": _NODE}
        metadata = {
            "name": _NODE,
            "annotations": {"kwok.x-k8s.io/node": "fake"},
            "labels": {f"kubernetes.io/{name}": value for name, value in labels.items()},
        }
        node = {"apiVersion": "v1", "kind": "Node", "metadata": metadata}
        self._must("POST", "/api/v1/nodes", node, "application/json")
        # the taint that every new node gets is taken off by a controller that does not run here
        merge = "application/merge-patch+json"
        self._must("PATCH", f"/api/v1/nodes/{_NODE}", {"spec": {"taints": None}}, merge)

    def _must(self, method: str, path: str, body: object, content_type: str) -> None:
        status, answer = self.request(method, path, body, content_type=content_type)
        if status >= 300:
            raise RuntimeError(f"{method} {path}: {status} {answer}")

    def _has_default_account(self, namespace: str = "default") -> bool:
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/default"
        return self.request("GET", path)[0] == 200

    def _wait_ready(self) -> None:
        self._wait(lambda: self.ca.exists() and self.request("GET", "/readyz")[0] == 200, "ready")

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                if condition():
                    return
            for program, process in self._processes.items():
                if process.poll() is not None:
                    tail = (self.home / f"{program}.log").read_text(errors="replace")[-2000:]
                    raise ProgramEnded(f"{program} ended with {process.returncode}:\n{tail}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"not {what} after a minute")
            time.sleep(0.05)

    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.ca))

    def _end(self, program: str, how: signal.Signals) -> None:
        process = self._processes.pop(program, None)
        if process is not None:
            process.send_signal(how)
            process.wait()

    def stop(self) -> None:
        """End all programs and remove all data; safe to call twice."""
        # nothing here is worth a clean end; the API server goes before the etcd that it waits for
        for program in reversed(PROGRAMS):
            self._end(program, signal.SIGKILL)
        shutil.rmtree(self.home, ignore_errors=True)


def _request(entry: Mapping[str, Any]) -> Request:
    ref = entry.get("objectRef") or {}
    resource = "/".join(filter(None, (ref.get("resource"), ref.get("subresource"))))
    return Request(
        verb=entry["verb"],
        resource=resource or entry["requestURI"].partition("?")[0],
        namespace=ref.get("namespace", ""),
        name=ref.get("name", ""),
        user=entry["user"].get("username", ""),
        agent=entry.get("userAgent", ""),
        code=entry.get("responseStatus", {}).get("code", 0),
        uri=entry["requestURI"],
        message=entry.get("responseStatus", {}).get("message", ""),
    )


def _post(url: str, body: object) -> Any:
    request = urllib.request.Request(url, method="POST", data=json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on at this moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def main(arguments: Sequence[str]) -> int:
    """`build` or `run`; see the module's description."""
    if arguments not in (["build"], ["run"]):
        print(__doc__, file=sys.stderr)  # noqa: T201
        return 64
    try:
        target = build()
    except Unavailable as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    if arguments == ["build"]:
        print(target)  # noqa: T201
    else:
        with Plane() as plane:
            ends = {signal.SIGINT, signal.SIGTERM}
            signal.pthread_sigmask(signal.SIG_BLOCK, ends)
            print(f"export KUBECONFIG={plane.kubeconfig()}", flush=True)  # noqa: T201
            signal.sigwait(ends)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
