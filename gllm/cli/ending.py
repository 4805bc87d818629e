"""The signals that tell a command to stop which runs until then: once in peace, twice at once."""

import signal


def signals() -> tuple[signal.Signals, ...]:
    """That its terminal is closed is one of them, but under `nohup`."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return (signal.SIGINT, signal.SIGTERM, *(() if ignored else (signal.SIGHUP,)))


def is_impatient(number: signal.Signals) -> bool:
    """When it comes again. Of a terminal that is closed the shell tells, too."""
    return number is not signal.SIGHUP
