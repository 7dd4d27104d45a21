"""Inputs that nobody would write, for what reads a source: bytes → problems, within a budget.

``python -m fuzzing --count 1000000`` (``make fuzz``) reads mutations of the kept files below
``data/fuzz/``, reproducible by ``--seed``; the suite reads a few thousand. Coverage is not
followed: the mutations know what YAML, JSON and manifests are made of.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from gitops_mcp.base.errors import UsageError
from gitops_mcp.base.source import SourceFile
from gitops_mcp.source import manifests, settings, terms

CORPUS = Path(__file__).parent / "data" / "fuzz"
LONGEST = 64 * 1024
"""Bytes of an input."""
SECONDS = 1.0
"""Of processor time for one input."""
MEMORY_KIB = 64 * 1024
"""Of a whole run, above what it begins with: no input may take more for itself."""

ATOMS: tuple[bytes, ...] = (
    *(bytes([byte]) for byte in b"\n\t -:?,[]{}#&*!|>'\"%@`\\<=~\0\r"),
    *(b"\n---\n", b"\n...\n", b"%YAML 1.2\n", b"\n\n\n", b"&a ", b"*a", b"<<: *a", b"!!python/x "),
    *(b"\\ud83d\\ude00", b"\\u0000", b"\\x", b'\\"', b"\xff\xfe", b"\xef\xbb\xbf", b"\xc2\x85"),
    *(b"\xe2\x80\xa8", b"0x1f", b"1e999", b"-0", b"1_000", b"12:30:45", b"2026-01-01", b".inf"),
    *(b"null", b"true", b"off", b"~", b"1" * 400, b"9" * 20, b"- - - - ", b"? ", b"{a: ", b"[["),
    *(
        b"apiVersion: v1\n",
        b"kind: MCPServer\n",
        b"kind: List\nitems:\n",
        b"metadata:\n  name: x\n",
    ),
    *(b"spec:\n", b"  image: a\n", b"status: {}\n", b"mcp.example.com/v1alpha1", b"sops: {}\n"),
    *(b"$ANSIBLE_VAULT;", b"<<<<<<< ", b"  env: [{name: A}]\n", b"  port: 99999\n", b"a" * 300),
)


BREAKS = (b"\n", b"\r", b"\xc2\x85", b"\xe2\x80\xa8", b"\xe2\x80\xa9")
"""What YAML 1.1 takes for the end of a line."""


class Input(NamedTuple):
    """A file as a source holds it."""

    path: str
    data: bytes


def kept() -> list[Input]:
    """The corpus. A name says where in a source a file stands."""
    places = {"config": "gitops-mcp.yaml", "vars": "group_vars/all.yaml"}
    found = []
    for file in sorted(CORPUS.iterdir()):
        kind = file.name.split(".")[-2]
        found.append(Input(places.get(kind, f"a{file.suffix}"), file.read_bytes()))
    return found


def mutations(seed: int) -> Iterator[Input]:
    """Endlessly many, always the same of one seed."""
    chance = random.Random(seed)
    corpus = kept()
    while True:
        path, data = chance.choice(corpus)
        for _ in range(chance.choice((1, 1, 2, 3, 5, 9, 20))):
            data = _mutation(data, chance.choice(corpus).data, chance)[:LONGEST]
        yield Input(path, data)


def _mutation(data: bytes, other: bytes, chance: random.Random) -> bytes:
    at, end = sorted(chance.randrange(len(data) + 1) for _ in range(2))
    atom = chance.choice(ATOMS)
    match chance.randrange(8):
        case 0:
            return data[:at] + atom + data[at:]
        case 1:
            return data[:at] + atom + data[end:]
        case 2:
            return data[:at] + data[end:]
        case 3:
            return data[:at] + atom * chance.choice((3, 40, 1000)) + data[at:]
        case 4:
            return data[:end] + data[at:]
        case 5:
            return data[:end] + data[at:end] * chance.choice((2, 30)) + data[end:]
        case 6:
            cut = chance.randrange(len(other) + 1)
            return data[:at] + other[cut:]
        case _:
            flipped = bytearray(data)
            for _ in range(min(4, len(flipped))):
                flipped[chance.randrange(len(flipped))] = chance.randrange(256)
            return bytes(flipped)


def read(one: Input) -> None:
    """Read a file as every verb does. Raises AssertionError where what is said of it is wrong, and
    whatever it should not raise."""
    if one.path == "gitops-mcp.yaml":
        said = ""
        try:
            settings.parse_config(one.data, one.path, allowed=settings.SOURCE_KEYS)
        except UsageError as error:
            said = error.message
        assert len(said) < 1000, "a message repeats its input"
        return
    loaded = manifests.load([SourceFile(one.path, "0" * 40, one.data)], cluster="default")
    lines = sum(map(one.data.count, BREAKS)) + 2
    assert len(loaded.problems) <= 2 * terms.MAX_PROBLEMS + 1
    for problem in loaded.problems:
        assert 1 <= problem.line <= lines, "a place outside of the file"
        assert problem.column >= 1
        assert len(problem.message) < 1000, "a message repeats its input"
        assert "\n" not in problem.message


def run(count: int, seed: int, seconds: float = SECONDS) -> tuple[float, float]:
    """Read so many inputs; the slowest one's seconds, and MiB that the run took. Raises
    AssertionError, naming the input, where one takes more than ``seconds`` of CPU or too
    much memory."""
    for one in kept():
        read(one)
    slowest, base = 0.0, _memory()
    for number, one in zip(range(count), mutations(seed), strict=False):
        began = time.thread_time()
        try:
            read(one)
        except Exception as error:
            raise AssertionError(f"input {number} of seed {seed}: {one!r}") from error
        took = time.thread_time() - began
        slowest = max(slowest, took)
        assert took < seconds, f"input {number} of seed {seed} took {took:.1f} s: {one!r}"
        grown = _memory() - base
        assert grown < MEMORY_KIB, f"input {number} of seed {seed}: {grown} KiB more: {one!r}"
        if number and number % 10_000 == 0:
            _tell(f"{number} inputs, slowest {slowest:.3f} s, {grown // 1024} MiB")
    return slowest, (_memory() - base) / 1024


def _memory() -> int:
    """The most that the process ever had, in KiB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most // 1024 if sys.platform == "darwin" else most


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    began = time.monotonic()
    slowest, grown = run(given.count, given.seed)
    took = time.monotonic() - began
    _tell(
        f"{given.count} inputs of seed {given.seed} in {took:.0f} s: "
        f"slowest {slowest:.3f} s, {grown:.0f} MiB more than at the start"
    )


if __name__ == "__main__":
    main()
