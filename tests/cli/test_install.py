"""What ``install`` prints: complete, harmless to read, and no more power than it needs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import paths
import pytest
import yaml

from gitops_mcp.base.errors import UsageError
from gitops_mcp.cli import install
from gitops_mcp.cli import main as cli
from gitops_mcp.cli.install import LISTEN, Installation
from gitops_mcp.cli.verbs import agent

DEPLOY = paths.ROOT / "deploy"
URL = "https://git.example.com/fleet.git"
VARIANTS = {
    "cluster": Installation("example.com/agent:1"),
    "creating": Installation("example.com/agent:1", create_namespace=True),
    "namespace": Installation("example.com/agent:1", watch_namespace="team-a"),
    "handshakes": Installation("example.com/agent:1", handshake_secrets=True),
    "gates": Installation("example.com/agent:1", health_gate=True, replicas=2),
    "own namespace": Installation(
        "example.com/agent:1", namespace="team-a", watch_namespace="team-a", git_secret="fleet"
    ),
}
KEPT = {
    "agent.yaml": ("--cluster=production", "--git-secret=fleet-credentials"),
    "agent-of-one-namespace.yaml": ("--watch-namespace=team-a", "--git-secret=fleet-credentials"),
}
"""Without the CRD: that one's copy is its own."""


@pytest.fixture(params=VARIANTS)
def wanted(request: pytest.FixtureRequest) -> Installation:
    return VARIANTS[request.param]


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    assert cli.run(["install", *arguments]) == 0
    return list(yaml.safe_load_all(capsys.readouterr().out))


def kinds(objects: list[dict[str, Any]]) -> list[str]:
    return [body["kind"] for body in objects]


def rules(objects: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for body in objects:
        if body["kind"] in ("Role", "ClusterRole"):
            yield from body["rules"]


def pod(objects: list[dict[str, Any]]) -> dict[str, Any]:
    spec: dict[str, Any] = objects[-1]["spec"]["template"]["spec"]
    return spec


def agent_arguments(objects: list[dict[str, Any]]) -> list[str]:
    arguments: list[str] = pod(objects)["containers"][0]["args"]
    return arguments


@pytest.mark.parametrize("name", KEPT)
def test_the_copies_in_the_repository_are_what_install_prints(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["install", URL, *KEPT[name], "--skip-crd"]
    assert cli.run(arguments) == 0
    command = f"python -m gitops_mcp {' '.join(arguments)} > deploy/{name}"
    assert (DEPLOY / name).read_text() == capsys.readouterr().out, f"run: {command}"


def test_the_crd_alone_is_what_crd_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["crd"]) == 0
    crd = capsys.readouterr().out
    assert printed(capsys, "--crd-only") == [yaml.safe_load(crd)]


def test_everything_an_agent_needs_comes_in_an_order_that_works() -> None:
    objects = install.objects(VARIANTS["cluster"])
    assert kinds(objects) == [
        "Namespace",
        "CustomResourceDefinition",
        "ServiceAccount",
        "ClusterRole",
        "ClusterRoleBinding",
        "Role",
        "RoleBinding",
        "ClusterRole",
        "ClusterRole",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
        "Deployment",
    ]
    assert json.loads(json.dumps(objects)) == objects


def test_an_agent_of_one_namespace_has_no_right_outside_of_it() -> None:
    objects = install.objects(VARIANTS["namespace"])
    collected = [body for body in objects if body["kind"] == "ClusterRole"]
    assert [body["metadata"]["name"] for body in collected] == [
        "view.mcp.example.com",
        "edit.mcp.example.com",
    ]  # of people; nothing binds the agent to them
    assert "ClusterRoleBinding" not in kinds(objects)
    where: dict[str, set[str]] = {}
    for body in objects:
        for rule in body["rules"] if body["kind"] == "Role" else ():
            where.setdefault(body["metadata"]["namespace"], set()).update(rule["resources"])
    assert where.pop("gitops-mcp") == {"leases", "configmaps", "events"}
    assert where.keys() == {"team-a"}
    bindings = [b for b in objects if b["kind"] == "ValidatingAdmissionPolicyBinding"]
    assert len(bindings) == 2
    for binding in bindings:
        assert binding["spec"]["matchResources"]["namespaceSelector"] == {
            "matchLabels": {"kubernetes.io/metadata.name": "team-a"}
        }


def test_an_agent_may_look_at_the_leases_of_all_that_stand_for_kubectl(
    wanted: Installation,
) -> None:
    found = [r for r in rules(install.objects(wanted)) if r["resources"] == ["leases"]]
    assert [sorted(rule["verbs"]) for rule in found] == [["create", "get", "update"]]
    assert "resourceNames" not in found[0]  # names follow from what is watched


def test_no_rule_has_a_wildcard_reads_secrets_or_gives_rights_away(wanted: Installation) -> None:
    for rule in rules(install.objects(wanted)):
        for values in rule.values():
            assert "*" not in "".join(values), rule
        refused = {"secrets", "configmaps", "serviceaccounts", "nodes"}
        if rule["resources"] == ["configmaps"]:
            assert rule["resourceNames"] == [wanted.record]
            assert set(rule["verbs"]) == {"get", "create", "patch"}
            continue
        if wanted.handshake_secrets and rule["resources"] == ["secrets"]:
            assert rule["verbs"] == ["get"]
            continue
        assert not set(rule["resources"]) & refused
        assert not {"escalate", "bind", "impersonate", "deletecollection"} & set(rule["verbs"])
        assert set(rule["apiGroups"]).isdisjoint({"rbac.authorization.k8s.io"})
        assert "nonResourceURLs" not in rule


def test_secrets_are_read_only_where_the_agent_is_told_to(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def readers(*arguments: str) -> list[str]:
        objects = printed(capsys, "--skip-crd", *arguments)
        return [
            body["metadata"].get("namespace", "*")
            for body in objects
            if body["kind"] in ("Role", "ClusterRole")
            and any("secrets" in rule["resources"] for rule in body["rules"])
        ]

    assert readers() == []
    assert readers("--handshake-secrets") == ["*"]
    assert readers("--handshake-secrets", "--watch-namespace", "team-a") == ["team-a"]


def test_kubernetes_own_roles_collect_what_people_need() -> None:
    found = {
        body["metadata"]["name"]: body
        for body in install.objects(VARIANTS["cluster"])
        if body["kind"] == "ClusterRole" and body["metadata"]["name"] != "gitops-mcp"
    }
    collected = {
        name: sorted(
            label.rpartition("-")[2] for label in body["metadata"]["labels"] if "aggregate" in label
        )
        for name, body in found.items()
    }
    assert collected == {
        "view.mcp.example.com": ["admin", "edit", "view"],
        "edit.mcp.example.com": ["admin", "edit"],
    }
    verbs = {verb for rule in found["view.mcp.example.com"]["rules"] for verb in rule["verbs"]}
    assert verbs == {"get", "list", "watch"}
    for rule in found["edit.mcp.example.com"]["rules"]:
        assert "mcpservers/status" not in rule["resources"]  # the agent's word alone


def test_the_status_of_pods_is_written_only_where_the_agent_is_told_to(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def writes(*arguments: str) -> bool:
        objects = printed(capsys, "--skip-crd", *arguments)
        return any(rule["resources"] == ["pods/status"] for rule in rules(objects))

    assert not writes()
    assert writes("--health-gate")
    assert writes("--health-gate", "--watch-namespace", "team-a")


def test_replicas_are_said_only_where_they_are_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Said by every apply, they would be taken from whoever scales the Deployment."""
    assert "replicas" not in printed(capsys, "--skip-crd")[-1]["spec"]
    two = printed(capsys, "--skip-crd", "--replicas", "2")[-1]["spec"]
    assert two["replicas"] == 2
    (spread,) = two["template"]["spec"]["topologySpreadConstraints"]
    assert spread["whenUnsatisfiable"] == "ScheduleAnyway"
    assert spread["labelSelector"] == two["selector"]


def test_what_servers_may_ask_for_reaches_the_agent(capsys: pytest.CaptureFixture[str]) -> None:
    given = (
        "--pod-security=restricted",
        "--namespaces=ai,team-*",
        "--service-accounts=*/{name},ai/reader",
        "--drain-hosts=*.example.com",
        "--manual-servers=off",
    )
    arguments = agent_arguments(
        printed(capsys, URL, *given, "--git-secret=a", "--webhook-secret=b")
    )
    assert set(given) <= set(arguments)
    assert "--agent-secrets=a,b" in arguments
    known = {name for parameter in agent.command.params for name in parameter.opts}
    assert {one.partition("=")[0] for one in arguments if one.startswith("--")} <= known
    usual = agent_arguments(printed(capsys, URL))
    assert not [one for one in usual if one.startswith(("--names", "--service", "--manual"))]


def test_doubtful_installations_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["install", "http://git.example.com/f.git", "--git-secret=fleet"]) == 0
    assert "http sends what --git-secret holds in clear text" in capsys.readouterr().err
    for more, told in (((), True), (("--namespaces=team-a",), False)):
        own = ("--watch-namespace=team-a", "--namespace=team-a", *more)
        assert cli.run(["install", *own]) == 0
        said = capsys.readouterr().err
        assert ("open it with --namespaces=team-a" in said) == told


def test_namespaces_can_be_made_only_where_the_agent_is_told_to() -> None:
    def of(name: str) -> set[str]:
        found = rules(install.objects(VARIANTS[name]))
        return {verb for r in found if r["resources"] == ["namespaces"] for verb in r["verbs"]}

    assert of("cluster") == of("namespace") == {"get"}
    assert of("creating") == {"get", "create", "patch"}


def test_the_agents_pod_fits_the_restricted_profile(wanted: Installation) -> None:
    spec = pod(install.objects(wanted))
    container = spec["containers"][0]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "privileged": False,
        "readOnlyRootFilesystem": True,
    }
    assert container["resources"].keys() == {"requests", "limits"}
    assert {"hostNetwork", "hostPID", "hostIPC"}.isdisjoint(spec)
    assert all("hostPath" not in volume for volume in spec["volumes"])
    assert "env" not in container


def test_the_token_is_short_lived_and_only_the_agents(wanted: Installation) -> None:
    objects = install.objects(wanted)
    account = next(body for body in objects if body["kind"] == "ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    assert pod(objects)["automountServiceAccountToken"] is False
    token = next(v for v in pod(objects)["volumes"] if v["name"] == "token")
    assert token["projected"]["sources"][0]["serviceAccountToken"]["expirationSeconds"] == 3600


def test_the_agents_objects_are_not_taken_for_a_servers(wanted: Installation) -> None:
    for body in install.objects(wanted):
        assert "app.kubernetes.io/managed-by" not in body["metadata"].get("labels", {})


@pytest.mark.parametrize("watched", ["", "ai"])
def test_a_namespace_that_others_may_use_gets_no_label_of_ours(watched: str) -> None:
    """Neither would its pods be judged by our profile, nor would it be deleted with the agent."""
    namespace = install.objects(Installation("i", namespace="ai", watch_namespace=watched))[0]
    assert namespace["metadata"] == {"name": "ai"}
    assert "labels" in install.objects(Installation("i"))[0]["metadata"]


@pytest.mark.usefixtures("processes")
def test_the_options_of_the_source_reach_the_agent(capsys: pytest.CaptureFixture[str]) -> None:
    objects = printed(
        capsys, URL, "--branch=main", "--cluster=prod", "--path=servers", "--interval=90s",
        "--source-id=fleet", "--image=example.com/agent:1", "-n", "system", "--allow-privileged",
    )  # fmt: skip
    assert agent_arguments(objects) == [
        "agent", URL, "--branch=main", "--path=servers", "--cluster=prod", "--source-id=fleet",
        "--interval=1m30s", "--allow-privileged", LISTEN,
    ]  # fmt: skip
    assert pod(objects)["containers"][0]["image"] == "example.com/agent:1"
    assert objects[-1]["metadata"]["name"] == "gitops-mcp-fleet"
    assert objects[-1]["metadata"]["namespace"] == "system"


@pytest.mark.parametrize(
    "source", ["https://org@dev.azure.com/org/p/_git/fleet", "ssh://git@git.example.com/x"]
)
def test_a_user_name_in_an_address_is_no_secret(
    source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert source in agent_arguments(printed(capsys, source, "--git-secret=fleet"))


def test_without_a_source_the_agent_gets_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert agent_arguments(printed(capsys)) == ["agent", LISTEN]


@pytest.mark.usefixtures("processes")
def test_every_argument_is_one_that_the_agent_takes(capsys: pytest.CaptureFixture[str]) -> None:
    objects = printed(
        capsys, "ssh://git@git.example.com/fleet.git", "--branch=b", "--path=p",
        "--cluster=c", "--limit=l", "--source-id=s", "--cluster-domain=d", "--interval=1s",
        "--allow-privileged", "--watch-namespace=w", "--git-secret=g", "--webhook-secret=h",
    )  # fmt: skip
    with agent.command.make_context("agent", agent_arguments(objects)[1:]) as context:
        assert context.params["location"] == "ssh://git@git.example.com/fleet.git"
        assert str(context.params["git_ssh_key"]) == "/etc/gitops-mcp/git/ssh-privatekey"
        assert context.params["watch_namespace"] == "w"
        assert str(context.params["webhook_secret_file"]) == "/etc/gitops-mcp/webhook/token"
        assert context.params["listen"] == ":8080"


@pytest.mark.parametrize(
    ("source", "files"),
    [
        (URL, ["--git-username=robot", "--git-password-file=/etc/gitops-mcp/git/password"]),
        (
            "git@git.example.com:fleet.git",
            [
                "--git-ssh-key=/etc/gitops-mcp/git/ssh-privatekey",
                "--git-known-hosts=/etc/gitops-mcp/git/known_hosts",
            ],
        ),
    ],
)
def test_git_credentials_are_files_of_a_mounted_secret(
    source: str, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    objects = printed(capsys, source, "--git-secret=fleet", "--git-username=robot")
    assert agent_arguments(objects) == ["agent", source, *files, "--agent-secrets=fleet", LISTEN]
    (volume,) = (v for v in pod(objects)["volumes"] if v["name"] == "git")
    assert volume["secret"] == {"secretName": "fleet", "defaultMode": 0o440}
    (mount,) = (m for m in pod(objects)["containers"][0]["volumeMounts"] if m["name"] == "git")
    assert mount["readOnly"] is True


def test_the_kubelet_and_prometheus_ask_the_port_that_the_agent_serves(
    wanted: Installation,
) -> None:
    from gitops_mcp.agent.endpoints import Endpoints

    objects = install.objects(wanted)
    container = pod(objects)["containers"][0]
    assert container["ports"] == [{"name": "http", "containerPort": 8080}]
    asked = {
        name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")
    }
    assert {get["port"] for get in asked.values()} == {"http"}
    assert [get["path"] for get in asked.values()] == ["/healthz", "/healthz", "/readyz"]
    scraped = objects[-1]["spec"]["template"]["metadata"]["annotations"]
    assert scraped == {"prometheus.io/scrape": "true", "prometheus.io/port": "8080"}
    listen = LISTEN.removeprefix("--listen=")
    assert Endpoints(listen, alive=str, ready=str, metrics=bytes)._address == ("", 8080)


def test_a_new_agent_stands_by_before_the_old_one_goes(wanted: Installation) -> None:
    strategy = install.objects(wanted)[-1]["spec"]["strategy"]
    assert strategy["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}


def test_a_webhook_gets_its_secret_and_a_service(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Service" not in kinds(printed(capsys, URL))
    objects = printed(capsys, URL, "--webhook-secret=forge")
    (service,) = (body for body in objects if body["kind"] == "Service")
    template = objects[-1]["spec"]["template"]
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    assert service["spec"]["ports"] == [{"name": "http", "port": 80, "targetPort": "http"}]
    (volume,) = (v for v in pod(objects)["volumes"] if v["name"] == "webhook")
    assert volume["secret"] == {"secretName": "forge", "defaultMode": 0o440}
    (mount,) = (m for m in pod(objects)["containers"][0]["volumeMounts"] if m["name"] == "webhook")
    assert mount == {"name": "webhook", "mountPath": "/etc/gitops-mcp/webhook", "readOnly": True}


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["https://robot:s3cret@git.example.com/fleet.git"], "--git-secret"),
        (["https://glpat-s3cret@git.example.com/fleet.git"], "--git-secret"),
        (["https://a1b2c3d4e5f6a1b2c3d4e5f6@git.example.com/fleet.git"], "--git-secret"),
        (["ssh://git:s3cret@git.example.com/fleet.git"], "--git-secret"),
        (["."], "git URL"),
        (["file:///srv/fleet.git"], "file"),
        ([URL, "--watch-namespace=a", "--create-namespace"], "--create-namespace"),
        ([URL, f"--source-id={'a' * 60}"], "up to 52"),
        ([URL, "--source-id=Team_A"], "no good name"),
        ([URL, "--source-id="], "no good name"),
        ([URL, "--image="], "'--image': '' must be a container image, such as"),
        ([URL, "--image=https://a/b"], "'--image': 'https://a/b' must be a container image"),
        ([URL, "--path=../x"], "'--path': folder '../x' leads out of the source"),
        ([URL, "--cluster="], "'--cluster': '' is no name of a cluster"),
        ([URL, "--git-secret=a/b"], "no name of a Secret: use lowercase letters"),
        ([URL, "--webhook-secret="], "no name of a Secret: use lowercase letters"),
        ([URL, "--git-username=a:b"], "'a:b' is no name of a git user: use no ':'"),
        (["--crd-only", "--skip-crd"], "nothing"),
        ([URL, "--branch=a", "--ref=b"], "--ref and --branch exclude each other"),
        ([URL, "--branch=a b"], "no branch name"),
        (["--branch=a"], "--ref and --branch need a SOURCE"),
    ],
)
def test_what_could_not_run_or_would_show_a_secret_is_refused(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["install", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert told in err
    assert "s3cret" not in err


@pytest.mark.parametrize("source", ["ssh://git@git.example.com/fleet.git", "git@example.com:fleet"])
def test_an_ssh_address_without_a_key_is_warned_of(
    capsys: pytest.CaptureFixture[str], source: str
) -> None:
    said = "warning: an ssh address needs a key: name its Secret with --git-secret\n"
    for arguments, expected in (
        ([source], said),
        ([source, "--git-secret=fleet"], ""),
        ([URL], ""),
    ):
        assert cli.run(["install", *arguments]) == 0
        assert capsys.readouterr().err == expected


def test_an_argument_is_not_taken_for_a_variable() -> None:
    objects = install.objects(Installation("i", ("--path=$(HOME)",)))
    assert agent_arguments(objects) == ["agent", "--path=$$(HOME)", LISTEN]


def test_a_name_that_is_too_long_is_refused() -> None:
    with pytest.raises(UsageError, match="too long"):
        install.objects(Installation("i", source_id="a" * 40, watch_namespace="b" * 40))
