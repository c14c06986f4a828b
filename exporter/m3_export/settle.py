"""Each variant written, measured, and, where it is over its budget, written again by the next plan."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from m3_export import verify
from m3_export.budget import Excess, excesses
from m3_export.errors import ExportError
from m3_export.plan.costs import Costs, Way, known, measure
from m3_export.plan.picture import picture
from m3_export.plan.plan import Plan, plans_to_text
from m3_export.plan.planner import Calibrated, Planned, forms_of, plans
from m3_export.progress import Progress
from m3_export.quantize.sample_runs import OPENVINO_GROUP, runner
from m3_export.recipe import Recipe, Target, VariantName
from m3_export.variants import Graphs, engine_of, write_float, write_int8
from m3_runtime.bundle import Bundle
from m3_runtime.cpu import cpu_info, default_threads
from m3_runtime.manifest import EngineName, Geometry, Manifest, Parity, Variant

GROUPS = {EngineName.OPENVINO: OPENVINO_GROUP, EngineName.ONNXRUNTIME: 0}


@dataclass(frozen=True)
class Settled:
    """A variant as it will ship: its parity, what is over budget, every parity that was reached, and its plan."""

    variant: Variant
    parity: Parity
    over: tuple[Excess, ...]
    reached: tuple[Parity, ...]
    planned: Planned | None


@dataclass(frozen=True)
class Workshop:
    """All that is needed to write and measure a variant in a staging folder."""

    graphs: Graphs
    calibrated: Calibrated
    draft: Manifest
    probe: verify.Probe
    staging: Path
    recipe: Recipe
    given: Mapping[str, Plan]
    progress: Progress

    def settle(self, name: VariantName) -> Settled:
        """Write a variant within its budget, or as near as it gets.

        Raises:
            ExportError: a library failed.
        """
        if name is VariantName.ONNX_FP32:
            return self._measured(lambda: write_float(self.graphs, self.staging), name, None, ())
        settled: Settled | None = None
        for planned in self._plans(name):
            settled = self._written(name, planned, settled.reached if settled else ())
            if not settled.over:
                break
            self.progress.say("  Over budget: " + "; ".join(map(str, settled.over)))
        assert settled is not None
        return settled

    def _plans(self, name: VariantName) -> Iterator[Planned]:
        if str(name) in self.given:
            return iter([Planned(self.given[str(name)], None, (), None)])
        with self.progress.step(f"Planning {name}: timing its products"), translated(f"planning {name}"):
            costs = self._costs(engine_of(name))
        group = GROUPS[engine_of(name)]
        return plans(self.calibrated, costs, group, self.recipe.budget, self.progress)

    def _costs(self, engine: EngineName) -> Costs:
        if self.recipe.target is Target.VNNI:
            return known(engine)
        is_static = engine is EngineName.OPENVINO and cpu_info().has_int8_dot
        ways = [way for way in Way if is_static or way is not Way.STATIC]
        track = lambda kinds: self.progress.bar(kinds, "costs", "kind")  # noqa: E731 - one line, used once
        return measure(ways, self.draft.geometry, GROUPS[engine], runner(engine), track)

    def _written(self, name: VariantName, planned: Planned, reached: Sequence[Parity]) -> Settled:
        def write() -> Variant:
            forms = forms_of(self.calibrated.subject(planned.plan.group), planned.plan)
            return write_int8(name, self.graphs, self.calibrated.statistics, planned.plan, forms, self.staging)

        return self._measured(write, name, planned, reached)

    def _measured(
        self, write: Callable[[], Variant], name: VariantName, planned: Planned | None, reached: Sequence[Parity]
    ) -> Settled:
        with self.progress.step(f"Writing {name}"), translated(f"writing {name}"):
            variant = write()
        with self.progress.step(f"Measuring the parity of {name}"):
            bundle = Bundle(self.staging, replace(self.draft, variants=(variant,)))
            parity = verify.measure(bundle, variant, self.probe, default_threads())
        over = excesses(parity, self.recipe.budget, variant.precision, normalize=self.draft.normalize)
        return Settled(variant, parity, over, (*reached, parity), planned)


def keep_plans(settled: Sequence[Settled], geometry: Geometry, staging: Path) -> None:
    """Write plan.json, which `--plan` takes, and a picture of each plan."""
    planned = {found.variant.name: found.planned for found in settled if found.planned}
    if not planned:
        return
    (staging / "plan.json").write_text(
        plans_to_text({name: found.plan for name, found in planned.items()}, geometry), encoding="utf-8"
    )
    (staging / "plan").mkdir()
    for name, found in planned.items():
        (staging / "plan" / f"{name}.svg").write_text(picture(name, found), encoding="utf-8")


def over_budget_message(settled: Sequence[Settled]) -> str:
    """What is over budget, the best that any plan reached of each figure, and what can be done."""
    lines = ["over budget, no bundle was written:"]
    for found in (s for s in settled if s.over):
        lines += [f"  {found.variant.name}: {excess}" for excess in found.over]
        if len(found.reached) > 1:
            lines.append(f"    best of {len(found.reached)} plans: {_best(found.reached)}")
    lines.append(
        "Leave the variant out (--variants), set another --budget (INT8 only; FP32 is held to arithmetic noise), or "
        "keep it with --allow-over-budget"
    )
    return "\n".join(lines)


def _best(reached: Sequence[Parity]) -> str:
    figures = [
        f"dense cosine mean {max(p.dense.cosine_mean for p in reached):.6f}",
        f"min {max(p.dense.cosine_min for p in reached):.6f}",
    ]
    if colbert := [p.colbert.cosine_p5 for p in reached if p.colbert]:
        figures.append(f"ColBERT p5 {max(colbert):.6f}")
    if sparse := [p.sparse.jaccard_mean for p in reached if p.sparse]:
        figures.append(f"sparse Jaccard {max(sparse):.5f}")
    return ", ".join(figures)


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Torch and OpenVINO fail with RuntimeError, for want of memory for instance."""
    try:
        yield
    except RuntimeError as error:
        raise ExportError(f"{what} failed, nothing was written: {error}") from error
