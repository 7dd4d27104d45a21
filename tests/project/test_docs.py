"""The documentation holds: links resolve, commands and their options exist, tables are complete.

``make tables`` writes the tables that docs/manifest.md and docs/status.md take from the code.
"""

from __future__ import annotations

import importlib
import json
import re
import shlex
from collections.abc import Callable, Iterator
from typing import Any

import click
import pytest
from paths import ROOT

from gitops_mcp.base import limits
from gitops_mcp.base.reasons import PASSING, TERMINAL, Reason, Trait
from gitops_mcp.cli import main as cli
from gitops_mcp.decide import status

PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for folder in (ROOT, ROOT / "docs", ROOT / "repo-example")
    for page in folder.glob("*.md")
)
TABLE = re.compile(r"(<!-- (\S+): written by `make tables` -->\n).*?(<!-- /\2 -->)", re.S)


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


# --- links --------------------------------------------------------------------------------------


def anchors(page: str) -> set[str]:
    """The fragments of a page's headings, as git hosts make them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text(page), flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_resolve(page: str) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text(page)):
        if "://" in link:
            continue
        name, _, fragment = link.partition("#")
        target = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        if not target.exists() or (
            fragment and fragment not in anchors(target.relative_to(ROOT).as_posix())
        ):
            broken.append(link)
    assert broken == []


def test_the_files_that_pages_name_exist() -> None:
    named = {
        name
        for page in PAGES
        for name in re.findall(
            r"\b(?:gitops_mcp|tests|benchmarks|templates)/[\w./-]+\w", text(page)
        )
    }
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
    assert "gitops_mcp/base/limits.py" in named


# --- commands -----------------------------------------------------------------------------------


def commands(page: str) -> Iterator[list[str]]:
    """The words of each ``gitops-mcp …`` that a page shows, whatever surrounds it."""
    for line in text(page).splitlines():
        for match in re.finditer(r"gitops-mcp ([a-z]+\b[^`|&#;>]*)", line):
            before = line[: match.start()]
            if match[1].split()[0] not in cli.VERBS or not re.search(r"(^|[`$' (:])$", before):
                continue
            words = match[1].replace("…", "").strip()
            yield shlex.split(words if words.count("'") % 2 == 0 else words.replace("'", ""))


def options(verb: str) -> set[str]:
    command = cli.cli.get_command(click.Context(cli.cli), verb)
    assert command is not None
    return {name for param in command.params for name in param.opts} | {"--help", "-h"}


@pytest.mark.parametrize("page", PAGES)
def test_documented_options_exist(page: str) -> None:
    unknown = []
    for verb, *words in commands(page):
        mine = words[: words.index("--")] if "--" in words else words
        for word in mine:
            flag = word.partition("=")[0]
            if re.fullmatch(r"--?[A-Za-z][\w-]*", flag) and flag not in options(verb):
                unknown.append(f"{verb} {flag}")
    assert unknown == []


def test_the_pages_show_commands() -> None:
    found = {verb for page in PAGES for verb, *_ in commands(page)}
    assert {"validate", "render", "diff", "sync", "agent", "history", "sandbox"} <= found


def test_every_verb_is_documented_and_every_documented_verb_exists() -> None:
    table = text("docs/cli.md").split("\n\n")[2]
    cells = "".join(line.split("|")[1] for line in table.splitlines()[2:])
    assert set(re.findall(r"`([a-z]+)", cells)) == set(cli.VERBS)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_teaches_by_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([verb, "--help"]) == 0
    said = capsys.readouterr().out
    assert re.search(rf"Examples?:\n.*\bgitops-mcp {verb}", said)


def test_no_option_is_documented_that_no_verb_has() -> None:
    every = {name for verb in cli.VERBS for name in options(verb)} | {"--version"}
    shown = set(re.findall(r"`(--[a-z-]+)", text("docs/cli.md")))
    assert shown <= every
    assert shown


# --- tables -------------------------------------------------------------------------------------


def field_table() -> str:
    """Every field of a spec, as the schema has it."""
    schema: dict[str, Any] = json.loads(text("schemas/mcpserver.schema.json"))
    rows = ["| field | type | default | |", "|---|---|---|---|"]

    def walk(node: dict[str, Any], prefix: str) -> None:
        for name, field in node.get("properties", {}).items():
            reference = field.get("$ref", "").rpartition("/")[2]
            whole = {**schema["$defs"].get(reference, {}), **field}
            kind = " \\| ".join(whole["enum"]) if "enum" in whole else whole.get("type", "")
            if reference == "duration":
                kind = "duration"
            default = f"`{json.dumps(whole['default'])}`" if "default" in whole else ""
            required = "**required.** " if name in node.get("required", ()) else ""
            words = whole.get("description", "").replace("|", "\\|")
            rows.append(f"| `{prefix}{name}` | {kind} | {default} | {required}{words} |")
            if not reference:
                walk(field, f"{prefix}{name}.")

    walk(schema["properties"]["spec"], "")
    return "\n".join(rows) + "\n"


def table(*rows: tuple[str, ...]) -> str:
    head, *rest = rows
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ("---",) * len(head), *rest))


def condition_table() -> str:
    """The reasons of each condition that has its own, by its status."""
    head = ("condition", "True", "False", "Unknown")
    kinds = dict.fromkeys(kind for row in Reason for kind in row.conditions)
    cells = {
        kind: [", ".join(f"`{row}`" for row in given(kind, value)) for value in head[1:]]
        for kind in sorted(kinds, key=status.CONDITIONS.index)
    }
    return table(head, *((f"`{kind}`", *row) for kind, row in cells.items()))


def given(kind: str, *values: str) -> list[Reason]:
    return [row for row in Reason if row.conditions.get(kind) in values]


def reason_table(kind: str, *values: str) -> str:
    """What the reasons of a condition with these statuses mean, and what follows."""
    return table(
        ("reason", "means", "what helps", "Ready", "Event"),
        *((f"`{r}`", r.means, r.helps, held_back(kind, r), r.event) for r in given(kind, *values)),
    )


def held_back(kind: str, row: Reason) -> str:
    if row.conditions[kind] != "False" or (kind == "Synced" and row in PASSING):
        return "as it is"
    return "False: Failed" if row in TERMINAL else "False"


def event_table(*, source: bool) -> str:
    """Events about a server that are Normal, or no condition's; or those about a source."""
    rows = [
        row
        for row in Reason
        if row.event and (Trait.SOURCE in row.traits) is source
        if not row.conditions or (not source and Trait.NORMAL in row.traits)
    ]
    return table(("Event", "type", "means"), *((f"`{r}`", r.event, r.means) for r in rows))


GENERATED: dict[str, Callable[[], str]] = {
    "fields": field_table,
    "conditions": condition_table,
    "deployment": lambda: reason_table("DeploymentReady", "False"),
    "verified": lambda: reason_table("Verified", "True", "False", "Unknown"),
    "synced": lambda: reason_table("Synced", "False"),
    "events": lambda: event_table(source=False),
    "source-events": lambda: event_table(source=True),
}
"""What the pages take from the code, by the name in the comment before it."""


def generated(page: str) -> str:
    """The page with its tables as they should be."""
    return TABLE.sub(lambda f: f"{f[1]}{GENERATED[f[2]]()}{f[3]}", text(page))


@pytest.mark.parametrize("page", ["docs/manifest.md", "docs/status.md"])
def test_the_tables_of_a_page_are_the_codes(page: str) -> None:
    assert text(page) == generated(page), "run make tables"


def test_every_table_of_the_code_is_on_a_page() -> None:
    pages = text("docs/manifest.md") + text("docs/status.md")
    assert {found[2] for found in TABLE.finditer(pages)} == set(GENERATED)


def test_every_condition_and_reason_is_documented() -> None:
    told = set(re.findall(r"`([A-Z]\w+)`", text("docs/status.md")))
    assert {*status.CONDITIONS, *Reason} <= told


def as_told(value: object) -> set[str]:
    """How a page may write a limit: bytes, seconds, a number."""
    if isinstance(value, tuple):
        return {" to ".join(f"{seconds:g} s" for seconds in value)}
    assert isinstance(value, int | float)
    sizes = ((limits.MIB, "MiB"), (limits.KIB, "KiB"))
    size = next((f"{value // unit} {name}" for unit, name in sizes if value >= unit), "")
    return {size, f"{value:,}", f"{value:g} s"} - {""}


def test_every_limit_is_told_as_it_is() -> None:
    rows = re.findall(r"^\| .* \| (.*) \| `(\w+)` \|$", text("docs/limits.md"), re.M)
    known = {n: v for n, v in vars(limits).items() if n.isupper() and n not in ("KIB", "MIB")}
    assert sorted(name for _, name in rows) == sorted(known)
    assert [name for told, name in rows if told not in as_told(known[name])] == []


def test_every_bound_of_another_module_is_told_as_it_is() -> None:
    rows = re.findall(
        r"^\| .* \| ([^|]*?)(?: bytes)? \| `(\w+)\.(\w+)` \|$", text("docs/limits.md"), re.M
    )
    assert len(rows) > 5
    for told, module, name in rows:
        (path,) = (ROOT / "gitops_mcp").glob(f"*/{module}.py")
        home = importlib.import_module(f"gitops_mcp.{path.parent.name}.{module}")
        assert told in as_told(getattr(home, name)), name


def test_the_readme_shows_what_the_cluster_accepts() -> None:
    """The README's manifest is valid."""
    from gitops_mcp.base.source import SourceFile
    from gitops_mcp.source import manifests

    for page in ("README.md", "docs/manifest.md"):
        manifest = re.search(r"```yaml\n(apiVersion:.*?)```", text(page), re.S)
        assert manifest is not None
        file = SourceFile("servers/web-search.yaml", "0", manifest[1].encode())
        loaded = manifests.load([file], cluster="default")
        assert loaded.problems == ()
        assert len(loaded.servers) == 1


if __name__ == "__main__":
    for name in ("docs/manifest.md", "docs/status.md"):
        (ROOT / name).write_text(generated(name), encoding="utf-8")
