"""Results in, text and JSON and note records out. Pure."""
