"""Which cluster: kubeconfig, service account, credential plugins."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from gitops_mcp.base.errors import UsageError
from gitops_mcp.base.masking import scrub

if TYPE_CHECKING:
    from kubernetes.client import Configuration as ClientConfiguration
from gitops_mcp.cluster.refusals import CERTIFICATE, LONGEST, PluginFailed

_SERVICE_ACCOUNT: Final = "/var/run/secrets/kubernetes.io/serviceaccount"


_DEFAULT_KUBECONFIG: Final = "~/.kube/config"


_NO_CLUSTER_HINT: Final = (
    "give --kubeconfig or set KUBECONFIG; `gitops-mcp sandbox` starts a cluster to try"
)


def _loader(library: Any, merged: Any, context: str | None) -> Any:
    """The library's loader of a kubeconfig, that ends where a credential plugin fails."""

    class Loader(library.KubeConfigLoader):  # type: ignore[misc]
        def _load_from_exec_plugin(self) -> bool | None:
            if "exec" not in self._user:
                return None
            base = self._get_base_path(self._cluster.path)
            answer = _plugin(self._user["exec"], base, self._cluster)
            if "token" in answer:
                self.token = f"Bearer {answer['token']}"
            else:
                self.cert_file, self.key_file = (
                    library.FileOrData(
                        answer,
                        None,
                        data_key_name=name,
                        file_base_path=base,
                        base64_file_content=False,
                        temp_file_path=self._temp_file_path,
                    ).as_file()
                    for name in ("clientCertificateData", "clientKeyData")
                )
            if "expirationTimestamp" in answer:
                self.expiry = library.parse_rfc3339(answer["expirationTimestamp"])
            return True

    # Credentials that a plugin renews are not written back into the user's file.
    return Loader(merged, active_context=context, config_base_path=None)


def kubeconfig_paths(kubeconfig: str | None) -> str:
    """The kubeconfig, or several as kubectl takes them; "" for none."""
    paths = kubeconfig or os.environ.get("KUBECONFIG") or ""
    if not paths and os.path.exists(os.path.expanduser(_DEFAULT_KUBECONFIG)):
        paths = _DEFAULT_KUBECONFIG
    return paths


def context_names(merged: Any) -> list[str]:
    return [str(item["name"]) for item in merged["contexts"].value]


def configure(
    kubeconfig: str | None, context: str | None, pool_size: int
) -> tuple[ClientConfiguration, str]:
    """Reads the configuration as kubectl does; returns it with the context's namespace."""
    import urllib3
    from kubernetes.client import Configuration as ClientConfiguration
    from kubernetes.config import incluster_config, kube_config
    from kubernetes.config.config_exception import ConfigException
    from yaml import YAMLError

    in_pod: Any = incluster_config  # neither module is typed
    in_file: Any = kube_config
    configuration = ClientConfiguration()
    paths = kubeconfig_paths(kubeconfig)
    try:
        if paths:
            merged = in_file.KubeConfigMerger(paths).config
            if merged is None:
                raise UsageError(f"no kubeconfig at {paths}", hint=_NO_CLUSTER_HINT)
            if context is not None:
                known = context_names(merged)
                if context not in known:
                    raise UsageError(
                        f"no context {context!r} in {paths}",
                        hint=f"known contexts: {', '.join(sorted(known)) or 'none'}",
                    )
            loader = _loader(in_file, merged, context)
            loader.load_and_set(configuration)
            namespace = str(loader.current_context["context"].get("namespace") or "default")
        elif os.environ.get("KUBERNETES_SERVICE_HOST") and context is None:
            in_pod.load_incluster_config(configuration)
            with open(f"{_SERVICE_ACCOUNT}/namespace", encoding="utf-8") as file:
                namespace = file.read().strip() or "default"
        else:
            raise UsageError("no cluster is configured", hint=_NO_CLUSTER_HINT)
    except PluginFailed as error:
        raise UsageError(str(error), hint=error.hint) from error
    except (ConfigException, OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        # The loader walks whatever YAML it was given, and falls over what is built otherwise.
        told = isinstance(error, ConfigException | OSError)
        reason = error if told else "what it holds is no kubeconfig"
        raise UsageError(
            f"cannot use the kubeconfig {paths or 'of the pod'}: {reason}", hint=_NO_CLUSTER_HINT
        ) from error
    except YAMLError as error:
        raise UsageError(f"the kubeconfig {paths} is not valid YAML") from error

    renew: Any = configuration.refresh_api_key_hook

    def stripped(renewed: Any) -> None:
        """Tokens read from files may end in a newline, which no HTTP header may hold."""
        if renew is not None:
            renew(renewed)
            renewed.refresh_api_key_hook = stripped  # the library's hook has put itself back
        if token := renewed.api_key.get("BearerToken"):
            renewed.api_key["BearerToken"] = token.strip()

    hooked: Any = configuration
    hooked.refresh_api_key_hook = stripped
    if not configuration.verify_ssl:  # said once, by us; the library says it at each request
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    configuration.connection_pool_maxsize = pool_size
    configuration.keep_alive = True
    # Zero of everything, and the answer is handed over as it is: also redirects and 429.
    configuration.retries = urllib3.Retry(
        total=0, raise_on_redirect=False, raise_on_status=False, respect_retry_after_header=False
    )
    return configuration, namespace


def _plugin(config: Any, base_path: str, cluster: Any) -> Mapping[str, Any]:
    """What a credential plugin answers. Raises PluginFailed: the library goes on without
    credentials, as nobody, and the API server's refusal hides the cause."""
    from kubernetes.config.config_exception import ConfigException
    from kubernetes.config.exec_provider import ExecProvider

    known = config.value
    command, hint = str(known.get("command", "")), str(known.get("installHint") or "")
    runner: Any = ExecProvider
    try:
        status = runner(config, base_path, cluster).run()
    except OSError as error:
        cause = f"cannot be run: {error.strerror}"
    except (ConfigException, KeyError, TypeError, ValueError) as error:
        told = [line.strip() for line in str(error).splitlines() if line.strip()]
        cause = "failed: " + scrub("; ".join([*told[:1], *told[1:][-2:]]))[:LONGEST]
    else:
        if isinstance(status, dict) and ("token" in status or status.keys() >= CERTIFICATE):
            return status
        cause = "gave neither a token nor a certificate"
    raise PluginFailed(f"the credential plugin {os.path.basename(command)!r} {cause}", hint)


def contexts(kubeconfig: str | None) -> list[str]:
    """The contexts that a kubeconfig has. Raises what the library raises: nobody but a shell that
    completes a word asks for them."""
    from kubernetes.config import kube_config

    in_file: Any = kube_config
    return context_names(in_file.KubeConfigMerger(kubeconfig_paths(kubeconfig)).config)
