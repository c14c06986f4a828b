"""Which bundles and variants are measured, and which are not and why."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from m3_bench.documents import Model
from m3_bench.run.contenders import model_of, reason_against
from m3_runtime import Bundle, M3Encoder, M3Reranker
from m3_runtime.bundle.manifest import ENCODER_HEADS, Variant
from m3_runtime.cli.interrupt import interruptible
from m3_runtime.errors import InputError, VariantError
from m3_runtime.io.progress import Progress

_Model = TypeVar("_Model", M3Encoder, M3Reranker)


@dataclass(frozen=True)
class ChosenBundle:
    """A bundle and those of its variants that run here; `name` is its folder's."""

    name: str
    bundle: Bundle
    variants: tuple[Variant, ...]

    @property
    def model(self) -> Model:
        """What a document says about the weights."""
        return model_of(self.bundle.manifest)

    @property
    def is_reranker(self) -> bool:
        """Whether it scores pairs, and gives no vectors."""
        return self.bundle.manifest.is_reranker

    def opened(self, name: str, threads: int, encoder: M3Encoder) -> AbstractContextManager[M3Encoder]:
        """The variant of this name; for "" and its own name the encoder, which stays open.

        Raises:
            InputError: the bundle has no such variant.
        """
        if name in ("", encoder.variant.name):
            return nullcontext(encoder)
        variants = {variant.name: variant for variant in self.bundle.manifest.variants}
        if name not in variants:
            raise InputError(f"--documents-by {name}: {self.name} has {', '.join(variants)}")
        return interruptible(partial(M3Encoder.from_bundle, self.bundle, variants[name], threads))


@dataclass(frozen=True)
class BundleChoice:
    """What is measured, and notes on what is not."""

    chosen: tuple[ChosenBundle, ...]
    notes: tuple[str, ...]

    @property
    def models(self) -> Mapping[str, Model]:
        """Models by bundle."""
        return {one.name: one.model for one in self.chosen}

    @property
    def has_reranker(self) -> bool:
        """Whether rankings are reranked."""
        return any(one.is_reranker for one in self.chosen)

    def opened(
        self, kind: type[_Model], threads: int, progress: Progress
    ) -> Iterator[tuple[ChosenBundle, Variant, _Model]]:
        """Open the variants of each encoder, or of the reranker, in turn, and close one before the next."""
        for one in self.chosen:
            for variant in one.variants if one.is_reranker == issubclass(kind, M3Reranker) else ():
                opening = partial(kind.from_bundle, one.bundle, variant, threads)
                with progress.step(f"{one.name}, {variant.name}"), interruptible(opening) as model:
                    yield one, variant, model


def choose_bundles(folders: Sequence[Path], names: Sequence[str] | None, reranker: Path | None = None) -> BundleChoice:
    """Open bundles and choose their variants of these names; None takes each that runs here.

    Raises:
        InputError: two folders of one name, a variant that no bundle has, or a reranker where an encoder is
            expected, or the reverse.
        VariantError: nothing of a bundle runs here.
        BundleError: a folder is no whole bundle.
    """
    bundles = _opened(folders, is_reranker=False)
    if reranker is not None:
        bundles |= _opened([reranker], is_reranker=True, taken=bundles)
    known = sorted({variant.name for bundle in bundles.values() for variant in bundle.manifest.variants})
    if names is not None and not set(names) <= set(known):
        words = ", ".join(name for name in names if name not in known)
        raise InputError(f"--variants: no bundle has {words}; there are {', '.join(known)}")
    chosen, notes = [], []
    for name, bundle in bundles.items():
        wanted = [variant for variant in bundle.manifest.variants if names is None or variant.name in names]
        reasons = {one.name: reason for one in wanted if (reason := reason_against(one))}
        left_out = [f"{name}: {variant} was left out: {reason}" for variant, reason in reasons.items()]
        if len(reasons) == len(wanted):
            why = "; ".join(left_out) or f"{name} has none of {', '.join(names or ())}"
            raise VariantError(f"no variant of {name} can be measured here: {why}")
        chosen.append(ChosenBundle(name, bundle, tuple(one for one in wanted if one.name not in reasons)))
        notes += left_out
        missing = [head.value for head in ENCODER_HEADS if head not in bundle.manifest.heads]
        if missing and not bundle.manifest.is_reranker:
            notes.append(f"{name} has no {' and no '.join(missing)} head: methods that need it were left out")
    return BundleChoice(tuple(chosen), tuple(notes))


def _opened(
    folders: Sequence[Path], *, is_reranker: bool, taken: Mapping[str, Bundle] | None = None
) -> dict[str, Bundle]:
    """Open bundles of one kind, by their folders' names, none of which is `taken`."""
    found: dict[str, Bundle] = {}
    for folder in folders:
        # a folder's own name, also of "." and "..", but a link's and not its target's
        name = Path(os.path.abspath(folder)).name  # noqa: PTH100 - Path.resolve follows links
        bundle = Bundle.open(folder)
        if bundle.manifest.is_reranker and not is_reranker:
            raise InputError(f"{str(folder)!r} is a reranker's bundle: m3-bench retrieval takes it by --reranker")
        if is_reranker and not bundle.manifest.is_reranker:
            raise InputError(f"--reranker {str(folder)!r}: expected a reranker's bundle, this is an encoder's")
        if other := found.get(name) or (taken or {}).get(name):
            raise InputError(
                f"{str(other.folder)!r} and {str(folder)!r} are both called {name!r}, and results are named after "
                "the folder; rename one, or link to it under another name"
            )
        found[name] = bundle
    return found
