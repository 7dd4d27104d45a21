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
"""The wait after a first failed fetch, doubled by each further one, and its maximum."""

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
