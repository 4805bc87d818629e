"""GPUs owned: found, leased, pinned, and proved free again."""
