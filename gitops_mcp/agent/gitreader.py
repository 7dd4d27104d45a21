"""What the agent reads of git at each poll, and what went wrong since it last could be read."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Collection

from gitops_mcp.base import masking
from gitops_mcp.base.bugs import place_of
from gitops_mcp.base.errors import GitOpsError
from gitops_mcp.cluster.leadership import Say
from gitops_mcp.git.gitrepo import Repository
from gitops_mcp.source import manifests
from gitops_mcp.source.settings import SourceOptions
from gitops_mcp.sync import reading
from gitops_mcp.sync.reading import Source

_log = logging.getLogger(__name__)


class GitReader:
    """Reads one source, poll by poll. Each trouble is reported once until git can be read again;
    then ``mended`` is called with those that were."""

    def __init__(
        self,
        options: SourceOptions,
        repository: Repository,
        *,
        source_id: str,
        cache: manifests.Cache,
        warn: Say,
        mended: Callable[[str, Collection[str]], None],
    ) -> None:
        self._options = options
        self._repository = repository
        self._source_id = source_id
        self._cache = cache
        self._warn = warn
        self._mended = mended
        self._pending = False
        """There is something new that could not be read."""
        self._troubles: set[str] = set()
        self._read_at = time.monotonic()

    @property
    def unread(self) -> float:
        """For how many seconds git could not be read; 0: it can."""
        return time.monotonic() - self._read_at if self._troubles else 0.0

    def read(self, former: Source, adopt: Callable[[Source], None]) -> tuple[str, str]:
        """Poll git and have what is new adopted. Gives ``moved``, ``unchanged`` or ``failed``, and
        why it failed. What cannot be read leaves everything as it is."""
        try:
            result = self._read(former, adopt)
        except (GitOpsError, OSError) as error:
            self._report(f"{error}; what was read last stays in force", self._warn)
            return "failed", masking.scrub(str(error))
        except Exception as error:  # a bug, or no memory left: one commit ends no agent
            message = f"unexpected {type(error).__name__} in {place_of(error)}"
            trouble = f"{message}; what was read last stays in force"
            self._report(trouble, functools.partial(_log.error, exc_info=error))
            return "failed", message
        if self._troubles:
            self._mended("git can be read again", self._troubles)
        self._troubles = set()
        self._read_at = time.monotonic()
        return result, ""

    def _report(self, trouble: str, say: Say) -> None:
        if trouble not in self._troubles:
            say(trouble)
        self._troubles.add(trouble)

    def _read(self, former: Source, adopt: Callable[[Source], None]) -> str:
        found = self._repository.poll()
        if found.error is not None:
            raise found.error
        if found.kind == "unchanged" and not self._pending:
            return "unchanged"
        self._pending = True
        source = reading.read(self._options, self._repository, cache=self._cache, former=former)
        if source.source_id != self._source_id:
            raise GitOpsError(
                f"the source's id has become {source.source_id!r}: restart the agent to follow it"
            )
        source.refuse_doubts(self._warn)
        adopt(source)
        self._pending = False
        return "moved"
