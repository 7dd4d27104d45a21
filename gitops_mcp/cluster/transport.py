"""Requests to a Kubernetes API server: a method, a path and a body in, its answer out.

Only this module and ``connection`` import ``kubernetes``, once a connection is made. Configuration,
credentials and TLS are the official client's; everything above them is here. Every request has a
time limit and is made once; whether and when to try again is the caller's decision, read from the
class of the error. Nothing here writes a log.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import orjson

from gitops_mcp.base import limits
from gitops_mcp.base.errors import Transient, UsageError
from gitops_mcp.base.masking import scrub
from gitops_mcp.base.names import JsonObject, ObjectRef
from gitops_mcp.cluster.connection import configure
from gitops_mcp.cluster.refusals import LONGEST, PluginFailed, no_answer, place, translate

if TYPE_CHECKING:
    from kubernetes.client import ApiClient
    from urllib3 import BaseHTTPResponse

Query = dict[str, str]

NOTICES: Final = limits.API_NOTICES
"""Warnings of the API server that are passed on; more of them are dropped."""

Observer = Callable[[str, str, int], None]
"""Called after each request with the operation, the kind and the HTTP status (0: no answer)."""

_WARNING = re.compile(r'299 [^ "]+ "((?:[^"\\]|\\.){0,4096})"')
"""One value of a Warning header, as the API server and admission webhooks send it."""


class Transport:
    """The connections to one API server, as one user. Shared by all threads of the process.

    ``kubeconfig``, ``context``, ``pool_size`` and errors as for ``reads.Reader``; ``timeout`` in
    seconds, for one request.
    """

    def __init__(
        self,
        kubeconfig: str | None,
        context: str | None,
        *,
        user_agent: str,
        pool_size: int,
        timeout: float,
        observe: Observer,
        notice: Callable[[str], None],
    ) -> None:
        self.timeout = timeout
        self._notice = notice
        self._noticed: set[str] = set()
        self._source = (kubeconfig, context, pool_size)
        self._user_agent = user_agent
        self._observe = observe
        self._renewing = threading.Lock()
        self._client, self.namespace = self._load()

    def _load(self) -> tuple[ApiClient, str]:
        from kubernetes.client import ApiClient

        configuration, namespace = configure(*self._source)
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
        """Close the connections."""
        self._client.rest_client.close()

    def open(
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
        arguments = (method, path, query, body, content_type, timeout or self.timeout)
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
        except PluginFailed as error:
            self._observe(operation, kind, 0)
            raise Transient(f"{place(operation, ref)}: {error}", hint=error.hint) from error
        except (HTTPError, OSError) as error:
            self._observe(operation, kind, 0)
            raise no_answer(error, operation, ref) from error
        self._observe(operation, kind, answer.status)
        raise translate(answer.status, answer.headers, content, operation=operation, ref=ref)

    def request(
        self, method: str, path: str, *, operation: str, ref: ObjectRef | None, **options: Any
    ) -> JsonObject:
        """Makes one request, with the options of ``open``, and returns the object that is its 2xx
        answer. Raises KubeError."""
        from urllib3.exceptions import HTTPError

        response = self.open(method, path, operation=operation, ref=ref, **options)
        try:
            answer = orjson.loads(response.data)
        except (HTTPError, OSError) as error:
            raise no_answer(error, operation, ref) from error
        except ValueError as error:
            raise Transient(f"{place(operation, ref)}: the answer is not JSON") from error
        if not isinstance(answer, dict):
            raise Transient(f"{place(operation, ref)}: the answer is not an object")
        return answer

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

    def _renewed(self, refused: ApiClient) -> ApiClient:
        """A client whose credentials were read again, unless another thread has done so."""
        with self._renewing:
            if self._client is refused:
                try:
                    self._client, _ = self._load()
                except UsageError as error:
                    if isinstance(error.__cause__, PluginFailed):
                        raise error.__cause__ from error
                    # The file has gone: the refusal stands.
            return self._client

    def _heed(self, headers: Mapping[str, str]) -> None:
        """Pass on what the API server warns of, each text once."""
        for text in _WARNING.findall(headers.get("Warning") or ""):
            told = " ".join(scrub(re.sub(r"\\(.)", r"\1", text)).split())[:LONGEST]
            shown = "".join(c if c.isprintable() else "?" for c in told)
            if shown not in self._noticed and len(self._noticed) < NOTICES:
                self._noticed.add(shown)
                self._notice(shown)
