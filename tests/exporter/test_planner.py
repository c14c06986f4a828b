"""The planner: engines compute what is simulated, repairs hold, and nothing faster than the choice would."""

import itertools
import re
from dataclasses import replace
from functools import partial

import numpy as np
import openvino as ov
import pytest
import torch
from test_graph import UNUSED, checkpoint_of, texts_of

from m3_export.calibration.statistics import gather_statistics
from m3_export.errors import PlanError
from m3_export.graph.model import M3Model
from m3_export.options import ExportOptions, Target, VariantName
from m3_export.plan import timing
from m3_export.plan.costs import (
    PAIR_SHAPES,
    SHAPES,
    Costs,
    Objective,
    Seconds,
    read_costs,
    recorded,
    shapes_of,
    weighted,
    write_costs,
)
from m3_export.plan.losses import Losses, TextLosses, limits_of
from m3_export.plan.plan import (
    DYNAMIC,
    FLOAT,
    FloatType,
    Kind,
    Precision,
    PrecisionPlan,
    Projection,
    Scheme,
    Setting,
    projections,
)
from m3_export.plan.planner import Planner, TuningTexts
from m3_export.plan.search import AS_FAST, NEARLY_AS_FAST, Candidate, Repair, Trial, search
from m3_export.plan.simulation import QuantizedModel, Simulation
from m3_export.quantize.variants import Graphs, properties_of, write_int8
from m3_export.verify.budget import Budget
from m3_export.verify.measure import SIMULATED
from m3_runtime.bundle.manifest import EngineName, Geometry, Head
from m3_runtime.cpu import CpuInfo
from m3_runtime.io.progress import Progress

STATIC = Scheme(Precision.STATIC, smoothing=0.5)
SETTING = Setting(FloatType.F32, 32)
GEOMETRY = Geometry(2, 2, 32, 64, 50, 78, 12)
LIMITS = Losses(0.1, 0.1, 0.1, 0.1, 0.1)
ZEN_4 = CpuInfo("Zen 4", "x86_64", frozenset({"avx2", "avx512f", "avx512_vnni", "avx512_bf16"}))
ZEN_3 = CpuInfo("Zen 3", "x86_64", frozenset({"avx2"}))


@pytest.fixture(scope="module")
def quantized() -> QuantizedModel:
    model, ids = M3Model(checkpoint_of(), UNUSED), texts_of(9, 12, 17, 20, 25, 30, 31, 40)
    return QuantizedModel(model, lambda: gather_statistics(model, ids, lambda batches: batches))


@pytest.fixture(scope="module")
def simulation(quantized) -> Simulation:
    lengths = [*range(8, 48, 2), 3, 4, 5]
    return Simulation(quantized, texts_of(*lengths), [length < 8 for length in lengths])


def everywhere(scheme: Scheme, group: int = 32) -> PrecisionPlan:
    return PrecisionPlan.uniform(2, scheme, group)


def losses_of_plan(quantized: QuantizedModel, simulation: Simulation, plan: PrecisionPlan) -> TextLosses:
    """Losses of a whole plan, the embedding in int8 included; floats are fp32 whatever the plan's float type is."""
    with quantized.fake_quantized(plan.schemes, plan.group):
        return simulation.losses_of_embedding()


def costs_of(**extra: float) -> Costs:
    """A second for each layer, and `extra` seconds for a projection in another precision than static."""
    second = {shape.name: 1.0 for shape in SHAPES}
    table = {(kind, Precision.STATIC): dict.fromkeys(second, 0.0) for kind in Kind}
    for kind in Kind:
        table[kind, Precision.DYNAMIC] = dict.fromkeys(second, extra.get(f"{kind}_dynamic", 0.1))
        table[kind, Precision.FLOAT] = dict.fromkeys(second, extra.get(f"{kind}_float", 0.5))
    zero = dict.fromkeys(second, 0.0)
    return Costs(EngineName.OPENVINO, "a processor", "vnni", 32, 64, {SETTING: (zero, second)}, {SETTING: table})


# ---- simulation


def test_a_float_plan_loses_nothing_but_the_embedding(quantized, simulation):
    assert simulation.losses_of_projection(Projection(0, Kind.QKV), FLOAT, 0).dense.max() < 1e-6
    embedding, plan = simulation.losses_of_embedding(), losses_of_plan(quantized, simulation, everywhere(FLOAT))
    np.testing.assert_allclose(plan.dense, embedding.dense, atol=1e-7)


def test_losses_from_the_middle_are_those_from_the_start(quantized, simulation):
    projection = Projection(1, Kind.FFN_IN)
    from_the_middle = simulation.losses_of_projection(projection, DYNAMIC, 0)
    with quantized.fake_quantized({projection: DYNAMIC}, 0):
        from_the_start = simulation.losses_of_projection(Projection(0, Kind.QKV), FLOAT, 0)
    np.testing.assert_allclose(from_the_middle.dense, from_the_start.dense, atol=1e-7)
    assert from_the_middle.dense.mean() > 1e-7
    as_it_was = simulation.losses_of_projection(Projection(0, Kind.QKV), FLOAT, 0)
    assert as_it_was.dense.max() < 1e-7


@pytest.mark.parametrize(
    ("name", "scheme", "group"),
    [
        (VariantName.ONNX_INT8, DYNAMIC, 0),
        (VariantName.ONNX_INT8, Scheme(Precision.DYNAMIC, smoothing=0.5), 0),
        (VariantName.ONNX_INT8, Scheme(Precision.DYNAMIC, float_columns=4), 0),
        (VariantName.OPENVINO_INT8, STATIC, 32),
    ],
    ids=str,
)
def test_losses_of_a_written_variant_are_those_that_were_simulated(
    quantized, portable_graph, tmp_path, name, scheme, group
):
    """On the same texts: embedding, outlier neurons, centred activations, shifted biases included.

    Within a tenth; a fifth for static plans, of which OpenVINO's query, key and value lose more than the simulation.
    """
    plan, texts = everywhere(scheme, group), texts_of(*range(5, 45))
    (tmp_path / "work").mkdir()
    graphs = Graphs(portable_graph(), tmp_path / "work")
    write_int8(name, graphs, quantized.statistics, plan, quantized.projections(plan), tmp_path)
    run = _onnxruntime(tmp_path) if name is VariantName.ONNX_INT8 else _openvino(tmp_path)
    losses = []
    for row in texts:
        ids = torch.from_numpy(row)[None]
        with torch.inference_mode():
            exact = quantized.model(ids, torch.ones_like(ids))[0][0].numpy()
        written = run({"input_ids": row[None], "attention_mask": np.ones((1, len(row)), np.int64)})
        losses.append(1 - float(exact.astype(np.float64) @ written))
    simulated = losses_of_plan(quantized, Simulation(quantized, texts, [False] * len(texts)), plan)
    tolerance = 0.1 if scheme.precision is Precision.DYNAMIC else 0.2
    assert np.mean(losses) == pytest.approx(simulated.dense.mean(), rel=tolerance)


def _onnxruntime(folder):
    import onnxruntime

    from m3_runtime.engines.ort import session_options

    options = session_options({}, 1, is_int8=True)
    session = onnxruntime.InferenceSession(folder / "onnx/model_int8.onnx", options)
    return lambda batch: session.run(["dense_vecs"], batch)[0][0]


def _openvino(folder):
    config = {"INFERENCE_PRECISION_HINT": "f32", **SIMULATED}
    core, files = ov.Core(), (folder / f"openvino/{name}" for name in ("model_int8.xml", "openvino_model.bin"))
    model = core.compile_model(core.read_model(*files), "CPU", config)
    return lambda batch: model(batch)["dense_vecs"][0]


# ---- losses


def test_upper_bounds_are_above_what_was_measured_and_repeat():
    rng = np.random.default_rng(0)
    losses = TextLosses(
        rng.random(50), rng.random(50), rng.random(500), np.repeat(np.arange(50), 10), np.arange(50) >= 40
    )
    measured = losses.figures(0.5)
    first, again = (losses.upper_bounds(0.5, np.random.default_rng(7)) for _ in range(2))
    assert first == again
    assert first.dense_mean > measured.dense_mean
    assert first.colbert_p5 >= measured.colbert_p5
    assert first.sparse_jaccard > measured.sparse_jaccard
    assert measured.dense_min == losses.dense[:40].max()
    assert measured.degenerate_share == (losses.dense[40:] > 0.5).mean()


def test_limits_are_what_a_budget_leaves():
    limits = limits_of(Budget(0.9, 0.8, 0.7, 0.6, 0.05))
    np.testing.assert_allclose(limits.as_array(), [0.1, 0.2, 0.3, 0.4, 0.05])


# ---- costs


def test_a_plan_takes_what_its_projections_take():
    costs = costs_of(ffn_out_float=3.0)
    plan = replace(everywhere(STATIC), schemes={**everywhere(STATIC).schemes, Projection(1, Kind.FFN_OUT): FLOAT})
    assert costs.seconds(everywhere(STATIC), 2)["query"] == 2.0
    assert costs.seconds(plan, 2)["query"] == 5.0


@pytest.mark.parametrize("objective", list(Objective))
def test_weights_of_an_objective_are_one_together(objective):
    seconds = {shape.name: 2.0 for shape in SHAPES}
    assert weighted(objective, seconds, seconds) == pytest.approx(1.0)


def test_costs_survive_their_file(tmp_path):
    write_costs(tmp_path / "costs.json", [costs_of()])
    assert read_costs(tmp_path / "costs.json") == (costs_of(),)


@pytest.mark.parametrize("text", ["{", "{}", '{"costs_schema": 99, "costs": []}', '{"costs_schema": 1, "costs": [{}]}'])
def test_what_is_no_file_of_costs_is_refused_by_name(tmp_path, text):
    (tmp_path / "costs.json").write_text(text)
    with pytest.raises(PlanError, match=r"costs .*costs\.json"):
        read_costs(tmp_path / "costs.json")


@pytest.mark.parametrize("engine", list(EngineName))
@pytest.mark.parametrize("target", ["vnni", "amx"])
def test_bge_m3_can_be_planned_for_another_processor(engine, target):
    geometry = Geometry(24, 16, 1024, 4096, 250_002, 8192, 1024)
    costs, of_one_token = (recorded(engine, geometry, target, is_one_token=cut) for cut in (False, True))
    static = Precision.STATIC in costs.precisions(costs.settings[0])
    assert static == (engine is EngineName.OPENVINO)
    last, setting = Projection(23, Kind.FFN_IN), costs.settings[0]
    assert costs.added(setting, last, Precision.FLOAT, 24)["batch"] > 0
    assert of_one_token.added(setting, last, Precision.FLOAT, 24)["batch"] == 0


def test_recorded_costs_of_another_geometry_are_not_taken():
    with pytest.raises(PlanError, match=r"hidden/FFN size 32/64 \(there are: .*1024/4096.*--plan"):
        recorded(EngineName.OPENVINO, GEOMETRY, "vnni", is_one_token=False)


def test_what_a_processor_offers():
    assert timing.offered(EngineName.OPENVINO, ZEN_4)[0] is Precision.STATIC
    assert Precision.STATIC not in timing.offered(EngineName.OPENVINO, ZEN_3)
    assert Precision.STATIC not in timing.offered(EngineName.ONNXRUNTIME, ZEN_4)
    types = {setting.float_type for setting in timing.settings(EngineName.OPENVINO, ZEN_4, 1024, 4096)}
    assert types == {FloatType.F32, FloatType.BF16}
    assert {s.group for s in timing.settings(EngineName.OPENVINO, ZEN_3, 384, 1536)} == {128, 384}
    assert (ZEN_4.multipliers, ZEN_3.multipliers) == ("vnni+bf16", "none")


def test_bf16_is_no_plan_for_onnxruntime():
    with pytest.raises(PlanError, match="multiplies no bf16"):
        properties_of(VariantName.ONNX_INT8, replace(everywhere(DYNAMIC, 0), float_type=FloatType.BF16))


def test_where_one_token_is_wanted_the_last_layer_adds_keys_and_values_alone():
    costs, layers = replace(costs_of(), is_one_token=True), 2
    for kind, share in {Kind.QKV: 2 / 3, Kind.ATTENTION_OUT: 0.0, Kind.FFN_IN: 0.0, Kind.FFN_OUT: 0.0}.items():
        first, last = (costs.added(SETTING, Projection(n, kind), Precision.FLOAT, layers)["batch"] for n in range(2))
        assert (first, last) == (0.5, pytest.approx(share * 0.5))
    assert costs.seconds(everywhere(FLOAT), layers)["batch"] == pytest.approx(2 + 4 * 0.5 + 2 / 3 * 0.5)
    measured = {shape.name: 6.0 for shape in SHAPES}, {shape.name: 2.0 for shape in SHAPES}
    corrected = costs.corrected(everywhere(FLOAT), everywhere(STATIC), measured)
    assert corrected.seconds(everywhere(FLOAT), layers)["batch"] == pytest.approx(6.0)
    start = everywhere(STATIC)
    last = replace(start, schemes={**start.schemes, Projection(1, Kind.FFN_IN): FLOAT})
    assert costs.corrected(last, start, measured) == costs  # nothing to correct: it adds nothing


def test_recorded_costs_keep_that_one_token_is_wanted(tmp_path):
    for costs in (costs_of(), replace(costs_of(), is_one_token=True)):
        write_costs(tmp_path / "costs.json", [costs])
        assert read_costs(tmp_path / "costs.json") == (costs,)


def test_a_reranker_is_timed_with_pairs():
    assert shapes_of((Head.DENSE, Head.SPARSE)) == SHAPES
    assert shapes_of((Head.SCORE,)) == PAIR_SHAPES
    assert [one.name for one in PAIR_SHAPES] == [one.name for one in SHAPES]
    assert min(one.tokens for one in PAIR_SHAPES) > 16


def test_corrected_costs_predict_what_was_measured_of_two_plans():
    costs, start = costs_of(), everywhere(STATIC)
    plan = replace(start, schemes={p: FLOAT if p.kind is Kind.FFN_IN else s for p, s in start.schemes.items()})
    measured = {shape.name: 3.3 for shape in SHAPES}, {shape.name: 3.0 for shape in SHAPES}
    corrected = costs.corrected(plan, start, measured)
    assert corrected.seconds(start, 2) == costs.seconds(start, 2)
    assert corrected.seconds(plan, 2) == pytest.approx({shape.name: 2.2 for shape in SHAPES})
    other = replace(start, schemes={p: FLOAT if p.kind is Kind.QKV else s for p, s in start.schemes.items()})
    assert corrected.seconds(other, 2) == costs.seconds(other, 2)


# ---- search


def trial_of(candidate: Candidate, worst: float) -> Trial:
    losses = Losses(*[worst * 0.1] * 5)
    return Trial(candidate, losses, losses)


def run_search(times: dict[str, float], worst: dict[str, float], repairs: dict[str, Candidate] | None = None):
    """Search candidates of given times and losses (in parts of the limits); what was tried, in order."""
    plans = {name: everywhere(DYNAMIC, group) for group, name in enumerate(times, 1)}
    tried: list[str] = []

    def evaluate(candidate: Candidate) -> Trial:
        tried.append(candidate.name)
        return trial_of(candidate, worst[candidate.name])

    candidates = [Candidate(plans[name], name, time) for name, time in times.items()]
    trials = search(
        candidates,
        LIMITS,
        evaluate,
        lambda trial, _seen, _trials: (repairs or {}).get(trial.candidate.name),
        lambda a, b: min(a, b, key=lambda trial: trial.candidate.time),
    )
    return trials[0].candidate.name, tried


def test_the_fastest_that_holds_is_taken_and_slower_ones_are_not_tried():
    assert run_search({"slow": 3, "fast": 1, "middle": 2}, {"fast": 0.9, "middle": 0.5, "slow": 0.1}) == (
        "fast",
        ["fast"],
    )


def test_candidates_that_are_as_fast_are_measured_too():
    times = {"a": 1.0, "b": AS_FAST + 0.01, "c": NEARLY_AS_FAST + 0.01}
    assert run_search(times, {"a": 0.9, "b": 0.8, "c": 0.1}) == ("a", ["a", "b"])


def test_what_is_over_is_repaired_if_nothing_else_is_as_fast():
    repair = Candidate(everywhere(DYNAMIC, 99), "repaired", 1.5)
    worst = {"a": 2.0, "b": 3.0, "slow": 0.1, "repaired": 0.9}
    assert run_search({"a": 1.0, "b": 1.01, "slow": 2}, worst, {"a": repair}) == ("repaired", ["a", "b", "repaired"])


def test_where_nothing_holds_the_one_that_is_least_over_comes_first():
    assert run_search({"a": 1, "b": 2}, {"a": 5.0, "b": 2.0})[0] == "b"


def _all_schemes() -> list[dict[Projection, Scheme]]:
    choices = itertools.product((STATIC, FLOAT), repeat=8)
    return [dict(zip(projections(2), schemes, strict=True)) for schemes in choices]


@pytest.fixture(scope="module")
def every_plan(quantized, simulation) -> dict[PrecisionPlan, Losses]:
    """All plans of two layers whose projections are static or float: 256."""
    found = {}
    for schemes in _all_schemes():
        plan = PrecisionPlan(schemes, 32)
        found[plan] = losses_of_plan(quantized, simulation, plan).figures(LIMITS.dense_min)
    return found


def test_regret_against_all_plans_of_a_small_model(simulation, every_plan):
    """Time of the chosen plan ÷ time of the fastest of all 256 that holds, for nine budgets.

    Two layers are hard: one step is a tenth of the time, and errors of eight projections do not average out.
    """
    costs = costs_of(qkv_float=0.9, attention_out_float=0.3, ffn_in_float=1.2, ffn_out_float=1.1)
    known: dict[tuple[Projection, Scheme], TextLosses] = {}

    def losses(projection: Projection, scheme: Scheme) -> TextLosses:
        if (projection, scheme) not in known:
            known[projection, scheme] = simulation.losses_of_projection(projection, scheme, 32)
        return known[projection, scheme]

    def time_of(plan: PrecisionPlan) -> float:
        return costs.seconds(plan, 2)["batch"]

    def extra(projection: Projection, scheme: Scheme) -> float:
        return costs.extra[SETTING][projection.kind, scheme.precision]["batch"]

    def evaluate(candidate: Candidate) -> Trial:
        return Trial(candidate, every_plan[candidate.plan], every_plan[candidate.plan])

    def regret(share: float) -> float:
        tightest, loosest = (every_plan[everywhere(scheme)].as_array() for scheme in (FLOAT, STATIC))
        limits = Losses(*(tightest + share * (loosest - tightest) + 1e-9))
        ladder = dict.fromkeys(projections(2), (STATIC, FLOAT))
        repair = Repair(ladder, losses, simulation.losses_of_embedding(), extra, limits)
        start = [Candidate(plan, str(plan), time_of(plan)) for plan in (everywhere(STATIC), everywhere(FLOAT))]
        faster = partial(min, key=lambda trial: trial.candidate.time)
        chosen = search(start, limits, evaluate, repair, faster, most_trials=16)[0]
        assert chosen.holds(limits)
        fastest = min(time_of(plan) for plan, found in every_plan.items() if found.worst(limits) <= 1)
        return chosen.candidate.time / fastest

    regrets = sorted(regret(share / 10) for share in range(1, 10))
    assert regrets[-3] <= 1.035
    assert regrets[-1] <= 2.0  # close to all static, where Jaccard of few tokens is far from additive


def repair_by(simulation: Simulation) -> Repair:
    costs = costs_of()
    return Repair(
        dict.fromkeys(projections(2), (STATIC, FLOAT)),
        lambda projection, scheme: simulation.losses_of_projection(projection, scheme, 32),
        simulation.losses_of_embedding(),
        lambda projection, scheme: costs.extra[SETTING][projection.kind, scheme.precision]["batch"],
        LIMITS,
    )


def test_a_repair_is_nearer_to_exact_and_keeps_the_setting(simulation):
    plan = replace(everywhere(STATIC), float_type=FloatType.BF16)
    repair = repair_by(simulation)
    repaired = repair(trial_of(Candidate(plan, "all static", 1.0), 1.3), {plan})
    assert repaired.name == "all static, repaired"
    assert (repaired.plan.group, repaired.plan.float_type) == (32, FloatType.BF16)
    assert FLOAT in repaired.plan.schemes.values()
    everything = {replace(plan, schemes=schemes) for schemes in _all_schemes()}
    assert repair(trial_of(Candidate(plan, "all static", 1.0), 1.3), everything) is None


def test_a_search_closes_in_between_what_holds_and_what_does_not(simulation):
    plan = everywhere(STATIC)
    repair = repair_by(simulation)
    over = trial_of(Candidate(plan, "all static", 1.0), 1.9)
    first = repair(over, {plan}, [over])
    held = trial_of(first, 0.2)  # the engine finds it far better than the sum of its losses says
    second = repair(held, {plan, first.plan}, [over, held])
    assert over.candidate.time < second.time < first.time
    assert second.origin == plan
    assert repair(trial_of(first, 0.99), {plan, first.plan}, [over]).time >= first.time


@pytest.fixture
def planned(quantized, simulation, monkeypatch, tmp_path):
    """The plan by given costs, where an engine of other costs says how long whole models take."""
    tuning = TuningTexts.split(texts_of(*range(8, 48, 2)), texts_of(3, 4, 5))
    budget = Budget(dense_mean=0.99965, dense_min=0, colbert_p5=0, sparse_jaccard=0, degenerate_share=1)

    def evaluate(plan: PrecisionPlan) -> tuple[Losses, Losses]:
        found = losses_of_plan(quantized, simulation, plan).figures(LIMITS.dense_min)
        return found, found

    def by(costs: Costs, truth: Costs, target: Target = Target.HERE) -> PrecisionPlan:
        timed: list[tuple[PrecisionPlan, PrecisionPlan]] = []

        def seconds(one: PrecisionPlan, other: PrecisionPlan) -> tuple[Seconds, Seconds]:
            timed.append((one, other))
            return truth.seconds(one, 2), truth.seconds(other, 2)

        monkeypatch.setattr(timing, "measure_costs", lambda *_: costs)
        monkeypatch.setattr("m3_export.plan.planner.recorded", lambda *_, **__: costs)
        options = ExportOptions(target=target)
        planner = Planner(quantized, tuning, GEOMETRY, limits_of(budget), options, Progress(quiet=False))
        plan = planner.plan(VariantName.OPENVINO_INT8, tmp_path, evaluate, seconds).plan
        assert evaluate(plan)[0].dense_mean <= 0.00035
        assert len(timed) == len(set(timed))  # nothing is timed twice
        assert bool(timed) == (target is Target.HERE)
        return plan

    return by


def test_where_costs_mislead_the_engines_times_decide(planned):
    """Small models say that attention's output costs next to nothing in float; the whole model disagrees."""
    others = dict.fromkeys([f"{kind}_{precision}" for kind in Kind for precision in ("dynamic", "float")], 0.5)
    wrong = costs_of(**{**others, "attention_out_float": 0.01})
    truth = costs_of(**{**others, "attention_out_float": 3.0})
    mistaken, chosen = planned(wrong, wrong), planned(wrong, truth)
    assert truth.seconds(chosen, 2)["batch"] < truth.seconds(mistaken, 2)["batch"]


def test_a_second_search_goes_on_from_the_choice_of_the_first(planned, capsys):
    others = dict.fromkeys([f"{kind}_{precision}" for kind in Kind for precision in ("dynamic", "float")], 0.5)
    planned(costs_of(**{**others, "attention_out_float": 0.01}), costs_of(**{**others, "attention_out_float": 3.0}))
    lines = [line.split("] ")[1].strip() for line in capsys.readouterr().err.splitlines()]
    first, second, *_ = (
        [line.partition(" of float predicted: ")[2] for line in group]
        for is_candidate, group in itertools.groupby(
            lines, lambda line: re.match(r"[0-9.]+ of float", line) is not None
        )
        if is_candidate
    )
    (chosen,) = set(second) - set(first)
    assert ", repaired, " in chosen


def test_for_another_processor_nothing_is_timed(planned, capsys):
    costs = costs_of(attention_out_float=0.01)
    plan = planned(costs, costs, Target.VNNI)
    assert "Timing" not in capsys.readouterr().err
    assert plan == planned(costs, costs)
    assert "Timing" in capsys.readouterr().err


@pytest.mark.parametrize("faster", list(FloatType))
def test_where_small_models_mislead_about_the_float_type_the_engine_decides(planned, faster):
    costs = costs_of()

    def with_slower(slow: FloatType) -> Costs:
        names = [shape.name for shape in SHAPES]
        zero = dict.fromkeys(names, 0.0)
        layer = {kind: dict.fromkeys(names, 1.1 if kind is slow else 1.0) for kind in FloatType}
        base = {Setting(kind, 32): (zero, layer[kind]) for kind in FloatType}
        return replace(costs, base=base, extra=dict.fromkeys(base, costs.extra[SETTING]))

    slower = next(kind for kind in FloatType if kind is not faster)
    assert planned(with_slower(slower), with_slower(slower)).float_type is faster
    assert planned(with_slower(faster), with_slower(slower)).float_type is faster


def test_tuning_texts_are_none_of_those_that_ranges_are_measured_on():
    natural, degenerate = [np.arange(n) for n in range(10, 30)], [np.arange(n) for n in range(2, 9)]
    split = TuningTexts.split(natural, degenerate)
    assert (len(split.ranges), sum(split.is_degenerate), len(split.is_degenerate)) == (16 + 5, 2, 4 + 2)
    lengths = {len(row) for row in split.ranges}
    assert not any(len(row) in lengths for row in split.tuning)
    alone = TuningTexts.split(natural[:1], [])
    assert len(alone.ranges) == len(alone.tuning) == 1
