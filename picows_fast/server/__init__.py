"""Serving: from a listening socket to open connections, their limits and their end."""
