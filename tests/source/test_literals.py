"""Which literal secrets ``validate`` warns of, where, and that it never repeats them."""

from __future__ import annotations

import pytest
from corpora import ORDINARY
from paths import ROOT

from gitops_mcp.base.names import JsonObject
from gitops_mcp.base.source import Problem, SourceFile
from gitops_mcp.report import reports
from gitops_mcp.source.literals import MESSAGE, of_manifest
from gitops_mcp.source.manifests import load

TOKEN = "ghp_" + "a1B2" * 9

MANIFEST = f"""\
apiVersion: mcp.example.com/v1alpha1
kind: MCPServer
metadata:
  name: web
  namespace: ai
  annotations:
    example.com/note: {TOKEN}
spec:
  image: example.com/web:1
  transport: streamable-http
  port: 8080
  config:
    LOG_LEVEL: info
    DB_PASSWORD: hunter2
  env:
    - name: BACKEND
      value: https://robot:hunter2@backend.svc
    - name: API_TOKEN
      valueFrom: {{secretKeyRef: {{name: web, key: token}}}}
  args: [--port, "8080", --api-key, hunter2]
"""


def problems(text: str) -> tuple[Problem, ...]:
    loaded = load([SourceFile("web.yaml", "1", text.encode())], cluster="default")
    assert len(loaded.servers) == 1  # a warning keeps no server from being applied
    return loaded.problems


def test_each_literal_secret_is_a_warning_at_its_place() -> None:
    found = problems(MANIFEST)
    assert [(p.line, p.column, p.path, p.severity, p.message) for p in found] == [
        (7, 23, "/metadata/annotations/example.com~1note", "warning", MESSAGE),
        (14, 18, "/spec/config/DB_PASSWORD", "warning", MESSAGE),
        (17, 14, "/spec/env/0/value", "warning", MESSAGE),
        (20, 37, "/spec/args/3", "warning", MESSAGE),
    ]


@pytest.mark.parametrize("output", ["text", "json", "github"])
def test_the_warning_does_not_repeat_the_secret(output: str) -> None:
    loaded = load([SourceFile("web.yaml", "1", MANIFEST.encode())], cluster="default")
    told = reports.validation(loaded, count=1, output=output)
    assert "secretKeyRef" in told
    assert "hunter2" not in told
    assert TOKEN not in told


@pytest.mark.parametrize(
    "spec",
    [
        {"config": {"STRIPE": "sk_live_" + "a1B2" * 6}},
        {"config": {"OPENAI_API_KEY": "x1"}},
        {"config": {"DBPASS": "hunter2"}},
        {"config": {"DATABASE_URL": "postgres://app:s3cret@db/app"}},
        {"config": {"TLS": "-----BEGIN PRIVATE KEY-----\nMII\n-----END PRIVATE KEY-----"}},
        {
            "config": {
                "HOOK": "https://hooks.slack.com/services/T0AB1CD2E/B0AB1CD2EFG/" + "a1B2" * 6
            }
        },
        {"env": [{"name": "SMTP_PASSWORD", "value": "hunter2"}]},
        {"args": ["--password=hunter2"]},
        {"command": ["server", "--token", "hunter2"]},
        {"podAnnotations": {"example.com/api-key": "zK4mQ9xR2w"}},
        {"service": {"annotations": {"example.com/token": "zK4mQ9xR2w"}}},
    ],
    ids=str,
)
def test_a_secret_beyond_doubt_is_found(spec: JsonObject) -> None:
    assert len(of_manifest({}, spec)) == 1


@pytest.mark.parametrize(
    "spec",
    [
        {"config": {"DB_PASSWORD": ""}},
        {"config": {"DB_PASSWORD": "$(OTHER)"}},
        {"config": {"DB_PASSWORD": "changeme"}},
        {"config": {"API_TOKEN": "<your token>"}},
        {"config": {"API_TOKEN": "xxxxxxxx"}},
        {"config": {"PASSWORD_FILE": "/run/secrets/db"}},
        {"config": {"GOOGLE_APPLICATION_CREDENTIALS": "/var/run/secrets/gcp/key.json"}},
        {"config": {"TOKEN_LIMIT": "4096", "MAX_TOKENS": "2048", "TOKENIZER": "cl100k_base"}},
        {"config": {"AUTH_TYPE": "oauth2", "SECRET_NAME": "web", "USE_TOKEN": "true"}},
        {"config": {"KEYBOARD": "qwerty", "COMPASS_URL": "https://compass.example.com"}},
        {"config": {"DATABASE_URL": "postgres://db.data.svc:5432/app"}},
        {"config": {"DATABASE_URL": "postgres://app:$(DB_PASSWORD)@db/app"}},
        {"config": {"UNUSUAL": "zK4mQ9xR2w"}},
        {"config": {"COMMIT": "8b1f2a30c9d4e5f60718293a4b5c6d7e8f901234"}},
        {"args": ["--token-file", "/run/secrets/token", "--api-key", "$(API_KEY)", "--no-auth"]},
        {"podAnnotations": {"vault.example.com/agent-inject-secret-db": "database/creds/app"}},
    ],
    ids=str,
)
def test_no_noise(spec: JsonObject) -> None:
    assert of_manifest({}, spec) == []


def test_the_example_repository_has_none() -> None:
    files = [
        SourceFile(str(path.relative_to(ROOT / "repo-example")), str(path), path.read_bytes())
        for path in sorted((ROOT / "repo-example").rglob("*.yaml"))
    ]
    for cluster in ("default", "production", "staging"):
        loaded = load(files, cluster=cluster)
        assert len(loaded.servers) == 12
        assert loaded.problems == ()


def test_ordinary_values_are_none_either() -> None:
    noisy = [value for value in ORDINARY if of_manifest({}, value.spec)]
    assert noisy == []
