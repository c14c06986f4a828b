"""FlagEmbedding's `FlagReranker` and `FlagAutoReranker` over a bundle; users import them from `m3_runtime.flag`."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from m3_runtime.errors import InputError
from m3_runtime.ignored import Devices, accept_unknown, check_devices, taken_from
from m3_runtime.opened_model import OpenedModel
from m3_runtime.pairs import checked_sides, pair_limits
from m3_runtime.reranker import M3Reranker
from m3_runtime.tokenizer import M3Tokenizer

# What FlagEmbedding hands on to its tokenizer, with the values that change no score.
_HARMLESS: Mapping[str, Any] = {"truncation_side": "right", "stride": 0, "return_overflowing_tokens": False}


class FlagClass:
    """What FlagEmbedding's classes have in common here: one open model, and no worker processes."""

    _model: OpenedModel

    @cached_property
    def target_devices(self) -> list[str]:
        """Always ["cpu"]."""
        return ["cpu"]

    @property
    def tokenizer(self) -> M3Tokenizer:
        """The bundle's tokenizer."""
        return self._model.tokenizer

    @staticmethod
    def get_detailed_instruct(instruction_format: str, instruction: str, sentence: str) -> str:
        r"""An instruction and a text in one; a literal ``\n`` in the format is a line break.

        >>> FlagReranker.get_detailed_instruct("{}: {}", "query", "what is it")
        'query: what is it'
        """
        return instruction_format.replace("\\n", "\n").format(instruction, sentence)

    def stop_self_pool(self) -> None:
        """Nothing to stop."""

    def close(self) -> None:
        """Let go of the graph and its memory."""
        self._model.close()


class FlagReranker(FlagClass):
    """FlagEmbedding 1.4.2's `FlagReranker` on CPU.

    Attributes:
        reranker: the `M3Reranker` that does the work.
        batch_size: default of `compute_score`; `query_max_length`, `max_length` and `normalize` likewise.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - FlagEmbedding's arguments
        self,
        model_name_or_path: str | Path,
        use_fp16: bool = False,
        query_instruction_for_rerank: str | None = None,
        query_instruction_format: str = "{}{}",
        passage_instruction_for_rerank: str | None = None,
        passage_instruction_format: str = "{}{}",
        trust_remote_code: bool = False,
        cache_dir: str | None = None,
        devices: Devices | None = None,
        batch_size: int = 128,
        query_max_length: int | None = None,
        max_length: int | None = None,
        normalize: bool = False,
        *,
        device: Devices | None = None,
        **more: Any,
    ) -> None:
        """Open a bundle. Arguments are FlagEmbedding's, with these differences.

        `model_name_or_path` is a reranker's bundle. `use_fp16`, `trust_remote_code` and `cache_dir` have no effect: the
        bundle's variant says how scores are computed, and nothing is downloaded. `devices`, or `device` as in
        FlagEmbedding 1.2, may name others than the CPU, with a warning. `query_max_length` is tokens per query, None is
        three quarters of the pair's; `max_length` is tokens per pair, None is 512, or less where the model takes less.
        `variant`, `engine`, `threads` and `low_memory` are those of `M3Reranker.open`. What else there is FlagEmbedding
        would keep as attributes.

        Raises:
            M3Error: as `M3Reranker.open`, and InputError for a length that the model does not take.

        Warns:
            IgnoredArgumentWarning: another device than the CPU, or an unknown argument.
        """
        check_devices(devices if devices is not None else device)
        opening = taken_from(more, "variant", "engine", "threads", "low_memory")
        accept_unknown(more, _HARMLESS)
        self.reranker = self._model = M3Reranker.open(model_name_or_path, **opening)
        self.model_name_or_path = str(model_name_or_path)
        self.use_fp16, self.trust_remote_code, self.cache_dir = use_fp16, trust_remote_code, cache_dir
        self.query_instruction_for_rerank = query_instruction_for_rerank
        self.query_instruction_format = query_instruction_format
        self.passage_instruction_for_rerank = passage_instruction_for_rerank
        self.passage_instruction_format = passage_instruction_format
        self.batch_size, self.query_max_length, self.normalize = batch_size, query_max_length, normalize
        self.max_length = pair_limits(max_length, query_max_length, self.reranker.max_tokens).max_length

    def compute_score(
        self,
        sentence_pairs: Sequence[Sequence[str]] | Sequence[str],
        batch_size: int | None = None,
        query_max_length: int | None = None,
        max_length: int | None = None,
        normalize: bool | None = None,
        device: Devices | None = None,
        **more: Any,
    ) -> list[float]:
        """Score pairs, with the instructions if there are any; an argument that is None takes the constructor's value.

        Returns:
            P floats; a list of one for one pair.

        Raises:
            M3Error: as `M3Reranker.compute_score`, and InputError for an argument of FlagEmbedding's tokenizer that
                would change the answer.

        Warns:
            IgnoredArgumentWarning: as the constructor.
        """
        check_devices(device, "device")
        accept_unknown(more, _HARMLESS)
        return self.reranker.compute_score(
            self._instructed(sentence_pairs),
            self.batch_size if batch_size is None else batch_size,
            self.query_max_length if query_max_length is None else query_max_length,
            self.max_length if max_length is None else max_length,
            self.normalize if normalize is None else normalize,
        )

    def _instructed(self, sentence_pairs: Any) -> Any:
        """The pairs with the instructions; checked first, since formatting would make None a text."""
        query, passage = self.query_instruction_for_rerank, self.passage_instruction_for_rerank
        if query is None and passage is None:
            return sentence_pairs
        pairs = checked_sides(sentence_pairs)
        if query is not None:
            pairs = [(self.get_detailed_instruct(self.query_instruction_format, query, q), p) for q, p in pairs]
        if passage is not None:
            pairs = [(q, self.get_detailed_instruct(self.passage_instruction_format, passage, p)) for q, p in pairs]
        return pairs


class FlagAutoReranker:
    """FlagEmbedding's `FlagAutoReranker`: made by `from_finetuned` alone."""

    def __init__(self) -> None:
        raise InputError("FlagAutoReranker is made by FlagAutoReranker.from_finetuned(path)")

    @staticmethod
    def from_finetuned(
        model_name_or_path: str | Path,
        model_class: str | None = None,
        use_fp16: bool = False,
        trust_remote_code: bool | None = None,
        **more: Any,
    ) -> FlagReranker:
        """A bundle as a `FlagReranker`; its folder may have any name. All other arguments are those of the class.

        Raises:
            M3Error: as the class, whose warnings it gives too, and
                InputError for another class than "encoder-only-base".
        """
        if model_class is not None and getattr(model_class, "value", model_class) != "encoder-only-base":
            raise InputError(
                f"model_class must be encoder-only-base, the only one that a bundle has, got {model_class!r}"
            )
        return FlagReranker(model_name_or_path, use_fp16, trust_remote_code=bool(trust_remote_code), **more)
