"""The planner: what is simulated is what engines compute, the path is in order, and the search stops where it must."""

from xml.etree import ElementTree

import numpy as np
import openvino as ov
import pytest
import torch
from test_graph import UNUSED, checkpoint_of, texts_of

from m3_export import passes
from m3_export.budget import Budget
from m3_export.model import M3Model
from m3_export.plan.costs import Costs, Sample, Way, known, measure
from m3_export.plan.options import Option, find_options, hull, worth
from m3_export.plan.picture import picture
from m3_export.plan.plan import DYNAMIC, FLOAT, Choice, Kind, Plan, Precision, Projection, projections
from m3_export.plan.planner import Calibrated, Planned, Texts, forms_of, limits_of, losses_of, plans
from m3_export.plan.search import CLOSE_ENOUGH, Path, Search
from m3_export.plan.simulate import Losses
from m3_export.progress import Progress
from m3_export.quantize.sample_runs import runner
from m3_export.recipe import VariantName
from m3_export.trace import trace
from m3_export.variants import Graphs, write_int8
from m3_export.verify import SIMULATED
from m3_runtime.manifest import EngineName, Geometry

QUIET = Progress(quiet=True)
GEOMETRY = Geometry(2, 2, 32, 64, 50, 78, 12)
LIMITS = Losses(0.1, 0.1, 0.1, 0.1)


@pytest.fixture(scope="module")
def calibrated() -> Calibrated:
    ids = [np.asarray(row, np.int32) for row in texts_of(9, 12, 17, 20, 25, 30, 31, 40)]
    found = Calibrated(M3Model(checkpoint_of(), UNUSED), Texts.split(ids), QUIET)
    found.tuning  # noqa: B018 - made while the model is exact
    return found


def everywhere(choice: Choice, group: int) -> Plan:
    return Plan.uniform(2, choice, group)


def test_a_float_plan_loses_nothing(calibrated):
    losses = losses_of(calibrated.subject(0), everywhere(FLOAT, 0), calibrated.tuning)
    assert max(vars(losses).values()) < 1e-6


def test_losses_from_the_middle_are_those_from_the_start(calibrated):
    subject, place = calibrated.subject(0), Projection(1, Kind.FFN_IN)
    with subject.with_choice(place, DYNAMIC):
        assert vars(calibrated.tuning.losses(1)) == pytest.approx(vars(calibrated.tuning.losses(0)), abs=1e-7)
        assert calibrated.tuning.losses(1).dense_mean > 1e-7
    assert calibrated.tuning.losses(0).dense_mean < 1e-7  # the model is as it was


@pytest.mark.parametrize(
    ("name", "choice", "group"),
    [
        (VariantName.ONNX_INT8, DYNAMIC, 0),
        (VariantName.ONNX_INT8, Choice(Precision.DYNAMIC, smoothing=0.5), 0),
        (VariantName.ONNX_INT8, Choice(Precision.DYNAMIC, columns_apart=4), 0),
        (VariantName.OPENVINO_INT8, Choice(Precision.STATIC, smoothing=0.5), 32),
    ],
    ids=str,
)
def test_a_written_variant_computes_what_was_simulated(calibrated, tmp_path, name, choice, group):
    """Of a whole model, loud neurons, centred activations and shifted biases included."""
    subject, plan = calibrated.subject(group), everywhere(choice, group)
    (tmp_path / "work").mkdir()
    graphs = Graphs(passes.portable(trace(calibrated.model)), tmp_path / "work")
    write_int8(name, graphs, calibrated.statistics, plan, forms_of(subject, plan), tmp_path)
    run = _onnxruntime(tmp_path) if name is VariantName.ONNX_INT8 else _openvino(tmp_path)
    exact, simulated, written = [], [], []
    for row in texts_of(14, 22, 37):
        ids = torch.from_numpy(row)[None]
        with torch.inference_mode():
            exact.append(calibrated.model(ids, torch.ones_like(ids))[0][0].numpy())
            with subject.with_plan(plan):
                simulated.append(calibrated.model(ids, torch.ones_like(ids))[0][0].numpy())
        written.append(run({"input_ids": row[None], "attention_mask": np.ones((1, len(row)), np.int64)}))
    loss = [1 - float(a @ b) for a, b in zip(exact, simulated, strict=True)]
    between = [1 - float(a @ b) for a, b in zip(simulated, written, strict=True)]
    # the embedding, which only the engine has in int8, and values on the edge of a step are all that differs
    assert max(between) < 0.75 * max(loss) + 2e-4
    assert max(1 - float(a @ b) for a, b in zip(exact, written, strict=True)) < 2 * max(loss) + 2e-4


def _onnxruntime(folder):
    import onnxruntime

    from m3_runtime.engines.ort import session_config

    options = onnxruntime.SessionOptions()
    for key, value in session_config({}, is_int8=True).items():
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(folder / "onnx/model_int8.onnx", options)
    return lambda batch: session.run(["dense_vecs"], batch)[0][0]


def _openvino(folder):
    config = {"INFERENCE_PRECISION_HINT": "f32", **SIMULATED}
    model = ov.Core().compile_model(folder / "openvino/model_int8.xml", "CPU", config)
    return lambda batch: model(batch)["dense_vecs"][0]


def test_options_get_nearer_as_they_get_dearer_and_end_in_float(calibrated):
    options = find_options(calibrated.subject(128), known(EngineName.OPENVINO), lambda places: places)
    assert list(options) == list(projections(2))
    for found in options.values():
        costs, errors = [o.cost for o in found], [o.error for o in found]
        assert costs == sorted(costs)
        assert errors == sorted(errors, reverse=True)
        assert (found[-1].choice, errors[-1]) == (FLOAT, 0.0)
        assert found[0].choice.precision is Precision.STATIC


def test_the_hull_keeps_what_each_second_buys_most():
    flat = Option(Choice(Precision.DYNAMIC, 0.3), 2.0, 5.0)
    kept = hull(
        [Option(DYNAMIC, 1.0, 5.0), flat, Option(Choice(Precision.DYNAMIC, 0.5), 2.0, 1.0), Option(FLOAT, 4.0, 0.0)]
    )
    assert flat not in kept
    assert worth(kept[0], kept[1]) > worth(kept[1], kept[2])


def path_of(*, sensitive: Projection) -> Path:
    pair = (Option(DYNAMIC, 0.4, 1e-3), Option(FLOAT, 1.0, 0.0))
    options = dict.fromkeys(projections(2), pair)
    return Path(options, lambda: {place: 9.0 if place == sensitive else 1.0 for place in options}, 0)


def test_the_most_sensitive_projection_is_spared_first():
    place = Projection(1, Kind.FFN_OUT)
    path = path_of(sensitive=place)
    assert len(path) == 9
    plan, _ = path.at(1)
    assert [p for p, choice in plan.choices.items() if choice == FLOAT] == [place]
    costs = [path.at(i)[1] for i in range(len(path))]
    assert costs == sorted(costs)


def test_the_search_finds_the_first_place_that_holds_and_no_second_look_is_needed():
    path, asked = path_of(sensitive=Projection(0, Kind.QKV)), []

    def simulate(plan: Plan) -> Losses:
        floats = sum(choice == FLOAT for choice in plan.choices.values())
        asked.append(floats)
        return Losses(*[0.1 * (6 - floats) / 5] * 4)

    search = Search(path, simulate, LIMITS)
    assert search.fastest(1.0).place == 1
    assert search.fastest(0.5).place == 4
    assert len(asked) == len(set(asked))
    assert search.fastest(0.5, beyond=4).place == 5
    assert [t.place for t in search.tried] == sorted(t.place for t in search.tried)


def test_plans_that_take_hardly_longer_are_not_told_apart():
    pair, asked = (Option(DYNAMIC, 0.4, 1e-3), Option(FLOAT, 0.4 + CLOSE_ENOUGH / 4, 0.0)), []
    path = Path(dict.fromkeys(projections(2), pair), lambda: dict.fromkeys(projections(2), 1.0), 0)

    def simulate(plan: Plan) -> Losses:
        floats = sum(choice == FLOAT for choice in plan.choices.values())
        asked.append(floats)
        return Losses(*[0.1 * (6 - floats) / 5] * 4)

    found = Search(path, simulate, LIMITS).fastest(0.5)
    assert found.losses.over(LIMITS) <= 0.5
    assert found.cost - path.at(4)[1] <= CLOSE_ENOUGH  # 4 is the first that holds
    assert len(asked) < 4


def test_a_budget_that_the_fastest_plan_holds_needs_no_weighing():
    def weigh():
        raise AssertionError("not needed")

    path = Path(dict.fromkeys(projections(1), (Option(DYNAMIC, 0.4, 1e-3), Option(FLOAT, 1.0, 0.0))), weigh, 0)
    assert Search(path, lambda plan: Losses(0, 0, 0, 0), LIMITS).fastest(0.85).place == 0


def test_where_nothing_holds_the_nearest_plan_is_the_last_word():
    search = Search(path_of(sensitive=Projection(0, Kind.QKV)), lambda plan: Losses(1, 1, 1, 1), LIMITS)
    found = search.fastest(1.0)
    assert search.is_last(found)
    assert set(found.plan.choices.values()) == {FLOAT}


def test_plans_get_nearer_and_end(calibrated):
    impossible = Budget(1.0, 1.0, 1.0, 1.0)
    found = list(plans(calibrated, known(EngineName.ONNXRUNTIME), 0, impossible, QUIET))
    assert set(found[-1].plan.choices.values()) == {FLOAT}
    loose = list(plans(calibrated, known(EngineName.ONNXRUNTIME), 0, Budget(-1, -1, -1, -1), QUIET))
    assert FLOAT not in loose[0].plan.choices.values()


def test_limits_are_what_a_budget_leaves():
    assert vars(limits_of(Budget(0.9, 0.8, 0.7, 0.6))) == pytest.approx(vars(Losses(0.1, 0.2, 0.3, 0.4)))


@pytest.mark.parametrize("engine", list(EngineName))
def test_costs_are_of_what_the_engine_offers_and_never_above_float(engine):
    ways = [way for way in Way if way is not Way.STATIC]
    costs = measure(ways, GEOMETRY, 0, runner(engine), lambda kinds: kinds)
    assert costs.precisions == {Precision.DYNAMIC, Precision.FLOAT}
    assert all(0 < ratio < 1 for (_, way), ratio in costs.ratios.items() if way is not Way.FLOAT)
    assert sum(costs.of(place.kind, FLOAT, 2) for place in projections(2)) == pytest.approx(1.0)


def test_a_sample_is_a_projection_with_what_comes_before_it():
    for kind in Kind:
        sample = Sample.of(kind, GEOMETRY)
        assert len(sample.graph.graph.outputs) == len(kind.weights)
        assert not sample.forms(FLOAT, 0)


def test_the_picture_has_a_cell_for_every_projection_and_tells_its_choice(calibrated):
    found = next(plans(calibrated, known(EngineName.OPENVINO), 128, Budget(-1, -1, -1, -1), QUIET))
    drawn = picture("openvino-int8", found)
    assert drawn.count("<title>layer.") == 8
    assert "layer.1.ffn_out: static" in drawn
    given = picture("openvino-int8", Planned(found.plan, None, (), None))
    assert "Simulated plans" in drawn
    assert "Simulated plans" not in given
    assert ElementTree.fromstring(drawn).tag.endswith("svg")


def test_texts_are_split_and_a_single_one_serves_both():
    ids = [np.arange(n) for n in range(3, 13)]
    split = Texts.split(ids)
    assert (len(split.ranges), len(split.tuning)) == (8, 2)
    assert not {len(r) for r in split.ranges} & {len(t) for t in split.tuning}
    alone = Texts.split(ids[:1])
    assert alone.ranges == alone.tuning


def test_known_costs_offer_static_on_openvino_alone():
    assert Precision.STATIC in known(EngineName.OPENVINO).precisions
    assert Precision.STATIC not in known(EngineName.ONNXRUNTIME).precisions
    assert isinstance(known(EngineName.OPENVINO), Costs)
