"""M3Reranker and FlagReranker: pairs, limits, scores, bad input."""

import json
import logging
import pickle

import numpy as np
import pytest
from tokenizers import Tokenizer

from m3_runtime import InputError, M3Encoder, M3Reranker, TextTooLongError
from m3_runtime.bundle.manifest import Head
from m3_runtime.cli import main
from m3_runtime.compat.fastembed import TextEmbedding
from m3_runtime.flag import FlagAutoReranker, FlagReranker
from m3_runtime.ignored import IgnoredArgumentWarning
from m3_runtime.integrations.adapters import PlainRanks

QUERY = "what is a vector"
LONG = "a vector is a dense query and the model can search text " * 12
PASSAGES = ["the model is a text", LONG, "что не", "a vector is a dense query", "の 検索 </s> 模型", "what is a vector"]
PAIRS = [(QUERY, passage) for passage in PASSAGES] + [(LONG, "the model"), ("を", LONG)]


@pytest.fixture(scope="module")
def reranker(reranker_bundle):
    with M3Reranker.open(reranker_bundle, variant="onnx-fp32", threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def flag(reranker_bundle):
    opened = FlagReranker(reranker_bundle, variant="onnx-fp32", threads=1)
    yield opened
    opened.close()


def ids_of(reranker, pairs, max_length, query_max_length=None):
    """The ids that reach the engine, in the order of the pairs."""
    seen = []

    class Listening:
        streams, packed_tokens = 1, 0

        def run(self, batch, heads):
            seen.extend(row[mask > 0].tolist() for row, mask in zip(batch.input_ids, batch.attention_mask, strict=True))
            return reranker.engine.run(batch, heads)

        def rest(self, least_tokens):
            pass

    listening = M3Reranker(reranker.bundle, reranker.variant, reranker.tokenizer, Listening())
    found = []
    for pair in pairs:
        listening.score_pairs([pair], max_length=max_length, query_max_length=query_max_length)
        found.append(seen.pop())
    return found


@pytest.mark.parametrize(("max_length", "query_max_length"), [(512, None), (40, None), (40, 7), (23, 17)])
def test_pairs_are_the_tokenizers_own_and_the_passage_alone_is_cut(reranker, max_length, query_max_length):
    """tokenizers' template and its truncation of the second text are what FlagEmbedding calls."""
    info = reranker.tokenizer_info
    own = Tokenizer.from_file(str(reranker.bundle.file(info.path)))
    own.no_padding()
    for pair, ids in zip(PAIRS, ids_of(reranker, PAIRS, max_length, query_max_length), strict=True):
        own.no_truncation()
        query, passage = (own.encode(text, add_special_tokens=False).ids for text in pair)
        query = query[: query_max_length or max_length * 3 // 4]
        room = max_length - 4 - len(query)
        assert ids == [info.cls_id, *query, info.eos_id, info.eos_id, *passage[:room], info.eos_id]
        if pair[0] != LONG:
            own.enable_truncation(max_length, strategy="only_second")
            assert own.encode(*pair).ids == ids


def test_a_score_depends_on_its_pair_alone(reranker):
    together = reranker.score_pairs(PAIRS)
    assert together.scores.dtype == np.float32
    alone = [reranker.score_pairs([pair]).scores[0] for pair in PAIRS]
    turned = reranker.score_pairs(PAIRS[::-1], batch_size=2, token_budget=64).scores[::-1]
    assert together.scores.tolist() == alone == turned.tolist()
    assert len(set(alone)) == len(PAIRS)


def test_packed_pairs_have_the_same_scores_as_alone(reranker_bundle, reranker):
    with M3Reranker.open(reranker_bundle, variant="openvino-int8", threads=1) as packing:
        assert packing.engine.packed_tokens
        scores = packing.score_pairs(PAIRS).scores
        assert scores.tolist() == [packing.score_pairs([pair]).scores[0] for pair in PAIRS]
    exact = reranker.score_pairs(PAIRS).scores
    assert np.abs(scores - exact).max() < exact.std()


def test_normalized_scores_are_the_sigmoid(reranker):
    scores = np.array(reranker.compute_score(PAIRS))
    np.testing.assert_allclose(reranker.compute_score(PAIRS, normalize=True), 1 / (1 + np.exp(-scores)), rtol=1e-12)


def test_one_pair_gives_a_list_of_one_and_no_pairs_an_empty_list(reranker):
    assert reranker.compute_score(PAIRS[0]) == reranker.compute_score([PAIRS[0]]) == reranker.compute_score(PAIRS)[:1]
    assert reranker.compute_score([]) == []
    assert reranker.compute_score(np.array(PAIRS[:2])) == reranker.compute_score(iter(PAIRS[:2]))


def test_cut_pairs_are_counted_and_logged(reranker, caplog):
    found = reranker.score_pairs(PAIRS, max_length=40)
    assert found.truncated == 3  # two long passages, one long query
    assert found.token_counts.max() == 40
    with caplog.at_level(logging.WARNING, "m3_runtime"):
        reranker.compute_score(PAIRS, max_length=40)
    assert "3 of the 8 pairs that were scored had more tokens than the maximum and were cut" in caplog.text
    with caplog.at_level(logging.WARNING, "m3_runtime"):
        PlainRanks(reranker, max_length=40).best(QUERY, [LONG, "a"])
    assert "1 of the 2 pairs that were scored" in caplog.text


@pytest.mark.parametrize(
    ("pairs", "named"),
    [
        ([("a", "")], "the passage of pair 0 is empty"),
        ([("a", "b"), (" ", "b")], "the query of pair 1 is empty"),
        ([("a", "\u200b\x01 \ufeff\ufffd")], "the passage of pair 0 is empty"),
        ([("a", "b"), ("a",)], "pair 1 must be"),
        ([("a", "b", "c")], "pair 0 must be"),
        (["a"], "pair 0 must be"),
        ([("a", None)], "the passage of pair 0 must be a str"),
        ([(1, "b")], "the query of pair 0 must be a str"),
        ([("a", "\ud800")], "the passage of pair 0 has a lone surrogate"),
        ({"a": "b"}, "got dict"),
        (None, "got NoneType"),
    ],
)
def test_bad_pairs_are_named(reranker, flag, pairs, named):
    for compute_score in (reranker.compute_score, flag.compute_score):
        with pytest.raises(InputError, match=named):
            compute_score(pairs)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"max_length": 5}, "max_length must be at least 6"),
        ({"max_length": 513}, "max_length is 513"),
        ({"query_max_length": 0}, "query_max_length must be at least 1"),
        ({"max_length": 20, "query_max_length": 16}, "the query of pair 6 has 16 tokens, which leave no room"),
        ({"max_length": "20"}, "max_length must be an integer"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"on_truncate": "never"}, "on_truncate must be"),
    ],
)
def test_bad_arguments_are_named(reranker, arguments, named):
    with pytest.raises(InputError, match=named):
        reranker.compute_score(PAIRS, **arguments)


def test_longer_texts_can_be_refused(reranker):
    with pytest.raises(TextTooLongError, match="the passage of pair 1 has") as refused:
        reranker.compute_score(PAIRS, max_length=40, on_truncate="error")
    assert refused.value.index == 1
    with pytest.raises(TextTooLongError, match=r"the query of pair 0 has .* the limit is 30"):
        reranker.compute_score([(LONG, "a")], max_length=40, on_truncate="error")
    assert reranker.compute_score(PAIRS[:1], on_truncate="error")
    with pytest.raises(TextTooLongError, match="the passage of pair 259 has") as refused:
        reranker.compute_score([("a", "b")] * 259 + [("a", LONG)], max_length=40, on_truncate="error")
    assert refused.value.index == 259  # the tokenizer is given 256 of them first


def test_it_pickles_by_path_and_closes(reranker_bundle, reranker):
    again = pickle.loads(pickle.dumps(reranker))
    assert again.compute_score(PAIRS[:2]) == reranker.compute_score(PAIRS[:2])
    again.close()
    with pytest.raises(Exception, match="the reranker is closed"):
        again.compute_score(PAIRS[:1])


def test_the_other_kind_of_bundle_is_refused_with_the_remedy(tiny_bundle, reranker_bundle, encoder, tmp_path, capsys):
    with pytest.raises(InputError, match=r"reranker's bundle.*M3Reranker\.open"):
        M3Encoder.open(reranker_bundle)
    for opened in (M3Reranker.open, FlagReranker, PlainRanks):
        with pytest.raises(InputError, match=r"encoder's bundle.*M3Encoder\.open"):
            opened(tiny_bundle)
    texts = tmp_path / "texts.txt"
    texts.write_text("one\n")
    for words in (["encode"], ["bulk", "-o", str(tmp_path / "out")]):
        assert main([words[0], str(reranker_bundle), str(texts), *words[1:]]) == 2
        assert not (tmp_path / "out").exists()
        assert "m3-runtime serve ENCODER --reranker" in capsys.readouterr().err
    for kinds in ([tiny_bundle, tiny_bundle], [reranker_bundle, reranker_bundle]):
        assert main(["serve", str(kinds[0]), "--reranker", str(kinds[1]), "--port", "0"]) == 2
        assert "'s bundle" in capsys.readouterr().err
    assert main(["serve", str(tiny_bundle), "--reranker-variant", "onnx-fp32", "--port", "0"]) == 2
    assert "--reranker-variant is for --reranker, which is not given" in capsys.readouterr().err
    for option in ("--accept-token-ids", "--allow-dimensions"):
        assert main(["serve", str(reranker_bundle), option, "--port", "0"]) == 2
        assert f"{option} is for an encoder's bundle" in capsys.readouterr().err
    with pytest.raises(InputError, match="reranker's bundle"):
        TextEmbedding.get_embedding_size(reranker_bundle)


def test_score_and_info_take_a_reranker(reranker_bundle, reranker, capsys):
    query, passage = PAIRS[0]
    words = ["score", str(reranker_bundle), query, passage, "--variant", "onnx-fp32"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["score"] == reranker.compute_score(PAIRS[0])[0]
    assert main([*words, "--normalize", "--max-length", "20"]) == 0
    (expected,) = reranker.compute_score(PAIRS[0], normalize=True, max_length=20)
    assert json.loads(capsys.readouterr().out) == {"score": expected}
    assert main(["score", str(reranker_bundle), "a", " "]) == main([*words, "--weights", "1", "1", "1"]) == 2
    assert main(["info", str(reranker_bundle)]) == 0
    shown = capsys.readouterr().out
    assert "heads: score" in shown
    assert "score   difference" in shown
    assert "Kendall's tau" in shown
    assert reranker.bundle.manifest.heads == (Head.SCORE,)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--max-length", "20", "--max-query-length", "16"], "query of pair 1029 has 16 tokens, which leave no room"),
        (["--max-length", "30", "--max-query-length", "15", "--on-truncate", "error"], "query of pair 1029 has 30"),
    ],
)
def test_score_names_the_line_of_a_pair_that_does_not_fit(reranker_bundle, tmp_path, capsys, more, named):
    pairs = tmp_path / "pairs.tsv"  # longer than what is scored at a time
    pairs.write_text("a\tb\n" * 1029 + "word " * 30 + "\tb\n")
    assert main(["score", str(reranker_bundle), "--pairs", str(pairs), "-o", str(tmp_path / "out"), *more]) == 2
    assert f"pairs.tsv:1030: the {named}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_score_of_an_encoder_takes_no_arguments_of_a_reranker(tiny_bundle, capsys):
    for more in (["--normalize"], ["--max-length", "20"]):
        assert main(["score", str(tiny_bundle), "a", "b", *more]) == 2
        assert "is for a reranker's bundle" in capsys.readouterr().err


def test_flag_reranker_has_flagembeddings_defaults_and_values(flag, reranker):
    assert (flag.batch_size, flag.max_length, flag.query_max_length, flag.normalize) == (128, 512, None, False)
    assert flag.target_devices == ["cpu"]
    assert flag.compute_score(PAIRS) == reranker.compute_score(PAIRS)
    assert flag.compute_score(list(PAIRS[0]), normalize=True) == reranker.compute_score(PAIRS[0], normalize=True)
    assert flag.compute_score(PAIRS, max_length=40, query_max_length=9, batch_size=1) == reranker.compute_score(
        PAIRS, max_length=40, query_max_length=9
    )


def test_the_auto_class_makes_a_flag_reranker(reranker_bundle, flag):
    with pytest.raises(InputError, match="from_finetuned"):
        FlagAutoReranker()
    with pytest.raises(InputError, match="decoder-only-base"):
        FlagAutoReranker.from_finetuned(reranker_bundle, model_class="decoder-only-base")
    made = FlagAutoReranker.from_finetuned(reranker_bundle, use_fp16=True, variant="onnx-fp32", threads=1)
    assert made.compute_score(PAIRS) == flag.compute_score(PAIRS)
    made.close()


def test_instructions_and_the_constructors_values(reranker_bundle, reranker):
    how = {"variant": "onnx-fp32", "threads": 1, "normalize": True, "max_length": 40}
    model = FlagReranker(
        reranker_bundle,
        query_instruction_for_rerank="query",
        query_instruction_format="{}:\\n{}",
        passage_instruction_for_rerank="passage: ",
        **how,
    )
    instructed = [(f"query:\n{query}", f"passage: {passage}") for query, passage in PAIRS]
    assert model.compute_score(PAIRS) == reranker.compute_score(instructed, max_length=40, normalize=True)
    with pytest.raises(InputError, match="the query of pair 0 is empty"):
        model.compute_score([("", "a")])
    model.close()


def test_ignored_arguments_are_named_and_refused_where_they_change_scores(reranker_bundle, flag):
    with pytest.warns(IgnoredArgumentWarning, match="cuda:0"):
        FlagReranker(reranker_bundle, True, devices="cuda:0", threads=1).close()
    with pytest.warns(IgnoredArgumentWarning, match="unknown arguments have no effect: show_progress"):
        flag.compute_score(PAIRS[:1], show_progress=True)
    with pytest.raises(InputError, match="truncation_side"):
        flag.compute_score(PAIRS[:1], truncation_side="left")
