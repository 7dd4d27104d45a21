"""gitops-mcp: git push is the deployment interface for MCP servers on Kubernetes."""

__version__ = "0.1.0"
