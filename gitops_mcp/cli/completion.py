"""What a shell may complete a word to: servers, namespaces, contexts and clusters.

Receives what is to be completed, the values that the command line has so far and the word that was
begun; returns words. Reads the cluster or the source for a moment only, never a remote repository.
Whatever goes wrong, nothing is completed: a prompt is no place for messages.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, redirect_stderr, suppress
from types import MappingProxyType
from typing import Any

import click
from click.shell_completion import shell_complete

from gitops_mcp.base.names import API_VERSION, KIND
from gitops_mcp.cluster import connection
from gitops_mcp.cluster.reads import Reader
from gitops_mcp.source import manifests
from gitops_mcp.source.settings import ConnectionOptions, SourceOptions
from gitops_mcp.sync import connecting, reading

PATIENCE = 2.0
"""Seconds after which there is nothing to complete."""

Given = Mapping[str, Any]
"""The parameters of the verb, as far as they were written."""


def answer(command: click.Command, variable: str) -> int:
    """Print what the shell asks for in the environment; returns the exit code."""
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere), suppress(Exception):
        asked = os.environ[variable]
        return shell_complete(command, {"obj": words}, "gitops-mcp", variable, asked)
    return 0


def words(what: str, given: Given, begun: str) -> list[str]:
    """The words that begin as ``begun``; ``what`` is a key of FINDERS."""
    found: list[str] = []

    def find() -> None:
        with suppress(Exception):
            found.extend(sorted(set(FINDERS[what](given, begun))))

    # A thread that is left behind, since neither a credential plugin nor a name server can be told
    # to hurry.
    finder = threading.Thread(target=find, daemon=True)
    finder.start()
    finder.join(PATIENCE)
    return [word for word in tuple(found) if word.startswith(begun)]


def _servers(given: Given, begun: str) -> Iterable[str]:
    """Of the cluster; those of other namespaces where one was begun, as NAMESPACE/NAME."""
    home, slash, _ = begun.rpartition("/")
    with closing(connecting.connect(Reader, _connection(given))) as cluster:
        where = home or given.get("namespace") or cluster.namespace
        where = None if given.get("all_namespaces") else where
        listed, _ = cluster.list(
            API_VERSION, KIND, where, narrowed=lambda body: str(body["metadata"]["name"])
        )
    return {f"{home}{slash}{name}" for name in listed} - set(given.get("names") or ())


def _namespaces(given: Given, begun: str) -> Iterable[str]:
    del begun
    with closing(connecting.connect(Reader, _connection(given))) as cluster:
        listed, _ = cluster.list(
            "v1", "Namespace", None, narrowed=lambda body: str(body["metadata"]["name"])
        )
    return listed


def _contexts(given: Given, begun: str) -> Iterable[str]:
    del begun
    return connection.contexts(given.get("kubeconfig"))


def _connection(given: Given) -> ConnectionOptions:
    # A verb that has no such option has no cluster.
    return ConnectionOptions(given["kubeconfig"], given["context"])


def _limit(given: Given, begun: str) -> Iterable[str]:
    """The last of some patterns: a server of the manifests."""
    before, comma, last = begun.rpartition(",")
    excludes = "!" if last.startswith("!") else ""
    loaded = _read(given).loaded
    keys = map(str, {*loaded.servers, *loaded.protected})
    return (f"{before}{comma}{excludes}{name}" for name in _spelled(keys, last))


def _clusters(given: Given, begun: str) -> Iterable[str]:
    """Those that have group_vars."""
    del begun
    source = _read(given)
    return manifests.clusters(source.snapshot.files, path=source.path)


def _recorded(given: Given, begun: str) -> Iterable[str]:
    """Servers of the deployment notes."""
    options = _source(given)
    with reading.open_repository(options) as repository:
        records = repository.notes(options.cluster).read()
    return _spelled((record.server for record in records if record.server), begun)


def _spelled(servers: Iterable[str], begun: str) -> Iterable[str]:
    """As NAMESPACE/NAME where a namespace was begun, else as NAME."""
    return servers if "/" in begun else (server.rpartition("/")[2] for server in servers)


def _read(given: Given) -> reading.Source:
    options = _source(given)
    with reading.open_repository(options, history=False) as repository:
        return reading.read(options, repository)


def _source(given: Given) -> SourceOptions:
    """The source, if it is here. Raises NotADirectoryError."""
    names = ("location", "ref", "branch", "path", "cluster", "namespace")
    options = SourceOptions(**{name: given[name] for name in names if given.get(name)})
    if not os.path.isdir(options.location):
        raise NotADirectoryError(options.location)
    return options


FINDERS: Mapping[str, Callable[[Given, str], Iterable[str]]] = MappingProxyType(
    {
        "servers": _servers,
        "namespaces": _namespaces,
        "contexts": _contexts,
        "limit": _limit,
        "clusters": _clusters,
        "recorded": _recorded,
    }
)
"""What can be completed, and what finds it."""
