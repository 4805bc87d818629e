"""Tenants files for tests."""

from app.tenants.keys import digest_of

RESEARCH_KEY = "gllm-research-canary"
BATCH_KEY = "gllm-batch-canary"
ADMIN_KEY = "gllm-admin-canary"


def hash_of(key: str) -> str:
    return digest_of(key.encode()).hex()


TENANTS = f"""\
# Who may come in.
[[tenant]]
name = "research"
models = ["demo"]  # no other
weight = 2
priority = "normal"
requests_per_minute = 600
tokens_per_minute = 200_000
concurrent = 16

[tenant.limits."demo"]
concurrent = 4

[[tenant.key]]
sha256 = "{hash_of(RESEARCH_KEY)}"
label = "laptop"
created = 2026-01-31

[[tenant]]
name = "night"
priority = "batch"

# Theirs, for the cron job.
[[tenant.key]]
sha256 = "{hash_of(BATCH_KEY)}"

[[tenant]]
name = "operators"
priority = "interactive"
admin = true
[[tenant.key]]
sha256 = "{hash_of(ADMIN_KEY)}"
"""
