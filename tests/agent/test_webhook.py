"""Webhooks as the forges send them: their headers, their payloads' shapes, their signatures."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

import pytest

from gitops_mcp.agent.webhook import MAX_BODY, Verdict, verify

SECRET = b"s3cr3t of the fleet"


def signature(body: bytes, secret: bytes = SECRET, algorithm: str = "sha256") -> str:
    return hmac.new(secret, body, algorithm).hexdigest()


def body(payload: Any) -> bytes:
    return json.dumps(payload).encode()


PUSH = {
    "ref": "refs/heads/main",
    "before": "28e1879d029cb852e4844d9c718537df08844e03",
    "after": "bffeb74224043ba2feb48d137756c8a9331c449a",
    "repository": {"full_name": "ops/fleet", "default_branch": "main"},
    "commits": [{"id": "bffeb74224043ba2feb48d137756c8a9331c449a", "modified": ["web.yaml"]}],
}
GITLAB = {"object_kind": "push", "event_name": "push", "ref": "refs/heads/main", "project_id": 15}
TAG = {"object_kind": "tag_push", "event_name": "tag_push", "ref": "refs/tags/v1.0.0"}
SYSTEM = {"event_name": "repository_update", "refs": ["refs/heads/main"], "project_id": 1}
CLOUD = {"push": {"changes": [{"new": {"type": "branch", "name": "main"}, "forced": False}]}}
CENTER = {"eventKey": "repo:refs_changed", "changes": [{"refId": "refs/heads/main"}]}


def github(event: str, sent: bytes) -> dict[str, str]:
    return {
        "User-Agent": "GitHub-Hookshot/044aadd",
        "Content-Type": "application/json",
        "X-GitHub-Delivery": "72d3162e-cc78-11e3-81ab-4c9367dc0958",
        "X-GitHub-Event": event,
        "X-Hub-Signature": f"sha1={signature(sent, algorithm='sha1')}",
        "X-Hub-Signature-256": f"sha256={signature(sent)}",
    }


def gitea(event: str, sent: bytes) -> dict[str, str]:
    return {
        **{f"X-{name}-Event": event for name in ("GitHub", "Gogs", "Gitea")},
        "X-Gogs-Signature": signature(sent),
        "X-Gitea-Signature": signature(sent),
        "X-Hub-Signature": f"sha1={signature(sent, algorithm='sha1')}",
        "X-Hub-Signature-256": f"sha256={signature(sent)}",
    }


def gogs(event: str, sent: bytes) -> dict[str, str]:
    return {
        "X-GitHub-Event": event,
        "X-Gogs-Delivery": "f6266f16-1bf3-46a5-9ea4-602e06ead473",
        "X-Gogs-Event": event,
        "X-Gogs-Signature": signature(sent),
    }


def gitlab(event: str, _: bytes) -> dict[str, str]:
    return {
        "X-Gitlab-Event": event,
        "X-Gitlab-Event-UUID": "13792a34-cac6-4fda-95a8-c58e00a3954e",
        "X-Gitlab-Instance": "https://gitlab.example.com",
        "X-Gitlab-Token": SECRET.decode(),
    }


def bitbucket(event: str, sent: bytes) -> dict[str, str]:
    return {
        "X-Event-Key": event,
        "X-Hook-UUID": "e5bb8f42-4a2e-4a2c-9f2e-0a0f6d2a1b11",
        "X-Attempt-Number": "1",
        "X-Hub-Signature": f"sha256={signature(sent)}",
    }


PUSHES = {
    "GitHub": (github, "push", PUSH),
    "Gitea": (gitea, "push", {**PUSH, "compare_url": "http://git.example.com/compare"}),
    "Gogs": (gogs, "push", {**PUSH, "compare_url": "http://git.example.com/compare"}),
    "GitLab": (gitlab, "Push Hook", GITLAB),
    "GitLab, a tag": (gitlab, "Tag Push Hook", TAG),
    "GitLab's administrator": (gitlab, "System Hook", GITLAB),
    "GitLab's administrator, a tag": (gitlab, "System Hook", TAG),
    "GitLab's administrator, a repository": (gitlab, "System Hook", SYSTEM),
    "Bitbucket Cloud": (bitbucket, "repo:push", CLOUD),
    "Bitbucket Data Center": (bitbucket, "repo:refs_changed", CENTER),
}
OTHERS = {
    "GitHub's ping": (github, "ping", {"zen": "Keep it logically awesome.", "hook_id": 1}),
    "a GitHub issue": (github, "issues", {"action": "opened"}),
    "a Gitea issue": (gitea, "issues", {"action": "opened"}),
    "a Gogs issue": (gogs, "issues", {"action": "opened"}),
    "a GitLab merge request": (gitlab, "Merge Request Hook", {"object_kind": "merge_request"}),
    "a new GitLab user": (gitlab, "System Hook", {"event_name": "user_create"}),
    "a GitLab merge request, told to its administrator": (
        gitlab,
        "System Hook",
        {"object_kind": "merge_request", "event_type": "merge_request"},
    ),
    "a system hook with a list": (gitlab, "System Hook", ["push"]),
    "a system hook with a number": (gitlab, "System Hook", {"event_name": 1}),
    "a Bitbucket comment": (bitbucket, "repo:commit_comment_created", {"comment": {}}),
    "Data Center's ping": (bitbucket, "diagnostics:ping", {"test": True}),
}


@pytest.mark.parametrize("who", PUSHES)
def test_a_forges_push_wakes_the_poll(who: str) -> None:
    headers, event, payload = PUSHES[who]
    sent = body(payload)
    assert verify(headers(event, sent), sent, SECRET) is Verdict.PUSH
    lower = {name.lower(): value for name, value in headers(event, sent).items()}
    assert verify(lower, sent, SECRET) is Verdict.PUSH
    assert verify(lower, sent, SECRET) is Verdict.PUSH  # a replay does no more than that


@pytest.mark.parametrize("who", OTHERS)
def test_another_event_is_accepted_and_wakes_nothing(who: str) -> None:
    headers, event, payload = OTHERS[who]
    sent = body(payload)
    assert verify(headers(event, sent), sent, SECRET) is Verdict.IGNORED


@pytest.mark.parametrize("who", [*PUSHES, *OTHERS])
def test_a_wrong_secret_is_refused_whatever_the_event(who: str) -> None:
    headers, event, payload = (PUSHES | OTHERS)[who]
    sent = body(payload)
    for other in (SECRET + b"x", SECRET[:-1], b"x", b"\xff\xfe"):
        assert verify(headers(event, sent), sent, other) is Verdict.REFUSED


@pytest.mark.parametrize("who", [who for who in PUSHES if PUSHES[who][0] is not gitlab])
def test_a_signature_is_good_for_its_body_alone(who: str) -> None:
    headers, event, payload = PUSHES[who]
    sent = body(payload)
    assert verify(headers(event, sent), sent + b" ", SECRET) is Verdict.REFUSED
    assert verify(headers(event, sent), b"", SECRET) is Verdict.REFUSED


def test_the_forges_own_examples_are_verified() -> None:
    secret = b"It's a Secret to Everybody"
    github = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    headers = {"X-Hub-Signature-256": github, "X-GitHub-Event": "push"}
    assert verify(headers, b"Hello, World!", secret) is Verdict.PUSH
    cloud = "sha256=a4771c39fbe90f317c7824e83ddef3caae9cb3d976c214ace1f2937e133263c9"
    headers = {"X-Hub-Signature": cloud, "X-Event-Key": "repo:push"}
    assert verify(headers, b"Hello World!", secret) is Verdict.PUSH


SENT = body(PUSH)
BAD: dict[str, dict[str, str]] = {
    "nothing at all": {},
    "an event alone": {"X-GitHub-Event": "push"},
    "the old signature alone": {
        "X-GitHub-Event": "push",
        "X-Hub-Signature": f"sha1={signature(SENT, algorithm='sha1')}",
    },
    "no algorithm": {"X-GitHub-Event": "push", "X-Hub-Signature-256": signature(SENT)},
    "another algorithm": {
        "X-GitHub-Event": "push",
        "X-Hub-Signature-256": f"md5={signature(SENT)}",
    },
    "a Gogs signature with its algorithm": {
        "X-Gogs-Event": "push",
        "X-Gogs-Signature": f"sha256={signature(SENT)}",
    },
    "an empty signature": {"X-Gitea-Event": "push", "X-Gitea-Signature": ""},
    "half a signature": {"X-Gitea-Event": "push", "X-Gitea-Signature": signature(SENT)[:32]},
    "no hexadecimals": {"X-Gitea-Event": "push", "X-Gitea-Signature": "ü" * 64},
    "no UTF-8": {"X-Gitlab-Event": "Push Hook", "X-Gitlab-Token": "\udcff"},
    "an empty token": {"X-Gitlab-Event": "Push Hook", "X-Gitlab-Token": ""},
    "a second proof beside a wrong one": {
        "X-Gitea-Event": "push",
        "X-Gitea-Signature": "0" * 64,
        "X-Hub-Signature-256": f"sha256={signature(SENT)}",
    },
}


@pytest.mark.parametrize("headers", BAD.values(), ids=BAD)
def test_what_proves_nothing_is_refused(headers: dict[str, str]) -> None:
    assert verify(headers, SENT, SECRET) is Verdict.REFUSED


def test_the_event_of_one_forge_is_none_of_another() -> None:
    headers = {"X-Hub-Signature-256": f"sha256={signature(SENT)}", "X-Gitlab-Event": "Push Hook"}
    assert verify(headers, SENT, SECRET) is Verdict.IGNORED


@pytest.mark.parametrize("who", PUSHES)
def test_without_a_secret_nobody_is_believed(who: str) -> None:
    headers, event, payload = PUSHES[who]
    sent = body(payload)
    empty = hmac.new(b"", sent, hashlib.sha256).hexdigest()
    forged = {
        **headers(event, sent),
        "X-Hub-Signature-256": f"sha256={empty}",
        "X-Gitea-Signature": empty,
        "X-Gitlab-Token": "",
    }
    assert verify(forged, sent, b"") is Verdict.ABSENT


def test_a_body_is_read_up_to_a_limit() -> None:
    for size, expected in ((MAX_BODY, Verdict.PUSH), (MAX_BODY + 1, Verdict.TOO_LARGE)):
        sent = b" " * size
        assert verify(github("push", sent), sent, SECRET) is expected


def test_the_answers_are_as_promised() -> None:
    statuses = {verdict.name: verdict.value for verdict in Verdict}
    expected = {"PUSH": 202, "IGNORED": 200, "REFUSED": 401, "ABSENT": 404, "TOO_LARGE": 413}
    assert statuses == expected


def test_a_secret_with_other_letters_works_as_a_token() -> None:
    secret = "schlüssel".encode()
    headers = {"X-Gitlab-Event": "Push Hook", "X-Gitlab-Token": "schlüssel"}
    assert verify(headers, b"{}", secret) is Verdict.PUSH
