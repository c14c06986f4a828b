"""Golden values of FlagEmbedding and, opened once, the models that have to agree with them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m3_runtime import Bundle, M3Encoder
from m3_runtime.bundle.manifest import SourceInfo
from m3_runtime.flag import BGEM3FlagModel

GOLDEN_FOLDER = Path(__file__).parents[1] / "golden"
BUNDLE_FIXTURES = {"mini_m3": "mini_bundle", "tiny_random": "tiny_bundle"}


@dataclass(frozen=True)
class Golden:
    """What tests/golden/make_golden.py recorded for one checkpoint."""

    name: str

    @cached_property
    def facts(self) -> dict[str, Any]:
        return json.loads((GOLDEN_FOLDER / f"{self.name}.json").read_text(encoding="utf-8"))

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        with np.load(GOLDEN_FOLDER / f"{self.name}.npz", allow_pickle=False) as file:
            return dict(file)

    @property
    def texts(self) -> list[str]:
        return self.facts["texts"]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return [(self.texts[query], self.texts[passage]) for query, passage in self.facts["pairs"]]

    def encoding(self, name: str) -> dict[str, Any]:
        return self.facts["encodings"][name]

    def dense(self, name: str) -> np.ndarray:
        return self.arrays[f"{name}.dense"]

    def lexical_weights(self, name: str) -> list[dict[str, float]]:
        values = iter(self.arrays[f"{name}.weights"].tolist())
        return [{key: next(values) for key in keys} for keys in self.encoding(name)["keys"]]

    def colbert_vecs(self, name: str) -> list[np.ndarray]:
        ends = np.cumsum(self.encoding(name)["colbert_rows"])
        return np.split(self.arrays[f"{name}.colbert"], ends[:-1])

    def check_made_from(self, source: SourceInfo) -> None:
        """The golden values belong to the bundle's weights; if not, say what to do.

        The digest of the values decides, since another torch may lay the same values out in other bytes.
        """
        checkpoint = self.facts["checkpoint"]
        if source.weights_sha256 == checkpoint["weights_sha256"]:
            return
        digests = {file.path: file.sha256 for file in source.files}
        changed = [path for path, digest in checkpoint["files"].items() if digests.get(path) != digest]
        pytest.fail(
            f"the bundle of {self.facts['model']} has other weights than its golden values (changed: "
            f"{', '.join(changed) or 'no file'}); run tests/golden/make_golden.py again, its first lines say how",
            pytrace=False,
        )


@pytest.fixture(scope="session", params=sorted(BUNDLE_FIXTURES))
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


@pytest.fixture(scope="session")
def bundle_path(golden: Golden, request: pytest.FixtureRequest) -> Path:
    """The bundle of the golden's checkpoint, known to have the same weights."""
    path: Path = request.getfixturevalue(BUNDLE_FIXTURES[golden.name])
    golden.check_made_from(Bundle.open(path).manifest.source)
    return path


@pytest.fixture(scope="session")
def encoder(bundle_path: Path) -> Iterator[M3Encoder]:
    with M3Encoder.open(bundle_path, variant="onnx-fp32", threads=1) as opened:
        yield opened


@pytest.fixture(scope="session")
def flag_model(bundle_path: Path, golden: Golden) -> Iterator[BGEM3FlagModel]:
    """Opened with the very arguments that FlagEmbedding was opened with."""
    model = BGEM3FlagModel(bundle_path, **golden.facts["arguments"], variant="onnx-fp32", threads=1)
    yield model
    model.close()


@pytest.fixture(params=["M3Encoder", "BGEM3FlagModel"])
def model(request: pytest.FixtureRequest, encoder: M3Encoder, flag_model: BGEM3FlagModel) -> Any:
    """Both ways to the same answers."""
    return encoder if request.param == "M3Encoder" else flag_model
