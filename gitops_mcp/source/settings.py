"""What a source and a connection are, and the configuration file that says so."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gitops_mcp.base.errors import UsageError
from gitops_mcp.base.model import CLUSTER_SOURCE, PodProfile, Policy
from gitops_mcp.base.names import AGENT_NAMESPACE, API_VERSION, KIND, JsonObject

_SOURCE_ID = re.compile(r"(?=.{1,52}$)[a-z0-9]+(?:[-.][a-z0-9]+)*")


def checked_source_id(name: str) -> str:
    """``name``, which becomes a label's value and part of a Lease's name. Raises UsageError."""
    if name == CLUSTER_SOURCE:
        raise UsageError(f"source id {name!r} is taken: it stands for kubectl's servers")
    if not _SOURCE_ID.fullmatch(name):
        raise UsageError(
            f"source id {name!r} is no good name",
            hint="use up to 52 lowercase letters, digits and single '-' or '.' between them",
        )
    return name


def listed(text: str) -> tuple[str, ...]:
    """The values of a text with commas between them."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


OWN_ACCOUNT = "*/{name}"
"""In every namespace, the service account that is named as the server."""


POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
"""The namespace of the pod that this process runs in, if it does."""


def _own_namespaces(named: str | None) -> frozenset[str]:
    """The agent's. A check elsewhere, in a pull request, does not know it: then what ``install``
    chooses counts, and that of the pod which this is."""
    if named is not None:
        return frozenset({named})
    try:
        ours = POD_NAMESPACE.read_text().strip()
    except (OSError, UnicodeDecodeError):
        ours = ""
    return frozenset(filter(None, (AGENT_NAMESPACE, ours)))


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyOptions:
    """What servers may ask for. The lists are comma-separated."""

    allow_privileged: bool = False
    pod_security: PodProfile = "baseline"
    namespaces: str = "*"
    service_accounts: str = OWN_ACCOUNT
    drain_hosts: str = ""
    manual_servers: str = "on"


@dataclass(frozen=True, slots=True)
class SourceOptions(PolicyOptions):
    """Which manifests, and how they are read and rendered. ``path`` and ``source_id`` are None
    where neither flag nor environment nor ``--config`` says: then the source itself may.
    ``namespace`` None: ``default`` for manifests, and the lease's own rule for our lease."""

    location: str = "."
    ref: str | None = None
    branch: str | None = None
    path: str | None = None
    cluster: str = "default"
    limit: str = ""
    namespace: str | None = None
    source_id: str | None = None
    agent_namespace: str | None = None
    agent_secrets: str = ""
    kubectl_managers: str = ""
    """Field managers, comma-separated; empty: kubectl's."""
    templates: Path | None = None
    cluster_domain: str = "cluster.local"
    git_username: str = ""
    git_password_file: Path | None = None
    git_ssh_key: Path | None = None
    git_known_hosts: Path | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """``health`` and ``drain`` of ``--config``: they beat the source's own."""
    cluster_given: bool = False
    """``cluster`` was said, even where it is the default."""

    @property
    def names_cluster(self) -> bool:
        """Did somebody say which cluster it is?"""
        return self.cluster_given or self.cluster != "default"

    @property
    def policy(self) -> Policy:
        """What the operator lets servers ask for. Reads where this process runs, in a pod."""
        pairs = (glob.rpartition("/") for glob in listed(self.service_accounts))
        return Policy(
            namespaces=listed(self.namespaces),
            service_accounts=tuple((namespace or "*", account) for namespace, _, account in pairs),
            own_namespaces=_own_namespaces(self.agent_namespace),
            own_secrets=frozenset(listed(self.agent_secrets)),
            pods="privileged" if self.allow_privileged else self.pod_security,
            drain_hosts=listed(self.drain_hosts),
            domain=self.cluster_domain,
            manual=self.manual_servers == "on",
        )


@dataclass(frozen=True, slots=True)
class ConnectionOptions:
    """Which cluster."""

    kubeconfig: str | None = None
    context: str | None = None


KEYS = frozenset(
    """
    agentNamespace agentSecrets all allNamespaces allowPrivileged allowPrune base branch check
    cluster clusterDomain color context createNamespace crdOnly diff drainHosts fullCheck
    gitKnownHosts gitPasswordFile gitSecret gitSshKey gitUsername handshakeSecrets healthGate
    image interval keep keepServers kubeconfig kubectlManagers limit listen logFormat
    manualServers maxCount namespace namespaces noHeaders notes output path podSecurity port
    probes pushNotes quiet ref replicas serial server serviceAccounts since skipCrd source
    sourceId speed stat state takeOver templates timeout verbose wait watch watchNamespace
    webhookSecret webhookSecretFile
    """.split()  # noqa: SIM905 -- seventy lines of one word each would say no more
)
"""The options of all verbs, as keys of the configuration file."""


SOURCE_KEYS = frozenset({"sourceId", "path", "serial", "health", "drain"})
"""What a source may say about itself. Whatever gives power comes from the operator alone."""


DEFAULTS = ("health", "drain")
"""Keys of the file that lie under every manifest's spec."""


OWN_KEYS = frozenset({"health", "drain", "hooks"})
"""Keys of the file that are no option of a verb, and whose values are more than a text."""


def checked_defaults(configured: Mapping[str, Any]) -> JsonObject:
    """The configured defaults of all manifests. Raises UsageError where they are wrong."""
    from gitops_mcp.source import serverschema

    spec = {key: configured[key] for key in DEFAULTS if key in configured}
    whole = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": "any"},
        "spec": {"image": "any", **spec},
    }
    if spec and not serverschema.accepts(whole):
        found = serverschema.findings(whole)[0]
        place = ".".join(str(part) for part in found.path[1:])
        raise UsageError(f"{place}: {found.message}")
    return spec


def parse_config(text: bytes, name: str, *, allowed: frozenset[str] | None) -> JsonObject:
    """The mapping that a configuration file holds. The values of options are texts, as in the
    environment. ``allowed`` None: any option, whichever verb has it.

    Raises UsageError for YAML that is none or that readers read differently, and for a key that
    does not exist or is not allowed.
    """
    # As texts: `probes: on` means on, and is no boolean.
    values = _mapping(text, name, as_text=True)
    if values.keys() & OWN_KEYS:
        typed = _mapping(text, name, below=OWN_KEYS)
        values |= {key: typed[key] for key in OWN_KEYS if key in typed}
    for key in values:
        if key in SOURCE_KEYS or (allowed is None and key in KEYS | OWN_KEYS):
            continue
        known = sorted(SOURCE_KEYS | OWN_KEYS | KEYS)
        if key not in known:
            from gitops_mcp.source.documents import shown

            close = difflib.get_close_matches(str(key)[:100], known, 1)
            raise UsageError(
                f"{name}: no option '{shown(str(key))}'",
                hint=f"did you mean {close[0]!r}?" if close else "keys are the verbs' options",
            )
        if allowed is not None and key not in allowed:
            raise UsageError(
                f"{name}: {key} may not be set by the source itself",
                hint="give it as a flag, in the environment or with --config FILE",
            )
    return {key: value for key, value in values.items() if value is not None}


def _mapping(
    text: bytes, name: str, *, as_text: bool = False, below: frozenset[str] | None = None
) -> JsonObject:
    """The one document of a configuration file. ``below``: only what is wrong under these keys
    counts. Raises UsageError at the first place that is wrong."""
    from gitops_mcp.source import documents  # with PyYAML, which most runs of a verb do without

    content = documents.decode(text)
    if isinstance(content, str):
        found = list(itertools.islice(documents.parse(content, as_text=as_text), 2))
    else:
        found = [content]
    for document in found:
        for flaw in document.flaws:
            if not flaw.silent and (below is None or not flaw.path or flaw.path[0] in below):
                line, column = flaw.place
                raise UsageError(f"{name}:{line}:{column}: {flaw.message}")
    if len(found) > 1:
        raise UsageError(f"{name}:{found[1].start.line}: expected one document")
    value = found[0].value if found else None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UsageError(f"{name}: expected a mapping of options")
    return value
