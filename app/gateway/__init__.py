"""The edge and the way through it."""
