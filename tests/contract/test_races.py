"""Writes at the same time, against the sandbox and a real API server."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from contract.transcript import Answer, Cluster

WRITERS = 8


def test_of_applies_at_once_one_creates_and_none_is_refused(cluster: Cluster) -> None:
    path = f"/api/v1/namespaces/{cluster.namespace()}/configmaps"

    def apply(n: int) -> Answer:
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}}
        body |= {"data": {f"by-{n}": "x"}}
        return cluster.request("PATCH", f"{path}/c?fieldManager=m{n}", body, kind="apply")

    with ThreadPoolExecutor(WRITERS) as pool:
        codes = Counter(answer.code for answer in pool.map(apply, range(WRITERS)))
    assert codes == {201: 1, 200: WRITERS - 1}
    assert len(cluster.request("GET", f"{path}/c").body["data"]) == WRITERS


def test_of_merge_patches_at_once_none_is_refused_and_of_puts_with_a_version_all_but_one(
    cluster: Cluster,
) -> None:
    path = f"/api/v1/namespaces/{cluster.namespace()}/configmaps"
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}}
    assert cluster.request("POST", path, body).code == 201

    def merge(n: int) -> Answer:
        return cluster.request("PATCH", f"{path}/c", {"data": {f"by-{n}": "x"}}, kind="merge")

    with ThreadPoolExecutor(WRITERS) as pool:
        assert {answer.code for answer in pool.map(merge, range(WRITERS))} == {200}
    live = cluster.request("GET", f"{path}/c").body
    assert len(live["data"]) == WRITERS

    def put(n: int) -> Answer:
        return cluster.request("PUT", f"{path}/c", {**live, "data": {"by": str(n)}})

    with ThreadPoolExecutor(WRITERS) as pool:
        codes = Counter(answer.code for answer in pool.map(put, range(WRITERS)))
    assert codes == {200: 1, 409: WRITERS - 1}
