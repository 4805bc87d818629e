"""The gateway's client towards any replica that speaks OpenAI's wire format over HTTP/1.1.

The data path is written by hand on `asyncio.Protocol` and httptools: an exchange (one request, one answer) borrows
a connection from a pool. The control plane, which asks rarely, uses httpx.
"""

from app.engines.http.engine import HttpEngine
from app.engines.http.limits import Limits, Timeouts

__all__ = ["HttpEngine", "Limits", "Timeouts"]
