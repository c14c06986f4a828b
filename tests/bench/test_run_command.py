"""`m3-bench record`, `run`, `roofline` and `peers` on tiny-random."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from stored.samples import HERE

from commands import Done, run_main
from m3_bench import documents
from m3_bench.cli import main
from m3_bench.documents import Roofline, Run
from m3_bench.plan_costs import plan_costs
from m3_bench.recording import read_outputs, read_recording, write_recording
from m3_bench.roofline import Measured
from m3_bench.run.peers import PEERS
from m3_bench.worker_process import WorkerProcess, own
from m3_export.options import VariantName
from m3_export.plan.costs import SHAPES, read_costs, write_costs
from m3_export.plan.plan import DYNAMIC, Precision, PrecisionPlan
from m3_export.verify.parity import Outputs, dense_parity
from m3_runtime.bundle.manifest import EngineName
from m3_runtime.io.progress import Progress

SCENARIOS = """
[[scenario]]
name = "dense"
texts = 2
shortest = 5
longest = 40
heads = ["dense"]
calls = 2

[[scenario]]
name = "callers"
tokens = 8
calls = 6
clients = 3
"""
ONE = """
[[scenario]]
name = "query"
tokens = 16
calls = 3
"""


def bench(*words) -> Done:
    return run_main(main, *words)


def without(packages: str, *commands: tuple[object, ...]) -> subprocess.CompletedProcess[str]:
    """Commands, one after the other, in a process where these packages are not installed."""
    code = (
        f"import sys\nsys.modules.update(dict.fromkeys({packages.split()!r}))\n"
        "from m3_bench.cli import main\n"
        f"raise SystemExit(max(main(words) for words in {[[*map(str, words)] for words in commands]!r}))\n"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    (folder / "mine.toml").write_text(SCENARIOS)
    (folder / "one.toml").write_text(ONE)
    (folder / "texts.txt").write_text(
        "What is BGE M3?\n什么是稀疏检索？\nein etwas längerer deutscher Satz\n", encoding="utf-8"
    )
    return folder


@pytest.fixture(scope="module")
def reference(folder, tiny_random_checkpoint):
    """Recorded as on a GPU box: it has torch and transformers, but neither onnx nor an engine nor what draws."""
    path, texts = folder / "reference.safetensors", (folder / "texts.txt").read_text(encoding="utf-8").splitlines()
    texts[2] += "\u2028ends no line"
    rows = ({"id": name, "text": text} for name, text in zip(("a", 7, "c"), texts, strict=True))
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "texts.jsonl").write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    words = (
        "record", tiny_random_checkpoint, "--texts", folder / "texts.jsonl", "--scenarios", folder / "one.toml",
        "--rounds", 2, "--threads", 1, "-o", path,
    )  # fmt: skip
    done = without("onnx onnx_ir onnxscript openvino matplotlib jinja2 bm25s pydantic", words)
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="module")
def measured(folder, reference, tiny_bundle):
    path = folder / "run.json"
    done = bench(
        "run", tiny_bundle, "--reference", reference, "--scenarios", folder / "mine.toml", "--rounds", 2, "--threads",
        1, "-o", path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="module")
def targets(folder, tiny_bundle):
    """What a run of some targets printed, and its document."""
    path = folder / "targets.json"
    words = ("run", tiny_bundle, "--scenarios", "targets", "--targets", "packed,ceiling,lite-start")
    done = bench(*words, "--threads", 1, "--rounds", 1, "--texts", folder / "texts.txt", "-o", path)
    assert done.returncode == 1, done.stderr  # a target needs a peer
    return done.stdout, documents.read_as(Run, path)


def test_a_reference_says_what_it_is(reference, tiny_bundle):
    recording = read_recording(reference)
    manifest = json.loads((tiny_bundle / "manifest.json").read_text())
    assert recording.run.model.space_id == manifest["space_id"]
    assert recording.run.model.weights_sha256 == manifest["source"]["weights_sha256"]
    (contender,) = recording.run.contenders
    assert contender.name == "PyTorch fp32 on CPU"
    assert set(contender.versions) >= {"torch", "transformers"}
    assert [one.scenario for one in contender.scenarios] == ["query"]
    assert [len(one.seconds) for one in contender.scenarios[0].rounds] == [3, 3]
    assert len(recording.texts) == 3
    assert recording.texts[0] == "What is BGE M3?"
    assert recording.texts[2].endswith("\u2028ends no line")
    assert recording.ids == ("a", "7", "c")


def test_an_id_that_is_there_twice_is_named_before_anything_is_recorded(tmp_path):
    path, out = tmp_path / "twice.ndjson", tmp_path / "r.safetensors"
    path.write_text("".join(f'{{"id": "{name}", "text": "text {name}"}}\n' for name in "aba"))
    done = bench("record", "tiny-random", "--texts", path, "--scenarios", "none", "-o", out)
    assert (done.returncode, out.exists()) == (2, False)
    assert f"{path}:3: the id 'a' is that of {path}:1 too" in done.stderr


def test_the_fp32_variant_gives_the_references_vectors(measured, reference):
    recording, run = read_recording(reference), documents.read_as(Run, measured)
    float_variant = run.contenders[0]
    assert float_variant.name == "onnx-fp32"
    outputs = read_outputs(measured.with_name(float_variant.outputs.path))
    assert dense_parity(recording.outputs, outputs).cosine_min > 0.999999
    assert [set(row) for row in outputs.lexical] == [set(row) for row in recording.outputs.lexical]


def test_every_variant_has_every_scenario(measured):
    run = documents.read_as(Run, measured)
    assert [one.name for one in run.contenders] == ["onnx-fp32", "onnx-int8", "openvino-int8"]
    scenarios = {one.name: one for one in run.scenarios}
    for contender in run.contenders:
        assert contender.versions["numpy"] == np.__version__
        assert contender.size_bytes > 10_000
        assert [one.scenario for one in contender.scenarios] == list(scenarios)
        for one in contender.scenarios:
            asked = scenarios[one.scenario]
            assert not one.error
            assert min(one.load_s, one.first_s) > 0
            assert len(one.rounds) == 2
            for taken in one.rounds:
                assert len(taken.seconds) == asked.calls
                assert taken.peak_bytes >= taken.resident_bytes > 10_000_000
                assert taken.cpu_s > 0
                if asked.clients == 1:
                    assert taken.wall_s >= sum(taken.seconds)
    assert run.cpus == tuple(sorted(os.sched_getaffinity(0)))[:1]


def test_a_cut_run_is_finished_and_what_was_finished_is_not_measured_again(
    folder, measured, reference, tiny_bundle, capsys
):
    whole = json.loads(measured.read_bytes())
    cut = json.loads(measured.read_bytes())
    for contender in cut["contenders"]:
        del contender["scenarios"][1]
    path = folder / "cut.json"
    path.write_text(json.dumps(cut))
    words = ("run", tiny_bundle, "--reference", reference, "--scenarios", folder / "mine.toml", "--rounds", 1)
    resumed = bench(*words, "--threads", 1, "-o", path)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stderr.count("finished before") == 1
    for contender, old in zip(json.loads(path.read_bytes())["contenders"], whole["contenders"], strict=True):
        assert contender["scenarios"][0] == old["scenarios"][0]
        assert contender["scenarios"][1]["rounds"]

    before = path.read_bytes()
    processors = os.sched_getaffinity(0)
    assert main([*map(str, words), "--threads", "1", "-o", str(path)]) == 0
    assert os.sched_getaffinity(0) == processors
    assert capsys.readouterr().err.count("finished before") == 2
    assert path.read_bytes() == before
    other = bench(*words, "--threads", 2, "-o", path)
    assert other.returncode == 2
    assert "belongs to another run (different threads); choose another -o" in other.stderr
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--variants", "onnx-int4"), "has no variant 'onnx-int4'; it has onnx-fp32"),
        (("--scenarios", "fastest"), "expected a TOML file, or one of standard, long, quick"),
        (("--scenarios", "targets", "--targets", "speed"), "there is no target 'speed'; targets are lite"),
        (("--rounds", "0"), "--rounds: expected an integer from 1"),
        (("--cpus", "0,1"), "--cpus is gone: taskset -c 0,2 m3-bench"),
        (("--threads", "0"), "--threads: expected an integer from 1"),
        (("--reference", "none.safetensors"), "cannot be read"),
    ],
)
def test_a_bad_command_line_is_refused_before_anything_runs(folder, tiny_bundle, words, message):
    done = bench("run", tiny_bundle, *words, "-o", folder / "never.json")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "never.json").exists()


def test_a_reference_of_other_weights_is_refused(folder, reference, tiny_bundle, tmp_path):
    recording = read_recording(reference)
    model = replace(recording.run.model, space_id="m3-" + "0" * 32, name="another")
    write_recording(replace(recording, run=replace(recording.run, model=model)), tmp_path / "r.safetensors")
    done = bench("run", tiny_bundle, "--reference", tmp_path / "r.safetensors", "-o", tmp_path / "run.json")
    assert done.returncode == 2
    assert "is of another (m3-000" in done.stderr
    assert not (tmp_path / "run.json").exists()


def test_a_reranker_has_no_vectors_to_record(reranker_checkpoint, tiny_random_checkpoint, tmp_path, capsys):
    out = ["-o", str(tmp_path / "r.safetensors")]
    assert main(["record", str(reranker_checkpoint), *out]) == 2
    assert "is a reranker, which has no vectors to record" in capsys.readouterr().err
    assert main(["record", str(tiny_random_checkpoint), "--scenarios", "reranker", *out]) == 2
    assert "--scenarios: pair, pairs, texts left out" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--device", "cuda"), "sees no CUDA device; install a CUDA build of torch"),
        (("--device", "tpu"), "--device must be cpu, cuda, or cuda:N"),
        (("--device", "cuda:x"), "--device must be cpu, cuda, or cuda:N"),
        (("--dtype", "fp16"), "--dtype fp16 is for GPUs; on cpu choose fp32 or bf16"),
    ],
)
def test_a_device_that_is_not_there_is_refused_before_loading(tiny_random_checkpoint, tmp_path, capsys, words, message):
    code = main(["record", str(tiny_random_checkpoint), *words, "-o", str(tmp_path / "r.safetensors")])
    assert code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_bf16_on_cpu_is_near_and_not_the_same(reference, tiny_random_checkpoint):
    recording = read_recording(reference)
    options = {"checkpoint": str(tiny_random_checkpoint), "device": "cpu", "dtype": "bf16", "pooling": None}
    command = own("torch_reference", **options, threads=1)
    with WorkerProcess.start("bf16", command, 1) as worker:
        found = worker.vectors(recording.texts, ("dense", "sparse", "colbert"))
    parity = dense_parity(recording.outputs, Outputs(found.dense, found.lexical, found.colbert))
    assert 0.999 < parity.cosine_mean < 0.9999999


def test_a_server_without_the_exporter_runs_and_compares(folder, reference, tiny_bundle, tmp_path):
    """It has the runtime and the extra `bench`."""
    run = ("run", tiny_bundle, "--variants", "onnx-int8", "--reference", reference, "--scenarios", folder / "one.toml")
    done = without(
        "torch transformers onnx onnx_ir onnxscript huggingface_hub",
        (*run, "--rounds", 1, "-o", tmp_path / "run.json"),
        ("compare", reference, tmp_path / "run.json"),
    )
    assert done.returncode == 0, done.stderr
    assert "Parity with PyTorch fp32 on CPU, 3 texts" in done.stdout


def test_the_roofline_has_every_way_or_says_why_not(tmp_path):
    path = tmp_path / "roofline.json"
    words = ("roofline", "--rounds", 1, "--rows", 64, "--threads", 1, "-o", path)
    assert "--checkpoint DIR go together" in bench(*words, "--record", tmp_path / "costs.json").stderr
    done = bench(*words)
    assert done.returncode == 0, done.stderr
    found = documents.read_as(Roofline, path)
    assert {(one.engine, one.precision) for one in found.ceilings} >= {("onnxruntime", "int8"), ("openvino", "fp32")}
    for one in found.ceilings:
        assert bool(one.flop_per_s) != bool(one.reason), one
    assert len(done.stdout.splitlines()) == 5 + len(found.ceilings)
    assert "memory is read at" in done.stdout
    assert bench("roofline", "-o", path).returncode == 2  # nothing is replaced unasked


def test_small_models_are_timed_in_every_precision_for_the_planner(tiny_random_checkpoint, tmp_path):
    path = tmp_path / "costs.json"
    roofline = documents.read_as(Roofline, HERE / "roofline.json")
    measured = Measured(roofline, {"onnxruntime": "1.23"}, 1e10)
    costs = plan_costs(tiny_random_checkpoint, Progress(quiet=True), [VariantName.ONNX_INT8])
    write_costs(path, costs, measured.facts())
    facts = json.loads(path.read_text())
    assert (facts["processor"], facts["threads"], facts["read_bytes_per_s"]) == (roofline.machine.cpu, 8, 1e10)
    assert facts["flop_per_s"]["openvino"].keys() == {"int8", "fp32"}  # bf16 has none
    (costs,) = read_costs(path)
    assert (costs.engine, costs.hidden_size, costs.ffn_size) == (EngineName.ONNXRUNTIME, 64, 128)
    assert costs.precisions(costs.settings[0]) == (Precision.DYNAMIC, Precision.FLOAT)
    plan = PrecisionPlan.uniform(2, DYNAMIC, costs.settings[0].group)
    assert set(costs.seconds(plan, 2)) == {shape.name for shape in SHAPES}


def test_peers_names_are_those_of_the_help_and_others_are_refused(tiny_bundle, tiny_random_checkpoint, tmp_path):
    told = " ".join(bench("peers", "--help").stdout.split())
    assert f"Peers: {', '.join(PEERS)}." in told
    done = bench("peers", tiny_random_checkpoint, tiny_bundle, "--peers", "vllm", "-o", tmp_path / "p.json")
    assert done.returncode == 2
    assert "there is no peer 'vllm'; peers are lite-int8" in done.stderr


def test_peers_need_the_bundles_own_checkpoint(tiny_bundle, tiny_random_checkpoint, tmp_path):
    shutil.copytree(tiny_random_checkpoint, tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text("{}")
    done = bench("peers", tmp_path / "other", tiny_bundle, "-o", tmp_path / "p.json")
    assert done.returncode == 2
    assert "is not what the bundle was made of (tiny-random)" in done.stderr


def test_targets_are_measured_and_printed_and_one_that_needs_a_peer_says_so(targets):
    printed, run = targets
    assert [one.name for one in run.scenarios] == ["batch", "start", "together", "by-length"]
    (auto,) = (one for one in run.contenders if len(one.scenarios) == 4)  # the variant that M3Encoder.open takes
    assert auto.versions["numpy"]
    assert [len(one.rounds) for one in auto.scenarios] == [1] * 4
    assert {one.name for one in run.contenders} == {auto.name, "onnx-int8"}
    assert "| packed: 8 queries in one call ÷ a call for each length | ≥ " in printed
    assert "lite-int8 did not run; m3-bench peers runs others" in printed
    assert "| lite-start: our resident memory after the first query | ≤ 700 MB |" in printed


def test_ceilings_are_kept_apart_from_contenders(targets):
    _, run = targets
    assert run.products[0].name == "int8 GEMM on onnxruntime"
    assert run.products[0].versions.keys() == {"onnxruntime"}
    assert not any("GEMM" in one.name for one in run.contenders)


def test_regret_is_against_other_plans_on_texts_that_none_was_made_on(tiny_bundle, folder):
    other = folder / "other-plan"
    shutil.copytree(tiny_bundle, other)
    words = ("run", tiny_bundle, "--scenarios", "regret", "--threads", 1, "--rounds", 1, "--variants", "onnx-int8")
    done = bench(*words, "--texts", folder / "texts.txt", "--plans", other, "-o", folder / "regret.json")
    assert done.returncode == 0, done.stderr
    run = documents.read_as(Run, folder / "regret.json")
    assert [one.name for one in run.contenders] == ["onnx-fp32", "onnx-int8", "other-plan onnx-int8"]
    assert "| regret-onnx-int8: time ÷ that of the fastest plan that holds the budget | ≤ 1.03 | 1." in done.stdout
    outputs = read_outputs(folder / run.contenders[1].outputs.path)
    assert len(outputs.dense) > 200

    manifest = (other / "manifest.json").read_text()
    (other / "manifest.json").write_text(re.sub(r'"space_id": "m3-.', '"space_id": "m3-x', manifest))
    refused = bench(*words, "--plans", other, "-o", folder / "never.json")
    assert refused.returncode == 2
    assert "different weights" in refused.stderr


def test_what_is_called_as_a_gone_command_is_taken(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["margins", "bars", "bars"]) != 0
    assert "is gone" not in capsys.readouterr().err
    assert main(["retrieval", "data", "bundle", "--layout=beir"]) == 2
    assert "a dataset's layout is detected by its files" in capsys.readouterr().err


@pytest.mark.parametrize("words", [(), ("out/b", "--checkpoint", "c", "--rows", "lite", "-o", "x.json")])
def test_bars_names_its_successors(words, capsys):
    assert main(["bars", *words]) == 2
    assert "m3-bench peers CHECKPOINT BUNDLE --scenarios targets" in capsys.readouterr().err
