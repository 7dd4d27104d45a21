"""The facts of one server in, a decision out. Pure."""
