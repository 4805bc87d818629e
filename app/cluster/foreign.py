"""What an engine works on that is not ours: other gateways and other clients use it too."""

from app.reliability.limit import Load

FAR_MORE = 8
"""An engine that tells of no more than an eighth beyond ours tells of ours: it and we do not count at one moment."""


class Foreign:
    """Sequences on one engine that no lease of ours explains.

    An engine notices later than we do that a sequence is over, so ours are as many as there were at most since the
    look before the last. What is not told anew fades.
    """

    __slots__ = ("_most", "_most_before", "sequences")

    def __init__(self) -> None:
        self.sequences = 0
        self._most = 0
        self._most_before = 0

    def ours(self, sequences: int) -> None:
        """So many run for us from now on."""
        if sequences > self._most:
            self._most = sequences

    def told(self, load: Load, ours: int) -> None:
        most = max(self._most, self._most_before)
        beyond = load.running + load.waiting - most
        self.sequences = beyond if beyond * FAR_MORE > most else 0
        self._most, self._most_before = ours, self._most

    def untold(self) -> None:
        self.sequences //= 2
