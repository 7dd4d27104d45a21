"""Fleets made by chance: manifests that use every field that the schema has.

Receives a seed and a number of servers; returns the files of a source. The walk over the schema
decides what there is to use (each field, each word of an enumeration); here stand only the texts
that a pattern alone does not give, and the spellings that an API server stores in another way.
A manifest that `load` would refuse is never returned: what does not fit is tried again.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import yaml

from gitops_mcp.base.names import (
    ANNOTATION_ADOPT,
    ANNOTATION_PRUNE,
    ANNOTATION_REPLICAS,
    API_VERSION,
    KIND,
    JsonObject,
)
from gitops_mcp.base.source import SourceFile
from gitops_mcp.source import manifests, serverschema
from gitops_mcp.source.settings import SourceOptions

Path = tuple[str, ...]
"""A place in the schema: names of fields, `[]` for a list's items, at the end `=word`."""

CLUSTER = "generated"
ALLOWED: dict[str, Any] = {"allow_privileged": True, "service_accounts": "*", "drain_hosts": "*"}
"""Options of an operator who allows all that the schema has."""
POLICY = SourceOptions(**ALLOWED).policy
TRIES = 60
CHANCES = 4
"""On how many servers a place is tried before it is given up."""
CHANCE = 0.12
"""How likely a field is used that nobody asked for."""

LONG = "a long value " * 300
TEXTS = (
    "",
    "x",
    "ünïcödé ✓ 日本語",
    " spaces ",
    "a: b # c",
    "line\nline\n",
    "{{ x }}",
    "null",
    "1",
    LONG,
)
NUMBERS = (0, 1, 2, 7, 80, 600, 1000)
DURATIONS = ("1s", "90s", "1h30m", "1.5s", "1500ms", "0h5m", "60s", "2m")
CPU = ("1000m", "1", 1, "0.5", ".5", "500m", "1e0", "0.1", "100m", "+2", "0.0005", "0")
MEMORY = ("1Gi", "1024Mi", "1048576Ki", "1073741824", 1073741824, "1e9", "1.5Gi", "128M", "0.5Gi")
COUNT = ("0", "1", 2, "2000m")
LABELS = ("", "a", "A-1_b.c", "true", "1", "x" * 63)
NAMES = ("one", "two-2", "three.example")
KEYS = ("team", "example.org/Team", "a.b-c_d", "kubernetes.io/arch", "x" * 63)

SAMPLES: dict[str, Sequence[Any]] = {
    # by the name of the field, or by that and its parent's
    "image": ("example.com/web:1", "registry:5000/a/b@sha256:" + "0" * 64, "web"),
    "path": ("/mcp", "/", "/a/b-c"),
    "hostPath/path": ("/var/log",),
    "nfs/path": ("/export",),
    "drain/url": ("http://drain.invalid/sessions", "https://drain.invalid:8443/?a=b"),
    "gauge/name": ("mcp_sessions", "a:b"),
    "gauge/path": ("/metrics",),
    "env/name": ("A", "B_1", "c.d-e", "API_TOKEN", "HOME", "_X"),
    "imagePullSecrets/name": ("pull", "pull-2", "pull.example"),
    "prefix": ("", "P_", "x.y-"),
    "fieldPath": ("metadata.name", "metadata.namespace", "metadata.uid"),
    "env/fieldPath": ("metadata.name", "status.podIP", "metadata.labels['a']", "spec.nodeName"),
    "fieldRef/apiVersion": ("v1",),
    "resource": ("limits.cpu", "requests.memory", "limits.memory"),
    "containerName": ("mcp-server",),
    "divisor": (0, "0", "1", 1),
    "mountPath": ("/data", "/a/b", "/tmp", "/tmp/", "/cache"),
    "subPath": ("", "sub", "a/b"),
    "subPathExpr": ("", "$(A)"),
    "localhostProfile": ("profile.json", "my/profile"),
    "level": ("s0", "s0:c1,c2"),
    "sysctls/name": ("net.ipv4.ip_unprivileged_port_start", "kernel.shm_rmid_forced"),
    "sysctls/value": ("0", "1"),
    "add": ("NET_BIND_SERVICE", "CHOWN"),
    "drop": ("ALL", "KILL"),
    "tolerations/key": ("gpu", "example.org/spot", ""),
    "tolerations/value": ("", "yes"),
    "matchExpressions/key": ("team", "example.org/team"),
    "matchFields/key": ("metadata.name",),
    "matchExpressions/values": ("1", "2"),
    "matchFields/values": ("node-0",),
    "topologyKey": ("kubernetes.io/hostname", "zone"),
    "matchLabelKeys": ("pod-template-hash",),
    "mismatchLabelKeys": ("tenant",),
    "namespaces": ("default", "other"),
    "driver": ("csi.example.com",),
    "fsType": ("ext4", ""),
    "reference": ("example.com/data:1",),
    "server": ("nfs.invalid",),
    "storageClassName": ("fast", ""),
    "volumeName": ("pv-1", ""),
    "volumeAttributesClassName": ("gold",),
    "dataSource/apiGroup": ("snapshot.storage.k8s.io", "example.com"),
    "dataSource/kind": ("VolumeSnapshot",),
    "dataSource/name": ("snapshot",),
    "signerName": ("example.com/signer",),
    "clusterTrustBundle/name": ("bundle",),
    "audience": ("", "vault"),
    "gmsaCredentialSpec": ("spec",),
    "gmsaCredentialSpecName": ("spec-name",),
    "runAsUserName": ("ContainerUser", "NT AUTHORITY\\NETWORK SERVICE"),
    "command": ("/bin/server", "", "--x=ü"),
    "args": ("--port", "8080", "", "$(A)", "a b"),
    "mode": (0, 256, 420, 511),
    "defaultMode": (256, 420, 511),
    "replicas": (0, 0, 1, 2),
    "expirationSeconds": (600, 3600, 7200),
}
MAPS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "config": (("LOG", "ZONE", "_x.y-z", "API_KEY", "SESSION_TIMEOUT", "CORS_ORIGINS"), TEXTS),
    "volumeAttributes": (("a", "b/c"), TEXTS),
    "match": (("method", "_path"), TEXTS),
}
VARIABLES = {"SESSION_TIMEOUT": DURATIONS, "CORS_ORIGINS": ("*", "https://a.example")}
MANIFEST_ANNOTATIONS = (
    (ANNOTATION_REPLICAS, "external"),
    (ANNOTATION_PRUNE, "disabled"),
    (ANNOTATION_ADOPT, "true"),
)
RESOURCES = {"cpu": CPU, "memory": MEMORY, "ephemeral-storage": MEMORY, "example.com/gpu": COUNT}


@dataclass(frozen=True)
class Fleet:
    """What was made: the source's files, and which place each server was made for."""

    files: dict[str, str]
    purposes: dict[str, tuple[Path, ...]]
    unused: frozenset[Path]
    """Places for which no manifest that `load` takes was found."""


SUSPENDED = ("suspend", "=true")
NEVER = frozenset(
    {
        ("podSecurityContext", "seLinuxChangePolicy", "=MountOption"),  # a feature that is off
        ("podSecurityContext", "windowsOptions", "hostProcess", "=true"),  # needs hostNetwork
        ("securityContext", "windowsOptions", "hostProcess", "=true"),
        ("securityContext", "procMount", "=Unmasked"),  # needs hostUsers: false
    }
)
"""Words that an API server refuses beside whatever else a spec may say."""
DROPPED = ("volumes", "[]", "projected", "sources", "[]", "clusterTrustBundle")
"""A feature that is off in most clusters: the API server drops the field without a word."""


def places() -> tuple[Path, ...]:
    """Every field and every word of an enumeration below `spec`."""
    every = _places(_resolved(serverschema.schema()["properties"]["spec"]), ())
    return tuple(p for p in every if p not in NEVER and p[: len(DROPPED)] != DROPPED)


def _places(node: JsonObject, path: Path) -> Iterator[Path]:
    if "enum" in node:
        yield from ((*path, f"={word}") for word in node["enum"])
    elif node.get("type") == "boolean":
        yield from ((*path, "=true"), (*path, "=false"))
    elif "items" in node:
        yield path
        yield from _places(_resolved(node["items"]), (*path, "[]"))
    elif "properties" in node:
        for name, child in node["properties"].items():
            yield from _places(_resolved(child), (*path, name))
    else:
        yield path


def _resolved(node: JsonObject) -> JsonObject:
    reference = node.get("$ref")
    if reference is None:
        return node
    target = serverschema.schema()["$defs"][reference.removeprefix("#/$defs/")]
    return _resolved({**target, **{k: v for k, v in node.items() if k != "$ref"}, "ref": reference})


def uses(spec: Any, path: Path) -> bool:
    """Whether a spec has something at a place of the schema."""
    if not path:
        return spec is not None
    head, rest = path[0], path[1:]
    if head.startswith("="):
        return json.dumps(spec).strip('"') == head[1:]
    if head == "[]":
        return isinstance(spec, list) and any(uses(item, rest) for item in spec)
    return isinstance(spec, dict) and head in spec and uses(spec[head], rest)


def fleet(seed: int, count: int, *, replicas: int | None = None) -> Fleet:
    """`count` servers that together use every place of the schema. With `replicas`, no more pods
    than these are asked for by any of them."""
    rng = Random(seed)
    wanted = list(places())
    rng.shuffle(wanted)
    files = {"group_vars/all.yaml": _yaml({"spec": ALL, "region": "somewhere"})}
    files[f"group_vars/{CLUSTER}.yaml"] = _yaml({"spec": NEARER})
    groups = [SourceFile(name, name, text.encode()) for name, text in files.items()]
    purposes: dict[str, tuple[Path, ...]] = {}
    tried: Counter[Path] = Counter()
    unused: set[Path] = set()
    while wanted or len(purposes) < count:
        share = -(-len(wanted) // max(1, count - len(purposes)))
        mine, wanted = wanted[:share], wanted[share:]
        name = f"g{len(purposes):04d}"
        manifest, left = _manifest(rng, name, mine, groups, replicas)
        purposes[name] = tuple(place for place in mine if place not in left)
        files[f"servers/{rng.choice('abc')}/{name}.yaml"] = _yaml(manifest)
        tried.update(left)  # what cannot stand beside the others is for another server
        unused |= {place for place in left if tried[place] == CHANCES}
        wanted += [place for place in left if place not in unused]
    return Fleet(files, purposes, frozenset(unused))


ALL: JsonObject = {
    "config": {"REGION": "all", "LOG": "info", "EMPTY": ""},
    "podAnnotations": {"example.org/by": "all"},
    "resources": {"limits": {"memory": "1024Mi"}},
    "tolerations": [{"key": "all", "operator": "Exists"}],
    "podLabels": {"from": "all"},
}
NEARER: JsonObject = {
    "config": {"LOG": "debug", "EMPTY": None},
    "podAnnotations": {"example.org/by": "cluster"},
    "nodeSelector": {},
}
"""Defaults of the fleet: manifests lie over them."""


def _yaml(value: object) -> str:
    return yaml.dump(value, Dumper=yaml.CSafeDumper, allow_unicode=True, sort_keys=False)


def _manifest(
    rng: Random, name: str, wanted: list[Path], groups: list[SourceFile], most: int | None
) -> tuple[JsonObject, list[Path]]:
    """A manifest that uses as many of the wanted places as can stand together, and the others."""
    metadata: JsonObject = {"name": name}
    if rng.random() < 0.3:
        metadata["labels"] = {rng.choice(KEYS): rng.choice(LABELS)}
    if rng.random() < 0.3:
        metadata["annotations"] = {"example.org/note": rng.choice(TEXTS)}
    if rng.random() < 0.3:
        metadata.setdefault("annotations", {}).update([rng.choice(MANIFEST_ANNOTATIONS)])
    spec: JsonObject = {"image": "example.com/web:1"}
    body: JsonObject = {"apiVersion": API_VERSION, "kind": KIND}
    body |= {"metadata": metadata, "spec": spec}
    by_field: dict[str, list[Path]] = {}
    alone = SUSPENDED in wanted  # or the other fields would reach no child
    for place in [SUSPENDED] if alone else wanted:
        by_field.setdefault(place[0], []).append(place[1:])
    properties = _resolved(serverschema.schema()["properties"]["spec"])["properties"]
    fields = [
        *by_field,
        *(f for f in properties if f not in by_field and rng.random() < CHANCE and f != "suspend"),
    ]
    left: list[Path] = []
    for field in fields:
        asked = by_field.get(field, [])
        while True:
            made = _fitting(rng, body, field, properties[field], asked, groups, most)
            if made is not None:
                body["spec"] = made
                break
            if not asked:
                break
            left.append((field, *asked.pop()))
    left += [place for place in wanted if place not in left and not uses(body["spec"], place)]
    for field in rng.sample(sorted(properties), 2):
        if field not in body["spec"]:  # null: as if the defaults had not said it
            body["spec"] = _accepted(body, {**body["spec"], field: None}, groups) or body["spec"]
    return body, left


def _fitting(
    rng: Random,
    body: JsonObject,
    field: str,
    node: JsonObject,
    asked: list[Path],
    groups: list[SourceFile],
    most: int | None,
) -> JsonObject | None:
    """The spec with a value for one field, and what that needs beside it; None: none was found."""
    for _ in range(TRIES):
        maker = _Maker(rng)
        value = maker.value(_resolved(node), (field,), asked)
        spec = {**body["spec"], field: value}
        if field == "replicas" and most is not None:
            spec[field] = min(value, most)
        if field == "volumeMounts":
            names = {mount["name"] for mount in value}
            have = {volume["name"] for volume in spec.get("volumes") or ()}
            more = [{"name": name, "emptyDir": {}} for name in sorted(names - have)]
            spec["volumes"] = (spec.get("volumes") or []) + more
        mounts = spec.get("volumeMounts") or ()
        if any(mount.get("mountPropagation") == "Bidirectional" for mount in mounts):
            security = {**(spec.get("securityContext") or {}), "privileged": True}
            security.pop("allowPrivilegeEscalation", None)
            spec["securityContext"] = security
        if field == "health" and value.get("gate") and value.get("mode") is None:
            value["mode"] = "handshake"
        accepted = _accepted(body, spec, groups)
        if accepted is not None and all(uses(accepted[field], place) for place in asked):
            return accepted
    return None


def _accepted(body: JsonObject, spec: JsonObject, groups: list[SourceFile]) -> JsonObject | None:
    """The spec, if `load` takes it, the fleet's defaults included."""
    manifest = {**body, "spec": spec}
    if None not in spec.values() and not serverschema.accepts(manifest):
        return None  # told in a fraction of the time
    text = _yaml(manifest).encode()
    loaded = manifests.load(
        [*groups, SourceFile("a.yaml", "a", text)], cluster=CLUSTER, policy=POLICY
    )
    return None if loaded.problems else spec


class _Maker:
    """Makes the value of one field."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.numbers = itertools.count()

    def value(self, node: JsonObject, path: Path, asked: list[Path]) -> Any:
        """A value of a schema node that uses the places asked for, as far as they go together."""
        rng = self.rng
        words = [place[0][1:] for place in asked if place and place[0].startswith("=")]
        if "enum" in node or node.get("type") == "boolean":
            known = node.get("enum", ("true", "false"))
            word = rng.choice(words or [w for w in known if (*path, f"={w}") not in NEVER])
            return word if "enum" in node else word == "true"
        if "items" in node:
            return self.items(node, path, [place[1:] for place in asked if place])
        if "properties" in node:
            return self.fields(node, path, asked)
        reference = node.get("ref", "").rpartition("/")[2]
        if reference == "quantities":
            if path[0] == "volumes":
                return {"storage": rng.choice(MEMORY)}
            names = rng.sample(list(RESOURCES), rng.randint(0 if not asked else 1, 2))
            return {name: rng.choice(RESOURCES[name]) for name in names}
        if reference in ("labels", "annotations"):
            values: Sequence[str] = LABELS if reference == "labels" else TEXTS
            chosen = rng.sample(KEYS, rng.randint(0 if not asked else 1, 3))
            return {key: rng.choice(values) for key in chosen}
        if reference == "quantity":
            return rng.choice(self.samples(path) or MEMORY)
        if reference == "duration":
            return rng.choice(DURATIONS)
        if "additionalProperties" in node:
            keys, values = MAPS[path[-1]]
            chosen = rng.sample(keys, rng.randint(0, min(3, len(keys))))
            return {key: rng.choice(VARIABLES.get(key, values)) for key in chosen}
        return self.scalar(node, path, reference)

    def scalar(self, node: JsonObject, path: Path, reference: str) -> Any:
        rng = self.rng
        if path[-1] == "path" and path[0] == "volumes" and path[2] not in ("hostPath", "nfs"):
            return self.path()
        samples = self.samples(path)
        if samples:
            return rng.choice(samples)
        if reference == "objectName":
            return f"{rng.choice(NAMES)}-{next(self.numbers)}"
        if reference == "volumeName":
            return f"v{rng.randint(0, 3)}"
        if reference == "key":
            return rng.choice(("key", "a.b-c_d", "KEY"))
        if node.get("type") == "integer":
            low, high = node.get("minimum", 0), node.get("maximum", 10**6)
            fitting = [number for number in NUMBERS if low <= number <= high]
            return rng.choice([*fitting, low, min(high, 10**6)])
        text: str = rng.choice(TEXTS)
        return text[: node.get("maxLength", len(text))]

    def samples(self, path: Path) -> Sequence[Any]:
        names = [name for name in path if name != "[]"]
        for parent in reversed(names[:-1]):
            if found := SAMPLES.get(f"{parent}/{names[-1]}"):
                return found
        return SAMPLES.get(names[-1], ())

    def path(self) -> str:
        """A file that no other of this field has."""
        return f"{self.rng.choice(('', 'a/'))}file-{next(self.numbers)}.txt"

    def items(self, node: JsonObject, path: Path, asked: list[Path]) -> list[Any]:
        item = _resolved(node["items"])
        least = max(node.get("minItems", 0), 1 if asked else 0)
        count = max(least, len(asked), self.rng.choice((0, 1, 1, 2, 3)))
        count = min(count, node.get("maxItems", count))
        below = (*path, "[]")
        shares: list[list[Path]] = [[] for _ in range(count)]
        for number, place in enumerate(asked):
            if place:
                shares[number % count].append(place)
        made: list[Any] = []
        for share in shares:
            one = self.value(item, below, share)
            if isinstance(one, dict) and path[-1] == "volumes":
                one["name"] = f"v{next(self.numbers)}"
            if one not in made:
                made.append(one)
        if path[-1] == "accessModes" and "ReadWriteOncePod" in made:
            return ["ReadWriteOncePod"]
        if path[-1] == "sysctls":
            return list({one["name"]: one for one in made}.values())
        return made

    def fields(self, node: JsonObject, path: Path, asked: list[Path]) -> JsonObject:
        properties: dict[str, JsonObject] = {
            name: child for name, child in node["properties"].items() if (*path, name) != DROPPED
        }
        needed = set(node.get("required", ()))
        asked_for = {place[0] for place in asked if place}
        names = needed | asked_for
        rest = [name for name in properties if name not in names]
        names |= {name for name in rest if self.rng.random() < CHANCE * 2}
        least, most = node.get("minProperties", 0), node.get("maxProperties", len(properties))
        while len(names) < least:
            names.add(self.rng.choice(rest))
        while len(names) > most:
            spare = sorted(names - needed - asked_for) or sorted(names - needed)
            names.discard(self.rng.choice(spare))
        made = {
            name: self.value(
                _resolved(child),
                (*path, name),
                [place[1:] for place in asked if place and place[0] == name],
            )
            for name, child in properties.items()
            if name in names
        }
        self.completed(made, properties, path, asked_for)
        return made

    def completed(
        self, made: JsonObject, properties: JsonObject, path: Path, asked: set[str]
    ) -> None:
        """Heeds the rules of the pod API that no schema tells."""
        if {"matchLabelKeys", "mismatchLabelKeys"} & made.keys():
            made.setdefault("labelSelector", {})
        if path[-2:] == ("matchFields", "[]"):
            made |= {"operator": made["operator"], "values": ["node-0"]}
        elif "operator" in properties and "values" in properties:
            self.expression(made)
        if {"fieldRef", "resourceFieldRef", "path"} <= properties.keys():
            one = "resourceFieldRef" if "resourceFieldRef" in asked else "fieldRef"
            other = {"fieldRef": "resourceFieldRef", "resourceFieldRef": "fieldRef"}[one]
            made.pop(other, None)
            if one not in made:
                made[one] = {"fieldPath": "metadata.name"}
        if path[-1] == "resourceFieldRef" and path[0] == "volumes":
            made["containerName"] = "mcp-server"
        if "tolerationSeconds" in made:
            made["effect"] = "NoExecute"
        if path[-1] == "dataSource":
            made.setdefault("apiGroup", "example.com")
        if made.get("recursiveReadOnly", "Disabled") != "Disabled":
            made["readOnly"] = True
            made.pop("mountPropagation", None)
        for profile in ("seccompProfile", "appArmorProfile"):
            if path[-1] == profile and "localhostProfile" in {*made, *asked}:
                made["type"] = "Localhost"

    def expression(self, made: JsonObject) -> None:
        operator = made["operator"]
        if operator in ("In", "NotIn"):
            made.setdefault("values", [])
            made["values"] = made["values"] or ["1"]
        elif operator in ("Gt", "Lt"):
            made["values"] = ["1"]
        elif "values" in made:
            made["operator"] = "In"
            made["values"] = made["values"] or ["1"]
