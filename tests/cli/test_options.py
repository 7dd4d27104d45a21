"""Options come from flag, environment and file, in this order, whichever verb has them."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from commandline import Run, manifest, runner

from gitops_mcp.base.errors import UsageError
from gitops_mcp.cli import configfile, types
from gitops_mcp.cli import main as cli
from gitops_mcp.decide.rollout import ALL, DEFAULT, Serial
from gitops_mcp.source import settings
from gitops_mcp.sync import reading


@pytest.fixture
def gitops(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


@pytest.fixture(autouse=True)
def _source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a server that names no namespace: where it goes shows what -n was."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "web.yaml").write_text(manifest(namespace=None))
    monkeypatch.chdir(tmp_path / "source")


def namespace(gitops: Run, *arguments: object) -> str:
    ended = gitops("render", "-o", "json", *arguments)
    assert ended.code == 0, ended.err
    found: str = ended.json["items"][0]["metadata"]["namespace"]
    return found


def test_a_flag_beats_the_environment_beats_the_file(
    gitops: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.yaml"
    assert namespace(gitops) == "default"
    file.write_text("namespace: from-file\n")
    assert namespace(gitops, "--config", file) == "from-file"
    monkeypatch.setenv("GITOPS_MCP_NAMESPACE", "from-environment")
    assert namespace(gitops, "--config", file) == "from-environment"
    assert namespace(gitops, "--config", file, "-n", "from-flag") == "from-flag"


def test_the_file_can_be_named_by_the_environment(
    gitops: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.yaml").write_text("namespace: from-file\n")
    monkeypatch.setenv("GITOPS_MCP_CONFIG", str(tmp_path / "config.yaml"))
    assert namespace(gitops) == "from-file"


def test_what_a_verb_lacks_is_ignored(
    gitops: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("interval: 90s\nwait: true\nprobes: on\nallNamespaces: true\n")
    monkeypatch.setenv("GITOPS_MCP_TAKE_OVER", "nonsense")
    monkeypatch.setenv("GITOPS_MCP_NO_SUCH_OPTION", "1")
    assert gitops("validate", "--config", file).code == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("namespce: ai\n", "no option 'namespce'; did you mean 'namespace'?"),
        ("takeOvr: true\n", "no option 'takeOvr'; did you mean 'takeOver'?"),
        ("- a\n", "expected a mapping of options"),
        ("a: [\n", ":1:5: not YAML: did not find expected node content"),
        ("namespace: {a: b}\n", "namespace: expected one value"),
        ("limit: [[a]]\n", "limit: expected one value"),
    ],
)
def test_a_wrong_file_is_an_error_with_a_way_out(
    gitops: Run, tmp_path: Path, text: str, says: str
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    ended = gitops("validate", "--config", file)
    assert (ended.code, ended.out) == (2, "")
    assert str(file) in ended.error
    assert says in ended.error


def test_a_file_that_is_not_there_is_named(gitops: Run, tmp_path: Path) -> None:
    ended = gitops("validate", "--config", tmp_path / "none.yaml")
    assert ended.code == 2
    assert "none.yaml: No such file or directory" in ended.error


def test_values_of_the_file_are_what_they_would_be_as_flags(gitops: Run, tmp_path: Path) -> None:
    """YAML's own reading would make a boolean of ``on`` and a number of ``007``."""
    parsed = settings.parse_config(b"probes: on\nwait: 90s\nlimit: 007\nref:\n", "f", allowed=None)
    assert parsed == {"probes": "on", "wait": "90s", "limit": "007"}
    file = tmp_path / "config.yaml"
    file.write_text("limit: [web, '!*-canary']\nallowPrivileged: yes\n")
    assert gitops("render", "--config", file).out.count("kind: MCPServer") == 1
    file.write_text("limit: ['!web']\n")
    assert gitops("render", "--config", file).out == ""


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("allowPrivileged", "may not be set by the source itself"),
        ("templates", "may not be set by the source itself"),
        ("allowPrune", "may not be set by the source itself"),
        ("pth", "did you mean 'path'?"),
        ("serial", "expected a number of servers, a share such as 20%, or off"),
    ],
)
def test_the_sources_own_file_gives_itself_no_power(gitops: Run, key: str, why: str) -> None:
    Path("gitops-mcp.yaml").write_text(f"{key}: true\n")
    ended = gitops("validate")
    assert ended.code == 2
    assert "gitops-mcp.yaml" in ended.error
    assert why in ended.error


def test_the_sources_own_file_says_where_it_lies_and_who_it_is(gitops: Run) -> None:
    Path("gitops-mcp.yaml").write_text("path: servers\nsourceId: fleet\n")
    Path("servers").mkdir()
    Path("servers/api.yaml").write_text(manifest("api"))
    found = gitops("render", "-o", "json").json["items"]
    assert [body["metadata"]["name"] for body in found if body["kind"] == "MCPServer"] == ["api"]
    assert found[0]["metadata"]["labels"]["mcp.example.com/source"] == "fleet"
    given = gitops("render", "-o", "json", "--path", "", "--source-id", "mine").json["items"]
    assert given[0]["metadata"]["labels"]["mcp.example.com/source"] == "mine"
    assert {b["metadata"]["name"] for b in given} == {"api", "web"}


@pytest.mark.parametrize("name", ["cluster", "UPPER", "a b", "-x", "x" * 60, "a/b"])
def test_a_source_id_must_do_for_a_label_and_a_lease(gitops: Run, name: str) -> None:
    ended = gitops("validate", f"--source-id={name}")
    assert ended.code == 2
    assert "source id" in ended.error


@pytest.mark.parametrize(
    ("text", "value"),
    [("90s", 90), ("1h30m", 5400), ("1.5s", 1.5), ("250ms", 0.25), ("0", 0)],
)
def test_durations_are_gos(text: str, value: float) -> None:
    assert types.Duration().convert(text, None, None) == timedelta(seconds=value)


@pytest.mark.parametrize("text", ["5", "1d", "five", "-3s", "", "1h 2m"])
def test_what_is_no_duration_is_refused(gitops: Run, text: str) -> None:
    ended = gitops("sync", f"--wait={text}")
    assert ended.code == 2
    assert "no duration such as 90s or 1h30m" in ended.error


@pytest.mark.parametrize(
    "verb",
    ["validate", "render", "diff", "sync", "agent", "install", "status", "reconcile", "suspend"],
)
@pytest.mark.parametrize("name", ["Bad_NS", "-x", "a.b", "-".join(["team"] * 13), ""])
def test_what_is_no_namespace_is_refused_and_drops_no_manifest(
    gitops: Run, verb: str, name: str
) -> None:
    ended = gitops(verb, f"--namespace={name}", *(["web"] if verb == "suspend" else []))
    assert (ended.code, ended.out) == (2, "")
    assert f"'-n' / '--namespace': {name!r} is no name of a namespace" in ended.error


@pytest.mark.parametrize("verb", ["agent", "install"])
def test_what_is_no_namespace_is_not_watched(gitops: Run, verb: str) -> None:
    ended = gitops(verb, "--watch-namespace=team_a")
    assert (ended.code, ended.out) == (2, "")
    assert "'--watch-namespace': 'team_a' is no name of a namespace" in ended.error


@pytest.mark.parametrize("where", ["environment", "file"])
def test_a_namespace_is_checked_wherever_it_comes_from(
    gitops: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    (tmp_path / "config.yaml").write_text("namespace: Bad_NS\n" if where == "file" else "")
    if where == "environment":
        monkeypatch.setenv("GITOPS_MCP_NAMESPACE", "Bad_NS")
    ended = gitops("validate", "--config", tmp_path / "config.yaml")
    assert ended.code == 2
    assert "'Bad_NS' is no name of a namespace" in ended.error


@pytest.mark.parametrize("verb", ["render", "install"])
@pytest.mark.parametrize("name", ["bad domain", "cluster..local", "x/y", "Cluster.Local", ""])
def test_what_is_no_domain_is_refused(gitops: Run, verb: str, name: str) -> None:
    ended = gitops(verb, f"--cluster-domain={name}")
    assert (ended.code, ended.out) == (2, "")
    assert f"'--cluster-domain': {name!r} is no name of a DNS domain" in ended.error


@pytest.mark.parametrize("verb", ["validate", "agent", "install"])
@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("namespaces", "a,*/x", "'*/x' is no namespace glob: use globs such as team-*"),
        ("namespaces", "[", "'[' is no namespace glob"),
        ("namespaces", "Team", "'Team' is no namespace glob"),
        ("namespaces", "!legacy", "'!legacy' leaves nothing: use globs such as team-*"),
        ("service-accounts", "foo", "'foo' is no service account glob: use NAMESPACE/NAME"),
        ("service-accounts", "/foo", "'/foo' is no service account glob"),
        ("service-accounts", "*/{nam}", "'*/{nam}' is no service account glob"),
        ("drain-hosts", "http://x", "'http://x' is no host glob: use host names such as *.e"),
        ("drain-hosts", "x:80", "'x:80' is no host glob"),
        ("drain-hosts", "x/y", "'x/y' is no host glob"),
        ("limit", "a/b/c", "'a/b/c' is no pattern of servers: use globs on NAME or NAMESPACE/NAME"),
        *(
            (option, value, f"{value!r} names nothing: use ")
            for option in ("namespaces", "service-accounts", "drain-hosts", "limit")
            for value in ("", ",")
        ),
    ],
)
def test_what_could_never_match_is_refused_wherever_it_comes_from(
    gitops: Run, tmp_path: Path, verb: str, option: str, value: str, told: str
) -> None:
    expected = f"Invalid value for '--{option}': {told}"
    ended = gitops(verb, f"--{option}={value}")
    assert (ended.code, ended.out) == (2, "")
    assert expected in ended.error
    name = "".join(part.title() for part in option.split("-"))
    config = tmp_path / "operators.yaml"
    key = f"{name[0].lower()}{name[1:]}"
    config.write_text(f"{key}: {value.split(',')!r}\n")
    ended = gitops(verb, "--config", config)
    assert (ended.code, ended.out) == (2, "")
    assert f"Invalid value for '{key}' in {config}: {told}" in ended.error


@pytest.mark.parametrize("value", ["a,A b", "", ","])
def test_names_of_the_agents_secrets_are_names(gitops: Run, value: str) -> None:
    assert gitops("validate", f"--agent-secrets={value}").code == 2


@pytest.mark.parametrize("value", ["", ",", "a\tb", "x" * 129])
def test_names_of_field_managers_are_names(gitops: Run, value: str) -> None:
    assert gitops("diff", f"--kubectl-managers={value}").code == 2


@pytest.mark.parametrize("value", ['""', '","', "[]", '[""]'])
def test_a_list_that_names_nothing_is_refused_in_the_file(
    gitops: Run, tmp_path: Path, value: str
) -> None:
    config = tmp_path / "operators.yaml"
    config.write_text(f"limit: {value}\n")
    ended = gitops("render", "--config", config)
    assert (ended.code, ended.out) == (2, "")
    assert "names nothing: use globs" in ended.error


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("namespaces", "*,team-?,!team-[a-c],kube-system"),
        ("service-accounts", "*/{name},team-*/ci.{name}-[!a]"),
        ("drain-hosts", "*.example.com,127.0.0.1,fd00::1,a_b"),
        ("limit", "web-*,!ai/*,[ab]/c"),
    ],
)
def test_what_can_match_is_taken(gitops: Run, option: str, value: str) -> None:
    assert gitops("install", f"--{option}={value}").code == 0


@pytest.mark.parametrize(
    "arguments", [["sync", "--wait"], ["agent", "--interval"], ["install", "--interval"]]
)
@pytest.mark.parametrize("text", ["10001h", "99999999h", "9" * 30 + "h"])
def test_a_duration_that_outlasts_the_calendar_is_refused(
    gitops: Run, arguments: list[str], text: str
) -> None:
    *verb, option = arguments
    ended = gitops(*verb, f"{option}={text}")
    assert (ended.code, ended.out) == (2, "")
    assert "is longer than 10000h" in ended.error


@pytest.mark.parametrize(
    ("arguments", "seconds"), [(["--wait"], 300), (["--wait=90s"], 90), (["--wait", "."], 300)]
)
def test_a_value_may_be_left_out_without_eating_the_next_argument(
    arguments: list[str], seconds: float
) -> None:
    command = cli.cli.get_command(None, "sync")  # type: ignore[arg-type]
    assert command is not None
    context = command.make_context("sync", ["--check", *arguments])
    assert context.params["wait"] == timedelta(seconds=seconds)
    assert context.params["check"]
    assert context.params["location"] == "."


@pytest.mark.parametrize(
    ("option", "value"), [("--wait", "2m"), ("--wait", "1h30m"), ("--allow-prune", "7")]
)
def test_a_value_without_its_equals_sign_is_no_source(gitops: Run, option: str, value: str) -> None:
    ended = gitops("sync", option, value)
    assert ended.code == 2
    assert ended.error == f"error: {value}: no such directory; did you mean {option}={value}?"
    Path(value).mkdir()
    assert "did you mean" not in gitops("sync", option, value).err


@pytest.mark.parametrize(
    ("verb", "option"), [("agent", "interval"), ("agent", "full-check"), ("install", "interval")]
)
@pytest.mark.parametrize("value", ["0", "0s", "0.1us"])
def test_nothing_is_done_all_the_time(gitops: Run, verb: str, option: str, value: str) -> None:
    ended = gitops(verb, f"--{option}={value}")
    assert (ended.code, ended.out) == (2, "")
    assert f"'--{option}': {value!r} is too short: it must be more than 0" in ended.error


def test_every_option_is_declared_for_environment_and_file() -> None:
    for verb in cli.VERBS:
        command = cli.cli.get_command(None, verb)  # type: ignore[arg-type]
        assert command is not None
        for param in command.params:
            if param.param_type_name == "option" and param.name not in ("help", "config"):
                assert param.name in configfile.DECLARED.values(), (verb, param.name)
                assert str(param.envvar).startswith("GITOPS_MCP_"), (verb, param.name)
    assert configfile.DECLARED.keys() == settings.KEYS


def test_a_problem_of_the_file_is_an_expected_failure() -> None:
    with pytest.raises(UsageError):
        settings.parse_config(b"x: 1", "file", allowed=None)


def serial_of(where: Path) -> Serial:
    source = settings.SourceOptions(location=str(where))
    with reading.open_repository(source) as repository:
        return reading.read(source, repository).serial


def test_a_source_may_say_how_many_servers_take_a_change_at_a_time(tmp_path: Path) -> None:
    assert serial_of(tmp_path / "source") == DEFAULT
    (tmp_path / "source" / "gitops-mcp.yaml").write_text("serial: 5\n")
    assert serial_of(tmp_path / "source") == Serial.parse("5")
    (tmp_path / "source" / "gitops-mcp.yaml").write_text("serial: off\n")
    assert serial_of(tmp_path / "source") == ALL


@pytest.mark.parametrize("verb", ["sync", "agent"])
def test_a_wrong_serial_is_refused_before_anything_is_done(gitops: Run, verb: str) -> None:
    ended = gitops(verb, "--serial", "0%")
    assert ended.code == 2
    assert "serial '0%': expected a number of servers" in ended.error


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(
    ("verb", "text", "told"),
    [
        ("validate", "health: {timeout: 3y}", "health.timeout: must be a duration"),
        ("validate", "drain: [a]", "drain: must be a map, not a list"),
        ("validate", "sourceId: A B", "source id 'A B' is no good name"),
        ("validate", "path: ../..", "folder '../..' leads out of the source"),
        ("validate", "ref: a..b", "'a..b' names no commit"),
        ("sync", "serial: foo", "serial 'foo': expected a number of servers"),
        ("sync", "allowPrune: foo", "'foo' is not a number of servers"),
        ("agent", "interval: 1y", "'1y' is no duration"),
        ("install", "image: A B", "'A B' must be a container image"),
        ("install", "gitSecret: A B", "'A B' is no name of a Secret"),
    ],
)
def test_what_is_wrong_in_the_operators_file_names_the_file(
    gitops: Run, tmp_path: Path, verb: str, text: str, told: str
) -> None:
    config = tmp_path / "operators.yaml"
    config.write_text(f"{text}\n")
    ended = gitops(verb, "--config", config)
    assert (ended.code, ended.out) == (2, "")
    assert f" {config}: {told}" in ended.error


def test_what_is_wrong_in_the_environment_names_the_variable(
    gitops: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITOPS_MCP_LIMIT", ",")
    assert "Invalid value for GITOPS_MCP_LIMIT: ',' names nothing" in gitops("render").error
    monkeypatch.setenv("GITOPS_MCP_LIMIT", "")
    assert gitops("render").code == 0


def test_a_hook_that_is_wrong_names_the_operators_file(gitops: Run, tmp_path: Path) -> None:
    config = tmp_path / "operators.yaml"
    config.write_text("hooks: 3\n")
    ended = gitops("agent", "--config", config)
    assert (ended.code, f"{config}: hooks: expected a list" in ended.err) == (2, True)


@pytest.mark.parametrize("option", ["git-secret", "webhook-secret"])
def test_the_name_of_a_secret_is_shown_and_a_token_in_its_place_is_not(
    gitops: Run, option: str
) -> None:
    assert f"'--{option}': 'A B' is no name" in gitops("install", f"--{option}=A B").error
    token = "ghp_" + "a1B2" * 9
    assert token not in gitops("install", f"--{option}={token}").error


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("verb", ["validate", "diff", "sync", "agent", "install", "history"])
@pytest.mark.parametrize(
    ("option", "name"),
    [
        *(
            ("branch", name)
            for name in ("a..b", "a.lock", "/a", "a//b", "-a", "a b", "a~1", "@{", "")
        ),
        *(("ref", name) for name in ("a..b", "a.lock", "/a", "a/", "-a", "a b", "a\tb", "", " ")),
    ],
)
def test_what_git_takes_for_no_ref_is_refused(
    gitops: Run, verb: str, option: str, name: str
) -> None:
    ended = gitops(verb, "https://git.invalid/fleet.git", f"--{option}={name}")
    assert (ended.code, ended.out) == (2, "")
    told = "is no branch name" if option == "branch" else "names no commit"
    assert f"'--{option}': {name!r} {told}" in ended.error


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(
    "ref",
    [
        "main",
        "v1.0",
        "refs/heads/a/b",
        "HEAD~2",
        "v1^{commit}",
        "main@{1}",
        ":/fix",
        "@",
        "a1" * 20,
    ],
)
def test_what_names_a_commit_is_taken(ref: str) -> None:
    assert types.REF.convert(ref, None, None) == ref
