"""Typed client of mera-server."""
