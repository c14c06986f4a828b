"""Scenario files: what comes with the package, and what is refused."""

import pytest

from m3_bench.documents import Scenario
from m3_bench.scenarios import NAMES, Plan, read_plan
from m3_runtime.errors import InputError

ONE = '[[scenario]]\nname = "a"\ntokens = 16\n'


def read_scenarios(words: list[str]) -> tuple[Scenario, ...]:
    return read_plan(words).scenarios


@pytest.mark.parametrize("name", NAMES)
def test_what_comes_with_the_package_is_read(name):
    scenarios = read_scenarios([name])
    assert all(one.title != one.name for one in scenarios)
    assert all(3 <= length <= 8192 for one in scenarios for length in one.lengths)


def test_standard_and_long_together_have_every_length_and_several_callers():
    scenarios = read_scenarios(["standard", "long"])
    alone = {one.tokens for one in scenarios if len(one.lengths) == 1}
    assert {16, 64, 128, 256, 512, 1024, 2048, 4096, 8192} <= alone
    assert {one.clients for one in scenarios} == {1, 2, 4, 8}
    assert {len(set(one.lengths)) > 1 for one in scenarios} == {True, False}


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        '[[scenario]]\nname = "faq"\ntitle = "our questions"\ntexts = 4\nshortest = 5\nlongest = 9\n'
        'heads = ["sparse", "dense"]\ncalls = 3\nclients = 2\n' + ONE,
        encoding="utf-8",
    )
    faq, plain = read_scenarios([str(path)])
    assert faq.heads == ("dense", "sparse")
    assert (faq.calls, faq.clients, len(faq.lengths)) == (3, 2, 4)
    assert all(5 <= length <= 9 for length in faq.lengths)
    assert faq.tokens == sum(faq.lengths)
    assert plain == Scenario("a", "a", (16,), ("dense", "sparse", "colbert"), 1)
    assert read_scenarios([str(path)]) == (faq, plain)  # the same lengths each time


def test_those_that_a_model_cannot_take_are_left_out():
    plan = Plan(read_scenarios(["standard", "long"]), ())
    assert max(max(one.lengths) for one in plan.within(512).scenarios) == 512


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[scenario", "not TOML"),
        ("", "there is none; expected tables [[scenario]]"),
        ('scenario = "fast"', "expected tables [[scenario]], got 'fast'"),
        ("scenario = [1]", "expected tables [[scenario]], got [1]"),
        ("[[scenario]]\ntokens = 16", "number 1: missing keys ['name']"),
        ('[[scenario]]\nname = "a"', "shortest must be a whole number from 3 to 8192, got None"),
        ('[[scenario]]\nname = "a"\ntokens = 2', "tokens must be a whole number from 3 to 8192, got 2"),
        ('[[scenario]]\nname = "a"\ntokens = true', "got True"),
        ('[[scenario]]\nname = "a"\ntokens = 9000', "got 9000"),
        ('[[scenario]]\nname = "a"\nshortest = 9\nlongest = 5', "longest must be a whole number from 9"),
        (ONE + "longest = 5", "give either tokens, or shortest and longest"),
        (ONE + "calls = 0", "calls must be a whole number from 1"),
        (ONE + "heads = []", "heads are some of dense, sparse, colbert"),
        (ONE + 'heads = ["bm25"]', "heads are some of"),
        (ONE + "heads = 5", "heads: expected list, got 5"),
        (ONE + "is_start = 1", "is_start: expected bool, got 1"),
        (ONE + "batch = 5", "unknown keys ['batch']"),
        (ONE + ONE, "'a' is there twice"),
    ],
)
def test_what_is_no_scenario_is_refused_by_number(tmp_path, text, message):
    path = tmp_path / "bad.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as error:
        read_scenarios([str(path)])
    assert message in str(error.value)


def test_no_times_are_asked_for_by_name_and_alone():
    assert read_plan(["none"]) == Plan((), ())
    for words in ([], ["none", "quick"]):
        with pytest.raises(InputError, match="or none alone"):
            read_plan(words)


def test_a_missing_file_names_what_comes_with_the_package():
    with pytest.raises(InputError, match=r"expected a TOML file, or one of standard, long, quick"):
        read_scenarios(["fastest"])
