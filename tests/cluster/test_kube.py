"""Requests to API servers: a real control plane, and scripted ones for what it never does."""

from __future__ import annotations

import gc
import itertools
import json
import random
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import paths
import plane as rig
import pytest
import yaml
from scripted import Answer, Asked, Scripted, scripted

from gitops_mcp.base import errors
from gitops_mcp.base.model import INSTALL_CRD
from gitops_mcp.base.names import JsonObject, ObjectRef
from gitops_mcp.cluster import connection, refusals, watchstream
from gitops_mcp.cluster.kube import Cluster
from gitops_mcp.cluster.lease import Lease

pytest_plugins = ["clusters"]

DATA = paths.DATA / "kube"


def kubeconfig(
    path: Path, url: str, *, token: str = "right", namespace: str = "", context: str = "test"
) -> str:
    names = {"cluster": "c", "user": "u"} | ({"namespace": namespace} if namespace else {})
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "contexts": [{"name": context, "context": names}],
        "users": [{"name": "u", "user": {"token": token}}],
    }
    path.write_text(yaml.safe_dump(content))
    return str(path)


# --- what an answer means ---------------------------------------------------------------------

ANSWERS: list[dict[str, Any]] = yaml.safe_load((DATA / "answers.yaml").read_text())


@pytest.mark.parametrize("row", ANSWERS, ids=lambda row: row["case"])
def test_answers_become_errors_of_the_right_class_and_words(row: dict[str, Any]) -> None:
    ref = ObjectRef(*row.get("ref", ["mcp.example.com/v1alpha1", "MCPServer", "ai", "web"]))
    body = row.get("text", json.dumps({"kind": "Status", **row.get("status", {})})).encode()
    operation = row.get("operation", "apply")
    error = refusals.translate(
        row["code"], row.get("headers", {}), body, operation=operation, ref=ref
    )
    assert row["error"] == type(error).__name__
    assert row["code"] == error.code
    assert row.get("message", error.message) == error.message
    assert row.get("condition", "ApplyFailed") == error.condition
    assert row.get("hint", "") in error.hint
    assert row.get("retry_after") == (error.retry_after and error.retry_after.total_seconds())
    for secret in row.get("lacks", ()):
        assert secret not in f"{error.message} {error.hint} {error.causes}"


def test_an_immutable_field_is_named() -> None:
    row = next(row for row in ANSWERS if row["error"] == "Immutable")
    error = refusals.translate(
        422, {}, json.dumps(row["status"]).encode(), operation="apply", ref=None
    )
    assert [field for _, field, _ in error.causes] == ["spec.selector"]


# --- configuration ----------------------------------------------------------------------------


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("nowhere")
class TestConfiguration:
    def test_none_at_all_says_how_to_give_one(self) -> None:
        with pytest.raises(errors.UsageError, match="no cluster is configured") as caught:
            Cluster()
        assert "--kubeconfig" in caught.value.hint

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(errors.UsageError, match=r"no kubeconfig at .*absent"):
            Cluster(str(tmp_path / "absent"))

    def test_an_unknown_context_lists_the_known_ones(self, tmp_path: Path) -> None:
        file = kubeconfig(tmp_path / "config", "http://127.0.0.1:1")
        with pytest.raises(errors.UsageError, match="no context 'prod'") as caught:
            Cluster(file, "prod")
        assert caught.value.hint == "known contexts: test"

    @pytest.mark.parametrize(
        "content", ["a: [", "42", "hello", "- x", "{}", "contexts: 5", "clusters: [{}]", "\x00"]
    )
    @pytest.mark.parametrize("context", [None, "test"])
    def test_a_file_that_is_no_kubeconfig_is_a_usage_error(
        self, tmp_path: Path, content: str, context: str | None
    ) -> None:
        (tmp_path / "config").write_text(content)
        with pytest.raises(errors.UsageError, match="config") as caught:
            Cluster(str(tmp_path / "config"), context)
        assert "Error" not in caught.value.message
        if content in ("42", "hello"):
            assert "what it holds is no kubeconfig" in caught.value.message

    def test_an_unreadable_file_is_a_usage_error(self, tmp_path: Path) -> None:
        (tmp_path / "config").mkdir()
        with pytest.raises(errors.UsageError, match="cannot use the kubeconfig"):
            Cluster(str(tmp_path / "config"))

    def test_the_environment_and_the_home_directory_are_looked_at(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / ".kube").mkdir()
        kubeconfig(tmp_path / ".kube" / "config", "http://127.0.0.1:1", namespace="home")
        assert Cluster().namespace == "home"
        file = kubeconfig(tmp_path / "other", "http://127.0.0.1:1", namespace="other")
        monkeypatch.setenv("KUBECONFIG", file)
        assert Cluster().namespace == "other"

    def test_a_context_needs_no_current_one_and_its_namespace_is_default(
        self, tmp_path: Path
    ) -> None:
        file = tmp_path / "config"
        content = yaml.safe_load(Path(kubeconfig(file, "http://127.0.0.1:1")).read_text())
        del content["current-context"]
        file.write_text(yaml.safe_dump(content))
        assert Cluster(str(file), "test").namespace == "default"

    def test_a_pods_service_account_is_used_and_its_token_may_end_in_a_newline(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from kubernetes.config import incluster_config

        for file, content in {"token": "t0ken\n", "ca.crt": "x", "namespace": "agents\n"}.items():
            (tmp_path / file).write_text(content)
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "1")
        monkeypatch.setattr(connection, "_SERVICE_ACCOUNT", str(tmp_path))
        monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
        monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
        cluster = Cluster()
        assert (cluster.namespace, cluster.server) == ("agents", "https://127.0.0.1:1")
        configuration = cluster._transport._client.configuration
        for _ in range(2):
            assert configuration.get_api_key_with_prefix("BearerToken") == "bearer t0ken"

    @pytest.mark.usefixtures("processes")
    def test_a_client_that_needs_no_cluster_does_not_import_the_library(self) -> None:
        import subprocess
        import sys

        code = "import sys, gitops_mcp.cluster.kube; sys.exit('kubernetes' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- a server that does as it is told ---------------------------------------------------------

DEPLOYMENT = ObjectRef("apps/v1", "Deployment", "ai", "web")


@pytest.fixture
def connect(processes: None, tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    made: list[Cluster] = []

    def _connect(server: Scripted, **options: Any) -> Cluster:
        cluster = Cluster(kubeconfig(tmp_path / "config", server.url), **options)
        made.append(cluster)
        return cluster

    yield _connect
    for cluster in made:
        cluster.close()


Connect = Callable[..., Cluster]


def test_a_server_that_does_not_answer_is_given_up_after_the_time_limit_without_a_retry(
    connect: Connect,
) -> None:
    with scripted(lambda _: Answer(wait=threading.Event())) as server:
        cluster = connect(server, timeout=0.2)
        with pytest.raises(errors.Silent, match=r"get deployment/web .*no answer in time"):
            cluster.get(DEPLOYMENT)
        assert len(server.asked) == 1


def test_a_server_that_is_not_there_is_transient(connect: Connect) -> None:
    with scripted(lambda _: Answer()) as server:
        cluster = connect(server)
    seen: list[tuple[str, str, int]] = []
    cluster._transport._observe = lambda *what: seen.append(what)
    with pytest.raises(errors.Transient, match="connection refused") as caught:
        cluster.get(DEPLOYMENT)
    assert caught.value.code == 0
    assert seen == [("get", "Deployment", 0)]


def test_a_connection_lost_in_the_middle_of_an_answer_is_transient(connect: Connect) -> None:
    with (
        scripted(lambda _: Answer(chunks=['{"a": '], cut=True)) as server,
        pytest.raises(errors.Transient, match="the connection was lost"),
    ):
        connect(server).get(DEPLOYMENT)


@pytest.mark.parametrize("body", ["<html>", "[]"])
def test_an_answer_that_is_no_object_is_transient(connect: Connect, body: str) -> None:
    with (
        scripted(lambda _: Answer(body=body)) as server,
        pytest.raises(errors.Transient, match="the answer is not"),
    ):
        connect(server).get(DEPLOYMENT)


def test_a_redirect_is_not_followed(connect: Connect) -> None:
    with scripted(lambda _: Answer(302, headers={"Location": "/elsewhere"})) as server:
        with pytest.raises(errors.Transient):
            connect(server).get(DEPLOYMENT)
        assert len(server.asked) == 1


@pytest.mark.parametrize("code", [429, 503])
def test_too_many_requests_are_not_repeated_by_the_library(connect: Connect, code: int) -> None:
    with scripted(lambda _: Answer(code, "slow down", {"Retry-After": "7"})) as server:
        with pytest.raises(errors.Transient) as caught:
            connect(server).get(DEPLOYMENT)
        assert caught.value.retry_after == timedelta(seconds=7)
        assert len(server.asked) == 1


@pytest.mark.parametrize("asked", ["0", "-5", "0.001", "inf", "nan", "1e400", "soon", "1" * 400])
@pytest.mark.parametrize("place", ["header", "body"])
def test_a_server_that_asks_for_no_wait_gets_our_own_backoff(asked: str, place: str) -> None:
    """At once would be a loop without a pause; no number of it may be more than a wait can be."""
    headers = {"Retry-After": asked} if place == "header" else {}
    body = json.dumps({"details": {"retryAfterSeconds": asked}}).encode() if not headers else b""
    error = refusals.translate(429, headers, body, operation="list", ref=None)
    assert error.retry_after is None


@pytest.mark.parametrize(("asked", "seconds"), [("1", 1), ("7.5", 7.5), ("86400", 3600)])
def test_a_server_is_waited_for_as_long_as_it_asks_within_an_hour(
    asked: str, seconds: float
) -> None:
    error = refusals.translate(429, {"Retry-After": asked}, b"", operation="list", ref=None)
    assert error.retry_after == timedelta(seconds=seconds)


def test_a_watch_that_is_asked_not_to_wait_is_not_repeated_without_a_pause(
    connect: Connect,
) -> None:
    with scripted(lambda _: Answer(429, "busy", {"Retry-After": "0"})) as server:
        cluster, stop = connect(server), threading.Event()
        timer = threading.Timer(1.0, cluster.end_watches, (stop,))
        timer.start()
        list(cluster.list_and_watch("v1", "Pod", None, resource_version="1", stop=stop))
        assert 1 < len(server.asked) < 12


def test_a_refused_token_is_read_again_and_tried_once_more(
    connect: Connect, tmp_path: Path
) -> None:
    def answer(request: Asked) -> Answer:
        right = request.headers["authorization"] == "Bearer new"
        return Answer(200, {"x": 1}) if right else Answer(401, {"message": "Unauthorized"})

    with scripted(answer) as server:
        cluster = connect(server)
        kubeconfig(tmp_path / "config", server.url, token="new\n")
        assert cluster.get(DEPLOYMENT) == {"x": 1}
        assert cluster.get(DEPLOYMENT) == {"x": 1}
        assert [r.headers["authorization"] for r in server.asked] == [
            "Bearer right",
            "Bearer new",
            "Bearer new",
        ]


def test_a_token_that_stays_wrong_is_permanent_and_not_shown(connect: Connect) -> None:
    with scripted(lambda _: Answer(401, {"message": "Unauthorized"})) as server:
        with pytest.raises(errors.Permanent) as caught:
            connect(server).get(DEPLOYMENT)
        assert "right" not in str(caught.value)
        assert len(server.asked) == 2


def test_pages_that_expire_are_read_again_in_one(connect: Connect) -> None:
    def answer(request: Asked) -> Answer:
        if "continue" in request.path:
            return Answer(410, {"reason": "Expired", "message": "too old"})
        if "limit" in request.path:
            return Answer(body={"metadata": {"continue": "c"}, "items": [{"n": 1}]})
        return Answer(body={"metadata": {"resourceVersion": "9"}, "items": [{"n": 1}, {"n": 2}]})

    with scripted(answer) as server:
        items, version = connect(server).list("v1", "Pod", None, label_selector="a=b,c")
    assert [item["n"] for item in items] == [1, 2]
    assert items[0]["kind"] == "Pod"
    assert version == "9"
    assert all("labelSelector=a%3Db%2Cc" in r.path for r in server.asked)


def test_requests_are_told_to_the_observer(connect: Connect) -> None:
    seen: list[tuple[str, str, int]] = []
    with scripted(lambda _: Answer(404, {"message": "x"})) as server:
        connect(server, observe=lambda *what: seen.append(what)).get(DEPLOYMENT)
    assert seen == [("get", "Deployment", 404)]


def test_a_client_asks_once_for_the_version(connect: Connect) -> None:
    about = {"major": "1", "minor": "36+", "gitVersion": "v1.36.0+sandbox"}
    with scripted(lambda _: Answer(body=about)) as server:
        cluster = connect(server)
        assert [cluster.version(), cluster.version()] == [(1, 36)] * 2
        assert cluster.is_sandbox
    assert [asked.path for asked in server.asked] == ["/version"]


def test_names_cannot_leave_their_place_in_the_path(connect: Connect) -> None:
    with scripted(lambda _: Answer()) as server:
        connect(server).get(ObjectRef("v1", "Pod", "a/../b", "x?y#z"))
    assert server.asked[0].path == "/api/v1/namespaces/a%2F..%2Fb/pods/x%3Fy%23z"


# --- watches ----------------------------------------------------------------------------------


def pod(name: str, version: int) -> JsonObject:
    return {"kind": "Pod", "metadata": {"name": name, "resourceVersion": str(version)}}


def event(kind: str, name: str, version: int) -> JsonObject:
    return {"type": kind, "object": pod(name, version)}


EXPIRED = {"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old"}}


class Quick(random.Random):
    """Waits that are no waits."""

    def uniform(self, a: float, b: float) -> float:  # noqa: ARG002 - the base class's names
        return 0.0 if b <= 1 else b  # of a wait the share; else a time


def watched(cluster: Cluster, count: int, **options: Any) -> list[Any]:
    stop = threading.Event()
    stream = cluster.list_and_watch("v1", "Pod", None, stop=stop, rng=Quick(), **options)
    found = list(itertools.islice(stream, count))
    stop.set()
    stream.close()  # type: ignore[attr-defined]
    return found


def versions(server: Scripted) -> list[str]:
    """For each request, the version that it watches from; "list" for a list."""
    return [
        r.path.split("resourceVersion=")[1].split("&")[0] if "watch=true" in r.path else "list"
        for r in server.asked
    ]


def script(*answers: Answer) -> Callable[[Asked], Answer]:
    left = iter(answers)
    return lambda _: next(left, Answer(wait=threading.Event()))


LISTED = Answer(body={"metadata": {"resourceVersion": "5"}, "items": [pod("a", 3)]})


def test_a_watch_begins_with_all_objects_and_goes_on_with_events(connect: Connect) -> None:
    events = [event("ADDED", "b", 6), event("DELETED", "a", 7)]
    with scripted(script(LISTED, Answer(chunks=events))) as server:
        found = watched(connect(server), 3)
    assert found == [
        ("SYNC", ([{"apiVersion": "v1", **pod("a", 3)}], "5")),
        ("EVENT", ("ADDED", pod("b", 6))),
        ("EVENT", ("DELETED", pod("a", 7))),
    ]


def test_a_broken_stream_goes_on_after_its_last_event_or_bookmark(connect: Connect) -> None:
    first = Answer(chunks=[event("ADDED", "b", 6), event("BOOKMARK", "", 8)], cut=True)
    with scripted(script(LISTED, first, Answer(chunks=[event("ADDED", "c", 9)]))) as server:
        found = watched(connect(server), 3)
        assert [what for what, _ in found] == ["SYNC", "EVENT", "EVENT"]
        assert versions(server) == ["list", "5", "8"]


def test_a_version_that_is_too_old_lists_again(connect: Connect) -> None:
    again = Answer(body={"metadata": {"resourceVersion": "20"}, "items": []})
    with scripted(script(LISTED, Answer(chunks=[EXPIRED]), again)) as server:
        assert [what for what, _ in watched(connect(server), 2)] == ["SYNC", "SYNC"]


def test_events_split_over_chunks_are_put_together(connect: Connect) -> None:
    text = json.dumps(event("ADDED", "ü", 6), ensure_ascii=False) + "\n"
    with scripted(script(LISTED, Answer(chunks=[text[:9], text[9:]]))) as server:
        assert watched(connect(server), 2)[1] == ("EVENT", ("ADDED", pod("ü", 6)))


def test_trouble_is_told_and_so_is_its_end(connect: Connect) -> None:
    told: list[str] = []
    refused = Answer(403, {"message": "forbidden"})
    garbled = Answer(chunks=["{]\n"])
    answers = script(refused, LISTED, garbled, Answer(chunks=[event("ADDED", "b", 6)]))
    with scripted(answers) as server:
        watched(connect(server), 2, state=lambda e: told.append(e.category if e else "well"))
    assert told == ["Permanent", "well", "Transient", "well"]


def test_a_version_that_is_too_old_is_told_and_a_bookmark_says_that_all_is_well(
    connect: Connect,
) -> None:
    told: list[str] = []
    again = Answer(body={"metadata": {"resourceVersion": "20"}, "items": []})
    later = Answer(chunks=[event("BOOKMARK", "", 21), event("ADDED", "b", 22)])
    with scripted(script(LISTED, Answer(chunks=[EXPIRED]), again, later)) as server:
        watched(connect(server), 3, state=lambda e: told.append(type(e).__name__))
    assert told == ["NoneType", "Expired", "NoneType", "NoneType"]


def test_a_watch_waits_as_long_as_it_is_asked_to(connect: Connect) -> None:
    waits: list[float] = []

    class Once(threading.Event):
        """Over after the first wait."""

        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0.0)
            return True

        def is_set(self) -> bool:
            return bool(waits)

    busy = Answer(429, {"message": "too many requests"}, headers={"Retry-After": "7"})
    with scripted(script(LISTED, busy)) as server:
        list(connect(server).list_and_watch("v1", "Pod", None, stop=Once()))
    assert 7 <= waits[0] <= 10.5


def test_a_list_lets_go_of_each_object_before_it_looks_at_the_next(connect: Connect) -> None:
    def page(*names: str, **metadata: str) -> Answer:
        items = [{**pod(name, 1), "marked": {}} for name in names]
        return Answer(body={"metadata": {"resourceVersion": "5", **metadata}, "items": items})

    alive: list[int] = []

    def narrowed(item: JsonObject) -> str:
        bodies = [one for one in gc.get_objects() if type(one) is dict and "marked" in one]
        alive.append(len(bodies))
        return str(item["metadata"]["name"])

    answers = script(page("a", "b", "c", **{"continue": "x"}), page("d", "e"))
    with scripted(answers) as server:
        del answers
        found, version = connect(server).list("v1", "Pod", None, narrowed=narrowed)
    assert (found, version) == (["a", "b", "c", "d", "e"], "5")
    served = 5  # the script's own
    assert alive == [served + left for left in (3, 2, 1, 2, 1)]


def test_a_server_that_is_back_is_listed_at_once_and_one_that_forgets_at_once_more_slowly(
    connect: Connect,
) -> None:
    waits: list[float] = []

    class Patience(threading.Event):
        """Never waits, and is over after the twelfth time."""

        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0.0)
            return self.is_set()

        def is_set(self) -> bool:
            return len(waits) >= 12

    down = [Answer(500, {"message": "down"})] * 6
    forgets = [LISTED, Answer(chunks=[EXPIRED])] * 6
    with scripted(script(*down, *forgets)) as server:
        stream = connect(server).list_and_watch(
            "v1", "Pod", None, stop=Patience(), resource_version="5"
        )
        found = list(stream)
        asked = versions(server)
    assert asked[:7] == ["5", "5", *["list"] * 5]
    assert found[0] == ("SYNC", ([{"apiVersion": "v1", **pod("a", 3)}], "5"))
    assert waits[5] >= 2.5
    assert waits[-1] >= 2.5


def test_a_version_that_became_too_old_is_no_reason_to_wait_long(connect: Connect) -> None:
    waits: list[float] = []

    class Patience(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0.0)
            return self.is_set()

        def is_set(self) -> bool:
            return len(waits) >= 3

    worn = [Answer(chunks=[event("ADDED", "b", 6), EXPIRED]), LISTED] * 3
    with scripted(script(*worn)) as server:
        stop = Patience()
        list(connect(server).list_and_watch("v1", "Pod", None, stop=stop, resource_version="5"))
    assert max(waits) <= 0.2


# --- whether the view is whole ----------------------------------------------------------------


def listed(version: int, *names: str) -> Answer:
    items = [pod(name, version) for name in names]
    return Answer(body={"metadata": {"resourceVersion": str(version)}, "items": items})


SILENT = Answer(chunks=[], wait=threading.Event())
LOST = Answer(chunks=[event("ADDED", "b", 6)], cut=True)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchstream, "PROOF_SECONDS", 0)


@pytest.mark.usefixtures("impatient")
def test_all_is_listed_where_the_first_watch_after_a_loss_brings_nothing(connect: Connect) -> None:
    said: list[object] = []
    with scripted(script(LISTED, LOST, SILENT, listed(9, "c"), SILENT)) as server:
        found = watched(connect(server), 3, state=lambda error: said.append(type(error)))
        assert [what for what, _ in found] == ["SYNC", "EVENT", "SYNC"]
        assert versions(server)[:4] == ["list", "5", "6", "list"]
    # A stream that is only opened is not whole again, and no news are no trouble.
    assert said == [type(None), errors.Transient]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "answer",
    [
        Answer(504, {"message": "Too large resource version: 6, current: 3"}),
        Answer(chunks=[]),
        Answer(chunks=[], cut=True),
    ],
    ids=["refused", "ended", "cut"],
)
def test_a_first_watch_that_ends_with_nothing_brings_nothing(
    connect: Connect, answer: Answer
) -> None:
    with scripted(script(LISTED, LOST, answer, listed(9, "c"), SILENT)) as server:
        found = watched(connect(server), 3)
        assert [what for what, _ in found] == ["SYNC", "EVENT", "SYNC"]
        assert versions(server)[:4] == ["list", "5", "6", "list"]


def test_one_that_brings_something_is_whole_again(connect: Connect) -> None:
    said: list[object] = []
    again = Answer(chunks=[event("BOOKMARK", "", 8), event("ADDED", "c", 9)])
    with scripted(script(LISTED, LOST, again, SILENT)) as server:
        found = watched(connect(server), 3, state=lambda error: said.append(type(error)))
        assert [what for what, _ in found] == ["SYNC", "EVENT", "EVENT"]
    assert said == [type(None), errors.Transient, type(None)]


@pytest.mark.usefixtures("impatient")
def test_a_list_that_is_older_than_what_was_seen_replaces_everything(connect: Connect) -> None:
    with scripted(script(listed(90, "a"), LOST, SILENT, listed(70, "c"), SILENT)) as server:
        found = watched(connect(server), 3)
        assert [what for what, _ in found] == ["SYNC", "EVENT", "RESET"]
        assert found[2][1] == ([{"apiVersion": "v1", **pod("c", 70)}], "70")


def test_what_a_watch_says_is_checked_by_a_list_from_time_to_time(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every 10 to 15 minutes; the watch goes on from the list, and after one that fails as well."""
    now = [0.0]
    rounds: list[str] = []

    def answer(request: Asked) -> Answer:
        if "watch=true" not in request.path:
            rounds.append("list")
            return Answer(503, {"message": "busy"}) if len(rounds) == 3 else listed(9, "c")
        seconds = int(request.path.split("timeoutSeconds=")[1].split("&")[0])
        rounds.append(str(seconds))
        now[0] += seconds
        return Answer(chunks=[])

    monkeypatch.setattr(watchstream, "CHECK_SECONDS", (750, 750))
    monkeypatch.setattr(watchstream, "RECHECK_SECONDS", (90, 90))
    with scripted(answer) as server:
        found = watched(connect(server), 3, resource_version="5", clock=lambda: now[0])
    assert rounds[:10] == ["300", "300", "150", "list", "300", "300", "150", "list", "300", "300"]
    assert {what for what, _ in found} == {"SYNC"}


@pytest.mark.parametrize("end", [lambda cluster, _: cluster.close(), Cluster.end_watches])
def test_closing_ends_a_watch_that_is_waiting(
    connect: Connect, end: Callable[[Cluster, threading.Event], None]
) -> None:
    with scripted(script(LISTED, Answer(chunks=[], wait=threading.Event()))) as server:
        cluster = connect(server)
        opened = threading.Event()
        stop = threading.Event()
        stream = cluster.list_and_watch("v1", "Pod", None, stop=stop, state=lambda _: opened.set())
        thread = threading.Thread(target=lambda: list(stream))
        thread.start()
        assert opened.wait(5)
        end(cluster, stop)
        thread.join(5)
        assert not thread.is_alive()


def test_other_watches_go_on(connect: Connect) -> None:
    with scripted(script(LISTED, Answer(chunks=[], wait=threading.Event()))) as server:
        cluster = connect(server)
        opened = threading.Event()
        stream = cluster.list_and_watch(
            "v1", "Pod", None, stop=threading.Event(), state=lambda _: opened.set()
        )
        thread = threading.Thread(target=lambda: list(stream))
        thread.start()
        assert opened.wait(5)
        cluster.end_watches(threading.Event())
        thread.join(0.2)
        assert thread.is_alive()
        cluster.close()
        thread.join(5)


# --- a real control plane, and the sandbox ----------------------------------------------------


_names = itertools.count()


@pytest.fixture
def name() -> str:
    return f"web-{next(_names)}"


def deployment(name: str, **spec: Any) -> JsonObject:
    labels = {"app": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{"name": "c", "image": "example.com/x"}]},
            },
            **spec,
        },
    }


def config(name: str, **data: str) -> JsonObject:
    """An object that nobody else writes to."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "default"},
        "data": {"a": "1", **data},
    }


class TestServer:
    def test_says_its_version(self, cluster: Cluster) -> None:
        assert cluster.version() >= (1, 30)

    def test_only_the_sandbox_says_that_it_is_one(
        self, cluster: Cluster, request: pytest.FixtureRequest
    ) -> None:
        assert cluster.is_sandbox == (request.node.callspec.params["cluster"] == "sandbox")

    def test_applied_objects_are_read_back_and_deleted(self, cluster: Cluster, name: str) -> None:
        body = config(name)
        ref = ObjectRef.of(body)
        assert cluster.get(ref) is None
        made = cluster.apply(body)
        live = cluster.get(ref)
        assert live is not None
        assert (live["kind"], live["metadata"]["uid"]) == ("ConfigMap", made["metadata"]["uid"])
        assert (
            cluster.apply(body)["metadata"]["resourceVersion"]
            == made["metadata"]["resourceVersion"]
        )
        cluster.delete(ref, uid=live["metadata"]["uid"])
        assert cluster.get(ref) is None

    def test_a_deletion_says_what_still_stands(self, cluster: Cluster, name: str) -> None:
        body = config(name)
        body["metadata"]["finalizers"] = ["example.com/held"]
        held = cluster.delete(ObjectRef.of(body), uid=cluster.apply(body)["metadata"]["uid"])
        assert held is not None
        assert held["metadata"]["deletionTimestamp"]
        cluster.merge_patch(ObjectRef.of(body), {"metadata": {"finalizers": None}})
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": body["metadata"] | {"finalizers": None},
            "spec": {"ports": [{"port": 80}]},
        }
        uid = cluster.create(service)["metadata"]["uid"]
        assert cluster.delete(ObjectRef.of(service), uid=uid) is None

    def test_a_dry_run_changes_nothing(self, cluster: Cluster, name: str) -> None:
        body = config(name)
        assert cluster.apply(body, dry_run=True)["metadata"]["uid"]
        assert cluster.get(ObjectRef.of(body)) is None
        made = cluster.apply(body)
        cluster.delete(ObjectRef.of(body), uid=made["metadata"]["uid"], dry_run=True)
        assert cluster.get(ObjectRef.of(body)) is not None

    def test_lists_page_by_page_and_says_the_kind(self, cluster: Cluster, name: str) -> None:
        for index in range(3):
            body = config(f"{name}-{index}")
            body["metadata"]["labels"] = {"list": name}
            cluster.apply(body)
        items, version = cluster.list(
            "v1", "ConfigMap", None, label_selector=f"list={name}", limit=1
        )
        assert [item["metadata"]["name"] for item in items] == [f"{name}-{i}" for i in range(3)]
        assert {(item["apiVersion"], item["kind"]) for item in items} == {("v1", "ConfigMap")}
        assert version.isdigit()

    def test_a_write_for_an_object_that_has_gone_makes_none(
        self, cluster: Cluster, name: str
    ) -> None:
        body = config(name)
        ref = ObjectRef.of(body)
        uid = cluster.apply(body)["metadata"]["uid"]
        cluster.delete(ref, uid=uid)
        with pytest.raises(errors.Gone):
            cluster.apply(body, uid=uid)
        with pytest.raises(errors.Gone):
            cluster.delete(ref, uid=uid)
        with pytest.raises(errors.Gone):
            cluster.merge_patch(ref, {"data": {"b": "2"}}, uid=uid)
        with pytest.raises(errors.Gone):
            cluster.json_patch(ref, [], uid=uid)
        assert cluster.get(ref) is None

    def test_a_write_for_another_object_of_the_name_is_refused(
        self, cluster: Cluster, name: str
    ) -> None:
        body = config(name)
        ref = ObjectRef.of(body)
        old = cluster.apply(body)["metadata"]["uid"]
        cluster.delete(ref, uid=old)
        new = cluster.apply(body)["metadata"]
        with pytest.raises(errors.Gone):
            cluster.apply(config(name, b="2"), uid=old)
        with pytest.raises(errors.Gone):
            cluster.delete(ref, uid=old)
        with pytest.raises(errors.Gone):
            cluster.merge_patch(ref, {"data": {"b": "2"}}, uid=old)
        with pytest.raises(errors.Conflict):
            cluster.json_patch(ref, [{"op": "add", "path": "/data/b", "value": "2"}], uid=old)
        live = cluster.get(ref)
        assert live is not None
        assert live["metadata"]["resourceVersion"] == new["resourceVersion"]

    def test_a_write_on_an_old_version_is_a_conflict(self, cluster: Cluster, name: str) -> None:
        body = config(name)
        ref = ObjectRef.of(body)
        old = cluster.apply(body)["metadata"]
        version = old["resourceVersion"]
        patched = cluster.json_patch(
            ref,
            [{"op": "add", "path": "/data/b", "value": "2"}],
            uid=old["uid"],
            resource_version=version,
        )
        assert patched["data"] == {"a": "1", "b": "2"}
        writes: tuple[Callable[[], object], ...] = (
            lambda: cluster.apply(body, uid=old["uid"], resource_version=version),
            lambda: cluster.merge_patch(ref, {"data": {}}, resource_version=version),
            lambda: cluster.json_patch(ref, [], resource_version=version),
            lambda: cluster.delete(ref, uid=old["uid"], resource_version=version),
            lambda: cluster.create(body),
        )
        for write in writes:
            with pytest.raises(errors.Conflict):
                write()

    def test_a_mistake_in_the_body_is_the_users(self, cluster: Cluster, name: str) -> None:
        with pytest.raises(errors.Configuration, match="field not declared") as caught:
            cluster.apply(deployment(name, zzz="hunter2"))
        assert caught.value.code == 500
        wrong = deployment(name)
        wrong["metadata"]["labels"] = {"a": "hunter2 with blanks"}
        with pytest.raises(
            errors.Configuration, match=r"metadata\.labels: Invalid value"
        ) as caught:
            cluster.apply(wrong)
        assert "hunter2" not in f"{caught.value.message}{caught.value.causes}"

    def test_a_patch_of_a_wrong_type_does_not_show_the_object(
        self, cluster: Cluster, name: str
    ) -> None:
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": "default"},
            "data": {"token": "aHVudGVyMg=="},
        }
        cluster.apply(secret)
        with pytest.raises(errors.Configuration) as caught:
            cluster.merge_patch(ObjectRef.of(secret), {"data": {"x": 5}})
        assert "aHVudGVyMg" not in f"{caught.value.message}{caught.value.causes}"

    def test_an_immutable_field_is_told_from_other_mistakes(
        self, cluster: Cluster, name: str
    ) -> None:
        cluster.apply(deployment(name))
        other = deployment(name)
        other["spec"]["selector"]["matchLabels"] = {"app": "other"}
        other["spec"]["template"]["metadata"]["labels"] = {"app": "other"}
        with pytest.raises(errors.Immutable, match=r"spec\.selector.*immutable") as caught:
            cluster.apply(other)
        assert [field for _, field, _ in caught.value.causes] == ["spec.selector"]

    def test_a_field_of_another_manager_is_a_mistake_unless_forced(
        self, cluster: Cluster, name: str
    ) -> None:
        cluster.apply(deployment(name))
        with pytest.raises(errors.Configuration, match=r"gitops-mcp.*\.spec\.replicas"):
            cluster.apply(deployment(name, replicas=2), manager="other", force=False)
        assert cluster.apply(deployment(name, replicas=2), manager="o")["spec"]["replicas"] == 2

    def test_the_status_is_written_apart(self, cluster: Cluster, name: str) -> None:
        body = deployment(name)
        cluster.apply(body)
        status = {key: body[key] for key in ("apiVersion", "kind", "metadata")}
        status["status"] = {"collisionCount": 7}
        assert cluster.apply(status, subresource="status")["status"]["collisionCount"] == 7

    def test_a_missing_namespace_and_a_missing_kind_have_their_own_words(
        self, cluster: Cluster
    ) -> None:
        body = deployment("web")
        body["metadata"]["namespace"] = "nowhere"
        with pytest.raises(errors.Transient, match='namespaces "nowhere" not found') as caught:
            cluster.apply(body)
        assert "--create-namespace" in caught.value.hint
        ours = ObjectRef("mcp.example.com/v1alpha1", "MCPServer", "default", "web")
        with pytest.raises(errors.KindAbsent) as absent:
            cluster.get(ours)
        assert INSTALL_CRD in absent.value.hint

    def test_a_namespace_that_is_going_is_no_failure(self, cluster: Cluster, name: str) -> None:
        space = cluster.apply(
            {
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {"name": name},
            }
        )
        cluster.delete(ObjectRef("v1", "Namespace", "", name), uid=space["metadata"]["uid"])
        body = deployment("web")
        body["metadata"]["namespace"] = name
        with pytest.raises(errors.Terminating):
            cluster.apply(body)

    def test_rights_are_told(self, cluster: Cluster) -> None:
        assert cluster.can("patch", "apps", "deployments", "default")
        assert cluster.can("patch", "mcp.example.com", "mcpservers", None, "status")

    def test_missing_rights_are_told(self, plane: rig.Plane) -> None:
        bob = Cluster(str(plane.kubeconfig("bob")))
        assert not bob.can("patch", "apps", "deployments", "default")
        with pytest.raises(errors.Permanent, match='User "bob" cannot get'):
            bob.get(ObjectRef("apps/v1", "Deployment", "default", "web"))
        bob.close()

    def test_a_watch_sees_what_happens(self, cluster: Cluster, name: str) -> None:
        stop = threading.Event()
        stream = cluster.list_and_watch(
            "v1", "ConfigMap", "default", stop=stop, label_selector=f"watch={name}"
        )
        what, (listed, _) = next(stream)
        assert (what, listed) == ("SYNC", [])
        body = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": "default", "labels": {"watch": name}},
        }
        made = cluster.apply(body)
        assert next(stream) == ("EVENT", ("ADDED", made))
        cluster.delete(ObjectRef.of(body), uid=made["metadata"]["uid"])
        what, (kind, _) = next(stream)
        assert (what, kind) == ("EVENT", "DELETED")
        stop.set()


def holds(lease: Lease) -> bool:
    """A call, since a type checker takes a property for a constant."""
    return lease.holds


class TestLease:
    @pytest.fixture
    def pair(self, cluster: Cluster, name: str) -> tuple[Lease, Lease, list[float]]:
        clock = [0.0]

        def lease(holder: str, today: datetime) -> Lease:
            return Lease(
                cluster,
                "default",
                name,
                holder,
                clock=lambda: clock[0],
                now=lambda: today + timedelta(seconds=clock[0]),
            )

        # The clocks of the two are a day apart: no decision may rest on them.
        mine = lease("mine", datetime(2026, 1, 1, tzinfo=UTC))
        return mine, lease("other", datetime(2026, 1, 2, tzinfo=UTC)), clock

    def test_only_one_holds_it_and_a_release_frees_it(
        self, pair: tuple[Lease, Lease, list[float]]
    ) -> None:
        mine, other, _ = pair
        assert mine.acquire()
        assert not other.acquire()
        assert (other.holder, other.holds, mine.holds) == ("mine", False, True)
        other.release()
        assert mine.acquire()
        mine.release()
        assert not mine.holds
        assert other.acquire()
        assert not mine.acquire()

    def test_it_ends_for_its_holder_well_before_it_does_for_others(
        self, pair: tuple[Lease, Lease, list[float]]
    ) -> None:
        mine, other, clock = pair
        assert mine.acquire()
        assert not other.acquire()
        clock[0] = 5.9
        assert mine.holds
        clock[0] = 6.0
        assert not holds(mine)
        clock[0] = 9.9
        assert not other.acquire()
        clock[0] = 10.0
        assert other.acquire()
        assert not mine.acquire()
        assert mine.holder == "other"

    def test_a_record_that_states_68_years_keeps_nobody_out_for_longer(
        self, cluster: Cluster, pair: tuple[Lease, Lease, list[float]]
    ) -> None:
        mine, other, clock = pair
        assert mine.acquire()
        cluster.merge_patch(mine.ref, {"spec": {"leaseDurationSeconds": 2147483647}})
        assert not other.acquire()
        clock[0] = 9.9
        assert not other.acquire()
        clock[0] = 10.0
        assert other.acquire()

    def test_a_renewal_keeps_it(self, pair: tuple[Lease, Lease, list[float]]) -> None:
        mine, other, clock = pair
        assert mine.acquire()
        assert not other.acquire()
        clock[0] = 5.0
        assert mine.acquire()
        assert not other.acquire()
        clock[0] = 14.9
        assert not other.acquire()

    def test_what_a_former_term_said_does_not_come_back(
        self, pair: tuple[Lease, Lease, list[float]]
    ) -> None:
        """Taken and given up between two renewals: the next term begins without a look at it."""
        mine, other, _ = pair
        mine.annotations["example.com/revision"] = "old"
        mine.initial = {"example.com/trouble": ""}
        assert mine.acquire()
        other.annotations["example.com/revision"] = "new"
        assert other.acquire(take_over=True)
        other.release()
        assert mine.acquire()
        assert mine.annotation("example.com/revision") == "new"
        assert mine.annotations == mine.initial

    def test_it_is_taken_up_again_where_nobody_else_has(
        self, pair: tuple[Lease, Lease, list[float]]
    ) -> None:
        mine, _, clock = pair
        assert mine.acquire()
        clock[0] = 3.0
        assert mine.acquire()
        assert mine.term == 1
        clock[0] = 30.0
        assert mine.acquire()
        assert mine.holds
        assert mine.term == 2

    def test_it_is_taken_over_where_that_is_wanted(
        self, pair: tuple[Lease, Lease, list[float]], cluster: Cluster
    ) -> None:
        mine, other, _ = pair
        assert mine.acquire()
        assert other.acquire(take_over=True)
        assert not mine.acquire()
        live = cluster.get(other.ref)
        assert live is not None
        assert live["spec"]["leaseTransitions"] == 1
        assert live["spec"]["holderIdentity"] == "other"
        assert live["spec"]["renewTime"] == "2026-01-02T00:00:00.000000Z"

    def test_what_others_write_on_it_neither_ends_it_nor_is_lost(
        self, pair: tuple[Lease, Lease, list[float]], cluster: Cluster
    ) -> None:
        mine, _, _ = pair
        mine.annotations["a"] = "1"
        assert mine.acquire()
        cluster.merge_patch(mine.ref, {"metadata": {"annotations": {"b": "2"}}})
        mine.annotations["a"] = "3"
        assert mine.acquire()
        assert mine.term == 1
        cluster.merge_patch(mine.ref, {"metadata": {"annotations": {"c": "4"}}})
        mine.release()
        live = cluster.get(mine.ref)
        assert live is not None
        assert live["metadata"]["annotations"] == {"a": "3", "b": "2", "c": "4"}
        assert not live["spec"].get("holderIdentity")

    def test_one_that_was_deleted_is_made_anew(
        self, pair: tuple[Lease, Lease, list[float]], cluster: Cluster
    ) -> None:
        mine, _, _ = pair
        assert mine.acquire()
        cluster.delete(mine.ref, uid=None)
        assert mine.acquire()
        cluster.delete(mine.ref, uid=None)
        mine.release()


def test_a_renewal_is_one_request_with_a_time_limit_of_its_own(connect: Connect) -> None:
    clock, hung = [0.0], threading.Event()

    def answer(asked: Asked) -> Answer:
        if asked.method != "PUT":
            return Answer(404 if asked.method == "GET" else 201, asked.body or {})
        return Answer(200, asked.body, wait=hung if clock[0] > 2 else None)

    with scripted(answer) as server:
        cluster = connect(server)
        lease = Lease(cluster, "default", "one", "mine", clock=lambda: clock[0])
        assert lease.acquire()
        clock[0] = 2.0
        assert lease.acquire()
        assert [asked.method for asked in server.asked] == ["GET", "POST", "PUT"]
        clock[0] = 7.9  # the deadline is at 8
        with pytest.raises(errors.Transient, match="no answer in time"):
            lease.acquire()  # it hangs for ever
        assert len(server.asked) == 4
        assert lease.holds
        hung.set()


def test_a_watch_outlives_a_restart_of_the_server(plane: rig.Plane, name: str) -> None:
    cluster = Cluster(str(plane.kubeconfig("admin")))
    told: list[str] = []
    stop = threading.Event()
    stream = cluster.list_and_watch(
        "v1",
        "ConfigMap",
        "default",
        stop=stop,
        label_selector=f"watch={name}",
        state=lambda error: told.append(error.category if error else "well"),
    )
    what, (listed, _) = next(stream)
    assert (what, listed) == ("SYNC", [])
    body = config(name)
    body["metadata"]["labels"] = {"watch": name}
    made = cluster.apply(body)
    assert next(stream) == ("EVENT", ("ADDED", made))
    plane.stop_apiserver()
    plane.start_apiserver()
    changed = cluster.apply({**body, "data": {"a": "2"}})
    for what, news in stream:
        # Whichever the server makes of the old version: too old, or a watch that goes on.
        if changed in (news[0] if what == "SYNC" else [news[1]]):
            break
    assert told[0] == "well"
    assert "Transient" in told
    cluster.close()
