import pytest

from m3_bench.errors import BenchError
from m3_bench.texts import TextMaker


@pytest.mark.parametrize("tokens", [2, 3, 5, 16, 128, 512])
def test_a_text_has_exactly_as_many_tokens(texts, tokenizer, tokens):
    (ids,) = tokenizer.encode_batch([texts.text(tokens)], 1024).ids
    assert len(ids) == tokens


def test_a_seed_fixes_the_texts(tokenizer):
    first, again, other = (TextMaker(tokenizer, seed).batches([[16, 17], [5]]) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert [len(batch) for batch in first] == [2, 1]


class JoiningTokenizer:
    """A tokenizer that makes one token of words that stand together, as BPE over blanks can."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self.vocab_size, self.decode = tokenizer.vocab_size, tokenizer.decode

    def encode_batch(self, texts, max_length):
        return self._tokenizer.encode_batch([text.replace(" ", "", 1) for text in texts], max_length)


def test_a_tokenizer_that_joins_words_is_refused(tokenizer):
    with pytest.raises(BenchError, match="joins words"):
        TextMaker(JoiningTokenizer(tokenizer)).text(16)
