"""Until there is `gllm serve`: a gateway by the environment, on our own protocol."""

import uvicorn

from app.gateway.app import Gateway
from app.settings import Settings

if __name__ == "__main__":
    settings = Settings.load(env_file=None)
    gateway = Gateway(settings)
    uvicorn.run(
        gateway.app,
        host=settings.listen.host,
        port=settings.listen.port,
        http=gateway.protocol,
        ws="none",
        proxy_headers=False,
        server_header=False,
        log_level="warning",
        timeout_graceful_shutdown=int(settings.listen.drain_s),
    )
