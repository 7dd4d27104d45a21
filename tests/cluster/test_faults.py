"""The proxy that makes trouble: what a client meets through it, and what the API server saw."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from random import Random

import faults
import plane as rig
import pytest
from faults import Fault, Proxy

from gitops_mcp import sandbox
from gitops_mcp.base.errors import KubeError, Transient
from gitops_mcp.base.names import JsonObject, ObjectRef
from gitops_mcp.cluster.kube import Cluster

pytestmark = pytest.mark.usefixtures("processes")

_numbers = itertools.count(1)


@pytest.fixture(scope="module", params=["sandbox", "plane"])
def behind(
    processes: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """The kubeconfig of an API server: the sandbox by HTTP, a real one by TLS with a token."""
    if request.param == "plane":
        try:
            yield rig.shared().kubeconfig()
        except rig.Unavailable as reason:
            pytest.skip(str(reason))
        return
    with sandbox.start(controllers=False) as started:
        yield started.write_kubeconfig(tmp_path_factory.mktemp("sandbox") / "config")


@pytest.fixture
def proxy(behind: Path) -> Iterator[Proxy]:
    with Proxy(behind) as started:
        yield started


@pytest.fixture
def client(proxy: Proxy) -> Iterator[Cluster]:
    """A client that is led through the proxy."""
    connected = Cluster(str(proxy.kubeconfig), timeout=5)
    yield connected
    connected.close()


@pytest.fixture
def direct(behind: Path) -> Iterator[Cluster]:
    """A client that is not."""
    connected = Cluster(str(behind))
    yield connected
    connected.close()


@pytest.fixture
def body(direct: Cluster) -> Iterator[JsonObject]:
    """An object that nobody has made yet."""
    name = f"c-{next(_numbers)}"
    made = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "default"},
    }
    yield made
    if direct.get(ObjectRef.of(made)) is not None:
        direct.delete(ObjectRef.of(made), uid=None)


def test_what_no_rule_is_about_is_passed_on(
    proxy: Proxy, client: Cluster, direct: Cluster, body: JsonObject
) -> None:
    ref = ObjectRef.of(body)
    made = client.apply(body)
    assert made == direct.get(ref) == client.get(ref)
    assert body["metadata"]["name"] in {
        item["metadata"]["name"] for item in client.list("v1", "ConfigMap", "default")[0]
    }
    with pytest.raises(KubeError) as refused:
        client.create(body)
    assert refused.value.code == 409
    client.delete(ref, uid=made["metadata"]["uid"])
    assert direct.get(ref) is None
    methods = [request.method for request, _, _ in proxy.seen]
    assert methods == ["PATCH", "GET", "GET", "POST", "DELETE"]
    assert [code for _, _, code in proxy.seen] == [201, 200, 200, 409, 200]


@pytest.mark.parametrize(
    ("fault", "code", "after", "made"),
    [
        pytest.param(faults.TOO_MANY, 429, 1, False, id="too many"),
        pytest.param(faults.STARTING, 503, 5, False, id="starting"),
        pytest.param(faults.BROKEN, 500, None, False, id="broken"),
        pytest.param(faults.LOST_BEFORE, 0, None, False, id="lost before"),
        pytest.param(faults.LOST_AFTER, 0, None, True, id="lost after"),
        pytest.param(Fault(answer=faults.BROKEN.answer), 500, None, True, id="done, and denied"),
    ],
)
def test_a_fault_looks_like_the_real_one_and_the_next_request_is_well(
    proxy: Proxy,
    client: Cluster,
    direct: Cluster,
    body: JsonObject,
    fault: Fault,
    code: int,
    after: int | None,
    made: bool,
) -> None:
    client.list("v1", "ConfigMap", "default")  # a connection is open already
    proxy.rule = lambda _: fault
    with pytest.raises(Transient) as met:
        client.apply(body)
    assert met.value.code == code
    assert met.value.retry_after == (None if after is None else timedelta(seconds=after))
    assert (direct.get(ObjectRef.of(body)) is not None) is made
    proxy.rule = lambda _: None
    client.apply(body)


def test_a_delayed_request_arrives_late_and_a_lagging_answer_after_the_deed(
    proxy: Proxy, client: Cluster, direct: Cluster, body: JsonObject
) -> None:
    proxy.rule = lambda request: Fault(lag=0.3) if faults.writes(request) else Fault(delay=0.3)
    began = time.monotonic()
    thread = threading.Thread(target=client.apply, args=(body,))
    thread.start()
    while direct.get(ObjectRef.of(body)) is None:
        time.sleep(0.01)
    assert thread.is_alive()
    thread.join()
    assert time.monotonic() - began >= 0.3
    began = time.monotonic()
    client.get(ObjectRef.of(body))
    assert time.monotonic() - began >= 0.3


def test_a_hung_request_acts_when_it_is_released_though_its_client_has_given_up(
    proxy: Proxy, direct: Cluster, body: JsonObject
) -> None:
    impatient = Cluster(str(proxy.kubeconfig), timeout=0.3)
    proxy.rule = lambda _: faults.HUNG
    with pytest.raises(Transient, match="no answer in time"):
        impatient.apply(body)
    impatient.close()
    assert direct.get(ObjectRef.of(body)) is None
    proxy.release()
    deadline = time.monotonic() + 60
    while direct.get(ObjectRef.of(body)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_watch_is_passed_on_event_by_event_and_goes_on_after_a_cut(
    proxy: Proxy, client: Cluster, direct: Cluster, body: JsonObject
) -> None:
    _, version = direct.list("v1", "ConfigMap", "default")
    stop, opened, told = threading.Event(), threading.Semaphore(0), threading.Semaphore(0)
    events: list[str] = []

    def follow() -> None:
        for kind, event in client.list_and_watch(
            "v1",
            "ConfigMap",
            "default",
            stop=stop,
            resource_version=version,
            state=lambda trouble: None if trouble else opened.release(),
            rng=Random(1),
        ):
            assert kind == "EVENT"
            assert isinstance(event[0], str)
            events.append(event[0])
            told.release()

    thread = threading.Thread(target=follow)
    thread.start()
    assert opened.acquire(timeout=5)
    made = direct.create(body)
    assert told.acquire(timeout=5)
    proxy.cut()
    direct.delete(ObjectRef.of(body), uid=made["metadata"]["uid"])
    assert told.acquire(timeout=10)
    client.end_watches(stop)
    thread.join(5)
    assert not thread.is_alive()
    assert events == ["ADDED", "DELETED"]


def test_a_proxy_that_ends_lets_nobody_wait(behind: Path, body: JsonObject) -> None:
    with Proxy(behind) as proxy:
        proxy.rule = lambda _: faults.HUNG
        client = Cluster(str(proxy.kubeconfig))
        errors: list[KubeError] = []

        def asks() -> None:
            try:
                client.get(ObjectRef.of(body))
            except KubeError as error:
                errors.append(error)

        thread = threading.Thread(target=asks)
        thread.start()
        time.sleep(0.2)
    thread.join(5)
    client.close()
    assert [error.code for error in errors] in ([0], [])
    assert not thread.is_alive()


def test_trouble_comes_as_often_as_asked_for_and_by_the_seed() -> None:
    requests = [faults.Request(n, "PATCH" if n % 2 else "GET", "/api") for n in range(2000)]

    def met(seed: int) -> list[Fault | None]:
        rule = faults.sometimes(
            Random(seed), 0.2, (faults.TOO_MANY, faults.LOST_AFTER), when=faults.writes
        )
        return [rule(request) for request in requests]

    assert met(1) == met(1) != met(2)
    assert set(met(1)[::2]) == {None}
    assert 150 < sum(fault is not None for fault in met(1)[1::2]) < 250
    assert set(met(1)) == {None, faults.TOO_MANY, faults.LOST_AFTER}
