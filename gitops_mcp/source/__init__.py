"""Files in, servers and their objects out. Pure."""
