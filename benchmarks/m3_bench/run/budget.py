"""Which plans hold the budget: on their probe texts, and on texts that no plan was tuned on."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from m3_bench.documents import Run
from m3_bench.recording import read_outputs
from m3_bench.run.contenders import FP32, ContenderSpec
from m3_export.arrays import Float32Array, Ids
from m3_export.calibration.pairs import TextPair, degenerate_pairs, natural_pairs, numbers, pair_ids
from m3_export.calibration.texts import chosen_texts, read_texts
from m3_export.calibration.texts.degenerate import Purpose, degenerate_texts
from m3_export.calibration.texts.text import Text
from m3_export.verify.budget import AnyBudget, Budget, ScoreBudget, excesses
from m3_export.verify.comparison import ModelOutputs
from m3_export.verify.measure import MAX_PROBE_TOKENS
from m3_export.verify.parity import Outputs, degenerate_figures
from m3_export.verify.scores import Scores
from m3_runtime import Bundle
from m3_runtime.bundle.manifest import Head
from m3_runtime.encode.batching import DEFAULT_TOKEN_BUDGET
from m3_runtime.encode.options import DEFAULT_BATCH_SIZE, encode_options
from m3_runtime.encode.pipeline import encode_tokens
from m3_runtime.engines.select import open_graph
from m3_runtime.errors import EngineError, InputError
from m3_runtime.opened_model import open_tokenizer
from m3_runtime.tokenizer import TokenizedTexts

NATURAL = Path(__file__).parents[2] / "data" / "multilingual" / "corpus.jsonl"
DEGENERATE = 200
QUERIES, PASSAGES = 24, 16


def unseen_texts(natural: Path | None) -> tuple[str, ...]:
    """Texts that no plan was made on: natural ones, by default paragraphs of the labelled corpus, and degenerate ones.

    The last `DEGENERATE` are of the exporter's kinds, but made of the natural ones' words.

    Raises:
        InputError: the default is not there, as in an installed wheel.
    """
    texts = _natural(natural)
    return (*(text.text for text in texts), *(text.text for text in _degenerate(texts)))


@dataclass(frozen=True)
class UnseenPairs:
    """Pairs that no plan was made on, of the exporter's kinds."""

    natural: tuple[TextPair, ...]
    degenerate: tuple[TextPair, ...]

    @classmethod
    def of(cls, natural: Path | None) -> "UnseenPairs":
        """Pairs of what `unseen_texts` gives.

        Raises:
            InputError: there are no texts, or they give no pairs.
        """
        texts = _natural(natural)
        pairs = natural_pairs(texts, QUERIES, PASSAGES)
        if len(pairs) < 2:
            raise InputError("--texts gives fewer than two pairs of a query and a passage; give more and longer texts")
        return cls(pairs, degenerate_pairs(_degenerate(texts), texts, DEGENERATE))

    @property
    def texts(self) -> tuple[str, ...]:
        """All pairs, as they are digested."""
        return tuple(pair.text for pair in (*self.natural, *self.degenerate))


def over_budget(run: Run, contenders: Mapping[str, ContenderSpec], folder: Path) -> Mapping[str, tuple[str, ...]]:
    """What of each INT8 variant is outside the budget of the measured bundle; empty where it holds.

    The run kept vectors of `unseen_texts` in `folder`; `contenders` are those of the run by name, FP32 among them.
    """
    reference, plans = _outputs(run, FP32, folder), _plans(contenders)
    if reference is None:
        return dict.fromkeys((one.name for one in plans), (f"{FP32} gave no vectors to compare with",))
    budget = Budget.parse(_bundle_of_fp32(contenders).manifest.recipe["budget"])
    natural = slice(len(reference.dense) - DEGENERATE)
    degenerate = slice(natural.stop, None)

    def over(one: ContenderSpec) -> tuple[str, ...]:
        found = _outputs(run, one.name, folder)
        if found is None:
            return ("it gave no vectors",)
        expected = _Found(_part(reference, natural), _part(reference, degenerate))
        return _excesses(one, expected, _Found(_part(found, natural), _part(found, degenerate)), budget)

    return {one.name: over(one) for one in plans}


def rerankers_over_budget(
    contenders: Mapping[str, ContenderSpec], pairs: UnseenPairs, threads: int
) -> Mapping[str, tuple[str, ...]]:
    """The same of rerankers, whose variants score the pairs here and now."""
    bundle = _bundle_of_fp32(contenders)
    budget, tokenizer = ScoreBudget.parse(bundle.manifest.recipe["budget"]), open_tokenizer(bundle)
    longest = min(MAX_PROBE_TOKENS, bundle.manifest.geometry.max_tokens)
    natural, degenerate = (pair_ids(tokenizer, each, longest) for each in (pairs.natural, pairs.degenerate))

    plans, scores, failed = _plans(contenders), dict[str, Float32Array](), dict[str, tuple[str, ...]]()
    for one in (contenders[FP32], *plans):
        try:
            scores[one.name] = _scores(one, (*natural, *degenerate), threads)
        except EngineError as error:
            failed[one.name] = (f"it gave no scores: {error}",)
    if FP32 in failed:
        return dict.fromkeys((one.name for one in plans), (f"{FP32} gave no scores to compare with",))
    spread = Scores.of_reference(scores[FP32][: len(natural)], numbers(pairs.natural)).spread

    def found(name: str) -> _Found:
        parts = scores[name][: len(natural)], scores[name][len(natural) :]
        of_natural, of_degenerate = (numbers(each) for each in (pairs.natural, pairs.degenerate))
        return _Found(Scores(parts[0], of_natural, spread), Scores(parts[1], of_degenerate, spread))

    return failed | {
        one.name: _excesses(one, found(FP32), found(one.name), budget) for one in plans if one.name not in failed
    }


@dataclass(frozen=True)
class _Found:
    """What a contender gives for natural and for degenerate texts, or pairs."""

    natural: ModelOutputs
    degenerate: ModelOutputs


def _natural(path: Path | None) -> tuple[Text, ...]:
    if path is None and not NATURAL.is_file():
        raise InputError(f"no {str(NATURAL)!r} outside the source tree; give texts that no plan was made on: --texts")
    return read_texts(path or NATURAL, "unseen texts")


def _degenerate(natural: Sequence[Text]) -> list[Text]:
    words = " ".join(text.text for text in natural).split()
    known = {text.text for text in chosen_texts(None, None).degenerate_probe}
    made = degenerate_texts(Purpose.PROBE, words, 2 * DEGENERATE)
    strange = [text for text in made if text.text not in known][:DEGENERATE]
    assert len(strange) == DEGENERATE  # whatever the words, there are characters and digits enough
    return strange


def _bundle_of_fp32(contenders: Mapping[str, ContenderSpec]) -> Bundle:
    bundle = contenders[FP32].of
    assert bundle is not None
    return bundle


def _plans(contenders: Mapping[str, ContenderSpec]) -> list[ContenderSpec]:
    return [one for one in contenders.values() if one.of is not None and one.precision != "fp32"]


def _excesses(one: ContenderSpec, expected: _Found, got: _Found, budget: AnyBudget) -> tuple[str, ...]:
    """What is over budget on the probe texts, as the manifest says, and on others."""
    assert one.of is not None
    manifest = one.of.manifest
    probed = manifest.parity[one.command.options["variant"]]
    unseen = replace(
        probed,
        texts=len(expected.natural.pooled),
        degenerate=degenerate_figures(expected.degenerate.similarities(got.degenerate), budget.least_similarity),
        **expected.natural.parity(got.natural),
    )
    return tuple(
        f"{where}: {excess}"
        for where, parity in (("probe texts", probed), ("other texts", unseen))
        for excess in excesses(parity, budget, one.precision, normalize=manifest.normalize)
    )


def _scores(one: ContenderSpec, ids: Sequence[Ids], threads: int) -> Float32Array:
    """(N,) scores of pairs, given as ids: some have an empty side, which `M3Reranker` refuses."""
    assert one.of is not None
    bundle, name = one.of, one.command.options["variant"]
    variant = next(each for each in bundle.manifest.variants if each.name == name)
    options = encode_options(
        bundle.manifest, (Head.SCORE,), batch_size=DEFAULT_BATCH_SIZE, token_budget=DEFAULT_TOKEN_BUDGET
    )
    with closing(open_graph(bundle.folder / variant.graph, variant, threads)) as engine:
        tokens = TokenizedTexts(tuple(ids), np.zeros(len(ids), np.bool_))
        found = encode_tokens(tokens, options, bundle.manifest, engine)
    assert found.scores is not None
    return found.scores


def _part(outputs: Outputs, texts: slice) -> Outputs:
    lexical, colbert = outputs.lexical, outputs.colbert
    return Outputs(outputs.dense[texts], lexical and lexical[texts], colbert and colbert[texts])


def _outputs(run: Run, name: str, folder: Path) -> Outputs | None:
    kept = next((one.outputs for one in run.contenders if one.name == name), None)
    return None if kept is None else read_outputs(folder / kept.path)
