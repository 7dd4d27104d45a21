"""Server → objects, through the templates.

Receives servers as git wants them and MCPServers as they stand; returns the bodies that are
applied: the custom resource, its Deployment, its Service. Never talks to a cluster, never edits
what it was given, and never lets a value reach the text of a template: Jinja2 writes a
placeholder for each value, the YAML is read, and only then are the values put in. So no value can
break out of its place, and servers of the same structure share one parse.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import fields
from datetime import timedelta
from functools import lru_cache
from itertools import cycle
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import durationpy
import orjson

from gitops_mcp import __version__, transports
from gitops_mcp.errors import Configuration, UsageError
from gitops_mcp.model import (
    ANNOTATION_FILE,
    ANNOTATION_REPLICAS,
    API_VERSION,
    APP_NAME,
    FIELD_MANAGER,
    GROUP,
    KIND,
    LABEL_COMPONENT,
    LABEL_INSTANCE,
    LABEL_MANAGED_BY,
    LABEL_NAME,
    LABEL_SOURCE,
    LABEL_TRANSPORT,
    JsonObject,
    McpServer,
    ServerKey,
)

if TYPE_CHECKING:
    import jinja2
    import yaml

READINESS_GATE = f"{GROUP}/verified"
"""The pod condition that ``spec.health.gate`` waits for; whoever handshakes the pod sets it."""

CHILDREN: Mapping[str, tuple[str, str]] = MappingProxyType(
    {"deployment.yaml.j2": ("apps/v1", "Deployment"), "service.yaml.j2": ("v1", "Service")}
)
"""What is rendered below an MCPServer, in this order: template → apiVersion and kind."""

ABSENT: Mapping[str, Any] = MappingProxyType(
    {
        "image": None,
        "transport": transports.DEFAULT,
        "port": 8080,
        "path": "/mcp",
        "replicas": None,
        "config": {},
        "command": [],
        "args": [],
        "env": [],
        "envFrom": [],
        "resources": {"requests": {}, "limits": {}},
        "securityContext": {},
        "podSecurityContext": {},
        "serviceAccount": None,
        "imagePullSecrets": [],
        "nodeSelector": {},
        "tolerations": [],
        "affinity": {},
        "volumes": [],
        "volumeMounts": [],
        "podLabels": {},
        "podAnnotations": {},
        "service": {"type": "ClusterIP", "annotations": {}, "sessionAffinity": None},
        "health": {
            "mode": "handshake",
            "interval": None,
            "timeout": "5s",
            "gate": False,
            "headersFrom": [],
        },
        "drain": {"timeout": None, "url": None, "gauge": None, "preStop": None},
        "suspend": False,
    }
)
"""``spec`` as templates see it where the MCPServer says nothing: every field, the schema's default
or nothing. None means that the transport table decides."""

_GROUPS = tuple(name for name, value in ABSENT.items() if isinstance(value, dict) and value)

_ROWS = {
    row.name: {field.name: getattr(row, field.name) for field in fields(row)}
    for row in transports.TRANSPORTS.values()
}
"""The transport table as templates see it."""

_TMP = frozenset({"/tmp", "/tmp/"})  # noqa: S108 - of the container, not of this machine

_PROBE_PERIOD = 5
"""Seconds between two TCP readiness probes: a stuck server leaves the endpoints after 15 s."""

_CACHED_SERVERS = 50_000
"""One rendering is kept per server, a hash of what it was made from beside it. Compressed it has a
kilobyte instead of ten, and is back in a tenth of the time that rendering takes. The bound is for
agents that see names come and go for months."""


class Renderer:
    """Renders the objects of one source. Pure: equal input gives equal output; use from several
    threads is safe.

    ``templates`` is the folder, or its files by name. ``source`` is the source id, ``domain`` the
    cluster's DNS name, ``variables`` the template variables of group_vars.

    Raises UsageError, here or on rendering, where a template is wrong.
    """

    def __init__(
        self,
        templates: Mapping[str, str] | Path,
        *,
        source: str,
        domain: str = "cluster.local",
        variables: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        texts = _read(templates) if isinstance(templates, Path) else dict(templates)
        self._source = source
        self._domain = domain
        self._variables = variables
        self._templates = _compile(texts)
        self._rendered: dict[ServerKey, tuple[bytes, bytes]] = {}
        self.digest: str = hashlib.sha256(
            orjson.dumps(
                [__version__, texts, source, domain, dict(variables)],
                option=orjson.OPT_SORT_KEYS,
            )
        ).hexdigest()
        """A hash of all that rendering depends on besides its argument: a cache key."""

    def custom_resource(self, server: McpServer) -> JsonObject:
        """The MCPServer as it is applied: metadata, and the spec as git says. Finalizer and
        replicas that are not git's are added by whoever decides."""
        return {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {
                "name": server.key.name,
                "namespace": server.key.namespace,
                "labels": {
                    **server.labels,
                    **_labels(server.key.name, server.spec),
                    LABEL_SOURCE: self._source,
                },
                "annotations": {**server.annotations, ANNOTATION_FILE: server.file},
            },
            "spec": server.spec,
        }

    def children(self, cr: JsonObject) -> tuple[JsonObject, ...]:
        """The Deployment and, for a transport with a network, the Service of an MCPServer as it
        stands, kubectl-made ones included.

        They carry an owner reference where ``cr`` has a uid. The Deployment has no
        ``spec.replicas`` where the annotation ``mcp.example.com/replicas: external`` leaves them
        to others. Raises Configuration where the spec cannot be rendered.
        """
        metadata, spec = cr["metadata"], cr["spec"]
        key = ServerKey(metadata["namespace"], metadata["name"])
        uid = metadata.get("uid")
        external = (metadata.get("annotations") or {}).get(ANNOTATION_REPLICAS) == "external"
        inputs = hashlib.sha256(orjson.dumps([uid, external, spec])).digest()
        known = self._rendered.get(key)
        if known is not None and known[0] == inputs:
            return tuple(orjson.loads(zlib.decompress(known[1])))
        try:
            context = self._context(key, spec, uid=uid, external=external)
        except durationpy.DurationError:
            raise Configuration(
                f"{key}: a time in spec.drain or spec.health is no duration",
                condition="ConfigurationInvalid",
                hint="write it as Go does: 90s, 1m30s",
            ) from None
        rendered = tuple(
            _checked(body, template, key)
            for template, compiled in self._templates.items()
            if (body := _render(template, compiled, context)) is not None
        )
        if len(self._rendered) >= _CACHED_SERVERS:
            self._rendered.clear()
        self._rendered[key] = (inputs, zlib.compress(orjson.dumps(rendered), 1))
        return rendered

    def _context(
        self, key: ServerKey, given: JsonObject, *, uid: str | None, external: bool
    ) -> dict[str, Any]:
        """What the templates see. Values that need more than a line of logic are made here."""
        transport = transports.of_spec(given)
        spec = {**ABSENT, **given}
        for group in _GROUPS:
            spec[group] = {**ABSENT[group], **spec[group]}
        spec["config"] = dict(sorted(spec["config"].items()))
        health, limits = spec["health"], spec["resources"]["limits"]
        timing = transports.timing(given)
        own = spec["drain"]["preStop"]
        pre_stop = _whole(timing.pre_stop) if own is None else _seconds(own)
        replicas = 1 if spec["replicas"] is None else spec["replicas"]
        return {
            "name": key.name,
            "namespace": key.namespace,
            "labels": _labels(key.name, given),
            "selector": _selector(key.name),
            "owners": _owners(key.name, uid),
            "transport": _ROWS[transport.name],
            "spec": spec,
            "replicas": None if external else replicas,
            # The API fills a missing request from its limit: a default beside it may exceed it.
            "requests": {
                **{name: q for name, q in transport.requests.items() if name not in limits},
                **spec["resources"]["requests"],
            },
            "own_home": "HOME" in spec["config"] or _names("HOME", spec["env"]),
            "own_tmp": any(mount.get("mountPath") in _TMP for mount in spec["volumeMounts"]),
            "tmp_volume": "mcp-server-tmp" if _names("tmp", spec["volumes"]) else "tmp",
            "may_escalate": _may_escalate(spec["securityContext"]),
            "pre_stop": pre_stop,
            "grace": pre_stop + _whole(timing.stop),
            # The interval of a handshake is the agent's; that of a plain TCP check is the probe's.
            "probe_period": _seconds(health["interval"])
            if health["mode"] == "tcp" and health["interval"]
            else _PROBE_PERIOD,
            "probe_timeout": _seconds(health["timeout"]),
            # Without a handshake nobody would ever open the gate.
            "gated": health["gate"] and health["mode"] == "handshake" and transport.networked,
            "gate": READINESS_GATE,
            "endpoint": transport.endpoint(
                key.name, key.namespace, self._domain, spec["port"], spec["path"]
            ),
            "vars": self._variables,
        }


# --- the contract's names -------------------------------------------------------------------


def _selector(name: str) -> dict[str, str]:
    """The immutable selector: nothing in it may ever depend on the spec."""
    return {LABEL_NAME: APP_NAME, LABEL_INSTANCE: name, LABEL_MANAGED_BY: FIELD_MANAGER}


def _labels(name: str, spec: JsonObject) -> dict[str, str]:
    return {
        **_selector(name),
        LABEL_COMPONENT: "server",
        LABEL_TRANSPORT: transports.of_spec(spec).name,
    }


def _owners(name: str, uid: str | None) -> list[JsonObject]:
    if uid is None:
        return []
    return [
        {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": name,
            "uid": uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }
    ]


def _names(name: str, items: list[JsonObject]) -> bool:
    return any(item.get("name") == name for item in items)


def _may_escalate(security: JsonObject) -> bool:
    """Whether the API refuses ``allowPrivilegeEscalation: false`` beside these settings."""
    added = (security.get("capabilities") or {}).get("add") or ()
    return bool(security.get("privileged")) or "CAP_SYS_ADMIN" in added


# --- values --------------------------------------------------------------------------------


def _merged(defaults: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` laid on ``defaults``: maps key by key, all else replaced."""
    result = dict(defaults)
    for name, value in over.items():
        below = result.get(name)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            value = _merged(below, value)
        result[name] = value
    return result


@lru_cache(maxsize=1024)
def _seconds(duration: str) -> int:
    """A Go duration in whole seconds."""
    return _whole(durationpy.from_str(duration))


def _whole(time: timedelta) -> int:
    """In whole seconds, rounded up: the API's times have no fraction."""
    return math.ceil(time.total_seconds())


# --- templates ------------------------------------------------------------------------------

_MARK = "\ue000"
"""Stands on both sides of a placeholder; from the private use area, so YAML takes it as text."""

_SLOTS = "slots of this rendering"
"""The context's list of values; not an identifier, so that no template can name it."""

_CONTAINERS = frozenset({dict, list, tuple})
_JSON = _CONTAINERS | {str, int, float, bool, type(None)}

Fill = Callable[[list[Any]], Any]
"""Builds one part of an object from the values of a rendering."""


def _read(folder: Path) -> dict[str, str]:
    try:
        return {file.name: file.read_text("utf-8") for file in sorted(folder.glob("*.j2"))}
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the templates in {folder} cannot be read: {error}") from error


def _compile(texts: Mapping[str, str]) -> dict[str, jinja2.Template]:
    from jinja2 import DictLoader, StrictUndefined, TemplateSyntaxError, nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Environment(ImmutableSandboxedEnvironment):
        def getattr(self, obj: Any, attribute: str) -> Any:
            """A field before a method of the dictionary: quicker, and fields may have any name."""
            if type(obj) is dict and attribute in obj:
                return obj[attribute]
            return super().getattr(obj, attribute)

    environment = Environment(
        loader=DictLoader(texts),
        undefined=StrictUndefined,
        finalize=_placeholder(),
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters["merged"] = _merged
    # These turn rendered text into a value: it would be put in as a string, placeholders and all.
    captures = (nodes.Macro, nodes.CallBlock, nodes.FilterBlock, nodes.AssignBlock, nodes.Block)
    for name in CHILDREN:
        if name not in texts:
            raise UsageError(f"the template {name} is missing")
    try:
        for name, text in texts.items():
            tree = environment.parse(text, name)
            for node in tree.find_all(captures):
                raise UsageError(
                    f"template {name}, line {node.lineno}: macros, blocks and captured text are "
                    "not supported",
                    hint="write the lines out, or use {% include %}",
                )
        templates = {name: environment.get_template(name) for name in CHILDREN}
    except TemplateSyntaxError as error:
        raise UsageError(f"template {error.name}, line {error.lineno}: {error.message}") from error
    for template in templates.values():
        # Jinja2 copies them for every rendering: from its ChainMap that takes as long as the rest.
        template.globals = dict(template.globals)
    return templates


def _placeholder() -> Callable[..., str]:
    """Jinja2's ``finalize``: what is printed for a value. Takes the context, so that it is asked
    for constants too."""
    from jinja2 import TemplateRuntimeError, Undefined, pass_context
    from jinja2.runtime import Context

    @pass_context
    def finalize(context: Context, value: object) -> str:
        if type(value) not in _JSON:
            if isinstance(value, Undefined):
                str(value)  # raises, naming what is undefined
            raise TemplateRuntimeError(f"a {type(value).__name__} is no JSON value")
        slots: list[object] = context.parent[_SLOTS]
        slots.append(value)
        return f"{_MARK}{len(slots) - 1}{_MARK}"

    return finalize


def _render(name: str, template: jinja2.Template, context: Mapping[str, Any]) -> JsonObject | None:
    """One object, or None where the template has no text for this server."""
    from jinja2 import TemplateError

    slots: list[Any] = []
    try:
        text = template.render({**context, _SLOTS: slots})
    except TemplateError as error:
        raise UsageError(f"template {name}: {error.message}") from error
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        # The message may quote a value, and a value may be a secret.
        raise UsageError(f"template {name}: {type(error).__name__} in an expression") from None
    body = _structure(name, text)(slots)
    if body is not None and not isinstance(body, dict):
        raise UsageError(f"template {name}: not a YAML mapping")
    return body


def _checked(body: JsonObject, template: str, key: ServerKey) -> JsonObject:
    """The body, once it is the object that the template stands for and no other."""
    metadata = body.get("metadata") or {}
    found = (
        body.get("apiVersion"),
        body.get("kind"),
        metadata.get("namespace"),
        metadata.get("name"),
    )
    expected = (*CHILDREN[template], key.namespace, key.name)
    if found != expected:
        raise UsageError(
            f"template {template}: apiVersion, kind, namespace and name must be "
            f"{', '.join(expected)}"
        )
    return body


# --- structure: the YAML around the values ---------------------------------------------------


@lru_cache(maxsize=2048)
def _structure(template: str, text: str) -> Fill:
    """The object that ``text`` describes, waiting for its values.

    The text holds no value, only the lines that the template chose: a fleet has few different
    ones, and each is parsed once.
    """
    import yaml

    loader = yaml.CSafeLoader(text)
    try:
        node = loader.get_single_node()
        return _Fixed(None) if node is None else _plan(node, loader.construct_object)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise UsageError(
            f"template {template}: line {line} of its output is no YAML: {error.problem}"
        ) from error
    finally:
        loader.dispose()


class _Fixed:
    """A part without values in it: the same object for all servers."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self, slots: list[Any]) -> Any:  # noqa: ARG002 - a Fill that needs none
        return self.value


def _plan(node: yaml.Node, construct: Callable[[yaml.Node], Any]) -> Fill:
    import yaml

    if isinstance(node, yaml.MappingNode):
        return _plan_map([(key, _plan(value, construct)) for key, value in node.value])
    if isinstance(node, yaml.SequenceNode):
        return _plan_list([_plan(item, construct) for item in node.value])
    if isinstance(node, yaml.ScalarNode) and _MARK in node.value:
        return _plan_value(node.value, plain=not node.style)
    return _Fixed(construct(node))


def _plan_map(entries: list[tuple[yaml.Node, Fill]]) -> Fill:
    import yaml

    parts: dict[str, tuple[Fill, bool]] = {}
    for node, fill in entries:
        key = node.value
        if not isinstance(node, yaml.ScalarNode) or _MARK in key or key in parts:
            # A key from a value could take the place of one of the template's.
            raise yaml.MarkedYAMLError(
                problem="every key is written out, and once; a map of values goes in whole",
                problem_mark=node.start_mark,
            )
        fixed = isinstance(fill, _Fixed)
        if not (fixed and fill([]) is None):
            parts[key] = (fill, fixed)
    if all(fixed for _, fixed in parts.values()):
        return _Fixed({key: fill([]) for key, (fill, _) in parts.items()})
    items = tuple((key, fill, fixed) for key, (fill, fixed) in parts.items())

    def build(slots: list[Any]) -> JsonObject:
        result: JsonObject = {}
        for key, fill, fixed in items:
            value = fill(slots)
            if fixed or value or (value is not None and type(value) not in _CONTAINERS):
                result[key] = value
        return result

    return build


def _plan_list(fills: list[Fill]) -> Fill:
    if all(isinstance(fill, _Fixed) for fill in fills):
        return _Fixed([fill([]) for fill in fills])
    return lambda slots: [fill(slots) for fill in fills]


def _plan_value(text: str, *, plain: bool) -> Fill:
    """A scalar with values in it: one value as it is, or a text that values stand in."""
    parts = text.split(_MARK)
    if plain and len(parts) == 3 and not parts[0] and not parts[2]:
        return itemgetter(int(parts[1]))
    # Split at both marks: literal text has the even places, numbers of slots the odd ones.
    return lambda slots: "".join(
        _text(slots[int(part)]) if odd else part
        for part, odd in zip(parts, cycle((False, True)), strict=False)
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()
