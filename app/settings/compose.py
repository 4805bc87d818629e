"""What docker-compose.yml reads from the same `.env`: no settings of a gateway, and no misspelt ones either."""

from typing import NamedTuple


class Variable(NamedTuple):
    name: str
    """Of a family like `COMPOSE_*`, what all of them begin with."""
    default: str
    sentence: str


TITLE = "For Docker Compose alone"

VARIABLES = (
    Variable(
        "GATEWAY_BIND",
        "127.0.0.1",
        "Address of this machine at which the gateway's PORT is published; beyond loopback it also takes TENANTS_FILE "
        "or ALLOW_ANONYMOUS=true.",
    ),
    Variable(
        "GRAFANA_BIND",
        "127.0.0.1",
        "Address of this machine at which Grafana's port 3000 is published; beyond loopback it also takes a "
        "GRAFANA_PASSWORD of 12 characters or more.",
    ),
    Variable("GRAFANA_PASSWORD", "gllm", "What Grafana asks its user `admin` for."),
    Variable("MODELS_DIR", "./models", "Folder with models; engines see it as `models/`, and cannot write to it."),
    Variable("GPU_MODEL_NAME", "Qwen/Qwen3-0.6B", "The model that the workers of the profile `gpu` load."),
    Variable("PROMETHEUS_RETENTION", "30d", "How long Prometheus keeps what it measured."),
    Variable(
        "TORCH_INDEX",
        "",
        "Package index to take torch from for the image of the Transformers engine; one with builds for CPUs saves "
        "gigabytes. Unset: pip's own.",
    ),
    Variable("COMPOSE_*", "", "Compose's own variables, such as COMPOSE_PROFILES and COMPOSE_PROJECT_NAME."),
)

NAMES = tuple(each.name for each in VARIABLES)
