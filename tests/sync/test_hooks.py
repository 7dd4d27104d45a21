"""Cleanup hooks over real HTTP: signed, tried again within a bound, never in the way."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from gitops_mcp.base.errors import UsageError
from gitops_mcp.sync import hooks

EVENT = {"event": "cleanup", "server": "ai/web"}


class Receiver:
    """A real server that answers with the given codes in turn, the last one for ever."""

    def __init__(self, codes: list[int]) -> None:
        self.calls: list[tuple[dict[str, str], bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                code = codes[min(len(receiver.calls), len(codes) - 1)]
                receiver.calls.append((dict(self.headers), body))
                self.send_response(code)
                if code == 302:
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def receiver(request: pytest.FixtureRequest) -> Iterator[Receiver]:
    started = Receiver(request.param)
    yield started
    started.close()


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("receiver", [[204]], indirect=True)
def test_a_hook_is_told_what_goes_and_can_check_who_says_so(
    receiver: Receiver, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret\n")
    hook = hooks.Hook("dns", receiver.url, secret)
    assert hooks.run([hook], EVENT) == "1 of 1 hooks done"
    ((headers, body),) = receiver.calls
    assert json.loads(body) == {**EVENT, "hook": "dns"}
    signed = f"{headers[hooks.TIMESTAMP]}.".encode() + body
    wanted = hmac.new(b"s3cret", signed, hashlib.sha256).hexdigest()
    assert headers[hooks.SIGNATURE] == f"sha256={wanted}"


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("receiver", [[503, 429, 200]], indirect=True)
def test_a_hook_that_is_busy_is_called_again_with_growing_waits(receiver: Receiver) -> None:
    time = Time()
    said = hooks.run([hooks.Hook("dns", receiver.url)], EVENT, clock=time.clock, sleep=time.sleep)
    assert said == "1 of 1 hooks done"
    assert (len(receiver.calls), time.now) == (3, 3.0)


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("receiver", [[500]], indirect=True)
def test_a_hook_that_never_succeeds_ends_within_the_limit(receiver: Receiver) -> None:
    time = Time()
    said = hooks.run(
        [hooks.Hook("dns", receiver.url), hooks.Hook("lb", receiver.url)],
        EVENT,
        limit=timedelta(seconds=10),
        clock=time.clock,
        sleep=time.sleep,
    )
    assert said == "0 of 2 hooks done; dns: HTTP 500; lb: HTTP 500"
    assert time.now < 20


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(
    ("receiver", "said"),
    [([400], "HTTP 400"), ([302], "HTTP 302")],
    indirect=["receiver"],
)
def test_a_refusal_is_final_and_a_redirect_is_not_followed(receiver: Receiver, said: str) -> None:
    assert hooks.run([hooks.Hook("dns", receiver.url)], EVENT) == f"0 of 1 hooks done; dns: {said}"
    assert len(receiver.calls) == 1


def test_nobody_there_is_told_without_the_address() -> None:
    hook = hooks.Hook("dns", "http://127.0.0.1:9/x?token=abc", timeout=timedelta(seconds=1))
    said = hooks.run([hook], EVENT, limit=timedelta(seconds=1))
    assert said.startswith("0 of 1 hooks done; dns: no answer (")
    assert "abc" not in said


def test_a_secret_that_cannot_be_read_fails_the_hook_alone(tmp_path: Path) -> None:
    said = hooks.run([hooks.Hook("dns", "http://127.0.0.1:9/", tmp_path / "none")], EVENT)
    assert said == "0 of 1 hooks done; dns: its secret cannot be read: No such file or directory"


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("receiver", [[204]], indirect=True)
def test_an_empty_secret_fails_the_hook(receiver: Receiver, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("\n")
    said = hooks.run([hooks.Hook("dns", receiver.url, tmp_path / "secret")], EVENT)
    assert said == "0 of 1 hooks done; dns: its secret is empty"
    assert not receiver.calls


@pytest.mark.parametrize(
    "hook",
    [
        hooks.Hook("dns", "http://127.0.0.1:9/", timeout=timedelta(0)),
        hooks.Hook("dns", "http://127.0.0.1:b/"),
        hooks.Hook("dns", "http://[::1/"),
        hooks.Hook("dns", "http://127.0.0.1:9/\ud800"),
        hooks.Hook("dns", f"http://{'a' * 64}.example/"),
    ],
)
def test_nothing_that_a_hook_does_is_raised(hook: hooks.Hook) -> None:
    said = hooks.run([hook], EVENT, limit=timedelta(seconds=1))
    assert said.startswith("0 of 1 hooks done; dns: no answer (")


@pytest.mark.parametrize(
    ("configured", "message"),
    [
        ({}, "hooks: expected a list"),
        (["x"], "hooks[0]: expected a map with name and url"),
        ([{"url": "http://a/"}], "hooks[0]: name is missing"),
        ([{"name": "a", "url": "ftp://a/"}], "hooks[0]: url must be an http or https address"),
        (
            [{"name": "a", "url": "http://u:p@a/"}],
            "hooks[0]: no credentials in the url; sign with secretFile instead",
        ),
        *(
            (
                [{"name": "a", "url": "http://a/", "timeout": none}],
                "hooks[0]: timeout is no duration such as 10s",
            )
            for none in ("soon", "-1s", "1d")
        ),
        *(
            (
                [{"name": "a", "url": "http://a/", "timeout": none}],
                "hooks[0]: timeout must be longer than 0s",
            )
            for none in ("0s", 0)
        ),
        *(
            ([{"name": "a", "url": odd}], "hooks[0]: url must be an http or https address")
            for odd in ("http://[::1/", "http://a:b/", "http://a:99999/", "http://", "http:///x")
        ),
        (
            [{"name": "a", "url": "http://a/", "secret": "x"}],
            "hooks[0]: no key 'secret'; there are name, secretFile, timeout, url",
        ),
    ],
)
def test_a_wrong_hook_is_named(configured: object, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        hooks.parse(configured)
    assert refused.value.message == message


def test_hooks_are_read_from_the_configuration() -> None:
    configured = [
        {"name": "dns", "url": "https://dns.example.com/x", "secretFile": "/s", "timeout": "3s"}
    ]
    assert hooks.parse(configured) == (
        hooks.Hook("dns", "https://dns.example.com/x", Path("/s"), timedelta(seconds=3)),
    )
