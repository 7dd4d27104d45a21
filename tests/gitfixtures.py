"""Real git repositories and servers for tests, made fast and deaf to the machine's git settings."""

from __future__ import annotations

import base64
import contextlib
import os
import ssl
import subprocess
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

Files = Mapping[str, str | bytes | None]
"""Path to content; None removes the file."""


def git(where: Path, *args: str, stdin: bytes = b"", check: bool = True) -> str:
    """Run git in a folder, isolated; its stdout, stripped."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    env |= {
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "Ada",
        "GIT_AUTHOR_EMAIL": "ada@example.com",
        "GIT_COMMITTER_NAME": "Ada",
        "GIT_COMMITTER_EMAIL": "ada@example.com",
    }
    done = subprocess.run(
        ["git", "-c", "safe.directory=*", "-C", str(where), *args],
        input=stdin,
        env=env,
        capture_output=True,
        check=False,
        timeout=60,
    )
    if check and done.returncode:
        raise AssertionError(f"git {args[0]}: {done.stderr.decode()}")
    return done.stdout.decode("utf-8", "surrogateescape").strip()


def bare(path: Path) -> Path:
    """A new bare repository whose HEAD is main."""
    path.mkdir(parents=True)
    git(path, "init", "--quiet", "--bare", "--template=", "--initial-branch=main")
    return path


def commit(
    repository: Path,
    files: Files,
    message: str = "Change",
    *,
    branch: str = "main",
    parent: str | None = None,
    modes: Mapping[str, str] | None = None,
) -> str:
    """Put a commit onto a bare repository's branch; its id.

    ``parent`` is where it starts instead of the branch ("" for none): a force-push. ``modes`` are
    modes other than 100644 by path; with 160000 the content is a commit id.
    """
    start = git(repository, "rev-parse", "-q", "--verify", f"refs/heads/{branch}", check=False)
    start = start if parent is None else parent
    ref = f"refs/heads/{branch}".encode()
    text = message.encode()
    stream = [b"commit %s\ncommitter Ada <ada@example.com> now\n" % ref]
    stream.append(b"data %d\n%s\n" % (len(text), text))
    if start:
        stream.append(b"from %s\n" % start.encode())
    for path, content in files.items():
        name = b'"%s"' % os.fsencode(path).replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(
            b"\n", b"\\n"
        )
        mode = (modes or {}).get(path, "100644")
        if content is None:
            stream.append(b"D %s\n" % name)
        elif mode == "160000":
            assert isinstance(content, str)
            stream.append(b"M 160000 %s %s\n" % (content.encode(), name))
        else:
            data = content if isinstance(content, bytes) else content.encode()
            stream.append(b"M %s inline %s\n" % (mode.encode(), name))
            stream.append(b"data %d\n%s\n" % (len(data), data))
    force = ("--force",) if parent is not None else ()
    arguments = ("fast-import", "--quiet", "--date-format=now", *force)
    git(repository, *arguments, stdin=b"".join(stream))
    return git(repository, "rev-parse", f"refs/heads/{branch}")


def worktree(path: Path, files: Files, message: str = "Start") -> str:
    """A new repository with a work tree and one commit; the commit's id."""
    path.mkdir(parents=True, exist_ok=True)
    git(path, "init", "--quiet", "--template=", "--initial-branch=main")
    return commit_all(path, files, message)


def commit_all(path: Path, files: Files, message: str = "Change") -> str:
    """Write files into a work tree and commit all; the commit's id."""
    write(path, files)
    git(path, "add", "--all")
    git(path, "commit", "--quiet", "--allow-empty", "--message", message)
    return git(path, "rev-parse", "HEAD")


def write(path: Path, files: Files) -> None:
    """Write files below a folder."""
    for name, content in files.items():
        file = path / name
        if content is None:
            file.unlink()
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())


@dataclass
class Seen:
    """What a request told the server."""

    path: str
    authorization: str | None


class Serving:
    """An HTTP server on 127.0.0.1 that lives as long as its ``with``."""

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def end(self) -> None:
        """Close the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class GitServer(Serving):
    """``git http-backend`` on 127.0.0.1, serving the bare repositories of a folder.

    With ``password``, requests need it (any user name). ``redirect`` sends every request on to
    another address. ``seen`` lists the requests. While ``trouble`` is a status, requests get that;
    while ``hang`` holds something, a request whose body has it is never answered. ``cut`` is how
    much of an answer that holds a pack is sent before the connection ends. ``tls`` is a file with a
    certificate and its key.
    """

    def __init__(
        self, folder: Path, *, password: str = "", redirect: str = "", tls: Path | None = None
    ) -> None:
        self.seen: list[Seen] = []
        self.password = password
        self.trouble = 0
        self.hang = b""
        self.cut = 1.0
        self._closed = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                outer._serve(self, folder, redirect)

            do_POST = do_GET

        super().__init__(Handler)
        self.url = self.address
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            self.url = f"https{self.url.removeprefix('http')}"

    def end(self) -> None:
        self._closed.set()
        super().end()

    def _serve(self, request: BaseHTTPRequestHandler, folder: Path, redirect: str) -> None:
        authorization = request.headers.get("Authorization")
        self.seen.append(Seen(request.path, authorization))
        body = _body(request)
        if redirect:
            request.send_response(302)
            request.send_header("Location", redirect + request.path)
            request.end_headers()
            return
        if self.trouble:
            request.send_error(self.trouble)
            return
        if self.hang and self.hang in body:
            self._closed.wait()
            return
        if self.password:
            given = base64.b64decode((authorization or "Basic ").split(" ")[1]).decode()
            if given.partition(":")[2] != self.password:
                request.send_response(401)
                request.send_header("WWW-Authenticate", 'Basic realm="git"')
                request.send_header("Content-Length", "0")
                request.end_headers()
                return
        address = urlsplit(request.path)
        done = subprocess.run(
            ["git", "-c", "safe.directory=*", "-c", "http.receivepack=true", "http-backend"],
            input=body,
            capture_output=True,
            check=False,
            env={
                "PATH": os.environ["PATH"],
                "GIT_CONFIG_GLOBAL": "/dev/null",
                "GIT_CONFIG_NOSYSTEM": "1",
                "GIT_PROJECT_ROOT": str(folder),
                "GIT_HTTP_EXPORT_ALL": "1",
                "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
                "HTTP_CONTENT_ENCODING": request.headers.get("Content-Encoding", ""),
                "CONTENT_TYPE": request.headers.get("Content-Type", ""),
                "CONTENT_LENGTH": str(len(body)),
                "PATH_INFO": address.path,
                "QUERY_STRING": address.query,
                "REQUEST_METHOD": request.command,
                "REMOTE_USER": "tester",
                "REMOTE_ADDR": "127.0.0.1",
            },
        )
        head, _, rest = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line)
        request.send_response(int(headers.pop("Status", "200").split(" ")[0]))
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(rest)))
        request.end_headers()
        with contextlib.suppress(ConnectionError):  # whoever asked has heard enough
            request.wfile.write(rest[: int(len(rest) * self.cut)] if b"PACK" in rest else rest)


def packet(text: str | bytes) -> bytes:
    """A line of git's protocol."""
    data = text.encode() if isinstance(text, str) else text
    return b"%04x" % (len(data) + 4) + data


ADVERTISED = packet("# service=git-upload-pack\n") + b"0000"
"""What a server's list of refs begins with."""


class OddServer(Serving):
    """A server on 127.0.0.1 that answers each request with ``answer`` in chunks of its own making,
    as ``kind``, until nobody listens."""

    def __init__(
        self,
        answer: Iterable[bytes],
        *,
        kind: str = "application/x-git-upload-pack-advertisement",
        status: int = 200,
    ) -> None:
        self.sent = 0
        self.requests = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                outer.requests += 1
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.end_headers()
                with contextlib.suppress(OSError):
                    for chunk in answer:
                        self.wfile.write(chunk)
                        outer.sent += len(chunk)

            do_POST = do_GET

        super().__init__(Handler)
        self.url = f"{self.address}/fleet.git"


def _body(request: BaseHTTPRequestHandler) -> bytes:
    """The request's body; git sends large ones chunked."""
    if request.headers.get("Transfer-Encoding") != "chunked":
        return request.rfile.read(int(request.headers.get("Content-Length", "0")))
    chunks = []
    while size := int(request.rfile.readline(), 16):
        chunks.append(request.rfile.read(size))
        request.rfile.readline()
    request.rfile.readline()
    return b"".join(chunks)
