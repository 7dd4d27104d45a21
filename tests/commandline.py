"""Runs the command line in tests, in process, and knows a few manifests."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from gitops_mcp.cli import completion
from gitops_mcp.cli import main as cli


@dataclass(frozen=True)
class Ended:
    """How a command line ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line on stderr of a failure that was expected."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: ")
        return lines[0]


Run = Callable[..., Ended]


def runner(capsys: pytest.CaptureFixture[str]) -> Run:
    """A function that runs ``gitops-mcp ARGUMENTS`` in process."""

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return Ended(code, said.out, said.err)

    return run


def completer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], list[str]]:
    """A function that says what the last word of a command line may become, as bash is told it."""
    monkeypatch.setattr(completion, "PATIENCE", 60)

    def complete(line: str) -> list[str]:
        monkeypatch.setenv(cli.COMPLETION, "bash_complete")
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
        capsys.readouterr()
        code = completion.answer(cli.cli, cli.COMPLETION)
        monkeypatch.delenv(cli.COMPLETION)
        said = capsys.readouterr()
        assert (code, said.err) == (0, "")
        return [word.removeprefix("plain,") for word in said.out.split()]

    return complete


def manifest(name: str = "web", namespace: str | None = "ai", **spec: Any) -> str:
    """A valid MCPServer; ``spec`` adds to it."""
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    return json.dumps(
        {
            "apiVersion": "mcp.example.com/v1alpha1",
            "kind": "MCPServer",
            "metadata": metadata,
            "spec": {"image": f"ghcr.io/example/{name}:1.0", **spec},
        },
        indent=1,
    )


BROKEN = """\
apiVersion: mcp.example.com/v1alpha1
kind: MCPServer
metadata:
  name: broken
  namespace: ai
spec:
  image: ghcr.io/example/broken:1.0
  prot: 80
"""
"""``prot`` should be ``port``: line 8, column 3."""
