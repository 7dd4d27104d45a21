"""Credential plugins that fail, servers that are not verified, warnings of the API server."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import paths
import pytest
import yaml
from scripted import Answer, Asked, scripted

from gitops_mcp.base import errors
from gitops_mcp.base.names import ObjectRef
from gitops_mcp.cluster.kube import Cluster
from gitops_mcp.cluster.transport import NOTICES

pytestmark = pytest.mark.usefixtures("processes")

REF = ObjectRef("apps/v1", "Deployment", "ai", "web")
HINT = "Install it with: brew install cloud-login"
GOOD = """\
printf '{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential",'
printf '"status":{"token":"right"'
[ -e "$0.short" ] && printf ',"expirationTimestamp":"2020-01-01T00:00:00Z"'
printf '}}'
"""
FAILS = """\
echo 'reading the cache' >&2
echo 'token expired, password=hunter2' >&2
echo 'run: cloud-login auth' >&2
exit 3
"""


def configured(folder: Path, url: str, script: str | None, **cluster: Any) -> str:
    """A kubeconfig whose user is a credential plugin with this script; None: it is not there."""
    plugin = folder / "cloud-login"
    if script is not None:
        plugin.write_text(f"#!/bin/sh\n{script}")
        plugin.chmod(stat.S_IRWXU)
    runs = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": str(plugin),
        "interactiveMode": "Never",
        "installHint": HINT,
    }
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "t",
        "clusters": [{"name": "c", "cluster": {"server": url, **cluster}}],
        "contexts": [{"name": "t", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {"exec": runs}}],
    }
    (folder / "config").write_text(yaml.safe_dump(content))
    return str(folder / "config")


@pytest.mark.parametrize(
    ("script", "cause"),
    [
        (FAILS, "failed: exec: process returned 3. reading the cache; token expired,"),
        (None, "cannot be run: No such file or directory"),
        ("echo hello", "failed: exec: failed to decode process output"),
        (GOOD.replace('"token"', '"other"'), "gave neither a token nor a certificate"),
    ],
    ids=["fails", "missing", "no JSON", "no token"],
)
def test_a_plugin_that_fails_ends_with_its_cause_and_the_hint(
    tmp_path: Path, script: str | None, cause: str, caplog: pytest.LogCaptureFixture
) -> None:
    with scripted(lambda _: Answer()) as server:
        with pytest.raises(errors.UsageError) as caught:
            Cluster(configured(tmp_path, server.url, script))
        assert server.asked == []  # nothing is sent as nobody
    assert caught.value.message.startswith(f"the credential plugin 'cloud-login' {cause}")
    assert caught.value.hint == HINT
    assert "hunter2" not in caught.value.message
    if script == FAILS:
        assert caught.value.message.endswith("run: cloud-login auth")
    assert caplog.record_tuples == []


def test_one_that_works_is_asked_for_its_token(tmp_path: Path) -> None:
    with scripted(lambda _: Answer(200, {"x": 1})) as server:
        assert Cluster(configured(tmp_path, server.url, GOOD)).get(REF) == {"x": 1}
        assert server.asked[0].headers["authorization"] == "Bearer right"


def test_one_that_fails_later_is_trouble_that_passes(tmp_path: Path) -> None:
    """An agent goes on when it is well again."""
    (tmp_path / "cloud-login.short").touch()
    with scripted(lambda _: Answer(200, {"x": 1})) as server:
        cluster = Cluster(configured(tmp_path, server.url, GOOD))
        configured(tmp_path, server.url, FAILS)
        with pytest.raises(errors.Transient, match="run: cloud-login auth") as caught:
            cluster.get(REF)
        assert caught.value.hint == HINT
        configured(tmp_path, server.url, GOOD)
        assert cluster.get(REF) == {"x": 1}


def test_a_refused_token_whose_plugin_fails_by_now_says_so(tmp_path: Path) -> None:
    with scripted(lambda _: Answer(401, {"message": "Unauthorized"})) as server:
        cluster = Cluster(configured(tmp_path, server.url, GOOD))
        configured(tmp_path, server.url, FAILS)
        with pytest.raises(errors.Transient, match="token expired"):
            cluster.get(REF)


# --- warnings ---------------------------------------------------------------------------------


def warned(*texts: str) -> Answer:
    return Answer(200, {"x": 1}, {"Warning": ", ".join(f'299 - "{text}"' for text in texts)})


def test_each_warning_of_the_api_server_is_told_once(tmp_path: Path) -> None:
    told: list[str] = []
    answers = iter(
        [
            warned(r"fractional byte value \"400m\" is invalid", "v1 Endpoints is deprecated"),
            warned("v1 Endpoints is deprecated", "password=hunter2 \x1b[2J"),
            Answer(403, {"message": "no"}, {"Warning": '299 - "asked in vain"'}),
            Answer(200, {"x": 1}, {"Warning": "nonsense"}),
        ]
    )

    def answer(_: Asked) -> Answer:
        return next(answers)

    with scripted(answer) as server:
        cluster = Cluster(configured(tmp_path, server.url, GOOD), notice=told.append)
        cluster.get(REF)
        cluster.get(REF)
        with pytest.raises(errors.Permanent):
            cluster.get(REF)
        cluster.get(REF)
    assert told[:2] == ['fractional byte value "400m" is invalid', "v1 Endpoints is deprecated"]
    assert "hunter2" not in told[2]
    assert told[2].isprintable()
    assert told[3:] == ["asked in vain"]


def test_a_server_that_warns_without_end_is_not_listened_to_for_ever(tmp_path: Path) -> None:
    told: list[str] = []
    numbers = iter(range(10_000))

    def answer(_: Asked) -> Answer:
        return warned(*(f"warning {next(numbers)}" for _ in range(100)))

    with scripted(answer) as server:
        cluster = Cluster(configured(tmp_path, server.url, GOOD), notice=told.append)
        for _ in range(5):
            cluster.get(REF)
    assert len(told) == NOTICES


@pytest.mark.parametrize("quiet", [(), ("-q",)], ids=["", "quiet"])
def test_a_server_that_is_not_verified_is_one_warning_of_ours(
    tmp_path: Path, quiet: tuple[str, ...]
) -> None:
    """Nobody answers TLS here, which is seen after it was decided not to verify."""
    with scripted(lambda _: Answer()) as server:
        url = server.url.replace("http://", "https://")
        file = configured(tmp_path, url, GOOD, **{"insecure-skip-tls-verify": True})
        ended = subprocess.run(
            [sys.executable, "-m", "gitops_mcp", "status", *quiet, f"--kubeconfig={file}"],
            env={**os.environ, "PYTHONWARNINGS": "default"},
            capture_output=True,
            text=True,
            check=False,
        )
    first, *others = ended.stderr.splitlines()
    assert first.startswith(f"warning: the certificate of {url} is not verified")
    assert len(others) == 1
    assert others[0].startswith("error: ")


def test_every_verb_that_connects_tells_of_it() -> None:
    """None leaves it to the library, which warns at each request."""
    verbs = paths.ROOT / "gitops_mcp" / "cli" / "verbs"
    connecting = [file for file in verbs.glob("*.py") if "connecting.connect(" in file.read_text()]
    assert len(connecting) >= 7
    for file in connecting:
        text = file.read_text().split("connecting.connect(")[1]
        assert "warn=" in text[:200], file
        assert "notice=" in text[:200], file
