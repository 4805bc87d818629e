"""What several processes share out among them, so that all together keep to what is set (docs/adr/0024)."""

from collections.abc import Mapping

from app.settings.tree import Settings


def shared_out(settings: Settings) -> Mapping[str, int]:
    """Settings that count things in a process's memory, by their flat names."""
    admission = settings.admission
    return {
        "MAX_CONCURRENT_REQUESTS": admission.slots,
        "QUEUE_CAPACITY": admission.places,
        "QUEUE_CAPACITY_TOKENS": admission.token_places,
        "JOURNAL_REQUESTS": settings.telemetry.journal,
    }


def parts_of(settings: Settings, number: int) -> dict[str, int]:
    """What process `number` takes of each."""
    return {name: part(whole, number, settings.listen.processes) for name, whole in shared_out(settings).items()}


def part(whole: int, number: int, of: int) -> int:
    """The first ones take what is left over. Where there is anything at all, nobody is without."""
    return max(min(whole, 1), whole // of + (number < whole % of))
