"""Calls of tenants, for tests of what tenants may have."""

from app.generation import Call, Expected, Route
from app.tenant import UNLIMITED, Limits, Tenant


def tenant(
    requests: int | None = None,
    tokens: int | None = None,
    concurrent: int | None = None,
    *,
    name: str = "acme",
    models: dict[str, Limits] | None = None,
) -> Tenant:
    limits = Limits(requests, tokens, concurrent)
    return Tenant(name, limits=UNLIMITED if limits == UNLIMITED else limits, model_limits=models or {})


def call(
    of: Tenant | None = None,
    *,
    model: str = "demo",
    route: Route = Route.CHAT,
    prompt_bytes: int = 400,
    max_tokens: int | None = 100,
    choices: int = 1,
) -> Call:
    return Call(
        id="req-1",
        route=route,
        model=model,
        body=b"{}",
        expires_at=1e9,
        prompt_bytes=prompt_bytes,
        max_tokens=max_tokens,
        choices=choices,
        tenant=of or tenant(),
    )


def expected(tokens: int = 10, most: int | None = None) -> Expected:
    return Expected(0, tokens, tokens if most is None else most)
