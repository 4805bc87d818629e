"""Where an engine is, from the URL that the operator wrote."""

import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    port: int
    authority: str
    """Host and port as the `host` header has them."""
    prefix: str
    """The path before the route, without a slash at its end."""
    tls: ssl.SSLContext | None

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.authority}{self.prefix}"


def parse(base_url: str) -> Address:
    """The URL may have a path, and may end in `/v1` as OpenAI's clients write it. Raises ValueError."""
    if not (base_url.isascii() and base_url.isprintable()) or " " in base_url:
        raise ValueError("An engine's URL must be plain ASCII; write an international host name in its xn-- form.")
    url = urlsplit(base_url)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError(f"An engine's URL must look like http://HOST:PORT or https://HOST, not {base_url!r}.")
    if url.username is not None or url.query or url.fragment:
        raise ValueError("An engine's URL takes no user name, query or fragment; its key is a setting of its own.")
    url.hostname.encode("idna")  # what no resolver would take is refused here
    usual = 443 if url.scheme == "https" else 80
    port = usual if url.port is None else url.port
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    return Address(
        host=url.hostname,
        port=port,
        authority=host if port == usual else f"{host}:{port}",
        prefix=url.path.rstrip("/").removesuffix("/v1").rstrip("/"),
        tls=_tls() if url.scheme == "https" else None,
    )


def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
