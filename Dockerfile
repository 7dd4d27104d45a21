# syntax=docker/dockerfile:1
# The agent's image: numeric non-root user, runs with a read-only root filesystem (scratch space is
# an emptyDir on /tmp). The wheel is built by the same pinned tools as everywhere else.
ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
WORKDIR /src
COPY requirements/ requirements/
RUN python -m venv /opt/tools \
 && /opt/tools/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes \
      -r requirements/build.txt \
 && python -m venv --without-pip /opt/gitops-mcp \
 && /opt/tools/bin/uv pip install --no-cache --compile-bytecode --require-hashes \
      --python /opt/gitops-mcp/bin/python -r requirements/run.txt
COPY pyproject.toml README.md LICENSE ./
COPY gitops_mcp/ gitops_mcp/
COPY schemas/ schemas/
COPY templates/ templates/
COPY repo-example/ repo-example/
RUN /opt/tools/bin/python -m build --no-isolation --wheel \
 && /opt/tools/bin/uv pip install --no-cache --compile-bytecode --no-deps --no-index \
      --python /opt/gitops-mcp/bin/python dist/*.whl

FROM python:${PYTHON}-slim
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="gitops-mcp" \
      org.opencontainers.image.description="git push is the deployment interface for MCP servers on Kubernetes" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# ssh looks its user up by name, so the numeric one gets a name too. GitPython finds the children of
# a git command that hangs with ps.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates git openssh-client procps tini \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log/apt /var/log/dpkg.log \
 && useradd --no-log-init --no-create-home --home-dir /tmp --shell /usr/sbin/nologin \
      --uid 65532 --user-group gitops-mcp
COPY --from=build /opt/gitops-mcp /opt/gitops-mcp
ENV PATH=/opt/gitops-mcp/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 65532:65532
WORKDIR /tmp
EXPOSE 8080
# tini passes SIGTERM on and reaps what git leaves behind.
ENTRYPOINT ["tini", "--", "gitops-mcp"]
CMD ["--help"]
