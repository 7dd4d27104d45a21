"""Requests to a Kubernetes API server: plain dictionaries in, plain dictionaries out.

The only module that imports ``kubernetes``, and that only when a connection is made: configuration,
credentials and TLS are the official client's, everything above them is here. Every request has a
time limit and is made once; whether and when to try again is the caller's decision, read from the
class of the error. Nothing here caches objects, decides what to write, or writes a log.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeVar, overload
from urllib.parse import quote

import orjson

from gitops_mcp import limits
from gitops_mcp.errors import (
    Configuration,
    Conflict,
    Expired,
    Gone,
    Immutable,
    KindAbsent,
    KubeError,
    Permanent,
    Terminating,
    Transient,
    UsageError,
)
from gitops_mcp.masking import scrub
from gitops_mcp.model import (
    API_VERSION,
    FIELD_MANAGER,
    INSTALL_CRD,
    KIND,
    LABEL_MANAGED_BY,
    PLURAL,
    JsonObject,
    ObjectRef,
    Propagation,
)

if TYPE_CHECKING:
    from kubernetes.client import ApiClient
    from kubernetes.client import Configuration as ClientConfiguration
    from urllib3 import BaseHTTPResponse

T = TypeVar("T")
Listed = list[T]
Objects = Listed[JsonObject]
Query = dict[str, str]
Causes = tuple[tuple[str, str, str], ...]
"""Why a body was refused, each ``(reason, field, message)``."""

REQUEST_TIMEOUT: Final = limits.API_SECONDS
"""Seconds for one request; the client itself would wait for ever."""
NOTICES: Final = limits.API_NOTICES
"""Warnings of the API server that are passed on; who sends more of them is not listened to."""
PAGE: Final = limits.API_PAGE
"""Objects a LIST page: the API server's memory, and ours, stay flat."""
WATCH_SECONDS: Final = 300
"""How long the server keeps a watch open before we ask anew."""
WATCH_SILENCE: Final = limits.WATCH_SILENCE_SECONDS
"""Seconds without a byte after which a watch counts as broken: bookmarks come every minute, and a
server that was stopped leaves its watches silently open."""

CHECK_SECONDS: Final = limits.VIEW_CHECK_SECONDS
"""From one list to the next, whatever the watch says: drawn anew each time, so that the lists of
many kinds and agents do not come together."""
RECHECK_SECONDS: Final = limits.VIEW_RECHECK_SECONDS
"""From the loss of a stream to the next list, at the latest."""
PROOF_SECONDS: Final = limits.WATCH_PROOF_SECONDS
"""In which the first watch after a loss must bring something: else all is listed."""

WATCH_BACKOFF_CAP: Final = 5.0
"""The longest wait, in seconds, before a broken watch is tried again: so much later than the API
server itself we are back after its restart."""

LEAST_RETRY_AFTER: Final = 1.0
LONGEST_RETRY_AFTER: Final = 3600.0
"""Seconds. A server that asks for less gets our own backoff, one that asks for more no more than
that."""

PLURALS: Final[Mapping[tuple[str, str], str]] = {
    ("v1", "ConfigMap"): "configmaps",
    ("v1", "Event"): "events",
    ("v1", "Namespace"): "namespaces",
    ("v1", "Pod"): "pods",
    ("v1", "Secret"): "secrets",
    ("v1", "Service"): "services",
    ("v1", "ServiceAccount"): "serviceaccounts",
    ("apps/v1", "Deployment"): "deployments",
    ("apps/v1", "ReplicaSet"): "replicasets",
    ("apiextensions.k8s.io/v1", "CustomResourceDefinition"): "customresourcedefinitions",
    ("authorization.k8s.io/v1", "SelfSubjectAccessReview"): "selfsubjectaccessreviews",
    ("coordination.k8s.io/v1", "Lease"): "leases",
    ("discovery.k8s.io/v1", "EndpointSlice"): "endpointslices",
    ("events.k8s.io/v1", "Event"): "events",
    (API_VERSION, KIND): PLURAL,
}
"""Every kind that is ever asked for, so that no discovery request is needed."""


# --- errors -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Rule:
    """One kind of answer. Every condition that is set must hold; the first rule that fits wins."""

    code: int
    error: type[KubeError]
    message: str = ""
    """A regular expression, searched for in the Status message."""
    cause: str = ""
    """A cause's reason."""
    field: str = ""
    """A cause's field."""
    refusal: str = ""
    """A regular expression, searched for in the causes without the values that they quote: a value
    could say anything."""
    details: str = ""
    """``details.kind``."""
    condition: str = "ApplyFailed"
    hint: str = ""
    retry_after: timedelta | None = None

    def fits(self, code: int, status: JsonObject, causes: Causes) -> bool:
        """Whether this rule describes the answer."""
        return (
            code == self.code
            and (not self.message or bool(re.search(self.message, status.get("message", ""))))
            and (not self.cause or any(reason == self.cause for reason, _, _ in causes))
            and (not self.field or any(field == self.field for _, field, _ in causes))
            and (not self.refusal or any(re.search(self.refusal, text) for _, _, text in causes))
            and (not self.details or (status.get("details") or {}).get("kind") == self.details)
        )


_RULES: Final = (
    # The user's mistake, though the server says 500: no retry can help.
    _Rule(500, Configuration, message=r"^failed to (create typed patch|convert new) object"),
    _Rule(500, Configuration, message="request is too large", hint="make the object smaller"),
    _Rule(403, Terminating, cause="NamespaceTerminating"),
    _Rule(403, Terminating, message="because it is being terminated"),
    _Rule(403, Terminating, message="custom resource definition is terminating"),
    _Rule(
        403,
        Transient,
        message="exceeded quota",
        condition="ResourcesExhausted",
        hint="raise the quota, or remove something",
        retry_after=Transient.retry_cap,
    ),
    _Rule(409, Configuration, cause="FieldManagerConflict"),
    _Rule(409, Gone, message=r"uid mismatch|UID in (the )?precondition"),
    _Rule(422, Gone, field="metadata.uid"),
    # Only a JSON patch is refused with this text, and only when its test did not hold.
    _Rule(422, Conflict, message="rejected our request due to an error in our request"),
    _Rule(422, Immutable, refusal="field is immutable|may not change once set"),
    _Rule(404, KindAbsent, message=r"^404 page not found|could not find the requested resource"),
    _Rule(
        404,
        Transient,
        details="namespaces",
        hint="create the namespace, or use --create-namespace",
    ),
    _Rule(404, Gone),
    _Rule(409, Conflict),
    _Rule(410, Expired),
    _Rule(401, Permanent, hint="the credentials are not accepted: log in again"),
    _Rule(403, Permanent),
    *(_Rule(code, Configuration) for code in (400, 405, 406, 413, 414, 415, 422)),
)

_NAMES_ONLY: Final = frozenset({401, 403, 404, 409, 410, 429, 503, 504})
"""Codes whose messages quote names of objects and users, never values, as long as they are the API
server's own: an admission webhook or policy, which may answer with any code, says what it likes."""
_DENIED = re.compile(r"denied (the )?request")

_QUOTED = re.compile(r'(?P<kept>field |webhook |\[[\w.-]*=)?"(?:[^"\\]|\\.)*(?:"|$)')
_VALUE = re.compile(r'(?:"(?:[^"\\]|\\.)*"|-?\d[\w.+-]*|true|false|null|<nil>)(?:: |$)')
_OBJECT = re.compile(r"[{\[&]|map\[|\w+\.\w+\{")
_LONGEST: Final = 600
_WARNING = re.compile(r'299 [^ "]+ "((?:[^"\\]|\\.){0,4096})"')
"""One value of a Warning header, as the API server and admission webhooks send it."""
_READ: Final = 8 * _LONGEST
"""Characters of a message that are read: an admission webhook may answer with megabytes."""


def _redact(text: str) -> str:
    """The text without the values that it quotes; names of fields and of list keys stay."""
    text = re.sub(r", got [^\n]*", "", text[:_READ])
    text = _QUOTED.sub(lambda match: match[0] if match["kept"] else '"…"', text)
    return " ".join(text.split())[:_LONGEST]


def _redact_cause(text: str) -> str:
    """``Invalid value: "s3cret": must be shorter`` becomes ``Invalid value: must be shorter``."""
    kind, separator, rest = text[:_READ].partition(": ")
    if not separator:
        return _redact(text)
    if value := _VALUE.match(rest):
        rest = rest[value.end() :]
    elif _OBJECT.match(rest) or rest.startswith('"'):
        # What follows the last bracket is the rule; a text cut off in its middle has none.
        tail = re.search(r"[}\]]: (?!.*[}\]]: )(.*)$", rest, re.DOTALL)
        rest = tail[1] if tail else ""
    rest = re.sub(r'(: "…")+$', "", _redact(rest))
    return f"{kind}: {rest}" if rest else kind


def _causes(status: JsonObject) -> Causes:
    found = (status.get("details") or {}).get("causes") or []
    return tuple(
        (cause.get("reason", ""), cause.get("field", ""), _redact_cause(cause.get("message", "")))
        for cause in found
        # With CEL in the CRD every type error brings this companion along.
        if "some validation rules were not checked" not in cause.get("message", "")
    )


def _cause_text(code: int, status: JsonObject, causes: Causes) -> str:
    message = str(status.get("message", ""))
    if code in _NAMES_ONLY and not _DENIED.search(message):
        return " ".join(message.split())[:_LONGEST]
    if code == 422 and causes:
        return "; ".join(f"{field}: {text}" if field else text for _, field, text in causes[:5])
    typed = re.sub(
        r"^failed to (?:create|convert)[^(]*\([^)]*\)(?: to \w+ typed)?:? *", "", message
    )
    return _redact(typed)


def _retry_after(headers: Mapping[str, str], status: JsonObject) -> timedelta | None:
    """What the server asks for, as far as it is a wait: whoever answers in its place may ask for
    none, and that would be a loop without a pause."""
    asked = headers.get("Retry-After") or (status.get("details") or {}).get("retryAfterSeconds")
    try:
        seconds = float(asked or 0)
    except (TypeError, ValueError, OverflowError):
        return None  # an HTTP date: our own backoff will do
    if not (math.isfinite(seconds) and seconds >= LEAST_RETRY_AFTER):
        return None
    return timedelta(seconds=min(seconds, LONGEST_RETRY_AFTER))


def _place(operation: str, ref: ObjectRef | None) -> str:
    """``apply deployment/web in namespace ai``; a list has no name."""
    if ref is None:
        return operation
    name = str(ref) if ref.name else _plural(ref.api_version, ref.kind)
    return f"{operation} {name}" + (f" in namespace {ref.namespace}" if ref.namespace else "")


def translate(
    code: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    operation: str,
    ref: ObjectRef | None,
) -> KubeError:
    """The error that an answer of the API server (status ``code``, not 2xx) means.

    The body decides before the code. The message names the operation, the object and the cause;
    values that the server quotes are left out, since they may be secrets.
    """
    try:
        status = orjson.loads(body)
    except ValueError:
        status = {"message": body[:_LONGEST].decode(errors="replace").strip()}
    if not isinstance(status, dict):
        status = {}
    causes = _causes(status)
    rule = next((r for r in _RULES if r.fits(code, status, causes)), _Rule(code, Transient))
    if code == 404 and ref is not None and ref.kind == "Namespace":
        rule = _Rule(404, Gone)  # the namespace is the object itself, not where it should be
    cause = _cause_text(code, status, causes) or f"HTTP {code}"
    hint = rule.hint
    own = ref is not None and (ref.api_version, ref.kind) == (API_VERSION, KIND)
    if rule.error is KindAbsent and ref is not None:
        cause = f"the API server serves no {ref.api_version} {ref.kind}"
        if own:
            hint = INSTALL_CRD
    elif own and code == 500 and rule.error is Configuration and "not declared" in cause:
        hint = f"the CRD is older than this version: {INSTALL_CRD}"
    return rule.error(
        f"{_place(operation, ref)}: {cause}",
        code=code,
        reason=status.get("reason", ""),
        causes=causes,
        retry_after=rule.retry_after or _retry_after(headers, status),
        condition=rule.condition,
        hint=hint,
    )


def _no_answer(error: Exception, operation: str, ref: ObjectRef | None) -> Transient:
    """Translates what the HTTP library raises: no answer at all, or half of one."""
    import urllib3.exceptions as http

    inner = getattr(error, "reason", None)
    cause = inner if isinstance(inner, Exception) else error
    text = {
        http.NameResolutionError: "the API server's name cannot be resolved",
        http.NewConnectionError: "connection refused or no route",
        http.ConnectTimeoutError: "no connection in time",  # the parent of the two above
        http.ReadTimeoutError: "no answer in time",
        http.SSLError: "the TLS handshake failed",
        http.ProxyError: "the proxy could not be used",
        http.ProtocolError: "the connection was lost",
    }
    known = next((words for kind, words in text.items() if isinstance(cause, kind)), "")
    return Transient(
        f"{_place(operation, ref)}: {known or type(cause).__name__}",
        reason=type(cause).__name__,
        hint="is the API server up, and is this the right context?",
    )


# --- configuration ----------------------------------------------------------------------------

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


def _paths(kubeconfig: str | None) -> str:
    """The kubeconfig, or several as kubectl takes them; "" for none."""
    paths = kubeconfig or os.environ.get("KUBECONFIG") or ""
    if not paths and os.path.exists(os.path.expanduser(_DEFAULT_KUBECONFIG)):
        paths = _DEFAULT_KUBECONFIG
    return paths


def _contexts(merged: Any) -> list[str]:
    return [str(item["name"]) for item in merged["contexts"].value]


def contexts(kubeconfig: str | None) -> list[str]:
    """The contexts that a kubeconfig has. Raises what the library raises: nobody but a shell that
    completes a word asks for them."""
    from kubernetes.config import kube_config

    in_file: Any = kube_config
    return _contexts(in_file.KubeConfigMerger(_paths(kubeconfig)).config)


def _configure(
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
    paths = _paths(kubeconfig)
    try:
        if paths:
            merged = in_file.KubeConfigMerger(paths).config
            if merged is None:
                raise UsageError(f"no kubeconfig at {paths}", hint=_NO_CLUSTER_HINT)
            if context is not None:
                known = _contexts(merged)
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
    except _PluginFailed as error:
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


# --- requests ---------------------------------------------------------------------------------

Observer = Callable[[str, str, int], None]
"""Called after each request with the operation, the kind and the HTTP status (0: no answer)."""

Event = tuple[str, JsonObject]
"""ADDED, MODIFIED, DELETED or BOOKMARK, and the object (of a bookmark: only its version)."""


def _plural(api_version: str, kind: str) -> str:
    return PLURALS[api_version, kind]


def _path(ref: ObjectRef, subresource: str = "") -> str:
    """The URL path of an object, or of its collection where the reference has no name."""
    parts = ["apis" if "/" in ref.api_version else "api", ref.api_version]
    if ref.namespace:
        parts += ["namespaces", quote(ref.namespace, safe="")]
    parts.append(_plural(ref.api_version, ref.kind))
    if ref.name:
        parts.append(quote(ref.name, safe=""))
    if subresource:
        parts.append(subresource)
    return "/" + "/".join(parts)


def _precondition(body: JsonObject, uid: str | None, resource_version: str | None) -> JsonObject:
    """A copy of the body whose metadata names the object that it was made for."""
    held = {"uid": uid, "resourceVersion": resource_version}
    metadata = {**body.get("metadata", {}), **{k: v for k, v in held.items() if v}}
    return {**body, "metadata": metadata}


_CERTIFICATE: Final = frozenset({"clientCertificateData", "clientKeyData"})


class _PluginFailed(Exception):
    """A credential plugin gave no credentials; ``hint`` is what the kubeconfig says of that."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = " ".join(scrub(hint).split())[:_LONGEST]


def _plugin(config: Any, base_path: str, cluster: Any) -> Mapping[str, Any]:
    """What a credential plugin answers. Raises _PluginFailed: the library goes on without
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
        cause = "failed: " + scrub("; ".join([*told[:1], *told[1:][-2:]]))[:_LONGEST]
    else:
        if isinstance(status, dict) and ("token" in status or status.keys() >= _CERTIFICATE):
            return status
        cause = "gave neither a token nor a certificate"
    raise _PluginFailed(f"the credential plugin {os.path.basename(command)!r} {cause}", hint)


class Cluster:
    """One API server, as one user. Shared by all threads of the process.

    Every method makes its requests at once and raises a ``KubeError`` when one is refused or not
    answered within ``timeout`` seconds. Returned objects carry apiVersion and kind.

    The configuration is read as kubectl does, without a request: ``kubeconfig`` (several paths as
    in KUBECONFIG), else $KUBECONFIG, else ~/.kube/config, else the pod's service account.
    ``pool_size``: at least the threads plus the watches. ``notice`` is told of each warning that
    the API server sends, once. Raises UsageError where no configuration can be used.
    """

    def __init__(
        self,
        kubeconfig: str | None = None,
        context: str | None = None,
        *,
        user_agent: str = FIELD_MANAGER,
        pool_size: int = 32,
        timeout: float = REQUEST_TIMEOUT,
        observe: Observer | None = None,
        notice: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._notice = notice
        self._noticed: set[str] = set()
        self._source = (kubeconfig, context, pool_size)
        self._user_agent = user_agent
        self._timeout = timeout
        self._observe = observe or (lambda *_: None)
        self._renewing = threading.Lock()
        self._streams: dict[BaseHTTPResponse, threading.Event] = {}
        self._closed = threading.Event()
        self._client, self.namespace = self._load()

    def _load(self) -> tuple[ApiClient, str]:
        from kubernetes.client import ApiClient

        configuration, namespace = _configure(*self._source)
        client = ApiClient(configuration)
        client.user_agent = self._user_agent
        return client, namespace

    @property
    def server(self) -> str:
        """The API server's URL, for messages."""
        return str(self._client.configuration.host)

    @property
    def verified(self) -> bool:
        """Whether the API server has to prove who it is, where it speaks TLS at all."""
        return bool(self._client.configuration.verify_ssl) or not self.server.startswith("https")

    def close(self) -> None:
        """Ends every watch and closes the connections."""
        self._closed.set()
        self._cut(lambda _: True)
        self._client.rest_client.close()

    def end_watches(self, stop: threading.Event) -> None:
        """Sets ``stop`` and ends the watches that were given it, also those that wait."""
        stop.set()
        self._cut(lambda given: given is stop)

    def _cut(self, meant: Callable[[threading.Event], bool]) -> None:
        for stream, stop in list(self._streams.items()):
            if meant(stop):
                with contextlib.suppress(ValueError, RuntimeError, OSError):
                    stream.shutdown()

    def _send(
        self,
        client: ApiClient,
        method: str,
        path: str,
        query: Query | None,
        body: Any,
        content_type: str,
        timeout: Any,
    ) -> Any:
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = content_type
        request = client.param_serialize(
            method,
            path,
            query_params=query,
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )
        return client.call_api(*request, _request_timeout=timeout)

    def _open(
        self,
        method: str,
        path: str,
        *,
        operation: str,
        ref: ObjectRef | None,
        query: Query | None = None,
        body: Any = None,
        content_type: str = "application/json",
        timeout: Any = None,
    ) -> BaseHTTPResponse:
        """Makes one request and returns its 2xx answer, unread. Raises KubeError."""
        from urllib3.exceptions import HTTPError

        kind = ref.kind if ref else ""
        client = self._client
        arguments = (method, path, query, body, content_type, timeout or self._timeout)
        try:
            answer = self._send(client, *arguments)
            if answer.status == 401:
                answer.read()
                renewed = self._renewed(client)
                if renewed is not client:
                    answer = self._send(renewed, *arguments)
            self._heed(answer.headers)
            if 200 <= answer.status < 300:
                self._observe(operation, kind, answer.status)
                response: BaseHTTPResponse = answer.response
                return response
            content = answer.read()
        except _PluginFailed as error:
            self._observe(operation, kind, 0)
            raise Transient(f"{_place(operation, ref)}: {error}", hint=error.hint) from error
        except (HTTPError, OSError) as error:
            self._observe(operation, kind, 0)
            raise _no_answer(error, operation, ref) from error
        self._observe(operation, kind, answer.status)
        raise translate(answer.status, answer.headers, content, operation=operation, ref=ref)

    def _renewed(self, refused: ApiClient) -> ApiClient:
        """A client whose credentials were read again, unless another thread has done so."""
        with self._renewing:
            if self._client is refused:
                try:
                    self._client, _ = self._load()
                except UsageError as error:
                    if isinstance(error.__cause__, _PluginFailed):
                        raise error.__cause__ from error
                    # The file has gone: the refusal stands.
            return self._client

    def _heed(self, headers: Mapping[str, str]) -> None:
        """Pass on what the API server warns of, each text once."""
        for text in _WARNING.findall(headers.get("Warning") or ""):
            told = " ".join(scrub(re.sub(r"\\(.)", r"\1", text)).split())[:_LONGEST]
            shown = "".join(c if c.isprintable() else "?" for c in told)
            if shown not in self._noticed and len(self._noticed) < NOTICES:
                self._noticed.add(shown)
                self._notice(shown)

    def _request(
        self, method: str, path: str, *, operation: str, ref: ObjectRef | None, **options: Any
    ) -> JsonObject:
        from urllib3.exceptions import HTTPError

        response = self._open(method, path, operation=operation, ref=ref, **options)
        try:
            answer = orjson.loads(response.data)
        except (HTTPError, OSError) as error:
            raise _no_answer(error, operation, ref) from error
        except ValueError as error:
            raise Transient(f"{_place(operation, ref)}: the answer is not JSON") from error
        if not isinstance(answer, dict):
            raise Transient(f"{_place(operation, ref)}: the answer is not an object")
        return answer

    # --- reading ---

    def version(self) -> tuple[int, int]:
        """The server's version, e.g. ``(1, 36)``."""
        info = self._request("GET", "/version", operation="ask for the version", ref=None)
        parts = [re.match(r"\d*", str(info.get(key, "")))[0] for key in ("major", "minor")]  # type: ignore[index]
        return int(parts[0] or 0), int(parts[1] or 0)

    @cached_property
    def is_sandbox(self) -> bool:
        """Is it the embedded cluster, whose pods have loopback addresses? Its version says so.
        Raises KubeError where the server does not answer."""
        info = self._request("GET", "/version", operation="ask for the version", ref=None)
        return str(info.get("gitVersion", "")).endswith("+sandbox")

    def get(self, ref: ObjectRef, *, timeout: float | None = None) -> JsonObject | None:
        """The live object, or None where there is none. Raises KindAbsent where its CRD is."""
        try:
            return self._request("GET", _path(ref), operation="get", ref=ref, timeout=timeout)
        except Gone:
            return None

    @overload
    def list(
        self,
        api_version: str,
        kind: str,
        namespace: str | None,
        *,
        label_selector: str = "",
        limit: int = PAGE,
    ) -> tuple[Objects, str]: ...

    @overload
    def list(
        self,
        api_version: str,
        kind: str,
        namespace: str | None,
        *,
        label_selector: str = "",
        limit: int = PAGE,
        narrowed: Callable[[JsonObject], T],
    ) -> tuple[Listed[T], str]: ...

    def list(
        self,
        api_version: str,
        kind: str,
        namespace: str | None,
        *,
        label_selector: str = "",
        limit: int = PAGE,
        narrowed: Callable[[JsonObject], Any] = lambda item: item,
    ) -> tuple[Listed[Any], str]:
        """All objects of a kind (``namespace`` None: of all namespaces), and the resourceVersion
        to watch from. Read page by page; when the pages expire meanwhile, all in one. ``narrowed``
        makes of each object what is worth keeping, before the next one is looked at."""
        try:
            return self._pages(api_version, kind, namespace, label_selector, limit, narrowed)
        except Expired:
            return self._pages(api_version, kind, namespace, label_selector, 0, narrowed)

    def _pages(
        self,
        api_version: str,
        kind: str,
        namespace: str | None,
        selector: str,
        limit: int,
        narrowed: Callable[[JsonObject], Any],
    ) -> tuple[Listed[Any], str]:
        ref = ObjectRef(api_version, kind, namespace or "", "")
        path = _path(ref)
        query: Query = {"limit": str(limit)} if limit else {}
        if selector:
            query["labelSelector"] = selector
        found: Listed[Any] = []
        while True:
            page = self._request("GET", path, operation="list", ref=ref, query=query)
            metadata, items = page.get("metadata", {}), page.get("items") or []
            page.clear()
            items.reverse()
            while items:  # each is let go of as soon as it is narrowed: a page is large
                # Items of built-in kinds do not say what they are.
                found.append(narrowed({"apiVersion": api_version, "kind": kind, **items.pop()}))
            if not metadata.get("continue"):
                return found, metadata.get("resourceVersion", "")
            query = {**query, "continue": metadata["continue"]}

    def can(
        self, verb: str, group: str, resource: str, namespace: str | None, subresource: str = ""
    ) -> bool:
        """Whether we may (``namespace`` None: in all namespaces)."""
        attributes = {"verb": verb, "group": group, "resource": resource}
        if namespace:
            attributes["namespace"] = namespace
        if subresource:
            attributes["subresource"] = subresource
        review = self.create(
            {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "metadata": {},
                "spec": {"resourceAttributes": attributes},
            }
        )
        return bool(review.get("status", {}).get("allowed"))

    # --- watching ---

    def watch(
        self,
        api_version: str,
        kind: str,
        namespace: str | None,
        *,
        resource_version: str,
        stop: threading.Event,
        label_selector: str = "",
        opened: Callable[[], None] = lambda: None,
        seconds: int = WATCH_SECONDS,
        silence: float = WATCH_SILENCE,
    ) -> Iterator[Event]:
        """What happened after ``resource_version``, until the server ends the watch, which it is
        asked to do after ``seconds``.

        Bookmarks included: an object's resourceVersion is where the next watch goes on. ``opened``
        is called when the server has taken the watch. ``stop`` is looked at between events;
        ``end_watches`` and ``close`` end a watch that is waiting. Raises Expired when the version
        is too old, and Transient when the stream breaks or stays silent for ``silence`` seconds.
        """
        from urllib3.exceptions import HTTPError

        ref = ObjectRef(api_version, kind, namespace or "", "")
        query: Query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(seconds),
            "resourceVersion": resource_version,
        }
        if label_selector:
            query["labelSelector"] = label_selector
        response = self._open(
            "GET",
            _path(ref),
            operation="watch",
            ref=ref,
            query=query,
            timeout=(self._timeout, silence),
        )
        self._streams[response] = stop
        try:
            if stop.is_set() or self._closed.is_set():
                return  # too late for ``close`` to have seen this stream
            opened()
            for line in _lines(response.stream()):
                if stop.is_set() or self._closed.is_set():
                    return
                event = orjson.loads(line)
                item: JsonObject = event["object"]
                if event["type"] == "ERROR":
                    code = item.get("code", 0)
                    raise translate(code, {}, orjson.dumps(item), operation="watch", ref=ref)
                yield event["type"], item
        except (HTTPError, OSError) as error:
            if not (stop.is_set() or self._closed.is_set()):
                raise _no_answer(error, "watch", ref) from error
        except (ValueError, KeyError) as error:
            raise Transient(f"{_place('watch', ref)}: an event cannot be read") from error
        finally:
            self._streams.pop(response, None)
            response.close()

    def list_and_watch(
        self,
        api_version: str,
        kind: str,
        namespace: str | None,
        *,
        stop: threading.Event,
        label_selector: str = "",
        resource_version: str = "",
        state: Callable[[KubeError | None], None] = lambda _: None,
        narrowed: Callable[[JsonObject], Any] = lambda item: item,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> Iterator[
        tuple[Literal["SYNC", "RESET"], tuple[Listed[Any], str]] | tuple[Literal["EVENT"], Event]
    ]:
        """Everything of a kind, kept current until ``stop``: ``("SYNC", (objects, version))``
        replaces what was known, ``("EVENT", (type, object))`` changes one object of it. The objects
        of a SYNC are ``narrowed``, as ``list`` does it.

        Never raises KubeError. A broken stream goes on where it ended, a version that is too old
        (410) lists again; both after a wait that doubles, with jitter, up to WATCH_BACKOFF_CAP, or
        that the server asks for.
        A watch alone does not prove that nothing was missed: an API server whose etcd was restored
        takes a watch from a version that it has yet to reach, and stays silent. So all is listed
        again each CHECK_SECONDS, in a time drawn from RECHECK_SECONDS after a stream was lost, and
        where the first watch after that brings nothing within PROOF_SECONDS. A list that is older
        than what was seen before comes as ``("RESET", (objects, version))``: it replaces what was
        known, newer versions included.
        ``resource_version`` goes on from a list that was read before.
        ``state`` hears each trouble (Expired: all is listed again), and None each time that the
        server lets us know that the stream is whole: with each bookmark, when it is opened, and
        after a loss not before something has come.
        """
        rng = rng or random.Random()  # noqa: S311 - spreads requests, guards nothing
        wait = _Backoff(rng)
        version, fresh = resource_version, False
        seen = _number(version)
        """The newest version that came, whatever became of the stream."""
        proven = True
        """Whether nothing can have been missed since the stream was lost last."""
        check = clock() + rng.uniform(*CHECK_SECONDS)
        while not stop.is_set() and not self._closed.is_set():
            began, asked, opened = clock(), None, False
            checks = bool(version) and proven and began >= check
            seconds = min(WATCH_SECONDS, max(check - began, 1)) if proven else PROOF_SECONDS

            def taken() -> None:
                nonlocal opened
                opened = True
                if proven:  # noqa: B023 - called in this round only
                    state(None)

            try:
                if not version or checks:
                    items, version = self.list(
                        api_version,
                        kind,
                        namespace,
                        label_selector=label_selector,
                        narrowed=narrowed,
                    )
                    rewound, seen = _number(version) < seen, _number(version)
                    fresh, proven = True, True
                    check = clock() + rng.uniform(*CHECK_SECONDS)
                    yield "RESET" if rewound else "SYNC", (items, version)
                    del items
                    if checks:
                        continue
                for name, item in self.watch(
                    api_version,
                    kind,
                    namespace,
                    label_selector=label_selector,
                    resource_version=version,
                    stop=stop,
                    opened=taken,
                    seconds=round(seconds),
                    silence=WATCH_SILENCE if proven else PROOF_SECONDS + 1,
                ):
                    version, fresh = item["metadata"]["resourceVersion"], False
                    seen = max(seen, _number(version))
                    wait.reset()
                    if name == "BOOKMARK" or not proven:
                        state(None)
                    if name != "BOOKMARK":
                        yield "EVENT", (name, item)
                    proven = True
                if not proven:
                    version = ""  # nothing came: only a list tells what is there
                    continue
                if clock() - began < seconds - 1.0:  # before its time: the server is going
                    proven = False
                    check = min(check, clock() + rng.uniform(*RECHECK_SECONDS))
                if clock() - began > 1.0:
                    continue  # at once would be a loop without a pause
            except KubeError as error:
                asked = error.retry_after
                if checks:  # the watch goes on; the list is tried again soon
                    check = clock() + rng.uniform(*RECHECK_SECONDS)
                    state(error)
                    stop.wait(wait.next(asked))
                    continue
                if version and not proven and (opened or error.code or _silent(error)):
                    version = ""  # it answers, and brings nothing
                if not _silent(error) or proven:
                    state(error)
                if proven:
                    proven = False
                    check = min(check, clock() + rng.uniform(*RECHECK_SECONDS))
                if isinstance(error, Expired):
                    version = ""
                    if not fresh:  # the server is back; else it answers our every list so
                        wait.reset()
            stop.wait(wait.next(asked))

    # --- writing ---

    def apply(
        self,
        body: JsonObject,
        *,
        manager: str = FIELD_MANAGER,
        force: bool = True,
        dry_run: bool = False,
        subresource: str = "",
        uid: str | None = None,
        resource_version: str | None = None,
    ) -> JsonObject:
        """Server-side apply. With ``uid`` an object that has gone is not made anew (Gone); with
        ``resource_version`` a write in between is a Conflict."""
        ref = ObjectRef.of(body)
        query: Query = {"fieldManager": manager, "force": "true" if force else "false"}
        return self._request(
            "PATCH",
            _path(ref, subresource),
            operation=f"apply {subresource} of" if subresource else "apply",
            ref=ref,
            query=_dry(query, dry_run),
            body=orjson.dumps(_precondition(body, uid, resource_version)),
            content_type="application/apply-patch+yaml",
        )

    def json_patch(
        self,
        ref: ObjectRef,
        ops: Objects,
        *,
        manager: str = FIELD_MANAGER,
        dry_run: bool = False,
        subresource: str = "",
        uid: str | None = None,
        resource_version: str | None = None,
    ) -> JsonObject:
        """RFC 6902 patch, guarded like ``apply``: operations come after the tests of uid and
        resourceVersion. A test that fails is a Conflict."""
        held = {"uid": uid, "resourceVersion": resource_version}
        tests = [
            {"op": "test", "path": f"/metadata/{key}", "value": value}
            for key, value in held.items()
            if value
        ]
        return self._request(
            "PATCH",
            _path(ref, subresource),
            operation="patch",
            ref=ref,
            query=_dry({"fieldManager": manager}, dry_run),
            body=[*tests, *ops],
            content_type="application/json-patch+json",
        )

    def merge_patch(
        self,
        ref: ObjectRef,
        body: JsonObject,
        *,
        manager: str = FIELD_MANAGER,
        subresource: str = "",
        uid: str | None = None,
        resource_version: str | None = None,
    ) -> JsonObject:
        """RFC 7386 patch, guarded like ``apply``."""
        guarded = _precondition(body, uid, resource_version) if uid or resource_version else body
        return self._request(
            "PATCH",
            _path(ref, subresource),
            operation="patch",
            ref=ref,
            query={"fieldManager": manager},
            body=guarded,
            content_type="application/merge-patch+json",
        )

    def delete(
        self,
        ref: ObjectRef,
        *,
        uid: str | None,
        resource_version: str | None = None,
        propagation: Propagation = "Background",
        dry_run: bool = False,
    ) -> JsonObject | None:
        """Deletes that very object: another one of its name (or none at all) is Gone.

        Returns what still stands of it, held by finalizers or a grace period; None: it is gone.
        """
        held = {"uid": uid, "resourceVersion": resource_version}
        body: JsonObject = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": propagation,
            "preconditions": {key: value for key, value in held.items() if value},
        }
        if dry_run:
            body["dryRun"] = ["All"]
        answer = self._request("DELETE", _path(ref), operation="delete", ref=ref, body=body)
        # Some kinds (Service) are answered with the object as it was, though it has gone.
        if "deletionTimestamp" not in (answer.get("metadata") or {}):
            return None
        return {"apiVersion": ref.api_version, "kind": ref.kind, **answer}

    def create(
        self, body: JsonObject, *, manager: str = FIELD_MANAGER, timeout: float | None = None
    ) -> JsonObject:
        """POST: for what is made once and never applied (Events, reviews, Leases)."""
        metadata = body.get("metadata", {})
        ref = ObjectRef(body["apiVersion"], body["kind"], metadata.get("namespace", ""), "")
        return self._request(
            "POST",
            _path(ref),
            operation="create",
            ref=ref,
            query={"fieldManager": manager},
            body=body,
            timeout=timeout,
        )

    def update(self, body: JsonObject, *, timeout: float | None = None) -> JsonObject:
        """PUT of a whole object that was read before; its resourceVersion guards it."""
        ref = ObjectRef.of(body)
        return self._request(
            "PUT",
            _path(ref),
            operation="update",
            ref=ref,
            query={"fieldManager": FIELD_MANAGER},
            body=body,
            timeout=timeout,
        )


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line for line in lines if line)


def _number(version: str) -> int:
    """The versions of one etcd are ordered numbers; 0: none."""
    return int(version) if version.isdigit() else 0


def _silent(error: KubeError) -> bool:
    """Did the server take the request, and say nothing?"""
    return error.reason == "ReadTimeoutError"


class _Backoff:
    """Waits in seconds: 0.2, 0.4 … WATCH_BACKOFF_CAP, each shortened at random by up to half."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.reset()

    def reset(self) -> None:
        self._next = 0.2

    def next(self, asked: timedelta | None = None) -> float:
        """``asked``: what the server asks for instead, prolonged at random by up to half."""
        if asked is not None:
            return asked.total_seconds() * self._rng.uniform(1.0, 1.5)
        wait, self._next = self._next, min(self._next * 2, WATCH_BACKOFF_CAP)
        return wait * self._rng.uniform(0.5, 1.0)


def _dry(query: Query, dry_run: bool) -> Query:
    return {**query, "dryRun": "All"} if dry_run else query


# --- leases -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LeaseTiming:
    """The times of a lease in seconds, under the names of client-go's leader election."""

    lease_duration: float = 10.0
    """For how long others must have seen the record unchanged before they take the lease."""
    renew_deadline: float = 6.0
    """For how long a renewal lasts its holder: so much less than for others that no request of its
    is still on its way when they begin, and that clocks may run at different speeds."""
    retry_period: float = 2.0
    """Between two renewals: two may fail before the deadline."""


class LeaseApi(Protocol):
    """The requests that a lease makes; ``Cluster`` is the real one."""

    def get(self, ref: ObjectRef, *, timeout: float | None = None) -> JsonObject | None: ...

    def create(self, body: JsonObject, *, timeout: float | None = None) -> JsonObject: ...

    def update(self, body: JsonObject, *, timeout: float | None = None) -> JsonObject: ...


def _micro(moment: datetime) -> str:
    """A MicroTime: the API refuses any other number of decimals than six."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _utc_now() -> datetime:
    return datetime.now(UTC)


def _elapsed() -> float:
    """Seconds on a clock that nobody sets, and that goes on while the machine sleeps."""
    return time.clock_gettime(_CLOCK)


_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_LEAST_TIMEOUT: Final = 0.5


class Lease:
    """The right to be the only writer of something, kept in a coordination.k8s.io Lease.

    Whether another holder is gone is judged by how long *we* have seen its record unchanged, never
    by comparing its clock with ours. ``clock`` is monotonic, in seconds; ``now`` stamps the record.
    ``holds`` and ``term`` may be read by any thread, everything else by one at a time.
    """

    def __init__(
        self,
        api: LeaseApi,
        namespace: str,
        name: str,
        identity: str,
        *,
        timing: LeaseTiming = LeaseTiming(),
        clock: Callable[[], float] = _elapsed,
        now: Callable[[], datetime] = _utc_now,
    ) -> None:
        self.ref = ObjectRef("coordination.k8s.io/v1", "Lease", namespace, name)
        self.timing = timing
        self.annotations: dict[str, str] = {}
        """What the next write says besides who holds it; "" takes an annotation away."""
        self.term = 0
        """Counts up when we come to hold it, also when nobody held it in between."""
        self._api = api
        self.identity = identity
        self._clock = clock
        self._now = now
        self._live: JsonObject | None = None
        """As last read or written."""
        self._unchanged_since = clock()
        self._sent = self._until = float("-inf")

    def __str__(self) -> str:
        return f"lease {self.ref.namespace}/{self.ref.name}"

    @property
    def holder(self) -> str:
        """Who held it when we last looked; empty: nobody."""
        return str(self._record.get("holderIdentity") or "")

    @property
    def transitions(self) -> int:
        """How often it has changed hands, as of our last read or write."""
        return int(self._record.get("leaseTransitions") or 0)

    @property
    def _record(self) -> JsonObject:
        return (self._live or {}).get("spec") or {}

    @property
    def holds(self) -> bool:
        """Whether nobody else can hold it. False without a request from ``renew_deadline`` after
        the last renewal that succeeded was *sent*."""
        return self._clock() < self._until

    @property
    def age(self) -> float:
        """Seconds since the last renewal that succeeded was sent."""
        return self._clock() - self._sent

    def annotation(self, key: str) -> str:
        """What the lease says of ``key``, or will say with our next write ("": nothing)."""
        known = ((self._live or {}).get("metadata") or {}).get("annotations") or {}
        return str({**known, **self.annotations}.get(key, ""))

    def look(self) -> None:
        """See who holds it: one GET. Raises KubeError."""
        live = self._api.get(self.ref, timeout=self._timeout())
        record = (live or {}).get("spec") or {}
        if record != self._record:
            # Taken after the answer: what we read may have been written while we waited for it.
            self._unchanged_since = self._clock()
        self._live = live
        if self.holder != self.identity:
            self._until = float("-inf")

    def acquire(self, *, take_over: bool = False) -> bool:
        """Takes the lease, or renews it; False while another holder is alive (see ``holder``).

        A renewal is one PUT of what we wrote last. ``take_over`` takes the lease from a living
        holder, who notices at its next renewal: until then the preconditions of each write alone
        keep the two apart. Raises KubeError where the API server cannot be asked; what was held is
        held on to until the deadline.
        """
        if self.holder == self.identity and self._written(self._claim()):
            return True
        if not self.taken() or take_over:
            return self._written(self._claim()) or self.holds
        return False

    def annotate(self) -> None:
        """Write the annotations alone, whoever holds it: two requests. What somebody else writes in
        between stands. Raises KubeError."""
        self.look()
        self._put(self._record)

    def taken(self) -> bool:
        """Does somebody else hold it who is alive? One GET. Raises KubeError."""
        asked = self._clock()
        self.look()
        # Our own duration counts, as client-go's does: what a record says anybody may have written.
        silent = asked - self._unchanged_since >= self.timing.lease_duration
        return self.holder not in ("", self.identity) and not silent

    def release(self) -> None:
        """Gives the lease up, if it is still ours, so that the next holder need not wait. The
        caller has seen to it that nothing is being written any more. Raises KubeError."""
        self._until = float("-inf")
        freed = {"holderIdentity": "", "renewTime": _micro(self._now())}
        for _ in range(2):  # once more, where only somebody's annotation stood between
            if self.holder != self.identity or self._put({**self._record, **freed}):
                return
            self.look()

    def _claim(self) -> JsonObject:
        """The record that makes the lease ours, or keeps it so."""
        stamp, old = _micro(self._now()), self._record
        ours = self.holder == self.identity
        return {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": max(1, round(self.timing.lease_duration)),
            "acquireTime": old.get("acquireTime", stamp) if ours else stamp,
            "renewTime": stamp,
            "leaseTransitions": old.get("leaseTransitions", 0) + (not ours and bool(old)),
        }

    def _written(self, record: JsonObject) -> bool:
        sent = self._clock()
        if not self._put(record):
            return False
        if not self.holds:
            self.term += 1  # first: who sees that it is held again sees that it is another term
        self._sent, self._until = sent, sent + self.timing.renew_deadline
        return True

    def _put(self, record: JsonObject) -> bool:
        """Write the record over the one that we know; False: that one stands no longer."""
        body: JsonObject = self._live or {
            "apiVersion": self.ref.api_version,
            "kind": self.ref.kind,
            "metadata": {
                "name": self.ref.name,
                "namespace": self.ref.namespace,
                "labels": {LABEL_MANAGED_BY: FIELD_MANAGER},
            },
        }
        metadata = body["metadata"]
        merged = {**(metadata.get("annotations") or {}), **self.annotations}
        annotations = {key: text for key, text in merged.items() if text}
        body = {**body, "metadata": {**metadata, "annotations": annotations}, "spec": record}
        write = self._api.create if self._live is None else self._api.update
        try:
            self._live = write(body, timeout=self._timeout())
        except (Conflict, Gone):
            return False
        self._unchanged_since = self._clock()
        return True

    def _timeout(self) -> float:
        """Half of the deadline, so that there is time to try again before it; near it, less."""
        left = self._until - self._clock()
        half = self.timing.renew_deadline / 2
        return max(min(left, half), _LEAST_TIMEOUT) if left > 0 else half
