"""What is read from outside, and its bounds: docs/limits.md tells them in one table.

Sizes are bytes, times are seconds. Whatever exceeds one is an error of the source, an endpoint or a
file; what was read before stays in force.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20

# --- git -----------------------------------------------------------------------------------------

GIT_SECONDS = 120.0
"""A command on the local disk."""
GIT_ASK_SECONDS = 30.0
"""Asking a server where its branches are."""
GIT_FETCH_SECONDS = 300.0
"""A fetch from a server. A first one of a large repository takes minutes."""
GIT_STALL_SECONDS = 30
"""A transfer over HTTP that brings nothing."""
GIT_NOTES_SECONDS = 60.0
"""A fetch or a push of the deployment notes: they are small, and nobody waits for them."""
GIT_MEMORY = 512 * MIB
"""Each process of git, its helpers and ssh included. Files that are only mapped do not count."""
GIT_ANSWER = 16 * MIB
"""The output of a command: the refs of a server, say. Lists and contents have bounds of their
own."""
GIT_WORDS = 64 * KIB
"""The end of git's and ssh's error output. What comes before that is forgotten."""
GIT_RETRY_SECONDS = (5.0, 300.0)
"""The wait after a first failed fetch, doubled by each further one, and its maximum. A webhook
halves it, once for each failure."""

MIRROR = 768 * MIB
"""The copy of a URL's repository: as much as a fetch may bring. The agent's volume has 1 GiB."""
PATHS = 1_000_000
"""Paths of a commit below --path, or differing between two commits."""
PATH = 16 * KIB
"""A path, with what git says of it."""
FILES = 50_000
"""YAML and JSON files of a snapshot."""
FILE = 1 * MIB
"""A YAML or JSON file. etcd takes no object above 1.5 MiB; a larger file is no manifest."""
SEARCHED = 256 * MIB
"""Contents of larger files of a snapshot that are searched for a manifest."""
SNAPSHOT = 256 * MIB
"""All YAML and JSON files of a snapshot."""
COMMITS = 100_000
"""Commits between the last that was synced and the new one, the newest first."""
MESSAGE = 64 * KIB
"""Subject and trailers of a commit. The rest is not read."""
ROOTS = 1000
"""Commits without a parent in one history."""

NOTES = 16 * MIB
"""The deployment notes that are read at once, the newest first."""
NOTE = 8 * MIB
"""The notes of one commit. No more are added to a longer one."""
NOTED = 200_000
"""Commits that have notes."""

SECRET = 64 * KIB
"""A file with a password, an ssh key, or known_hosts."""

# --- MCP servers ---------------------------------------------------------------------------------

HANDSHAKE_ANSWERS = 3
"""A handshake takes this many times ``health.timeout``, which is the limit of one answer."""
HANDSHAKE_LATE = 2
"""A request that may open a session is given this many times the limit of an answer to say which,
although its answer counts no longer."""
HANDSHAKE_FAREWELL_SECONDS = 2.0
"""Ending a session: also when the handshake has used up its time, since a session that nobody ends
may stay for ever."""
HANDSHAKE_PING_SECONDS = 1.0
"""An answer to ping: few servers are slow to it, and no client waits for it."""
HANDSHAKE_WAIT_SECONDS = 300
"""What a server that is too busy may ask to wait."""
ANSWER = 1 * MIB
"""One answer of an MCP server, after any compression is undone."""
COUNT = 256 * KIB
"""One answer that counts sessions."""

HANDSHAKE_LONGEST_SECONDS = 30
"""What a server may ask for as ``health.timeout``: others wait for the same threads."""
HANDSHAKE_RETRY_SECONDS = (10, 160)
"""After a handshake that failed, and after many in a row: each failure doubles the wait."""
ASKERS = 16
"""Servers that are asked for a handshake or their sessions at the same time: a silent one takes its
whole time-out, and must not delay the API requests of others."""
HOOKERS = 16
"""Servers whose cleanup hooks are called at the same time: no silent server takes these threads."""
HOOKS_SECONDS = 60
"""All cleanup hooks of one server, their wait for a thread included."""

# --- the API server ------------------------------------------------------------------------------

API_SECONDS = 30.0
"""One request; the client library itself would wait for ever."""
API_PAGE = 500
"""Objects of a page of a LIST."""
WATCH_SILENCE_SECONDS = 90.0
"""A watch without a byte. Bookmarks come every minute."""
WATCH_PROOF_SECONDS = 5.0
"""In which the first watch after a lost connection must bring something: else all is listed."""
VIEW_CHECK_SECONDS = (600.0, 900.0)
"""From one list to the next, whatever the watch says."""
VIEW_RECHECK_SECONDS = (60.0, 120.0)
"""From a lost connection to the next list."""
NEWS_SECONDS = 1.0
"""From one reconcile of a server for news about it to the next: anybody may annotate it."""
NEWS_AT_ONCE = 10
"""Reconciles before that pace holds: a rollout brings that much within a second."""
API_NOTICES = 256
"""Warnings of the API server that are passed on; who sends more of them is not listened to."""

# --- HTTP, to the agent --------------------------------------------------------------------------

HTTP_CONNECTIONS = 64
"""Open at once. One more ends the oldest, so that a kubelet is answered whoever else holds on."""
HTTP_SECONDS = 10.0
"""A connection, from its acceptance to the last byte of the answer."""
WEBHOOK_BODY = 1 * MIB
"""A push that touches 5,000 files has half of it; what is larger waits for the interval."""
WEBHOOK_SECONDS = 1.0
"""From the start of one poll that a webhook asked for to the next: it may be replayed."""
