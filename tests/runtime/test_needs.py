"""Variants that need what a processor may lack: passed over, logged once, refused when asked for by name."""

import itertools
import json
import logging
import re
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace

import pytest

from m3_runtime import Bundle, EngineError, M3Encoder, VariantError, cli
from m3_runtime.bundle.manifest import CpuFeature, EngineName
from m3_runtime.cpu import CpuInfo, check_processor, described
from m3_runtime.engines import select

NEEDY = "openvino-int8"
NUMBERS = itertools.count(1)
OLD = CpuInfo("Old Core", "x86_64", frozenset({"avx2", "fma"}))
NEW = CpuInfo("New Core", "x86_64", frozenset({"avx2", "avx512_vnni"}))


def needing(bundle: Bundle, *names: str) -> Bundle:
    """The bundle, with variants that need int8 dot products."""
    variants = tuple(
        replace(variant, needs=(CpuFeature.INT8_DOT,) if variant.name in names else ())
        for variant in bundle.manifest.variants
    )
    return replace(bundle, manifest=replace(bundle.manifest, variants=variants))


@pytest.fixture
def bundle(tiny_bundle) -> Bundle:
    return needing(Bundle.open(tiny_bundle), NEEDY)


def on(monkeypatch, cpu: CpuInfo) -> None:
    """On a processor that nobody has been warned of: each text is logged once in the life of a process."""
    unheard = replace(cpu, name=f"{cpu.name} #{next(NUMBERS)}")
    monkeypatch.setattr(select, "cpu_info", lambda: unheard)


def test_a_processor_that_has_it_runs_it_without_a_word(bundle, monkeypatch, caplog):
    on(monkeypatch, NEW)
    assert select.choose_variant(bundle).name == NEEDY
    assert select.choose_variant(bundle, NEEDY).name == NEEDY
    assert caplog.records == []


def test_a_processor_that_lacks_it_takes_the_next_and_says_so_once(bundle, monkeypatch, caplog):
    on(monkeypatch, OLD)
    bundle = needing(bundle, NEEDY, "onnx-int8")
    for _ in range(3):
        assert select.choose_variant(bundle).name == "onnx-fp32"
    logged = [(record.name, record.levelno) for record in caplog.records]
    assert logged == [("m3_runtime", logging.WARNING)] * 2, "once for each variant that was passed over"
    for name, message in zip(("onnx-int8", NEEDY), caplog.messages, strict=True):
        for word in (repr(name), "int8_dot", "VNNI", "Old Core", "'onnx-fp32' runs instead"):
            assert word in message


def test_what_would_not_have_run_anyway_is_no_warning(bundle, monkeypatch, caplog):
    on(monkeypatch, OLD)
    assert select.choose_variant(bundle).name == "onnx-int8", "it is better here than the one with needs"
    assert caplog.records == []


def test_a_variant_asked_for_by_name_is_refused_with_a_remedy(bundle, monkeypatch):
    on(monkeypatch, OLD)
    with pytest.raises(
        VariantError, match=r"'openvino-int8' needs int8_dot .*VNNI.* take variant='auto', or one of: onnx"
    ):
        select.choose_variant(bundle, NEEDY)
    with pytest.raises(VariantError, match=r"Old Core.* has avx2, fma, and would compute something else"):
        select.choose_variant(bundle, engine="openvino")


def test_a_bundle_of_which_nothing_runs_says_what_to_export(bundle, monkeypatch):
    on(monkeypatch, OLD)
    everything = needing(bundle, *(variant.name for variant in bundle.manifest.variants))
    with pytest.raises(VariantError, match="export the checkpoint again, with --variants"):
        select.choose_variant(everything)


def test_flags_that_cannot_be_read_count_as_missing(bundle, monkeypatch):
    on(monkeypatch, CpuInfo("Unknown", "AMD64", frozenset()))
    with pytest.raises(VariantError, match="no flags that can be read"):
        select.choose_variant(bundle, NEEDY)


@pytest.mark.parametrize(
    ("architecture", "flag", "has"),
    [
        ("x86_64", "avx512_vnni", True),
        ("x86_64", "avx_vnni", True),
        ("x86_64", "amx_int8", True),
        ("x86_64", "avx512bw", False),
        ("aarch64", "asimddp", True),
        ("aarch64", "asimd", False),
    ],
)
def test_who_has_int8_dot_products(architecture, flag, has):
    assert CpuInfo("c", architecture, frozenset({flag})).has(CpuFeature.INT8_DOT) is has


@pytest.mark.parametrize("variant", ["openvino-int8", "auto"])
def test_openvino_is_refused_on_arm(bundle, monkeypatch, variant):
    on(monkeypatch, CpuInfo("Neoverse N1", "aarch64", frozenset({"asimddp"})))
    alone = tuple(v for v in bundle.manifest.variants if v.engine is EngineName.OPENVINO)
    with pytest.raises(VariantError, match=r"needs x86 \(Intel or AMD: on Arm, OpenVINO's vectors were wrong"):
        select.choose_variant(Bundle(bundle.folder, replace(bundle.manifest, variants=alone)), variant)


@pytest.fixture
def needy_folder(bundle_copy):
    """A bundle on disk whose variants all need int8 dot products."""
    manifest = bundle_copy / "manifest.json"
    data = json.loads(manifest.read_text())
    for variant in data["variants"]:
        variant["needs"] = ["int8_dot"]
        variant["plan"] = [
            {"projection": f"layer.{i}.ffn_out", "precision": precision, "smoothing": 0, "clip": 1, "columns_apart": 0}
            for i, precision in enumerate(["static", "dynamic", "static"])
        ]
    manifest.unlink()
    manifest.write_text(json.dumps(data))
    return bundle_copy


def test_an_encoder_does_not_open_what_it_may_not_run(needy_folder, monkeypatch):
    on(monkeypatch, OLD)
    with pytest.raises(VariantError, match="needs int8_dot"):
        M3Encoder.open(needy_folder)


@pytest.mark.parametrize(("cpu", "words"), [(OLD, "NOT met here"), (NEW, ": met here")])
def test_info_shows_needs_and_plan(needy_folder, monkeypatch, capsys, cpu, words):
    on(monkeypatch, cpu)
    assert cli.main(["info", str(needy_folder)]) == 0
    shown = capsys.readouterr().out
    assert shown.count(words) == 3
    assert shown.count("ffn_out: 2 static, 1 dynamic") == 3
    assert ("no variant of this bundle runs here" in shown) is (cpu is OLD)


def test_info_for_programs_shows_unmet_needs(needy_folder, monkeypatch, capsys):
    on(monkeypatch, OLD)
    assert cli.main(["info", str(needy_folder), "--json"]) == 0
    machine = json.loads(capsys.readouterr().out)["machine"]
    assert machine["variant"] is None
    assert machine["unmet_needs"] == {name: ["int8_dot"] for name in ("onnx-fp32", "onnx-int8", NEEDY)}


SSE42 = "fpu sse2 pni ssse3 sse4_1 sse4_2 popcnt"


@pytest.mark.parametrize(
    ("flags", "level"),
    [("fpu sse2 pni cx16", 1), (SSE42, 2), (f"{SSE42} avx", 2), (f"{SSE42} avx avx2 fma avx512f", 3), ("", None)],
)
def test_levels_of_x86(flags, level):
    cpu = described(f"model name\t: Common KVM processor\nflags\t\t: {flags}\n", "x86_64")
    assert cpu.x86_level == level
    with pytest.raises(EngineError, match=r"Common KVM.*no SSE4\.2.*'host'") if level == 1 else nullcontext():
        check_processor(cpu)


def test_a_processor_that_numpy_crashes_on_is_refused_before_numpy_is_imported():
    code = """
import pathlib, platform, sys
pathlib.Path.read_text = lambda *_, **__: "model name : Common KVM processor\\nflags : fpu sse2"
platform.machine = lambda: "x86_64"
sys.modules["numpy"] = None
import m3_runtime
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "EngineError: this processor (Common KVM processor) has no SSE4.2" in done.stderr


@pytest.mark.parametrize(("flags", "missing"), [(SSE42, "AVX"), (f"{SSE42} avx", "AVX2")])
def test_a_processor_without_avx_is_warned_of_once(bundle, monkeypatch, caplog, flags, missing):
    on(monkeypatch, described(f"model name\t: Old\nflags\t: {flags}\n", "x86_64"))
    for _ in range(2):
        select.choose_variant(bundle, "onnx-fp32")
    (message,) = caplog.messages
    assert re.search(rf"\(Old #\d+\) has no {missing}, so", message)
