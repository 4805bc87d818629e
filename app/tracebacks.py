"""Where errors came from, once nobody asks any more."""


def forget(error: BaseException) -> None:
    """An error holds the frames that it came through, and one of them often holds the error: a circle, and with it all
    that the request was, until the collector comes by. To be called by whoever has dealt with it."""
    seen: BaseException | None = error
    while seen is not None:
        seen.__traceback__ = None
        seen = seen.__cause__ or seen.__context__
