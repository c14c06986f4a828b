"""A run as a table: what one wants to see before the report."""

from statistics import median

from m3_bench.documents import Contender, Run, Scenario, ScenarioRun


def table(run: Run) -> str:
    """Markdown: scenarios down, contenders across; median time of a call, best tokens per second, a core's part."""
    names = [contender.name for contender in run.contenders]
    lines = [f"| median of a call, best tokens/s, per core | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for scenario in run.scenarios:
        cells = [_cell(contender, scenario, run.threads) for contender in run.contenders]
        lines.append(f"| {scenario.title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(contender: Contender, scenario: Scenario, threads: int) -> str:
    found = next((one for one in contender.scenarios if one.scenario == scenario.name), None)
    if found is None:
        return "–"
    if found.error:
        return "failed: " + " ".join(found.error.split())[:80].replace("|", "/")
    seconds = median(seconds for one in found.rounds for seconds in one.seconds)
    speed = best_tokens_per_s(found, scenario)
    return f"{seconds * 1e3:.1f} ms, {speed:.0f}" + (f", {speed / threads:.0f}" if threads else "")


def best_tokens_per_s(found: ScenarioRun, scenario: Scenario) -> float:
    """Of the fastest round."""
    return max(scenario.tokens * len(one.seconds) / one.wall_s for one in found.rounds)
