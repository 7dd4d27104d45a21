"""A fleet of any size for benchmarks: git files of MCPServers, the same at every call."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from gitops_mcp.base.source import SourceFile
from gitops_mcp.base.transports import TRANSPORTS

_DEFAULTS = """\
spec:
  config: {{LOG_LEVEL: info, CORS_ORIGINS: "https://*.example.com"}}
  podAnnotations: {{example.org/cost-center: platform}}
{more}
region: eu-central-1
"""

_MANIFEST = """\
# Tools of team {team}, kept by its own people.
apiVersion: mcp.example.com/v1alpha1
kind: MCPServer
metadata:
  name: tools-{number}
  namespace: team-{team}
  labels:
    example.org/team: team-{team}
spec:
  image: ghcr.io/example/tools-{team}:1.{number}.{version}
  transport: {transport}
  {replicas}
  args: [--log-format, json, --name, "tools {number}"]
  config:
    SESSION_TIMEOUT: {timeout}m
    UPSTREAM_URL: https://api.example.com/v{version}/teams/{team}
{settings}
  env:
    - name: API_TOKEN
      valueFrom:
        secretKeyRef: {{name: tools-{number}, key: token}}
  resources:
    limits: {{cpu: "1", memory: 512Mi}}
  nodeSelector:
    kubernetes.io/arch: amd64
"""


def files(
    count: int,
    *,
    version: int = 1,
    changed: int = 0,
    replicas: int | None = None,
    defaults: str = "",
) -> tuple[SourceFile, ...]:
    """``count`` manifests and one group_vars file, sorted by path. The first ``changed`` manifests
    are of the version after ``version``; all have ``replicas``, where given. ``defaults`` are lines
    of YAML added to the group_vars' spec."""
    fleet = [
        _file("group_vars/all.yaml", _DEFAULTS.format(more=defaults)),
        *_manifests(count, version, changed, replicas),
    ]
    return tuple(sorted(fleet, key=lambda file: file.path))


def _manifests(
    count: int, version: int, changed: int, replicas: int | None
) -> Iterator[SourceFile]:
    names = tuple(TRANSPORTS)
    for number in range(count):
        # One in seven has no network; settings and replicas vary, so that structures do.
        transport = names[0] if number % 7 == 0 else names[1 + number % 2]
        wanted = 1 if number % 7 == 0 else 1 + number % 4
        if replicas is not None:
            wanted = replicas
        text = _MANIFEST.format(
            number=number,
            team=number % 40,
            version=version + (number < changed),
            transport=transport,
            replicas=f"replicas: {wanted}",
            timeout=5 + number % 50,
            settings="\n".join(
                f"    SETTING_{index}: value-{index}" for index in range(number % 6)
            ),
        )
        yield _file(f"team-{number % 40}/tools-{number}.yaml", text)


def _file(path: str, text: str) -> SourceFile:
    data = text.encode()
    blob = hashlib.sha1(b"blob %d\0%b" % (len(data), data), usedforsecurity=False).hexdigest()
    return SourceFile(path, blob, data)
