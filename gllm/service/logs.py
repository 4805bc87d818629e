"""Logging as gserve's scripts have it; only for those who call it, since a library does not set up others' logging."""

import logging
import os

FORMAT = "%(levelname)s %(asctime)s [%(filename)s:%(lineno)d] %(message)s"
DATES = "%m-%d %H:%M:%S"
LEVEL_VARIABLE = "GSERVE_LOG_LEVEL"


def setup_logging(level: int | str | None = None) -> None:
    """Log to stderr from `level` on, else from GSERVE_LOG_LEVEL, else from INFO. Engines started later follow."""
    wanted = os.environ.get(LEVEL_VARIABLE, "INFO") if level is None else level
    number = logging.getLevelNamesMapping().get(wanted.upper()) if isinstance(wanted, str) else wanted
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(logging.StreamHandler())
    root.setLevel(logging.INFO if number is None else number)
    for handler in root.handlers:
        handler.setFormatter(logging.Formatter(FORMAT, datefmt=DATES))
        handler.setLevel(root.level)
    logging.getLogger("httpx").setLevel(max(root.level, logging.WARNING))  # else a line for each request of a batch
    if number is None:
        logging.getLogger(__name__).warning("%r is not a log level; taking INFO.", wanted)
    os.environ[LEVEL_VARIABLE] = logging.getLevelName(root.level)
