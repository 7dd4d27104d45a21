"""One reconcile: facts, decision, requests. Only this package speaks MCP."""
