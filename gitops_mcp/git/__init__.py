"""Repositories: commits, mirrors, deployment notes. Only this package runs git."""
