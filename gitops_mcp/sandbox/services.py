"""What the API server allots to a Service: addresses and node ports.

Receives a Service that is about to be stored, the one before it, and what others hold; changes
the new one in place. It stores nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any

from gitops_mcp.sandbox.storage import Object

NODE_PORTS = range(30000, 32768)
DRY_RUN_ADDRESS = "10.0.0.0"
EXPOSED = ("NodePort", "LoadBalancer")


def allot(new: Object, old: Object | None, others: Iterable[Object], *, dry_run: bool) -> None:
    """Fill in clusterIPs, families and node ports; keep those that the old object had."""
    spec = new["spec"]
    if old is not None:
        _carry_over(spec, old["spec"])
    if spec["type"] == "ExternalName":
        return
    others = [other["spec"] for other in others]
    if not spec.get("clusterIP"):
        used = {other.get("clusterIP") for other in others}
        spec["clusterIP"] = DRY_RUN_ADDRESS if dry_run else next(_free_addresses(used))
    spec.setdefault("clusterIPs", [spec["clusterIP"]])
    # Without a selector somebody else provides the endpoints, of whatever family.
    foreign = spec["clusterIP"] == "None" and not spec.get("selector")
    spec.setdefault("ipFamilies", ["IPv4", "IPv6"] if foreign else ["IPv4"])
    spec.setdefault("ipFamilyPolicy", "RequireDualStack" if foreign else "SingleStack")
    if spec["type"] not in EXPOSED or spec.get("allocateLoadBalancerNodePorts") is False:
        return
    taken = {port.get("nodePort") for other in others for port in other.get("ports", [])}
    taken |= {port.get("nodePort") for port in spec.get("ports", [])}
    free = (number for number in NODE_PORTS if number not in taken)
    for port in spec.get("ports", []):
        if not port.get("nodePort") and not dry_run:
            port["nodePort"] = next(free)


def _free_addresses(used: set[Any]) -> Iterator[str]:
    for number in count(1):
        address = f"10.96.{number >> 8}.{number & 255}"
        if address not in used and number & 255 not in (0, 255):
            yield address


def _carry_over(spec: dict[str, Any], old: dict[str, Any]) -> None:
    if spec["type"] != "ExternalName" and old["type"] != "ExternalName":
        for field in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
            if field in old:
                spec.setdefault(field, old[field])
        if spec.get("clusterIP") != old.get("clusterIP"):
            spec["clusterIPs"] = [spec.get("clusterIP")]
    numbers = {
        (port["port"], port["protocol"]): port["nodePort"]
        for port in old.get("ports", [])
        if "nodePort" in port
    }
    for port in spec.get("ports", []):
        kept = numbers.get((port.get("port"), port.get("protocol")))
        if spec["type"] in EXPOSED and kept:
            port.setdefault("nodePort", kept)
        elif (
            spec["type"] == "ClusterIP" and old["type"] in EXPOSED and kept == port.get("nodePort")
        ):
            port.pop("nodePort", None)
    if spec["sessionAffinity"] == "None" != old["sessionAffinity"]:
        spec.pop("sessionAffinityConfig", None)
    if spec["type"] == "ClusterIP" and old["type"] in EXPOSED:
        for field in ("externalTrafficPolicy", "allocateLoadBalancerNodePorts"):
            spec.pop(field, None)
