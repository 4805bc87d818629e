"""Policies: small pure objects, each with a clock handed in."""
