"""The dashboards. The answer to "is it well?" stands first; under it, where to look if it is not."""

from deploy.grafana.boards.cluster import CLUSTER
from deploy.grafana.boards.engines import ENGINES
from deploy.grafana.boards.gateway import GATEWAY
from deploy.grafana.boards.overview import OVERVIEW
from deploy.grafana.boards.streams import STREAMS
from deploy.grafana.boards.telemetry import TELEMETRY

BOARDS = (OVERVIEW, GATEWAY, STREAMS, ENGINES, CLUSTER, TELEMETRY)
