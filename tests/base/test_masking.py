"""No secret gets through; what is no secret stays readable."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from gitops_mcp.base.masking import MASK, mask, mask_pair, masked, scrub, token


@pytest.mark.parametrize(
    "name",
    [
        "password",
        "DB_PASSWORD",
        "dbPassword",
        "PGPASSWORD",
        "REDIS_PWD",
        "GITHUB_PERSONAL_ACCESS_TOKEN",
        "apiToken",
        "API_TOKENS",
        "ES_API_KEY",
        "apikey",
        "x-api-key",
        "FALCON_CLIENT_SECRET",
        "AWS_SECRET_ACCESS_KEY",
        "privateKey",
        "SSH_KEY",
        "session-key",
        "SENTRY_DSN",
        "MDB_MCP_CONNECTION_STRING",
        "AzureConnectionString",
        "Authorization",
        "BEARER",
        "credentials",
        "SLACK_WEBHOOK_URL",
        "SMTP_PASS",
        "REDIS_AUTH",
        "GITHUB_PAT",
        "COOKIE",
    ],
)
def test_a_value_of_such_a_name_is_hidden(name: str) -> None:
    assert mask({name: "hunter2"}) == {name: MASK}
    assert mask({"env": [{"name": name, "value": "hunter2"}]}) == {
        "env": [{"name": name, "value": MASK}]
    }


@pytest.mark.parametrize(
    "name",
    [
        "SESSION_TIMEOUT",
        "LOG_LEVEL",
        "topologyKey",
        "key",
        "bypass",
        "COMPASS_URL",
        "author",
        "path",
        "KEYBOARD",
        "passive",
        "MONKEY",
    ],
)
def test_a_value_of_an_innocent_name_is_shown(name: str) -> None:
    assert mask({name: "shown"}) == {name: "shown"}


def test_references_to_secrets_are_names() -> None:
    pod = {
        "imagePullSecrets": [{"name": "registry"}],
        "automountServiceAccountToken": False,
        "containers": [
            {
                "env": [
                    {
                        "name": "API_TOKEN",
                        "valueFrom": {"secretKeyRef": {"name": "a", "key": "token"}},
                    }
                ],
                "envFrom": [{"secretRef": {"name": "b"}}],
            }
        ],
        "volumes": [
            {"name": "a", "secret": {"secretName": "s", "items": [{"key": "k", "path": "p"}]}},
            {
                "name": "b",
                "projected": {
                    "sources": [{"serviceAccountToken": {"path": "t", "expirationSeconds": 600}}]
                },
            },
        ],
    }
    assert masked(pod) == pod


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgres://user:pa@ss@db:5432/x?a=b", "postgres://***@db:5432/x?a=b"),
        ("https://token@example.com/r.git", "https://***@example.com/r.git"),
        ("https://example.com/a@b", "https://example.com/a@b"),
        ("https://x/y?token=abc&page=2", "https://x/y?token=***&page=2"),
        ("--api-key=abc --port=1", "--api-key=*** --port=1"),
        ("--api-key abc --port 1", "--api-key *** --port 1"),
        ('{"password": "a b", "x": 1}', '{"password": ***, "x": 1}'),
        ("password = 'a b' next", "password = *** next"),
        ("authorize: Bearer abc.def-123", "authorize: Bearer ***"),
        ("Basic authentication failed", "Basic authentication failed"),
        ("use ghp_0123456789abcdefghij now", "use *** now"),
        ("eyJhbGciOiJI.eyJzdWIiOiIx.sig", "***"),
        ("a\n-----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY-----\nb", "a\n***\nb"),
        ("-----BEGIN PRIVATE KEY-----\ncut", "***"),
        ("the token is missing", "the token is missing"),
        ("the password is hunter2", "the password is ***"),
        ("password: hunter2 refused", "password: *** refused"),
        ("LOGIN=admin:sunshine x=1", "LOGIN=*** x=1"),
        ('Invalid value: "zK4mQ9xR2w": too long', 'Invalid value: "***": too long'),
        ('pods "web-7d9f8b6c5d-x2x4z" not found', 'pods "web-7d9f8b6c5d-x2x4z" not found'),
        ("app:pw@tcp(db:3306)/x", "app:***@tcp(db:3306)/x"),
        ("nginx:1.2@sha256:0a", "nginx:1.2@sha256:0a"),
        ("spec.config.API_TOKEN: expected a string", "spec.config.API_TOKEN: expected a string"),
    ],
)
def test_text_gives_no_secret_away_by_its_shape(text: str, shown: str) -> None:
    assert scrub(text) == shown


def test_an_argument_after_a_flag_is_hidden() -> None:
    arguments = ["--token", "abc", "--port", "80", "--password=x", "X-Api-Key: abc"]
    assert mask({"args": arguments}) == {
        "args": ["--token", MASK, "--port", "80", "--password=***", "X-Api-Key: ***"]
    }


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        ({"token": "a"}, {"token": "b"}, ({"token": MASK}, {"token": "*** (changed)"})),
        ({"token": "a"}, {"token": "a"}, ({"token": MASK}, {"token": MASK})),
        ({"token": "a"}, {}, ({"token": MASK}, {})),
        ({}, {"token": "b", "x": 1}, ({}, {"token": MASK, "x": 1})),
        ({"token": 1}, {"token": 2}, ({"token": MASK}, {"token": "*** (changed)"})),
        ("x://a@h", "x://b@h", ("x://***@h", "x://***@h (changed)")),
        (["--token", "a"], ["--token", "b"], (["--token", MASK], ["--token", "*** (changed)"])),
        (["--token", "a"], ["--token"], (["--token", MASK], ["--token"])),
        (
            {"name": "API_KEY", "value": "a"},
            {"value": "b", "name": "API_KEY"},
            ({"name": "API_KEY", "value": MASK}, {"value": "*** (changed)", "name": "API_KEY"}),
        ),
        (
            {"name": "TOKEN", "value": "a"},
            {"name": "SHOWN", "value": "a"},
            ({"name": "TOKEN", "value": MASK}, {"name": "SHOWN", "value": MASK}),
        ),
    ],
)
def test_a_pair_shows_that_it_differs_but_not_how(before: Any, after: Any, shown: Any) -> None:
    assert mask_pair(before, after) == shown
    assert [list(side) for side in mask_pair(before, after)] == [list(side) for side in shown]


def test_everything_below_a_hidden_key_is_hidden() -> None:
    assert mask({"credentials": {"user": "u", "list": [1, {"x": "y"}], "on": True, "n": None}}) == {
        "credentials": {"user": MASK, "list": [MASK, {"x": MASK}], "on": True, "n": None}
    }


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("https://hooks.slack.com/services/T0/B0/XyZ12", "https://hooks.slack.com/services/***"),
        ("http://robot:pw@backend:8080/x", "http://***@backend:8080/x"),
        (
            "https://api.example.com/v1?page=2&key=abc&x=1",
            "https://api.example.com/v1?page=2&key=***",
        ),
        ("team=ai,token=abc,env=prod", "team=ai,token=***"),
        ("run -p hunter2 now", "run -p ***"),
        ("log: info\npassword: two words\nport: 80", "log: info\npassword: ***\nport: 80"),
        ('{"user": "a", "password": "b"}', '{"user": "a", "password": "***"}'),
        ('{"b": 1,   "a": [2]}', '{"b": 1,   "a": [2]}'),
        ("$(TOKEN)", "$(TOKEN)"),
        ("zK4mQ9xR2w", MASK),
    ],
)
def test_a_value_is_shown_as_far_as_it_is_harmless(value: str, shown: str) -> None:
    assert mask({"config": {"SETTING": value}}) == {"config": {"SETTING": shown}}


def test_a_field_of_the_api_is_shown_whatever_it_looks_like() -> None:
    pod = {"nodeName": "ip-10-0-1-2x9Q", "image": "ghcr.io/a/b@sha256:" + "0a1b" * 16}
    assert masked(pod) == pod


def test_json_that_is_deeper_than_anybody_reads_is_hidden() -> None:
    assert mask({"config": {"A": "[" * 900 + "]" * 900}}) == {"config": {"A": MASK}}


@pytest.mark.usefixtures("processes")
def test_an_ordinary_value_needs_no_detector() -> None:
    """Importing it takes as long as a small diff."""
    code = (
        "import sys; from gitops_mcp.base.masking import mask, scrub;"
        "mask({'config': {'URL': 'https://grafana-1.monitoring.svc:3000/d/abc'}});"
        "scrub('pods \"web-search-7d9f8b6c5d-x2x4z\" is forbidden: uid 3f0c9a5e-2d1b-4c55-9d7e');"
        "sys.exit('detect_secrets' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_patterns_of_the_detector_count_as_well() -> None:
    assert scrub("refused MTk4NjIyNDgzNDcxOTI1MjQ4.Cl2FMQ.ZnCjm1XVW7vRze4b7Cq4se7kKWs") == (
        f"refused {MASK}"
    )
    assert token("use MTk4NjIyNDgzNDcxOTI1MjQ4.Cl2FMQ.ZnCjm1XVW7vRze4b7Cq4se7kKWs")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "invalid header: Authorization: Basic dXNlcjpwYXNz",
            f"invalid header: Authorization: Basic {MASK}",
        ),
        (
            'spec.config.DB_PASSWORD: Invalid value: "hunter": too short',
            f"spec.config.DB_PASSWORD: Invalid value: {MASK}: too short",
        ),
        (
            'spec.config[DB_PASSWORD]: Invalid value: "hunter": too short',
            f"spec.config[DB_PASSWORD]: Invalid value: {MASK}: too short",
        ),
        ('args ["serve", "--password", "hunter"]', f'args ["serve", "--password", {MASK}]'),
        ("args [serve --password hunter]", f"args [serve --password {MASK}]"),
        ('env "PASSWORD" = hunter', f'env "PASSWORD" = {MASK}'),
        ('spec.port: Invalid value: "web": not a number', None),
        ("Authorization: missing", None),
        ("unknown flag: --password-file", None),
    ],
)
def test_an_error_names_no_secret_that_stands_beside_its_name(text: str, shown: str | None) -> None:
    assert scrub(text) == (shown if shown is not None else text)
