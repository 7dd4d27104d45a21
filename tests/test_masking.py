"""No secret gets through; what is no secret stays readable."""

from __future__ import annotations

import time
from typing import Any

import pytest

from gitops_mcp.masking import MASK, mask, mask_pair, masked, scrub, secretive


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
    assert not secretive(name)
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


@pytest.mark.parametrize("text", ["token" * 8_000, "a@" * 20_000, "--token " * 5_000, "-" * 40_000])
def test_hostile_text_takes_no_time(text: str) -> None:
    start = time.process_time()
    scrub(text)
    assert time.process_time() - start < 1
