"""Arguments in, an exit code out."""
