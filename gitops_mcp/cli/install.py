"""Everything that an agent in a cluster needs, as Kubernetes objects.

Receives an ``Installation``, returns the objects in the order in which they are applied; makes no
request. The rights are those of the requests that a pass makes, no more: no wildcard, no Secret
unless asked for (the kubelet mounts the one with the git credentials), and where one namespace is
watched, nothing outside of it but the agent's own lease.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gitops_mcp.base.errors import UsageError
from gitops_mcp.base.names import (
    AGENT_NAMESPACE,
    ANNOTATION_FILE,
    CRD_NAME,
    FIELD_MANAGER,
    FINALIZER,
    GROUP,
    LABEL_SOURCE,
    OWNERSHIP_POLICY,
    PLURAL,
    VERSION,
    JsonObject,
)
from gitops_mcp.source import crd, serverschema

NAMESPACE = AGENT_NAMESPACE
"""Where the agent lives, unless it is told otherwise."""
APP = "gitops-mcp"
LABEL_APP = "app.kubernetes.io/name"
COMPONENT = "agent"
USER = 65532
"""The image's numeric user."""
PORT = 8080
PORT_NAME = "http"
LISTEN = f"--listen=:{PORT}"
"""Every address of both families: a pod may have one of IPv6 only."""
GIT_FOLDER = "/etc/gitops-mcp/git"
WEBHOOK_FOLDER = "/etc/gitops-mcp/webhook"
WEBHOOK_KEY = "token"
"""The key of the webhook's secret in its Secret."""
TOKEN_FOLDER = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105 -- a path
TOKEN_LIFE = 3600
"""Seconds; the kubelet renews it, and the agent reads it again."""
COLLECTORS = (
    "system:serviceaccount:kube-system:generic-garbage-collector",
    "system:kube-controller-manager",
)
"""Who deletes what another object owned: refused, that one's own deletion would hang for ever."""

_RBAC = "rbac.authorization.k8s.io"
_ADMISSION = "admissionregistration.k8s.io/v1"
_POLICY = f"no-foreground-deletion.{GROUP}"
SYNC = "sync"
"""The verb on MCPServers that no request bears: it lets write what says whose a server is."""
_LONGEST_NAME = 63


@dataclass(frozen=True, slots=True)
class Installation:
    """What is installed. ``arguments`` follow the agent's ``agent`` on its command line; a secret
    has no place there, ``git_secret`` and ``webhook_secret`` name the Secrets that hold them."""

    image: str
    arguments: tuple[str, ...] = ()
    namespace: str = NAMESPACE
    source_id: str = ""
    watch_namespace: str = ""
    create_namespace: bool = False
    git_secret: str = ""
    webhook_secret: str = ""
    handshake_secrets: bool = False
    """May read the Secrets of servers, for ``health.headersFrom``."""
    health_gate: bool = False
    """May open the readiness gates of servers with ``health.gate``."""
    replicas: int | None = None
    """How many agents, of which one leads; None: not said, so that ``kubectl scale`` may say it."""

    record: str = "gitops-mcp-default"
    """The ConfigMap that the agent records in what it enforced."""

    @property
    def name(self) -> str:
        """The name of the agent's objects: several agents may stand side by side."""
        source = "" if self.source_id == "default" else self.source_id
        name = "-".join(part for part in (APP, source, self.watch_namespace) if part)
        if len(name) > _LONGEST_NAME:
            raise UsageError(f"the name {name} is too long", hint="choose a shorter --source-id")
        return name


def definition() -> JsonObject:
    """The CustomResourceDefinition."""
    return crd.custom_resource_definition(serverschema.schema())


def objects(wanted: Installation) -> list[JsonObject]:
    """All of it, in an order in which nothing is missed by what comes after it."""
    return [
        _namespace(wanted),
        definition(),
        _object("v1", "ServiceAccount", wanted, wanted.namespace)
        | {"automountServiceAccountToken": False},
        *_rights(wanted),
        *_people(),
        *_policy(wanted),
        *_ownership(wanted),
        *_service(wanted),
        _deployment(wanted),
    ]


def labels(name: str) -> dict[str, str]:
    """What an agent's objects bear. Not ``managed-by``: servers' children are found by that."""
    return {
        LABEL_APP: APP,
        "app.kubernetes.io/instance": name,
        "app.kubernetes.io/component": COMPONENT,
    }


def _object(
    api_version: str, kind: str, wanted: Installation, namespace: str = "", *, name: str = ""
) -> JsonObject:
    metadata: JsonObject = {"name": name or wanted.name}
    if namespace:
        metadata["namespace"] = namespace
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": metadata | {"labels": labels(wanted.name)},
    }


def _namespace(wanted: Installation) -> JsonObject:
    """Labelled, which is to say ours, only under our own name: any other one may be there already,
    and what else runs in it is neither to be judged nor, some day, deleted along with us."""
    metadata: JsonObject = {"name": wanted.namespace}
    if wanted.namespace == NAMESPACE != wanted.watch_namespace:
        levels = ("enforce", "audit", "warn")
        pods = {f"pod-security.kubernetes.io/{level}": "restricted" for level in levels}
        metadata["labels"] = {LABEL_APP: APP} | pods
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}


# --- rights -----------------------------------------------------------------------------------


def server_rules(wanted: Installation) -> list[JsonObject]:
    """What running servers takes, in all namespaces or in the watched one."""
    children = ("get", "list", "watch", "create", "patch", "delete")
    namespaces = ["get"]
    if wanted.create_namespace:
        namespaces += ["create", "patch"]
    rules = [
        _rule(GROUP, PLURAL, *children),
        _rule(GROUP, PLURAL, SYNC),
        _rule(GROUP, f"{PLURAL}/status", "patch"),
        # Asked for by OwnerReferencesPermissionEnforcement: our references block their owner.
        _rule(GROUP, f"{PLURAL}/finalizers", "update"),
        _rule("apps", "deployments", *children),
        _rule("", "services", *children),
        _rule("", "pods", "get", "list", "watch"),
        # What kubectl describe shows of our work, and how often it was so.
        _rule("", "events", "create", "patch"),
    ]
    if wanted.health_gate:
        rules.append(_rule("", "pods/status", "patch"))
    if wanted.handshake_secrets:
        rules.append(_rule("", "secrets", "get"))
    if wanted.watch_namespace:
        # Of a Namespace itself, a Role in it may speak.
        return [*rules, _rule("", "namespaces", *namespaces, name=wanted.watch_namespace)]
    definitions = _rule("apiextensions.k8s.io", "customresourcedefinitions", "get", name=CRD_NAME)
    return [*rules, _rule("", "namespaces", *namespaces), definitions]


def lease_rules(wanted: Installation) -> list[JsonObject]:
    """What being the only writer takes, in the agent's namespace: the Lease, the record of what was
    enforced, and Events about it, where the cluster-wide role does not allow those already."""
    return [
        _rule("coordination.k8s.io", "leases", "get", "create", "update"),
        _rule("", "configmaps", "get", "create", "patch", name=wanted.record),
        *([_rule("", "events", "create", "patch")] if wanted.watch_namespace else []),
    ]


def _rule(group: str, resource: str, *verbs: str, name: str = "") -> JsonObject:
    rule: JsonObject = {"apiGroups": [group], "resources": [resource], "verbs": list(verbs)}
    return rule | {"resourceNames": [name]} if name else rule


def _rights(wanted: Installation) -> Iterator[JsonObject]:
    watched = wanted.watch_namespace
    yield from _role(wanted, server_rules(wanted), namespace=watched, name=wanted.name)
    yield from _role(
        wanted, lease_rules(wanted), namespace=wanted.namespace, name=f"{wanted.name}-lease"
    )


def _people() -> Iterator[JsonObject]:
    """MCPServers in Kubernetes' own roles ``view``, ``edit`` and ``admin``, which collect the rules
    of what is labelled so. One pair for all agents. Whoever may edit a namespace may run any pod in
    it already; the status stays the agent's."""
    scale = f"{PLURAL}/scale"
    read = [_rule(GROUP, PLURAL, "get", "list", "watch")]
    read += [_rule(GROUP, name, "get") for name in (f"{PLURAL}/status", scale)]
    write = [
        _rule(GROUP, PLURAL, "create", "update", "patch", "delete"),
        _rule(GROUP, scale, "update", "patch"),
    ]
    for name, rules, roles in (
        ("view", read, ("view", "edit", "admin")),
        ("edit", write, ("edit", "admin")),
    ):
        collected = {f"{_RBAC}/aggregate-to-{role}": "true" for role in roles}
        yield {
            "apiVersion": f"{_RBAC}/v1",
            "kind": "ClusterRole",
            "metadata": {"name": f"{name}.{GROUP}", "labels": {LABEL_APP: APP} | collected},
            "rules": rules,
        }


def _role(
    wanted: Installation, rules: list[JsonObject], *, namespace: str, name: str
) -> Iterator[JsonObject]:
    kind = "Role" if namespace else "ClusterRole"
    yield _object(f"{_RBAC}/v1", kind, wanted, namespace, name=name) | {"rules": rules}
    yield _object(f"{_RBAC}/v1", f"{kind}Binding", wanted, namespace, name=name) | {
        "roleRef": {"apiGroup": _RBAC, "kind": kind, "name": name},
        "subjects": [
            {"kind": "ServiceAccount", "name": wanted.name, "namespace": wanted.namespace}
        ],
    }


# --- admission --------------------------------------------------------------------------------


def _policy(wanted: Installation) -> Iterator[JsonObject]:
    """Against ``kubectl delete --cascade=foreground``: it takes the children at once, whatever
    finalizers say. One policy for all agents, a binding for each."""
    users = ", ".join(f"'{user}'" for user in COLLECTORS)
    message = (
        "foreground deletion takes a server's pods before its sessions are "
        "drained; delete it in the background (kubectl's default), or with "
        "--cascade=orphan to keep it running"
    )
    background = (
        "!has(request.options.propagationPolicy) || "
        "request.options.propagationPolicy != 'Foreground'"
    )
    yield _admission_policy(
        _POLICY,
        operations=["DELETE"],
        resources=[PLURAL],
        applies=("not-the-garbage-collector", f"!(request.userInfo.username in [{users}])"),
        messages={background: message},
    )
    yield _binding(wanted, _POLICY, wanted.name)


def _ownership(wanted: Installation) -> Iterator[JsonObject]:
    """Against a server that is made to look like git's, or no longer so: what says whose it is may
    be written by those alone who have the verb ``sync``, as the agents and cluster admins do."""
    permission = f"authorizer.group('{GROUP}').resource('{PLURAL}').namespace(request.namespace)"
    hint = f"needs the permission '{SYNC}' on {PLURAL}.{GROUP}"
    same = {
        f"the label {LABEL_SOURCE}": _value("labels", LABEL_SOURCE),
        f"the annotation {ANNOTATION_FILE}": _value("annotations", ANNOTATION_FILE),
        f"the finalizer {FINALIZER}": (
            "has({0}.metadata.finalizers) && "
            f"{{0}}.metadata.finalizers.exists(one, one == '{FINALIZER}') ? 'held' : ''"
        ),
    }
    ours = f"entry.manager == '{FIELD_MANAGER}' && entry.operation == 'Apply'"
    entries = "has({0}.metadata.managedFields) ? {0}.metadata.managedFields.filter(entry, "
    entries += f"{ours}).size() : 0"
    rules = {
        f"{_of('object', value)} == {_of('oldObject', value)}": what for what, value in same.items()
    }
    rules["!has(request.subResource) || request.subResource != 'status'"] = (
        "the status of an MCPServer"
    )
    manager = "request.options.fieldManager"
    rules[f"!has(request.options) || !has({manager}) || {manager} != '{FIELD_MANAGER}'"] = (
        f"the field manager {FIELD_MANAGER}"
    )
    before = f"(oldObject == null ? 0 : ({entries.format('oldObject')}))"
    rules[f"({entries.format('object')}) <= {before}"] = f"an Apply entry of {FIELD_MANAGER}"
    yield _admission_policy(
        OWNERSHIP_POLICY,
        operations=["CREATE", "UPDATE"],
        resources=[PLURAL, f"{PLURAL}/status"],
        applies=("not-who-may-sync", f"!{permission}.check('{SYNC}').allowed()"),
        messages={
            expression: f"gitops-mcp writes {what}: to do so {hint}"
            for expression, what in rules.items()
        },
    )
    yield _binding(wanted, OWNERSHIP_POLICY, f"{wanted.name}-ownership")


def _admission_policy(
    name: str,
    *,
    operations: list[str],
    resources: list[str],
    applies: tuple[str, str],
    messages: Mapping[str, str],
) -> JsonObject:
    """A policy over MCPServers. ``applies`` is the name and the CEL of the condition under which it
    is asked at all; ``messages`` are what must hold, as CEL, and what is said where it does not."""
    condition, expression = applies
    return {
        "apiVersion": _ADMISSION,
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name, "labels": {LABEL_APP: APP}},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {
                "resourceRules": [
                    {
                        "apiGroups": [GROUP],
                        "apiVersions": [VERSION],
                        "operations": operations,
                        "resources": resources,
                        "scope": "Namespaced",
                    }
                ]
            },
            "matchConditions": [{"name": condition, "expression": expression}],
            "validations": [
                {"expression": must, "message": message, "reason": "Forbidden"}
                for must, message in messages.items()
            ],
        },
    }


def _value(part: str, key: str) -> str:
    """The CEL expression for a label or annotation of ``{0}``; '' where there is none."""
    place = f"{{0}}.metadata.{part}"
    return f"has({place}) && '{key}' in {place} ? {place}['{key}'] : ''"


def _of(name: str, value: str) -> str:
    """The CEL value of ``object`` or ``oldObject``; that of an object that is not there is ''."""
    expression = f"({value.format(name)})"
    return f"(oldObject == null ? '' : {expression})" if name == "oldObject" else expression


def _binding(wanted: Installation, policy: str, name: str) -> JsonObject:
    spec: JsonObject = {"policyName": policy, "validationActions": ["Deny"]}
    if wanted.watch_namespace:
        where = {"kubernetes.io/metadata.name": wanted.watch_namespace}
        spec["matchResources"] = {"namespaceSelector": {"matchLabels": where}}
    binding = _object(_ADMISSION, "ValidatingAdmissionPolicyBinding", wanted, name=name)
    return binding | {"spec": spec}


# --- the agent --------------------------------------------------------------------------------


def _service(wanted: Installation) -> Iterator[JsonObject]:
    """Where forges reach the webhook, through whatever leads into the cluster. Prometheus asks the
    pods themselves."""
    if wanted.webhook_secret:
        yield _object("v1", "Service", wanted, wanted.namespace) | {
            "spec": {
                "selector": labels(wanted.name),
                "ports": [{"name": PORT_NAME, "port": 80, "targetPort": PORT_NAME}],
            }
        }


def _deployment(wanted: Installation) -> JsonObject:
    own = labels(wanted.name)
    volumes: list[JsonObject] = [
        {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}},
        {"name": "token", "projected": {"defaultMode": 0o440, "sources": _token()}},
    ]
    mounts: list[JsonObject] = [
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 -- the pod's own
        {"name": "token", "mountPath": TOKEN_FOLDER, "readOnly": True},
    ]
    for name, secret, folder in (
        ("git", wanted.git_secret, GIT_FOLDER),
        ("webhook", wanted.webhook_secret, WEBHOOK_FOLDER),
    ):
        if secret:
            source = {"secretName": secret, "defaultMode": 0o440}
            volumes.append({"name": name, "secret": source})
            mounts.append({"name": name, "mountPath": folder, "readOnly": True})
    pod: JsonObject = {
        "serviceAccountName": wanted.name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        # A shutdown that is under way when the agent must go has the time for its next step.
        "terminationGracePeriodSeconds": 60,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(wanted, mounts)],
        "volumes": volumes,
    }
    replicas = wanted.replicas
    if replicas is not None and replicas > 1:
        # A standby is of no use on the node that the leader dies with.
        pod["topologySpreadConstraints"] = [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": own},
            }
        ]
    scraped = {"prometheus.io/scrape": "true", "prometheus.io/port": str(PORT)}
    return _object("apps/v1", "Deployment", wanted, wanted.namespace) | {
        "spec": {
            **({"replicas": replicas} if replicas is not None else {}),
            "revisionHistoryLimit": 3,
            # The lease admits one writer. The new pod stands by, its view warm, before the old one
            # lets go.
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
            },
            "selector": {"matchLabels": own},
            "template": {"metadata": {"labels": own, "annotations": scraped}, "spec": pod},
        }
    }


def _container(wanted: Installation, mounts: list[JsonObject]) -> JsonObject:
    return {
        "name": COMPONENT,
        "image": wanted.image,
        # The kubelet would take $(NAME) for a variable.
        "args": [part.replace("$(", "$$(") for part in ("agent", *wanted.arguments, LISTEN)],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "privileged": False,
            "readOnlyRootFilesystem": True,
        },
        "resources": {
            "requests": {"cpu": "100m", "memory": "128Mi"},
            "limits": {"cpu": "2", "memory": "1Gi"},
        },
        "ports": [{"name": PORT_NAME, "containerPort": PORT}],
        # A large fleet takes its time to be read, once.
        "startupProbe": _probe("/healthz", every=2, attempts=150),
        "livenessProbe": _probe("/healthz", every=10, attempts=3),
        "readinessProbe": _probe("/readyz", every=5, attempts=3),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }


def _probe(path: str, *, every: int, attempts: int) -> JsonObject:
    return {
        "httpGet": {"path": path, "port": PORT_NAME},
        "periodSeconds": every,
        "timeoutSeconds": 5,
        "failureThreshold": attempts,
    }


def _token() -> list[JsonObject]:
    """The token as a pod gets it, for less time, and only in the container that needs it."""
    field = {"apiVersion": "v1", "fieldPath": "metadata.namespace"}
    authority = {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}
    return [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": TOKEN_LIFE}},
        {"configMap": authority},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": field}]}},
    ]
