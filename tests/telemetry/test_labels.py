from app.telemetry.metrics.labels import LOOKED_FOR_ROOM, Few


def test_the_first_few_names_stand_for_themselves_and_the_rest_together() -> None:
    few = Few(3)
    assert [few.of(name) for name in "abcdea"] == ["a", "b", "c", "other", "other", "a"]
    assert few.of("") == "none"


def test_who_takes_a_word_of_ours_for_a_name_is_one_of_the_others() -> None:
    assert [Few(3).of(name) for name in ("other", "none")] == ["other", "other"]


def test_what_nobody_knows_takes_no_room() -> None:
    few = Few(3)
    few.is_known = "abc".__contains__
    assert {few.of(f"junk {number}") for number in range(10_000)} == {"other"}
    assert [few.of(name) for name in "abc"] == ["a", "b", "c"]


def test_one_that_is_known_no_more_makes_room_soon() -> None:
    known, forgotten = set("abc"), list[str]()
    few = Few(3, forgotten.append)
    few.is_known = lambda name: name in known
    for name in "abc":
        few.of(name)
    known.remove("b")
    known.add("d")
    assert few.of("d") == "d"
    assert forgotten == ["b"]
    known.remove("c")
    known.add("e")
    known.add("f")
    assert "f" in [few.of("f") for _ in range(LOOKED_FOR_ROOM + 1)], "it is not looked for each time"
    assert forgotten == ["b", "c"]
