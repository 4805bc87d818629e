from datetime import date

from hypothesis import given
from hypothesis import strategies as st

from app.tenant import Tenant
from app.tenants.directory import Directory
from app.tenants.file import parse
from app.tenants.keys import digest_of
from app.tenants.roster import Key, Roster
from tests.tenants.files import ADMIN_KEY, RESEARCH_KEY, TENANTS

TODAY = date(2030, 1, 31)


def directory(roster: Roster) -> Directory:
    return Directory(roster, lambda: TODAY)


def test_a_key_finds_its_tenant() -> None:
    found = directory(parse(TENANTS))
    assert [tenant and tenant.name for tenant in map(found.find, (RESEARCH_KEY.encode(), ADMIN_KEY.encode()))] == [
        "research",
        "operators",
    ]


@given(st.binary(max_size=100))
def test_what_is_not_exactly_a_key_finds_nobody(given: bytes) -> None:
    found = directory(parse(TENANTS))
    for wrong in (given, RESEARCH_KEY.encode() + given[:3] + b"x", RESEARCH_KEY.encode()[:-1]):
        assert found.find(wrong) is None


def test_nobody_is_found_by_an_empty_directory_nor_by_a_digest() -> None:
    assert directory(Roster()).find(b"") is None
    assert directory(parse(TENANTS)).find(digest_of(RESEARCH_KEY.encode())) is None
    assert directory(parse(TENANTS)).find(digest_of(RESEARCH_KEY.encode()).hex().encode()) is None


def test_a_key_is_taken_until_the_day_on_which_it_expires() -> None:
    tenant = Tenant("a")
    keys = [Key(digest_of(b"%d" % day), tenant, expires=date(2030, 1, day)) for day in (30, 31)]
    keys.append(Key(digest_of(b"1"), tenant, expires=date(2030, 2, 1)))
    found = directory(Roster((tenant,), tuple(keys)))
    assert [found.find(key) for key in (b"30", b"31", b"1")] == [None, None, tenant]


def test_another_roster_takes_the_place_of_the_first_at_once() -> None:
    found = directory(parse(TENANTS))
    found.replace(Roster())
    assert found.find(RESEARCH_KEY.encode()) is None
    assert found.roster == Roster()
