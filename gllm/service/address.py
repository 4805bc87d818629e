"""Where a server is reached."""


def url_of(host: str, port: int) -> str:
    """One that listens on every address is asked on this machine's own."""
    return f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
