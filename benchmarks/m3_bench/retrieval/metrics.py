"""What a ranking is worth for each query, by trec_eval's code through ir-measures."""

from collections.abc import Mapping, Sequence
from typing import Any

from m3_bench.retrieval.ranking import Ranking

NAMES = ("nDCG@10", "R@10", "R@100", "RR@10")
DEPTH = 100
"""Documents of a ranking that a measure looks at, at most."""

_DIGITS = 6


def measured(ranking: Ranking, relevant: Sequence[Mapping[int, int]]) -> Mapping[str, tuple[float, ...]]:
    """Each measure of each query.

    Args:
        ranking: per query, places of documents, best first.
        relevant: per query, grade by a document's place.

    Returns:
        (Q,) values by name; 0 for a query that found nothing.
    """
    import ir_measures

    evaluator = ir_measures.evaluator([ir_measures.parse_measure(name) for name in NAMES], _labels(relevant))
    values = {name: [0.0] * len(relevant) for name in NAMES}
    for found in evaluator.iter_calc(_run(ranking)):
        values[str(found.measure)][int(found.query_id)] = round(float(found.value), _DIGITS)
    return {name: tuple(row) for name, row in values.items()}


def _labels(relevant: Sequence[Mapping[int, int]]) -> dict[str, dict[str, int]]:
    return {str(q): {str(place): grade for place, grade in grades.items()} for q, grades in enumerate(relevant)}


def _run(ranking: Ranking) -> Any:
    """Ranks as scores: trec_eval sorts by score and breaks ties by id, and here the order is already settled."""
    return {
        str(q): {str(place): float(-rank) for rank, place in enumerate(places[:DEPTH].tolist())}
        for q, places in enumerate(ranking)
    }
