"""The Endpoints and EndpointSlices of a Service: pure functions over it and the pods it selects.

Receives objects as plain dicts; returns the objects that should exist. It never reads the store.
"""

from __future__ import annotations

from collections.abc import Iterable

from gitops_mcp.sandbox.deployments import Object, controller_reference, is_ready

SLICE_NAME = "kubernetes.io/service-name"
HEADLESS = "service.kubernetes.io/headless"


def _with_address(service: Object, chosen: Iterable[Object]) -> list[Object]:
    """The pods that a Service's endpoints speak of, by name."""
    addressed = (
        pod
        for pod in chosen
        if pod.get("status", {}).get("podIP") and pod["status"]["phase"] in {"Pending", "Running"}
    )
    known = (pod for pod in addressed if _ports(service, pod) or not service["spec"].get("ports"))
    return sorted(known, key=lambda pod: str(pod["metadata"]["name"]))


def _ports(service: Object, pod: Object) -> list[Object]:
    """A Service's ports as numbers of a pod; a name that the pod does not know is left out."""
    named = {
        port["name"]: port["containerPort"]
        for container in pod["spec"]["containers"]
        for port in container.get("ports", ())
        if "name" in port
    }
    found = []
    for port in service["spec"].get("ports", ()):
        target = port.get("targetPort") or port["port"]
        number = target if isinstance(target, int) else named.get(target)
        if number is not None:
            protocol = port.get("protocol", "TCP")
            found.append({"name": port.get("name", ""), "port": number, "protocol": protocol})
    return found


def _target(pod: Object) -> Object:
    metadata = {key: pod["metadata"][key] for key in ("name", "namespace", "uid")}
    return {"nodeName": pod["spec"].get("nodeName"), "targetRef": {"kind": "Pod", **metadata}}


def endpoint_slice(service: Object, chosen: Iterable[Object]) -> Object:
    """The EndpointSlice of a Service and the pods that it selects."""
    metadata = service["metadata"]
    labels = {
        **metadata.get("labels", {}),
        SLICE_NAME: metadata["name"],
        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
        **({HEADLESS: ""} if service["spec"].get("clusterIP") == "None" else {}),
    }
    all_ready = bool(service["spec"].get("publishNotReadyAddresses"))
    known = _with_address(service, chosen)
    found = []
    for pod in known:
        ending, serving = "deletionTimestamp" in pod["metadata"], is_ready(pod)
        ready = all_ready or (serving and not ending)
        conditions = {"ready": ready, "serving": serving, "terminating": ending}
        found.append(
            {"addresses": [pod["status"]["podIP"]], "conditions": conditions, **_target(pod)}
        )
    return {
        "metadata": {
            "generateName": f"{metadata['name']}-",
            "namespace": metadata["namespace"],
            "labels": labels,
            "ownerReferences": [controller_reference(service)],
        },
        "addressType": "IPv4",
        "endpoints": found,
        "ports": _ports(service, known[0]) if known else [],
    }


def endpoints(service: Object, chosen: Iterable[Object]) -> Object:
    """The Endpoints of a Service: the older form, without pods that are ending."""
    metadata = service["metadata"]
    all_ready = bool(service["spec"].get("publishNotReadyAddresses"))
    living = [pod for pod in chosen if all_ready or "deletionTimestamp" not in pod["metadata"]]
    known = _with_address(service, living)
    groups: dict[str, list[Object]] = {"addresses": [], "notReadyAddresses": []}
    for pod in known:
        group = "addresses" if all_ready or is_ready(pod) else "notReadyAddresses"
        groups[group].append({"ip": pod["status"]["podIP"], **_target(pod)})
    ports = _ports(service, known[0]) if known else []
    unnamed = [{key: value for key, value in port.items() if value != ""} for port in ports]
    subset = {**{key: value for key, value in groups.items() if value}, "ports": unnamed}
    headless = {HEADLESS: ""} if service["spec"].get("clusterIP") == "None" else {}
    managed = {"endpoints.kubernetes.io/managed-by": "endpoint-controller"}
    return {
        "metadata": {
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "labels": {**metadata.get("labels", {}), **headless, **managed},
        },
        "subsets": [subset] if known else [],
    }
