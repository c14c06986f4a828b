"""`m3-export synthetic-xlmr-large OUT --outliers`: the hostile model in the place of the plain one."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from m3_export.cli import main
from m3_models import synthetic
from m3_models.synthetic_outliers import wandering_channels
from m3_models.xlmr_layout import Geometry

THIN = Geometry(hidden=8, layers=1, heads=2, ffn=64, vocabulary=250002, positions=10, epsilon=1e-5)
GAINS = "encoder.layer.0.attention.output.LayerNorm.weight"


def written(folder: Path, *flags: str) -> dict[str, np.ndarray]:
    assert main(["synthetic-xlmr-large", str(folder), "--checkpoint-only", "--quiet", *flags]) == 0
    return load_file(folder / "model.safetensors")


def test_the_flag_writes_the_hostile_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(synthetic, "BGE_M3_GEOMETRY", THIN)  # 2.3 GB otherwise
    plain, hostile = written(tmp_path / "plain"), written(tmp_path / "hostile", "--outliers")
    told = capsys.readouterr().out.splitlines()
    assert "checkpoint synthetic-xlmr-large (" in told[0]
    assert "checkpoint synthetic-xlmr-large-outliers (" in told[1]
    assert plain.keys() == hostile.keys()
    channels = list(wandering_channels(synthetic.SEED, THIN.hidden))
    assert (hostile[GAINS][channels] > 2).all()
    assert plain[GAINS].max() < 2
    query = "encoder.layer.0.attention.self.query.weight"
    np.testing.assert_array_equal(plain[query], hostile[query])


@pytest.mark.parametrize("source", ["mini-m3", "tiny-random", "BAAI/bge-m3", "./synthetic-xlmr-large"])
@pytest.mark.parametrize("flags", [["--outliers"], ["--outliers", "--checkpoint-only"]], ids=" ".join)
def test_another_source_is_refused_with_the_remedy(
    tmp_path: Path, source: str, flags: list[str], capsys: pytest.CaptureFixture[str]
):
    assert main([source, str(tmp_path / "out"), *flags]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert f"not into {source!r}" in said.err
    assert "leave it out, or give synthetic-xlmr-large as SOURCE" in said.err
    assert list(tmp_path.iterdir()) == []


def test_help_tells_the_flag(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--outliers" in capsys.readouterr().out
