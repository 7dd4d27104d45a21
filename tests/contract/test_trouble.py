"""A real API server that has too much to do, is not up yet, or has forgotten: what it answers, and
what the agent's client makes of that. The sandbox only forgets; `tests/faults.py` plays the others.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import orjson
import plane as rig
import pytest
from contract.transcript import QUIET, Answer, Cluster, of_plane
from urllib3.exceptions import HTTPError

from gitops_mcp.base.errors import Expired, KubeError, Transient
from gitops_mcp.cluster import refusals

MAPS = "/api/v1/namespaces/default/configmaps"
NARROW = ("--enable-priority-and-fairness=false", "--max-requests-inflight=1")


@pytest.fixture(scope="module")
def plane(processes: None) -> Iterator[rig.Plane]:
    """A plane whose API server does one thing at a time for anybody but administrators."""
    arguments = {"kube-apiserver": NARROW, "kube-controller-manager": [QUIET]}
    try:
        started = rig.Plane(arguments=arguments)
    except rig.Unavailable as reason:
        pytest.skip(str(reason))
    with started:
        yield started


@pytest.fixture(scope="module")
def cluster(plane: rig.Plane) -> Cluster:
    return of_plane(plane)


def meaning(answer: Answer) -> KubeError:
    body = answer.body.encode() if isinstance(answer.body, str) else orjson.dumps(answer.body)
    return refusals.translate(answer.code, answer.headers, body, operation="list", ref=None)


def test_too_many_requests_are_refused_in_plain_text_and_for_a_second(cluster: Cluster) -> None:
    for n in range(50):
        body = {"metadata": {"name": f"filler-{n}"}, "data": {"a": "x" * 10_000}}
        assert cluster.request("POST", MAPS, body).code == 201
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: cluster.request("GET", MAPS, user="bob"), range(400)))
    refused = [answer for answer in answers if answer.code != 200]
    assert {answer.code for answer in refused} == {429}
    for answer in refused:
        assert answer.body == "Too many requests, please try again later.\n"
        assert answer.headers["Retry-After"] == "1"
        assert type(meaning(answer)) is Transient
        assert meaning(answer).retry_after == timedelta(seconds=1)


def test_whatever_a_starting_server_answers_is_worth_another_try_soon(
    plane: rig.Plane, cluster: Cluster
) -> None:
    """Also its 403, which for a second or two meets everybody who has his rights from RBAC: the
    server has not read the roles yet."""
    up = threading.Event()
    early: dict[str, list[Answer]] = {"admin": [], "bob": []}

    def ask(path: str, user: str) -> None:
        while not up.is_set():
            with contextlib.suppress(HTTPError):  # nobody listens yet
                answer = cluster.request("GET", path, user=user)
                early[user].extend([answer] * (answer.code != 200))

    wanted = [(MAPS, "admin"), (MAPS, "bob"), ("/apis/example.com/v1/widgets", "admin")]
    plane.stop_apiserver()
    with ThreadPoolExecutor(len(wanted)) as pool:
        asking = [pool.submit(ask, *each) for each in wanted]
        plane.start_apiserver()
        up.set()
        for each in asking:
            each.result()
    assert early["admin"]
    assert 403 in {answer.code for answer in early["bob"]}
    assert {answer.code for answer in early["admin"]} <= {404, 429, 503}
    for answer in early["admin"] + early["bob"]:
        error = meaning(answer)
        wait = error.retry_after or error.first_retry
        assert wait <= timedelta(seconds=5), answer
        assert isinstance(error, Transient) is (answer.code != 403)


def test_after_a_restart_older_versions_and_compacted_pages_have_expired(
    plane: rig.Plane, cluster: Cluster
) -> None:
    path = f"/api/v1/namespaces/{cluster.namespace()}/configmaps"
    for name in ("a", "b", "c"):
        assert cluster.request("POST", path, {"metadata": {"name": name}}).code == 201
    first = cluster.request("GET", f"{path}?limit=1").body["metadata"]
    assert cluster.request("POST", path, {"metadata": {"name": "d"}}).code == 201
    plane.stop_apiserver()
    plane.compact()
    plane.start_apiserver()

    version = first["resourceVersion"]
    (event,) = cluster.lines(f"{path}?watch=true&timeoutSeconds=5&resourceVersion={version}")
    assert event["type"] == "ERROR"
    status = event["object"]
    assert (status["code"], status["reason"], status["status"]) == (410, "Expired", "Failure")
    assert status["message"].startswith(f"too old resource version: {version} (")
    assert type(meaning(Answer(410, status, [], {}))) is Expired

    page = cluster.request("GET", f"{path}?continue={first['continue']}")
    assert (page.code, page.body["reason"]) == (410, "Expired")
    assert type(meaning(page)) is Expired
    rest = cluster.request("GET", f"{path}?continue={page.body['metadata']['continue']}").body
    assert [item["metadata"]["name"] for item in rest["items"]] == ["b", "c", "d"]
