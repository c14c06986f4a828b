"""Precision plans: what a file may say, and that what is written is read again."""

import json
from pathlib import Path

import pytest

from m3_export.errors import PlanError
from m3_export.plan.plan import (
    FloatType,
    Kind,
    Precision,
    PrecisionPlan,
    Projection,
    Scheme,
    plans_to_text,
    projections,
    read_plans,
)
from m3_runtime.bundle.manifest import Geometry

GEOMETRY = Geometry(2, 2, 32, 64, 50, 78, 12)
PLAN = PrecisionPlan(
    {
        projection: Scheme(Precision.STATIC, 0.5, 0.8)
        if projection.kind is Kind.FFN_OUT
        else Scheme(Precision.DYNAMIC, 0.0, 1.0, 4)
        if projection.kind is Kind.QKV
        else Scheme(Precision.FLOAT)
        for projection in projections(2)
    },
    128,
)


def written(tmp_path: Path, **changes) -> Path:
    content = json.loads(plans_to_text({"openvino-int8": PLAN}, GEOMETRY)) | changes
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def variants(change) -> dict:
    content = json.loads(plans_to_text({"openvino-int8": PLAN}, GEOMETRY))["variants"]
    change(content["openvino-int8"])
    return content


def test_a_plan_survives_its_file(tmp_path: Path):
    assert read_plans(written(tmp_path), GEOMETRY) == {"openvino-int8": PLAN}


def test_there_are_four_projections_a_layer_in_the_order_in_which_they_run():
    assert len(projections(24)) == 96
    assert [str(p) for p in projections(1)] == [f"layer.0.{k}" for k in ("qkv", "attention_out", "ffn_in", "ffn_out")]
    assert all(Projection.parse(str(projection)) == projection for projection in projections(3))


def test_the_manifest_holds_every_choice():
    lines = {line.projection: line for line in PLAN.lines()}
    assert lines["layer.1.ffn_out"].precision == "static"
    assert (lines["layer.1.ffn_out"].smoothing, lines["layer.1.ffn_out"].clip) == (0.5, 0.8)
    assert lines["layer.0.qkv"].columns_apart == 4


def test_a_plan_that_release_0_1_wrote_replays(tmp_path: Path):
    """It said columns_apart and had no float type."""
    old = variants(lambda v: v.pop("float_type"))
    for scheme in old["openvino-int8"]["projections"].values():
        if "float_columns" in scheme:
            scheme["columns_apart"] = scheme.pop("float_columns")
    assert read_plans(written(tmp_path, variants=old), GEOMETRY) == {"openvino-int8": PLAN}


def test_the_float_type_is_part_of_a_plan(tmp_path: Path):
    bf16 = variants(lambda v: v.update(float_type="bf16"))
    assert read_plans(written(tmp_path, variants=bf16), GEOMETRY)["openvino-int8"].float_type is FloatType.BF16
    with pytest.raises(PlanError, match="float_type must be one of f32, bf16, got 'fp8'"):
        read_plans(written(tmp_path, variants=variants(lambda v: v.update(float_type="fp8"))), GEOMETRY)


def test_equal_plans_are_one_key():
    assert len({PLAN, PrecisionPlan(dict(reversed(PLAN.schemes.items())), 128)}) == 1


def test_a_plan_for_another_geometry_is_refused(tmp_path: Path):
    with pytest.raises(PlanError, match=r"another geometry: layers 2, .*this model has layers 3"):
        read_plans(written(tmp_path), Geometry(3, 2, 32, 64, 50, 78, 12))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda v: v["projections"].update({"layer.0.pooler": {"precision": "float"}}),
            "unknown projection 'layer.0.pooler'",
        ),
        (lambda v: v["projections"].update({"layer.9.qkv": {"precision": "float"}}), "the model has no layer.9.qkv"),
        (lambda v: v["projections"].pop("layer.1.ffn_in"), r"says nothing about layer.1.ffn_in \(1 of 8"),
        (lambda v: v["projections"]["layer.0.qkv"].update(precision="int4"), "layer.0.qkv: precision must be one of"),
        (lambda v: v["projections"]["layer.0.qkv"].update(smooth=1), "unknown key 'smooth'"),
        (lambda v: v["projections"]["layer.0.qkv"].update(smoothing=2), "smoothing must be a number from 0 to 1"),
        (lambda v: v["projections"]["layer.0.qkv"].update(clip=0), "a clip above 0"),
        (lambda v: v["projections"]["layer.0.qkv"].update(float_columns=1000), "0 to 64 float_columns"),
        (lambda v: v.update(group=-1), "needs a group"),
    ],
)
def test_what_a_plan_cannot_say_is_refused_by_name(tmp_path: Path, change, words: str):
    with pytest.raises(PlanError, match=words):
        read_plans(written(tmp_path, variants=variants(change)), GEOMETRY)


@pytest.mark.parametrize("changes", [{"plan_schema": 99}, {"variants": {}}, {"variants": []}])
def test_what_is_no_plan_file_is_refused(tmp_path: Path, changes: dict):
    with pytest.raises(PlanError, match=r"plan .*plan\.json"):
        read_plans(written(tmp_path, **changes), GEOMETRY)


def test_a_file_that_is_not_there_or_not_json_is_named(tmp_path: Path):
    (tmp_path / "broken.json").write_text("{")
    for name in ("missing.json", "broken.json"):
        with pytest.raises(PlanError, match=name):
            read_plans(tmp_path / name, GEOMETRY)
