"""The demo: one fleet from ``git push`` to Ready, healed and pruned, told with real commands.

Receives a cluster's URL, its kubeconfig and an empty folder. Each command is shown as a reader
could type it, run as a process of its own, and shown with its output; each claim is checked against
the cluster, over HTTP as any client would. Raises ``Broken`` at the first that does not hold. It
leaves no process behind; the folder and the cluster are its caller's to remove.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click

from gitops_mcp.base import objects, resources
from gitops_mcp.base.errors import UsageError
from gitops_mcp.base.names import ANNOTATION_SHUTDOWN, API_VERSION
from gitops_mcp.report.console import Style

PATIENCE: Final = 60.0
"""Seconds that anything may take on a machine that is busy with something else."""
POLL: Final = 0.05

AGENT: Final = "gitops-mcp agent ../fleet.git --interval 500ms --create-namespace"
GITLAB: Final = "servers/ai-tools/gitlab.yaml"
GITLAB_IMAGE: Final = "iwakitakuma/gitlab-mcp:2.0.19"
STRAY_IMAGE: Final = "docker.io/somebody/gitlab-mcp:latest"
FALCON: Final = "servers/platform/falcon.yaml"
GOFETCH: Final = "servers/ai-tools/gofetch.yaml"
DRAIN: Final = "  drain: {timeout: 4s, preStop: 5s}  # short, so that nobody waits for the demo\n"


class Broken(Exception):
    """Something that the demo claims does not hold."""


def tell(stage: Stage) -> None:
    """The whole story. Raises Broken."""
    stage.prepare()
    _push(stage)
    _drift(stage)
    with stage.agent("it starts again, and goes on where it was"):
        _healed_at_once(stage)
        _broken_manifest(stage)
        _prune(stage)
    _notes(stage)


# --- the acts -------------------------------------------------------------------------------


def _push(stage: Stage) -> None:
    stage.title("1. git push is the deployment")
    stage.say("An agent keeps the cluster as the repository says. There is no server in it yet.")
    with stage.agent():
        stage.say("Twelve MCP servers, one plain manifest each:")
        stage.run("git add servers")
        stage.run("git commit --quiet --message 'Run twelve MCP servers'")
        stage.run("git push --quiet")
        pushed = time.monotonic()
        stage.until("all twelve servers are Ready", lambda: _phases(stage) == {"Ready": 12})
        stage.say(f"All twelve are Ready, {time.monotonic() - pushed:.1f} s after the push.")
        stage.run("gitops-mcp status -A")


def _drift(stage: Stage) -> None:
    stage.title("2. What drifts is healed")
    stage.say("The agent was stopped, so that there is something to see. Somebody is in a hurry:")
    stage.change_image_by_hand()
    said = stage.run("gitops-mcp diff ../fleet.git", expect=1)
    stage.check(f"-        image: {STRAY_IMAGE}" in said, "diff shows what is live")
    stage.check(f"+        image: {GITLAB_IMAGE}" in said, "diff shows what git says")
    stage.say("One pass heals it:")
    said = stage.run("gitops-mcp sync --diff --wait=1m ../fleet.git")
    stage.check(f"-        image: {STRAY_IMAGE}" in said, "sync --diff shows what it healed")
    stage.check("ok=11 changed=1 pruned=0 failed=0" in said, "only the drifted server was changed")
    stage.check(_image(stage, "ai-tools", "gitlab") == GITLAB_IMAGE, "the image is git's again")
    stage.run("gitops-mcp diff ../fleet.git")


def _healed_at_once(stage: Stage) -> None:
    stage.say("The agent needs nobody to tell it of a drift. The same hurry once more:")
    stage.change_image_by_hand()
    begun = time.monotonic()
    stage.until("it is healed", lambda: _image(stage, "ai-tools", "gitlab") == GITLAB_IMAGE)
    stage.say(f"Git's image is back, {time.monotonic() - begun:.1f} s later.")


def _broken_manifest(stage: Stage) -> None:
    stage.title("3. A broken manifest stops nobody else")
    stage.say("One commit with a good change in one file, and two mistakes in another:")
    stage.edit(FALCON, "falcon-mcp:0.19.0", "falcon-mcp:0.19.1")
    stage.edit(GITLAB, "port: 3002", "port: three-thousand", "replicas: 2", "replica: 3")
    said = stage.run("gitops-mcp validate", expect=1)
    stage.check(f"{GITLAB}:8:9: error:" in said, "validate names file, line and column")
    stage.check('did you mean "replicas"?' in said, "validate knows what was meant")
    stage.say("A pull request would have stopped here. It is pushed all the same:")
    stage.run("git commit --quiet --all --message 'Falcon 0.19.1, and more of gitlab'")
    stage.run("git push --quiet")
    stage.until("the good change is Ready", lambda: _image_ready(stage, "falcon", "0.19.1"))
    stage.until("the broken one is told", lambda: _phase(stage, "ai-tools", "gitlab") == "Failed")
    gitlab = stage.get("apis/apps/v1", "ai-tools", "deployments", "gitlab")
    ready = objects.number(gitlab, "status", "readyReplicas")
    stage.check(ready == 2, "its last good pods still serve")
    stage.say("falcon runs 0.19.1. gitlab is Failed, and its last good version keeps serving:")
    stage.run("gitops-mcp status gitlab falcon -A")
    stage.say("Repaired:")
    stage.run(f"git checkout --quiet HEAD~1 -- {GITLAB}")
    stage.run("git commit --quiet --message 'Repair gitlab'")
    stage.run("git push --quiet")
    stage.until("all twelve are Ready again", lambda: _phases(stage) == {"Ready": 12})
    stage.say("All twelve are Ready again.")


def _prune(stage: Stage) -> None:
    stage.title("4. What git no longer holds is shut down gracefully")
    stage.run(f"git rm --quiet {GOFETCH}")
    stage.run("git commit --quiet --message 'Retire gofetch'")
    stage.run("git push --quiet")
    sight = _Sight(stage, "ai-tools", "gofetch")
    begun = time.monotonic()
    for what, holds in (
        ("Terminating  said in its status, with a deadline", sight.terminating),
        ("Withdrawn    its Service selects no pod any more, the pod still runs", sight.withdrawn),
        ("Draining     sessions may end, 4 s at most here", sight.draining),
        ("Stopping     scaled to 0: preStop, SIGTERM, grace", sight.stopping),
        ("Stopped      no pod is left", sight.stopped),
        ("Deleted      Deployment, Service and MCPServer are gone", sight.deleted),
    ):
        stage.until(what, holds)
        stage.say(f"{time.monotonic() - begun:5.1f} s  {what}")
    stage.check(_phases(stage) == {"Ready": 11}, "the others are not concerned")


def _notes(stage: Stage) -> None:
    stage.title("5. What was deployed when stands in git")
    said = stage.run("gitops-mcp history --server gitlab ../fleet.git")
    stage.check("update Deployment" in said, "the healing is on record")
    stage.check("failed" in said, "the broken manifest is on record")
    said = stage.run("gitops-mcp history --server gofetch ../fleet.git")
    stage.check("pruned" in said, "the removal is on record")
    stage.say("They are ordinary git notes, so git alone reads them too:")
    said = stage.run("git --git-dir ../fleet.git notes --ref gitops-mcp/default show main")
    stage.check('"event":"pruned"' in said, "the note of the last commit tells of the removal")


# --- what the cluster says ------------------------------------------------------------------


def _servers(stage: Stage) -> list[Any]:
    return objects.items(stage.get(f"apis/{API_VERSION}", "", "mcpservers", ""), "items")


def _phases(stage: Stage) -> dict[str, int]:
    """How many servers are in each phase."""
    found: dict[str, int] = {}
    for server in _servers(stage):
        phase = objects.text(server, "status", "phase")
        found[phase] = found.get(phase, 0) + 1
    return found


def _phase(stage: Stage, namespace: str, name: str) -> str:
    server = stage.get(f"apis/{API_VERSION}", namespace, "mcpservers", name)
    return objects.text(server, "status", "phase")


def _image(stage: Stage, namespace: str, name: str) -> str:
    deployment = stage.get("apis/apps/v1", namespace, "deployments", name)
    if deployment is None:
        return ""
    return str(deployment["spec"]["template"]["spec"]["containers"][0]["image"])


def _image_ready(stage: Stage, name: str, tag: str) -> bool:
    if not _image(stage, "platform", name).endswith(f":{tag}"):
        return False
    status = objects.status(stage.get("apis/apps/v1", "platform", "deployments", name))
    rolled = status.get("updatedReplicas") == status.get("replicas") == status.get("readyReplicas")
    return rolled and _phase(stage, "platform", name) == "Ready"


class _Sight:
    """The steps of one server's shutdown, as its objects show them."""

    def __init__(self, stage: Stage, namespace: str, name: str) -> None:
        self._stage = stage
        self._namespace = namespace
        self._name = name

    def terminating(self) -> bool:
        server = self._get(f"apis/{API_VERSION}", "mcpservers")
        return objects.text(server, "status", "shutdown", "deadline") != ""

    def withdrawn(self) -> bool:
        service = self._get("api/v1", "services")
        if ANNOTATION_SHUTDOWN not in objects.annotations(service):
            return False
        return self._endpoints() == 0 and self._pods() == 1

    def draining(self) -> bool:
        server = self._get(f"apis/{API_VERSION}", "mcpservers")
        step = objects.text(server, "status", "shutdown", "step")
        return step == "Draining" and self._pods() == 1

    def stopping(self) -> bool:
        deployment = self._get("apis/apps/v1", "deployments")
        return deployment is not None and objects.replicas(deployment["spec"]) == 0

    def stopped(self) -> bool:
        return self._pods() == 0

    def deleted(self) -> bool:
        return all(
            self._get(api, plural) is None
            for api, plural in (
                ("apis/apps/v1", "deployments"),
                ("api/v1", "services"),
                (f"apis/{API_VERSION}", "mcpservers"),
            )
        )

    def _get(self, api: str, plural: str) -> Any:
        return self._stage.get(api, self._namespace, plural, self._name)

    def _pods(self) -> int:
        label = f"app.kubernetes.io/instance={self._name}"
        return len(self._stage.get("api/v1", self._namespace, "pods", "", label)["items"])

    def _endpoints(self) -> int:
        label = f"kubernetes.io/service-name={self._name}"
        api = "apis/discovery.k8s.io/v1"
        slices = self._stage.get(api, self._namespace, "endpointslices", "", label)["items"]
        return sum(len(one.get("endpoints") or ()) for one in slices)


# --- the stage ------------------------------------------------------------------------------


class Stage:
    """Runs, shows and checks; its state is a folder, a cluster and at most one agent.

    ``url`` is the API server's; everything that is started gets ``kubeconfig``. ``folder`` holds
    ``fleet.git``, which stands for the team's git server, and ``fleet``, somebody's clone.
    """

    def __init__(self, url: str, kubeconfig: Path, folder: Path, style: Style) -> None:
        self._url = url
        self._folder = folder
        self._clone = folder / "fleet"
        self._style = style
        self._log = folder / "agent.log"
        self._read = 0
        self._agent: subprocess.Popen[bytes] | None = None
        self._environment = _environment(kubeconfig, folder, style)

    def prepare(self) -> None:
        """The repository, with all of the example but its servers."""
        if shutil.which("git") is None:
            raise UsageError("the demo needs git, which is not on PATH")
        self._quietly("git", "init", "--quiet", "--bare", "--initial-branch=main", "fleet.git")
        self._quietly("git", "clone", "--quiet", "fleet.git", "fleet")
        shutil.copytree(
            resources.folder("repo-example"),
            self._clone,
            dirs_exist_ok=True,
            copy_function=shutil.copyfile,  # what is installed read-only is to be edited
        )
        with (self._clone / GOFETCH).open("a", encoding="utf-8") as manifest:
            manifest.write(DRAIN)
        self._quietly("git", "-C", "fleet", "checkout", "--quiet", "-B", "main")
        self._quietly("git", "-C", "fleet", "add", "README.md", "group_vars")
        self._quietly("git", "-C", "fleet", "commit", "--quiet", "--message", "An empty fleet")
        self._quietly("git", "-C", "fleet", "push", "--quiet", "--set-upstream", "origin", "main")

    # --- what is said ---

    def title(self, text: str) -> None:
        """Begin an act."""
        click.echo(f"\n{self._style('bold', text)}")

    def say(self, text: str) -> None:
        """One sentence."""
        click.echo(f"\n{text}" if not text.startswith(" ") else text)

    def _show(self, command: str) -> None:
        click.echo(self._style("cyan", f"$ {command}"))

    # --- what is done ---

    def run(self, command: str, *, expect: int = 0) -> str:
        """Run a command in the clone and show it; returns what it said, on stdout and stderr."""
        self._show(command)
        first, *others = shlex.split(command)
        program = [sys.executable, "-m", "gitops_mcp"] if first == "gitops-mcp" else [first]
        ran = subprocess.run(  # noqa: S603 -- our own commands
            [*program, *others],
            cwd=self._clone,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            timeout=2 * PATIENCE,
            check=False,
        )
        click.echo(ran.stdout, nl=False)
        self.check(ran.returncode == expect, f"it ends with {expect} (it was {ran.returncode})")
        return click.unstyle(ran.stdout)

    def edit(self, file: str, *words: str) -> None:
        """Change a file of the clone, each first word into the one that follows it, and show it."""
        path = self._clone / file
        text = path.read_text(encoding="utf-8")
        click.echo(f"  {file}")
        for before, after in zip(words[::2], words[1::2], strict=True):
            self.check(text.count(before) == 1, f"{file} says {before!r} once")
            text = text.replace(before, after)
            click.echo(self._style("red", f"  - {before}"))
            click.echo(self._style("green", f"  + {after}"))
        path.write_text(text, encoding="utf-8")

    def change_image_by_hand(self) -> None:
        """As somebody with kubectl would; without one, by the request that it would send."""
        command = f"kubectl -n ai-tools set image deployment/gitlab mcp-server={STRAY_IMAGE}"
        if shutil.which("kubectl"):
            self.run(command)
            return
        self._show(f"{command}   # no kubectl here: its request is sent instead")
        containers = [{"name": "mcp-server", "image": STRAY_IMAGE}]
        body = {"spec": {"template": {"spec": {"containers": containers}}}}
        self._request(
            "apis/apps/v1/namespaces/ai-tools/deployments/gitlab?fieldManager=kubectl-set",
            "PATCH",
            json.dumps(body).encode(),
        )

    @contextmanager
    def agent(self, remark: str = "") -> Iterator[None]:
        """An agent in the background, stopped at the end with SIGTERM."""
        self._show(f"{AGENT} &" + (f"   # {remark}" if remark else ""))
        _, *arguments = shlex.split(AGENT)
        with self._log.open("ab") as log:
            self._agent = subprocess.Popen(  # noqa: S603 -- our own command
                [sys.executable, "-m", "gitops_mcp", *arguments],
                cwd=self._clone,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self.until("the agent is at work", self._holds_lease)
            yield
            self._show("kill %1   # SIGTERM: the agent ends its pass, and goes")
            self._agent.terminate()
            code = self._agent.wait(PATIENCE)
            self._hear()
            self.check(code == 0, f"the agent ends with 0 (it was {code})")
        finally:
            self._agent.terminate()
            try:
                self._agent.wait(10)
            except subprocess.TimeoutExpired:
                self._agent.kill()
                self._agent.wait()
            self._agent = None

    # --- what is looked at ---

    def check(self, holds: bool, claim: str) -> None:
        """Raise Broken unless the claim holds."""
        if not holds:
            raise Broken(claim)

    def until(self, claim: str, holds: Callable[[], bool]) -> None:
        """Wait for a claim to hold, and pass on what the agent says meanwhile."""
        give_up = time.monotonic() + PATIENCE
        while not holds():
            self._hear()
            if self._agent is not None and self._agent.poll() is not None:
                raise Broken(f"{claim} (the agent has ended with {self._agent.returncode})")
            if time.monotonic() > give_up:
                raise Broken(f"{claim} (not within {PATIENCE:.0f} s)")
            time.sleep(POLL)
        self._hear()

    def get(self, api: str, namespace: str, plural: str, name: str, labels: str = "") -> Any:
        """An object, or a list where ``name`` is empty; None where there is none."""
        where = f"/namespaces/{namespace}" if namespace else ""
        query = f"?labelSelector={urllib.parse.quote(labels)}" if labels else ""
        return self._request(f"{api}{where}/{plural}{f'/{name}' if name else ''}{query}")

    def _request(self, path: str, method: str = "GET", body: bytes | None = None) -> Any:
        request = urllib.request.Request(  # noqa: S310 -- our own server on loopback
            f"{self._url}/{path}",
            body,
            {"Content-Type": "application/strategic-merge-patch+json"},
            method=method,
        )
        # The proxies of the environment are not for loopback.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=PATIENCE) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 404:
                    return None
                raise Broken(f"{method} {path} is answered ({error.code})") from error

    def _holds_lease(self) -> bool:
        from gitops_mcp.cluster import sourceleases

        lease = self.get("apis/coordination.k8s.io/v1", "default", "leases", "gitops-mcp-default")
        return lease is not None and sourceleases.agents(lease)

    def _hear(self) -> None:
        """Show the whole lines that the agent has said since the last time."""
        with self._log.open("rb") as log:
            log.seek(self._read)
            said = log.read()
        said = said[: said.rfind(b"\n") + 1]
        self._read += len(said)
        for line in said.decode(errors="replace").splitlines():
            click.echo(f"{self._style('dim', 'agent |')} {line}")

    def _quietly(self, *command: str) -> None:
        ran = subprocess.run(  # noqa: S603 -- our own commands
            command,
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        self.check(ran.returncode == 0, f"{shlex.join(command)} works: {ran.stderr.strip()}")


def _environment(kubeconfig: Path, folder: Path, style: Style) -> dict[str, str]:
    """The caller's environment, without what would make git, kubectl or us behave as at home."""
    ours = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("GIT_", "GITOPS_MCP_"))
    }
    package = str(Path(__file__).parents[2])
    who = {"NAME": "Demo", "EMAIL": "demo@example.com"}
    identity = {f"GIT_{role}_{k}": v for role in ("AUTHOR", "COMMITTER") for k, v in who.items()}
    return (
        ours
        | identity
        | {
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GITOPS_MCP_COLOR": "always" if style.color else "never",
            "GITOPS_MCP_LOG_FORMAT": "text",
            "GITOPS_MCP_LISTEN": "127.0.0.1:0",  # the agent's own port may be taken
            "GITOPS_MCP_CLUSTER": "default",  # the group_vars of no cluster
            "GITOPS_MCP_NOTES": "on",  # the repository is the demo's own
            "KUBECONFIG": str(kubeconfig),
            # Commands run in other folders, and a checkout need not be installed.
            "PYTHONPATH": os.pathsep.join(filter(None, (package, ours.get("PYTHONPATH")))),
            "KUBECACHEDIR": str(folder / "cache"),  # nothing is left at home
            "XDG_CONFIG_HOME": str(folder),  # git's ignored files and attributes
        }
    )
