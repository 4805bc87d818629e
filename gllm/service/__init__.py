"""Engines started and asked from Python, in batches: no gateway, no command line."""
