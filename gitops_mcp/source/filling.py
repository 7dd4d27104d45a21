"""Templates compiled once for each structure, and filled with one server's values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import cycle
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import orjson

from gitops_mcp.base import merging, objects
from gitops_mcp.base.errors import UsageError
from gitops_mcp.base.names import JsonObject, ServerKey

if TYPE_CHECKING:
    import jinja2
    import yaml


CHILDREN: Mapping[str, tuple[str, str]] = MappingProxyType(
    {"deployment.yaml.j2": ("apps/v1", "Deployment"), "service.yaml.j2": ("v1", "Service")}
)
"""What is rendered below an MCPServer, in this order: template → apiVersion and kind."""


_MARK = "\ue000"
"""Stands on both sides of a placeholder; from the private use area, so YAML takes it as text."""


_SLOTS = "slots of this rendering"
"""The context's list of values; not an identifier, so that no template can name it."""


_CONTAINERS = frozenset({dict, list, tuple})


_JSON = _CONTAINERS | {str, int, float, bool, type(None)}


Fill = Callable[[list[Any]], Any]
"""Builds one part of an object from the values of a rendering."""


def read_templates(folder: Path) -> dict[str, str]:
    try:
        return {file.name: file.read_text("utf-8") for file in sorted(folder.glob("*.j2"))}
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the templates in {folder} cannot be read: {error}") from error


def compile_templates(texts: Mapping[str, str]) -> dict[str, jinja2.Template]:
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
    environment.filters["merged"] = merging.merged
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


def render_template(
    name: str, template: jinja2.Template, context: Mapping[str, Any]
) -> JsonObject | None:
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


def checked(body: JsonObject, template: str, key: ServerKey) -> JsonObject:
    """The body, once it is the object that the template stands for and no other."""
    metadata = objects.part(body, "metadata")
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
