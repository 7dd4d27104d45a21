"""MCP servers of other people for tests: SDKs and bridges, each in an environment of its own.

Receives what `servers/` pins: requirements of Python environments, an npm lock, a Go module and a
Rust crate. Builds them once into a cache beside that of the control plane, keyed by the content of
`servers/`; gives running servers on free ports of 127.0.0.1 that end with their `with`. Nothing is
built unless asked for (`python tests/realservers.py build`, or GITOPS_MCP_SERVERS=require, as CI
sets it). Go's is built where there is a toolchain; Rust's, which takes minutes, only by
`python tests/realservers.py build rust`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).parent / "servers"
PYTHONS = ("python-1.9", "python-1", "python-2")
KINDS = (*PYTHONS, "node", "go", "rust")
ALWAYS = (*PYTHONS, "node")
"""What GITOPS_MCP_SERVERS=require insists on. Of Go it builds what it can."""
START = 60.0
"""Seconds for a server to listen: on a busy machine imports take their time."""


class Unavailable(Exception):
    """This kind of server is not on this machine; the message is one line for a skipped test."""


# --- the environments -------------------------------------------------------------------------


def directory() -> Path:
    """Where the environments are or would be: one directory per content of `servers/`."""
    if override := os.environ.get("GITOPS_MCP_SERVERS_DIR"):
        return Path(override)
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "gitops-mcp" / "servers"


def environment(kind: str) -> Path:
    """The directory of one kind's environment; raises Unavailable where it has not been built.

    GITOPS_MCP_SERVERS=require builds what is missing, and where it cannot raises what no test takes
    for a reason to be skipped.
    """
    target = _target(kind)
    if target.exists():
        return target
    if os.environ.get("GITOPS_MCP_SERVERS") != "require" or kind not in (*ALWAYS, "go"):
        raise Unavailable(f"no {kind} server: `python tests/realservers.py build` makes it")
    try:
        return build(kind)
    except Unavailable as error:
        if kind not in ALWAYS:
            raise
        raise RuntimeError(f"GITOPS_MCP_SERVERS=require, but {error}") from error


def build(kind: str) -> Path:
    """Build one kind into the cache; later calls return at once."""
    target = _target(kind)
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f"{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            fresh = Path(tempfile.mkdtemp(dir=target.parent))
            try:
                _BUILDERS[kind](kind, fresh)
                fresh.rename(target)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
    return target


def _target(kind: str) -> Path:
    digest = hashlib.sha256(sys.version.encode() if kind in PYTHONS else b"")
    for file in _sources(kind):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return directory() / f"{kind}-{digest.hexdigest()[:16]}"


def _sources(kind: str) -> list[Path]:
    """The files that an environment is made of. Server scripts are none of them where they can be
    run from here."""
    if kind in PYTHONS:
        return [HERE / f"{kind}.txt"]
    if kind == "node":
        return [HERE / "package.json", HERE / "package-lock.json", HERE / "server.mjs"]
    return sorted(file for file in (HERE / kind).rglob("*") if file.is_file())


def _tool(name: str, *places: str) -> str:
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        raise Unavailable(f"there is no {name} on this machine")
    return found


def _python(kind: str, target: Path) -> None:
    uv = _tool("uv", str(Path(sys.executable).parent))
    # Scripts of an environment name its interpreter, which will have moved: they are run by it.
    run([uv, "venv", "--quiet", "--python", sys.executable, "--relocatable", str(target)])
    pinned = ["--require-hashes", "-r", str(HERE / f"{kind}.txt")]
    run([uv, "pip", "install", "--quiet", "--python", str(target / "bin" / "python"), *pinned])


def _node(_: str, target: Path) -> None:
    npm = _tool("npm")
    for file in _sources("node"):
        shutil.copy(file, target)
    run([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"], cwd=target)


def _go(kind: str, target: Path) -> None:
    go = _tool("go", "/usr/local/go/bin")
    more = {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly"}
    output = str(target / "server")
    run([go, "build", "-buildvcs=false", "-trimpath", "-o", output, "."], cwd=HERE / kind, **more)


def _rust(kind: str, target: Path) -> None:
    cargo = _tool("cargo", str(Path("~/.cargo/bin").expanduser()))
    with tempfile.TemporaryDirectory() as scratch:
        more = {"CARGO_TARGET_DIR": scratch}
        run([cargo, "build", "--quiet", "--locked", "--release"], cwd=HERE / kind, **more)
        shutil.copy(Path(scratch, "release", "server"), target)


def run(command: Sequence[str], *, cwd: Path | None = None, **more: str) -> None:
    subprocess.run(command, cwd=cwd, check=True, env={**os.environ, **more})


_BUILDERS: Mapping[str, Callable[[str, Path], None]] = {
    **dict.fromkeys(PYTHONS, _python),
    "node": _node,
    "go": _go,
    "rust": _rust,
}


# --- running servers --------------------------------------------------------------------------


class Running:
    """A server: its URL without a path, and its process."""

    def __init__(self, port: int, process: subprocess.Popen[bytes]) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.host = f"127.0.0.1:{port}"
        self.process = process

    def sessions(self) -> int:
        """The live sessions, as the server counts them."""
        with urllib.request.urlopen(f"{self.url}/sessions", timeout=60) as answer:
            return int(answer.read())

    def children(self) -> int:
        """The processes below the server's own."""
        return len(_below(self.process.pid))


def _below(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, task.read_text().split()):
                found += [child, *_below(child)]
    return found


@contextlib.contextmanager
def python(kind: str, *flags: str) -> Iterator[Running]:
    """`servers/server.py` in one of the Python environments."""
    interpreter = str(environment(kind) / "bin" / "python")
    with _announced([interpreter, str(HERE / "server.py")], flags) as running:
        yield running


@contextlib.contextmanager
def python_2(*flags: str) -> Iterator[Running]:
    """`mcp_server.py`, on the SDK that the tests themselves have."""
    with _announced([sys.executable, str(HERE.parent / "mcp_server.py")], flags) as running:
        yield running


@contextlib.contextmanager
def typescript(*flags: str) -> Iterator[Running]:
    """`servers/server.mjs`."""
    script = environment("node") / "server.mjs"
    with _announced([_tool("node"), str(script)], flags) as running:
        yield running


@contextlib.contextmanager
def compiled(kind: str, *flags: str) -> Iterator[Running]:
    """The server of Go or Rust."""
    with _announced([str(environment(kind) / "server")], flags) as running:
        yield running


@contextlib.contextmanager
def supergateway(*flags: str, slow: float = 0) -> Iterator[Running]:
    """The bridge `supergateway` over a stdio server that takes `slow` seconds to start."""
    node, where = _tool("node"), environment("node")
    child = f"{node} {where / 'server.mjs'} - stdio slow={slow}"
    bridge = where / "node_modules" / "supergateway" / "dist" / "index.js"
    port = _free_port()
    command = [node, "--require", str(HERE / "loopback.cjs"), str(bridge), "--stdio", child]
    command += ["--outputTransport", "streamableHttp", "--port", str(port), *flags]
    with _started(command) as process, _listening(process, port) as running:
        yield running


@contextlib.contextmanager
def mcp_proxy(*flags: str) -> Iterator[Running]:
    """The bridge `mcp-proxy` over `mcp-server-time`."""
    where = environment("python-1") / "bin"
    port = _free_port()
    command = [str(where / "python"), "-m", "mcp_proxy", "--host", "127.0.0.1", "--port", str(port)]
    command += [*flags, "--", str(where / "python"), "-m", "mcp_server_time"]
    with _started(command) as process, _listening(process, port) as running:
        yield running


@contextlib.contextmanager
def _started(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process group of its own, which ends with the `with`: bridges have children."""
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


@contextlib.contextmanager
def _announced(command: Sequence[str], flags: Sequence[str]) -> Iterator[Running]:
    """A server that writes its port to the file that it is given."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "port")
        with _started([*command, str(file), *flags]) as process:
            _wait(process, file.exists)
            yield Running(int(file.read_text()), process)


@contextlib.contextmanager
def _listening(process: subprocess.Popen[bytes], port: int) -> Iterator[Running]:
    """A server that was told its port."""

    def there() -> bool:
        with socket.socket() as asked:
            return asked.connect_ex(("127.0.0.1", port)) == 0

    _wait(process, there)
    yield Running(port, process)


def _wait(process: subprocess.Popen[bytes], there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START
    while not there():
        assert process.poll() is None, f"the server ended: {process.args!r}"
        assert time.monotonic() < deadline, f"the server did not start: {process.args!r}"
        time.sleep(0.02)


def _free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
        return port


# --- command line -----------------------------------------------------------------------------


def main(command: str = "", *kinds: str) -> int:
    if command != "build" or not set(kinds) <= set(KINDS):
        sys.stderr.write(f"usage: python tests/realservers.py build [{'|'.join(KINDS)} …]\n")
        return 2
    missing = False
    for kind in kinds or (*ALWAYS, "go"):
        try:
            sys.stdout.write(f"{build(kind)}\n")
        except Unavailable as error:
            sys.stderr.write(f"skipped {kind}: {error}\n")
            missing = missing or kind in (kinds or ALWAYS)
    return int(missing)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
