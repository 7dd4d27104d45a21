"""The trailer of a commit message that allows pruning."""

from __future__ import annotations

import re

from gitops_mcp.git.addresses import Credentials as Credentials
from gitops_mcp.git.complaints import printable

_TRAILER = re.compile(r"[A-Za-z0-9][\w-]*[ \t]*:.*|[ \t].*|-+|See merge request .*")
"""A line of a paragraph of trailers, and what forges put among them when they squash."""


_ALLOWS = re.compile(r"allow-prune[ \t]*:[ \t]*([0-9]{1,9})[ \t]*", re.IGNORECASE)


_LOOKS_SO = re.compile(r"\W*allow[-_ ]?prunes?\b", re.IGNORECASE)


def allow_prune(message: str) -> tuple[int | None, tuple[str, ...]]:
    """The number of a commit's ``Allow-Prune`` trailer, and the lines that look like one and do not
    count.

    It counts in any paragraph after the subject that holds nothing but trailers: a forge that
    squashes commits puts its own text after it. Two different numbers count as none.
    """
    message = message.replace("\r\n", "\n").strip("\n")
    counts: set[int] = set()
    allowing: list[str] = []
    ignored: list[str] = []
    for number, paragraph in enumerate(re.split(r"\n(?:[ \t]*\n)+", message)):
        lines = paragraph.split("\n")
        trailers = number > 0 and all(map(_TRAILER.fullmatch, lines))
        for line in lines:
            found = _ALLOWS.fullmatch(line) if trailers else None
            if found is not None:
                counts.add(int(found[1]))
                allowing.append(line)
            elif _LOOKS_SO.match(line):
                ignored.append(line)
    if len(counts) > 1:
        counts, ignored = set(), [*allowing, *ignored]
    return next(iter(counts), None), tuple(printable(line.strip())[:80] for line in ignored[:5])
