"""Who may call: a TOML file of tenants, their keys, and finding the one that a key belongs to."""
