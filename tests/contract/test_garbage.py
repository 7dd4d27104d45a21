"""Owners, propagation, namespaces and definitions, against the sandbox and a real cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from contract.transcript import Cluster

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
PATIENCE = 60


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    name = cluster.namespace()
    yield name
    cluster.request("DELETE", f"/api/v1/namespaces/{name}")


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"not within {PATIENCE} s: {what}"
        time.sleep(0.02)


def owner(cluster: Cluster, namespace: str, **metadata: Any) -> Any:
    """Create a Secret that is to own something; returns it."""
    # A built-in kind: the real collector looks for custom kinds only twice a minute.
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "w", **metadata}}
    answer = cluster.request("POST", secrets(namespace), body)
    assert answer.code == 201, answer.body
    return answer.body


def child(cluster: Cluster, namespace: str, owner: Any, **reference: Any) -> None:
    """Create a ConfigMap `c` that the owner owns."""
    owned = {
        "apiVersion": "v1",
        "kind": "Secret",
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        **reference,
    }
    metadata = {"name": "c", "ownerReferences": [owned]}
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}
    assert cluster.request("POST", maps(namespace), body).code == 201


def maps(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/configmaps"


def secrets(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/secrets"


def code(cluster: Cluster, path: str) -> int:
    return cluster.request("GET", path).code


def release(cluster: Cluster, path: str) -> None:
    """Drop every finalizer."""
    patch = {"metadata": {"finalizers": None}}
    assert cluster.request("PATCH", path, patch, kind="merge").code == 200


def test_children_follow_their_owner(cluster: Cluster, namespace: str) -> None:
    parent = owner(cluster, namespace)
    child(cluster, namespace, parent)
    time.sleep(0.5)
    assert code(cluster, f"{maps(namespace)}/c") == 200
    cluster.request("DELETE", f"{secrets(namespace)}/w")
    until(lambda: code(cluster, f"{maps(namespace)}/c") == 404, "the child is gone")


def test_children_live_while_a_finalizer_holds_their_owner(
    cluster: Cluster, namespace: str
) -> None:
    parent = owner(cluster, namespace, finalizers=["a.b/c"])
    child(cluster, namespace, parent)
    cluster.request("DELETE", f"{secrets(namespace)}/w", {"propagationPolicy": "Background"})
    time.sleep(0.7)
    assert code(cluster, f"{maps(namespace)}/c") == 200
    release(cluster, f"{secrets(namespace)}/w")
    until(lambda: code(cluster, f"{maps(namespace)}/c") == 404, "the child is gone")


def test_foreground_deletion_takes_children_before_our_finalizer_has_run(
    cluster: Cluster, namespace: str
) -> None:
    parent = owner(cluster, namespace, finalizers=["a.b/c"])
    child(cluster, namespace, parent, blockOwnerDeletion=True)
    path = f"{secrets(namespace)}/w"
    held = cluster.request("DELETE", path, {"propagationPolicy": "Foreground"}).body
    assert sorted(held["metadata"]["finalizers"]) == ["a.b/c", "foregroundDeletion"]
    until(lambda: code(cluster, f"{maps(namespace)}/c") == 404, "the child is gone")
    until(
        lambda: cluster.request("GET", path).body["metadata"]["finalizers"] == ["a.b/c"],
        "only our finalizer is left",
    )
    release(cluster, path)
    assert code(cluster, path) == 404


def test_a_blocking_child_holds_its_owner_in_foreground_deletion(
    cluster: Cluster, namespace: str
) -> None:
    parent = owner(cluster, namespace)
    child(cluster, namespace, parent, blockOwnerDeletion=True)
    patch = {"metadata": {"finalizers": ["a.b/c"]}}
    cluster.request("PATCH", f"{maps(namespace)}/c", patch, kind="merge")
    cluster.request("DELETE", f"{secrets(namespace)}/w", {"propagationPolicy": "Foreground"})
    until(
        lambda: (
            "deletionTimestamp" in cluster.request("GET", f"{maps(namespace)}/c").body["metadata"]
        ),
        "the child is being deleted",
    )
    time.sleep(0.5)
    assert code(cluster, f"{secrets(namespace)}/w") == 200
    release(cluster, f"{maps(namespace)}/c")
    until(lambda: code(cluster, f"{secrets(namespace)}/w") == 404, "the owner is gone")


def test_orphans_stay_without_their_reference(cluster: Cluster, namespace: str) -> None:
    parent = owner(cluster, namespace)
    child(cluster, namespace, parent)
    cluster.request("DELETE", f"{secrets(namespace)}/w", {"propagationPolicy": "Orphan"})
    until(lambda: code(cluster, f"{secrets(namespace)}/w") == 404, "the owner is gone")
    left = cluster.request("GET", f"{maps(namespace)}/c").body
    assert "ownerReferences" not in left["metadata"]


@pytest.mark.parametrize("wrong", ["uid", "name"])
def test_an_owner_that_is_not_there_means_deletion(
    cluster: Cluster, namespace: str, wrong: str
) -> None:
    parent = owner(cluster, namespace)
    values = {"uid": "00000000-0000-4000-8000-000000000000", "name": "other"}
    child(cluster, namespace, parent, **{wrong: values[wrong]})
    until(lambda: code(cluster, f"{maps(namespace)}/c") == 404, "the child is gone")


def test_an_owner_of_an_unknown_kind_means_nothing(cluster: Cluster, namespace: str) -> None:
    parent = owner(cluster, namespace)
    child(cluster, namespace, parent, kind="Gadget", uid="00000000-0000-4000-8000-000000000001")
    time.sleep(1)
    assert code(cluster, f"{maps(namespace)}/c") == 200


def test_a_terminating_namespace_takes_nothing_new_and_goes_with_its_content(
    cluster: Cluster,
) -> None:
    namespace = cluster.namespace()
    path = f"/api/v1/namespaces/{namespace}"
    owner(cluster, namespace, name="held", finalizers=["a.b/c"])
    owner(cluster, namespace, name="free")
    answer = cluster.request("DELETE", path)
    assert answer.code == 200
    assert answer.body["status"]["phase"] == "Terminating"
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "late"}}
    refused = cluster.request("POST", maps(namespace), body)
    assert refused.code == 403
    assert refused.body["reason"] == "Forbidden"
    assert refused.body["message"] == (
        f'configmaps "late" is forbidden: unable to create new content in namespace {namespace}'
        " because it is being terminated"
    )
    assert [cause["reason"] for cause in refused.body["details"]["causes"]] == [
        "NamespaceTerminating"
    ]
    about = {"kind": "Secret", "name": "held", "namespace": namespace}
    event = {"metadata": {"name": "late"}, "involvedObject": about}
    assert cluster.request("POST", f"{path}/events", event).code == 403
    until(lambda: code(cluster, f"{secrets(namespace)}/free") == 404, "free content is gone")
    assert code(cluster, path) == 200
    release(cluster, f"{secrets(namespace)}/held")
    until(lambda: code(cluster, path) == 404, "the namespace is gone")


def defined(cluster: Cluster, namespace: str, **fields: Any) -> tuple[str, str, dict[str, Any]]:
    """Serve a new kind Thing whose spec has these fields; the path of its definition, that of its
    objects, and a body without a spec."""
    group = f"{namespace}.example.com"
    spec = {"type": "object", "properties": fields}
    schema = {"type": "object", "properties": {"spec": spec}}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    body = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"things.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"plural": "things", "kind": "Thing"},
            "versions": [version],
        },
    }
    things = f"/apis/{group}/v1/namespaces/{namespace}/things"
    assert cluster.request("POST", CRDS, body).code == 201
    until(lambda: code(cluster, things) == 200, "things are served")
    thing = {"apiVersion": f"{group}/v1", "kind": "Thing", "metadata": {"name": "t"}}
    return f"{CRDS}/things.{group}", things, thing


def test_a_definition_goes_after_its_objects_and_its_watches_end(
    cluster: Cluster, namespace: str
) -> None:
    crd, things, thing = defined(cluster, namespace, a={"type": "string"})
    thing |= {"metadata": {"name": "t", "finalizers": ["a.b/c"]}, "spec": {}}
    path = f"{things}/t"
    created = cluster.request("PATCH", f"{path}?fieldManager=m", thing, kind="apply")
    assert created.code == 201
    assert cluster.request("PATCH", f"{path}?fieldManager=m", thing, kind="apply").code == 200

    # A default that the schema gains shows at once, and counts as no change.
    spec = {"type": "object", "properties": {"a": {"type": "string", "default": "new"}}}
    where = "/spec/versions/0/schema/openAPIV3Schema/properties/spec"
    patch = [{"op": "replace", "path": where, "value": spec}]
    assert cluster.request("PATCH", crd, patch, kind="json-patch").code == 200
    until(lambda: cluster.request("GET", path).body.get("spec") == {"a": "new"}, "the default")
    shown = cluster.request("GET", path).body["metadata"]["resourceVersion"]
    assert shown == created.body["metadata"]["resourceVersion"]

    assert cluster.request("DELETE", crd).code == 200
    until(
        lambda: "deletionTimestamp" in cluster.request("GET", path).body["metadata"],
        "the thing is being deleted",
    )
    late = {**thing, "metadata": {"name": "late"}}
    refused = cluster.request("POST", things, late)
    assert refused.code == 403
    assert (
        "create not allowed while custom resource definition is terminating"
        in (refused.body["message"])
    )
    release(cluster, path)
    until(lambda: code(cluster, crd) == 404, "the definition is gone")
    until(lambda: code(cluster, things) == 404, "things are unknown")
    assert cluster.request("GET", things).body == "404 page not found\n"


def test_what_a_new_rule_refuses_may_stay_while_it_is_not_touched(
    cluster: Cluster, namespace: str
) -> None:
    integer = {"type": "integer"}
    crd, things, thing = defined(cluster, namespace, size=integer, other=integer)
    thing["spec"] = {"size": 50}
    assert cluster.request("PATCH", f"{things}/t?fieldManager=m", thing, kind="apply").code == 201
    where = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/size/maximum"
    patch = [{"op": "add", "path": where, "value": 10}]
    assert cluster.request("PATCH", crd, patch, kind="json-patch").code == 200
    probe = {**thing, "metadata": {"name": "probe"}}
    new = f"{things}/probe?fieldManager=m&dryRun=All"
    until(lambda: cluster.request("PATCH", new, probe, kind="apply").code == 422, "the rule holds")

    untouched = cluster.request("PATCH", f"{things}/t", {"spec": {"other": 1}}, kind="merge")
    assert untouched.code == 200
    touched = cluster.request("PATCH", f"{things}/t", {"spec": {"size": 60}}, kind="merge")
    assert touched.code == 422
    cluster.request("DELETE", crd)
