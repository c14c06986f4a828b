"""Which plans hold the budget: on their probe texts, and on texts that no plan was tuned on."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from m3_bench.documents import Run
from m3_bench.recording import read_outputs
from m3_bench.run.contenders import FP32, ContenderSpec
from m3_export.calibration.texts import chosen_texts, read_texts
from m3_export.calibration.texts.degenerate import Purpose, degenerate_texts
from m3_export.verify.budget import Budget, excesses
from m3_export.verify.parity import Outputs, degenerate_figures
from m3_runtime.errors import InputError

NATURAL = Path(__file__).parents[2] / "data" / "multilingual" / "corpus.jsonl"
DEGENERATE = 200


def unseen_texts(natural: Path | None) -> tuple[str, ...]:
    """Texts that no plan was made on: natural ones, by default paragraphs of the labelled corpus, and degenerate ones.

    The last `DEGENERATE` are of the exporter's kinds, but made of the natural ones' words.

    Raises:
        InputError: the default is not there, as in an installed wheel.
    """
    if natural is None and not NATURAL.is_file():
        raise InputError(f"no {str(NATURAL)!r} outside the source tree; give texts that no plan was made on: --texts")
    texts = [text.text for text in read_texts(natural or NATURAL, "unseen texts")]
    known = {text.text for text in chosen_texts(None, None).degenerate_probe}
    made = degenerate_texts(Purpose.PROBE, " ".join(texts).split(), 2 * DEGENERATE)
    made_of_them = [text.text for text in made if text.text not in known][:DEGENERATE]
    assert len(made_of_them) == DEGENERATE  # whatever the words, there are characters and digits enough
    return (*texts, *made_of_them)


def over_budget(run: Run, contenders: Mapping[str, ContenderSpec], folder: Path) -> Mapping[str, tuple[str, ...]]:
    """What of each INT8 variant is outside the budget of the measured bundle; empty where it holds.

    The run kept vectors of `unseen_texts` in `folder`; `contenders` are those of the run by name.

    Raises:
        InputError: there are no vectors of the FP32 variant to compare with; a reranker has none.
    """
    reference = _outputs(run, FP32, folder)
    bundle = contenders[FP32].of if FP32 in contenders else None
    if reference is None or bundle is None:
        raise InputError(f"regret needs the vectors of {FP32}; name it in --variants too")
    budget = Budget.parse(bundle.manifest.recipe["budget"])
    plans = [one for one in contenders.values() if one.of is not None and one.precision != "fp32"]
    return {one.name: _excesses(one, reference, _outputs(run, one.name, folder), budget) for one in plans}


def _excesses(one: ContenderSpec, reference: Outputs, found: Outputs | None, budget: Budget) -> tuple[str, ...]:
    if found is None or one.of is None:
        return ("it gave no vectors",)
    manifest, variant = one.of.manifest, one.command.options["variant"]
    probed = manifest.parity[variant]
    natural = slice(len(reference.dense) - DEGENERATE)
    degenerate = reference.similarities(found)[natural.stop :]
    unseen = replace(
        probed,
        texts=natural.stop,
        degenerate=degenerate_figures(degenerate, budget.dense_min),
        **_part(reference, natural).parity(_part(found, natural)),
    )
    return tuple(
        f"{where}: {excess}"
        for where, parity in (("probe texts", probed), ("other texts", unseen))
        for excess in excesses(parity, budget, one.precision, normalize=manifest.normalize)
    )


def _part(outputs: Outputs, texts: slice) -> Outputs:
    lexical, colbert = outputs.lexical, outputs.colbert
    return Outputs(outputs.dense[texts], lexical and lexical[texts], colbert and colbert[texts])


def _outputs(run: Run, name: str, folder: Path) -> Outputs | None:
    kept = next((one.outputs for one in run.contenders if one.name == name), None)
    return None if kept is None else read_outputs(folder / kept.path)
