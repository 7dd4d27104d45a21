"""docs/architecture.svg: the packages, their modules, and who imports whom.

Drawn from the import graph; ``make tables`` writes it. A module that docs/architecture.md walks
through bears the number of its step.
"""

from __future__ import annotations

import ast
import re
from html import escape
from textwrap import wrap

import grimp
from paths import ROOT

PICTURE = ROOT / "docs" / "architecture.svg"
WIDTH, GAP, LANE, LINE, CHAR = 900, 24, 18, 16, 6.7
"""Pixels: of the picture, between boxes, between lanes, a line of text, a letter of it."""

HEAD = """<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {0} {1:.0f}'>
<title>The packages of gitops_mcp: an arrow leads from a package to one that it imports</title>
<style>
rect {{ fill: #f6f8fa; stroke: #57606a }}
text {{ font: 11px monospace; fill: #24292f; white-space: pre }}
path {{ fill: none; stroke: #57606a; stroke-width: 1.5 }}
.name, .step {{ font-weight: bold; fill: #0550ae }}
.says {{ font-style: italic }}
</style>
<marker id='tip' viewBox='0 0 8 8' refX='8' refY='4' markerWidth='7' markerHeight='7' orient='auto'>
<path d='M0 0L8 4L0 8z' style='fill: #57606a'/></marker>
<rect width='{0}' height='{1:.0f}' style='fill: #fff; stroke: none'/>
"""


def steps() -> dict[str, int]:
    """The number of each ``package/module`` that the page walks through, in order."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    return {name: int(n) for n, name in re.findall(r"^(\d+)\. \*\*`(\w+/\w+)`\*\*", page, re.M)}


def packages() -> tuple[dict[str, list[str]], dict[str, set[str]]]:
    """The modules of each package, and the packages that it imports."""
    graph = grimp.build_graph("gitops_mcp", cache_dir=None)
    modules = {
        package.split(".")[1]: sorted(each.split(".")[2] for each in graph.find_children(package))
        for package in graph.find_children("gitops_mcp") - {"gitops_mcp.__main__"}
    }
    imports: dict[str, set[str]] = {name: set() for name in modules}
    for importer in graph.modules - {"gitops_mcp", "gitops_mcp.__main__"}:
        mine = importer.split(".")[1]
        found = graph.find_modules_directly_imported_by(importer)
        imports[mine] |= {name for each in found for name in each.split(".")[1:2]} - {mine}
    return modules, imports


def lines(package: str, modules: list[str], walk: dict[str, int], wide: float) -> list[str]:
    """What stands in a package's box: its name, the head of its docstring, its modules."""
    source = (ROOT / "gitops_mcp" / package / "__init__.py").read_text(encoding="utf-8")
    says = (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
    numbers = ((walk.get(f"{package}/{module}"), module) for module in modules)
    listed = "  ".join(f"{number}·{module}" if number else module for number, module in numbers)
    said = [f"<tspan class='says'>{escape(one)}</tspan>" for one in wrap(says, int(wide / CHAR))]
    marked = [
        re.sub(r"\d+·\w+", r"<tspan class='step'>\g<0></tspan>", line)
        for line in wrap(listed, int(wide / CHAR))
    ]
    return [f"<tspan class='name'>{package}/</tspan>", *said, *marked]


def draw() -> str:
    """The picture, as the text of an SVG file."""
    (modules, graph), walk = packages(), steps()

    def below(package: str) -> set[str]:
        return graph[package].union(*map(below, graph[package]))

    def row(package: str) -> int:
        return max((row(one) + 1 for one in graph if package in graph[one]), default=0)

    rows = {name: row(name) for name in graph}
    # An import that a longer way implies has no arrow; one that skips a row goes round it.
    arrows = {
        (one, two): rows[two] > rows[one] + 1
        for one in sorted(graph)
        for two in sorted(graph[one] - set().union(*map(below, graph[one])))
    }
    far = {one for (one, _), skips in arrows.items() if skips}
    boxes, out, y = {}, [], float(GAP)
    for number in range(max(rows.values()) + 1):
        names = sorted((name in far, name) for name in rows if rows[name] == number)
        wide = (WIDTH - 3 * LANE - GAP) / len(names) - GAP
        texts = {name: lines(name, modules[name], walk, wide - 2 * LANE) for _, name in names}
        high = max(map(len, texts.values())) * LINE + LANE
        for at, (name, text) in enumerate(texts.items()):
            x = GAP + at * (wide + GAP)
            boxes[name] = x, y, x + wide, y + high
            out.append(f"<rect x='{x:.0f}' y='{y:.0f}' width='{wide:.0f}' height='{high}'/>")
            for line, content in enumerate(text, 1):
                place = f"x='{x + LANE:.0f}' y='{y + line * LINE + 6:.0f}'"
                out.append(f"<text {place}>{content}</text>")
        y += high + 2 * GAP
    lane = float(WIDTH)
    for (one, two), skips in arrows.items():
        left, top, right, bottom = boxes[one]
        start, end = (left + right) / 2, (boxes[two][0] + boxes[two][2]) / 2
        path = f"M{start:.0f} {bottom:.0f}L{end:.0f} {boxes[two][1]:.0f}"
        if skips:
            lane -= LANE
            middle = (boxes[two][1] + boxes[two][3]) / 2
            path = (
                f"M{right:.0f} {(top + bottom) / 2:.0f}H{lane:.0f}V{middle:.0f}H{boxes[two][2]:.0f}"
            )
        out.append(f"<path d='{path}' marker-end='url(#tip)'/>")
    return HEAD.format(WIDTH, y - GAP) + "\n".join(out) + "\n</svg>\n"


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
