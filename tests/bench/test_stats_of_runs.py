"""Statistics of runs, on stored values: nothing is timed."""

from dataclasses import replace

import pytest
from stored import samples

from m3_bench import stats
from m3_bench.documents import Ceiling, Contender, Round, Scenario

RUN = samples.stored("run")


def who(name: str) -> Contender:
    return next(one for one in RUN.contenders if one.name == name)


def rounds_of(name: str, scenario: str) -> tuple[Round, ...]:
    return next(one.rounds for one in who(name).scenarios if one.scenario == scenario)


def scenario(name: str) -> Scenario:
    return next(one for one in RUN.scenarios if one.name == name)


def test_percentiles_are_over_all_calls_of_all_rounds():
    rounds = rounds_of("openvino-int8", "length-16")
    calls = sorted(seconds for one in rounds for seconds in one.seconds)
    found = stats.Latency.of([seconds for one in rounds for seconds in one.seconds])
    assert found.calls == len(calls) == 100
    assert found.p50_s == pytest.approx((calls[49] + calls[50]) / 2)
    assert found.p95_s == pytest.approx(calls[94] + 0.05 * (calls[95] - calls[94]))
    assert found.p99_s == pytest.approx(calls[98] + 0.01 * (calls[99] - calls[98]))


@pytest.mark.parametrize(
    ("calls", "told"), [(100, (True, True)), (99, (True, False)), (20, (True, False)), (19, (False, False))]
)
def test_a_percentile_of_too_few_calls_is_not_made_up(calls, told):
    found = stats.Latency.of([0.01 * (n + 1) for n in range(calls)])
    assert (found.p95_s is not None, found.p99_s is not None) == told


def test_throughput_counts_the_clock_where_callers_share_and_the_calls_where_one_waits():
    alone = Round((2.0, 2.0), 5.0, 1.0, 1, 1)
    assert stats.tokens_per_s((alone,), Scenario("a", "a", (100, 100), ("dense",), 2)).median == 100.0
    assert stats.tokens_per_s((alone,), Scenario("a", "a", (100, 100), ("dense",), 2, clients=2)).median == 80.0


def test_the_stored_batches_are_as_fast_as_their_rounds():
    found = stats.tokens_per_s(rounds_of("openvino-int8", "batch-16"), scenario("batch-16"))
    values = [16 * 128 / one.seconds[0] for one in rounds_of("openvino-int8", "batch-16")]
    assert found.values == pytest.approx(values)
    assert (found.median, found.low, found.high) == pytest.approx((sorted(values)[2], min(values), max(values)))


def test_ratios_are_within_rounds_so_a_slow_machine_slows_both():
    ours, theirs = [100.0, 50.0, 100.0], [50.0, 25.0, 50.0]  # everything at half speed in the second round
    found = stats.ratio(ours, theirs)
    assert (found.low, found.median, found.high) == (2.0, 2.0, 2.0)
    assert stats.warning_of(ours)  # though each alone is noisy


def test_a_round_that_only_one_of_them_finished_is_left_out_of_the_ratio():
    assert stats.ratio([2.0, 4.0], [1.0]).values == (2.0,)


def test_processor_time_is_none_where_the_system_does_not_say():
    asked = Scenario("a", "a", (500,), ("dense",), 1)
    known = Round((1.0,), 1.0, 4.0, 1, 1)
    assert stats.cpu_s_per_million_tokens((known, known), asked) == 8000.0
    assert stats.cpu_s_per_million_tokens((known, replace(known, cpu_s=0.0)), asked) is None


def test_cost_is_the_price_of_an_hour_by_the_tokens_of_an_hour():
    # 0.36 an hour, 1000 tokens/s are 3.6 million an hour
    assert stats.cost_per_million_tokens(0.36, 1000.0) == pytest.approx(0.1)
    assert stats.cost_per_million_tokens(0.0, 1000.0) == 0.0


def test_quiet_rounds_raise_no_doubt_and_noise_is_named_with_its_size_and_a_remedy():
    asked = scenario("batch-32")
    assert stats.warning_of(stats.tokens_per_s(rounds_of("openvino-int8", "batch-16"), asked).values) == ""
    assert "% between rounds" in stats.warning_of(stats.tokens_per_s(rounds_of("onnx-int8", "batch-32"), asked).values)
    noisy = "vary by 19 % between rounds: other work on the machine? measure again with more rounds"
    assert noisy in stats.warning_of([100.0, 140.0, 90.0, 130.0, 100.0])
    assert stats.warning_of([100.0, 100.0]).startswith("2 of at least 3 rounds: how far rounds differ is not known")


def test_the_ceiling_is_the_fastest_engine_that_is_exact():
    ceilings = (
        Ceiling("slow", "int8", (1e12, 1.2e12, 1.1e12)),
        Ceiling("fast", "int8", (2e12, 2.2e12, 9e12)),
        Ceiling("wrong", "int8", (7e12,), "not exact"),
        Ceiling("none", "bf16", (), "no bf16"),
    )
    assert stats.ceiling_flop_per_s(ceilings, "int8") == 2.2e12
    assert stats.ceiling_flop_per_s(ceilings, "bf16") is None
    assert stats.ceiling_flop_per_s(ceilings, "fp64") is None
