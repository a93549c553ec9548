"""Connecting: from a URL to an open connection."""
