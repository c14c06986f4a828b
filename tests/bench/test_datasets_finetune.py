"""Fine-tuning lines: every rule of FlagEmbedding's format, by line number and reason."""

import json
from pathlib import Path

import pytest

from m3_bench.errors import DatasetError
from m3_bench.retrieval.finetune import Example, read_finetune

COMMITTED = Path(__file__).parents[2] / "benchmarks" / "data" / "finetune_sample.jsonl"
GOOD = {"query": "q", "pos": ["p"], "neg": ["n"]}


def without(key: str) -> dict[str, object]:
    return {name: value for name, value in GOOD.items() if name != key}


def written(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "Invalid JSON: EOF"),
        ("[]", "Input should be an object, got []"),
        ("null", "Input should be an object, got None"),
        (without("query"), "query: Field required"),
        (GOOD | {"query": 1}, "query: Input should be a valid string, got 1"),
        (GOOD | {"query": " "}, "query: String should match pattern"),
        (without("pos"), "pos: Field required; training draws one of them"),
        (GOOD | {"pos": "p"}, "pos: Input should be a valid array, got 'p'"),
        (GOOD | {"pos": []}, "pos: List should have at least 1 item after validation, not 0, got []; training draws"),
        (GOOD | {"pos": ["p", ""]}, "pos[1]: String should have at least 1 character, got ''"),
        (GOOD | {"pos": ["p", None]}, "pos[1]: Input should be a valid string, got None"),
        (without("neg"), 'neg: Field required; FlagEmbedding needs it: write [""] where there are no negatives'),
        (GOOD | {"neg": []}, "neg: List should have at least 1 item after validation, not 0, got []; FlagEmbedding"),
        (GOOD | {"neg": None}, "neg: Input should be a valid array, got None"),
        (GOOD | {"neg": [["n"]]}, "neg[0]: Input should be a valid string, got ['n']"),
        (GOOD | {"neg": [True]}, "neg[0]: Input should be a valid string, got True"),
        (GOOD | {"pos": ["\ud83d"]}, "Invalid JSON"),
        (GOOD | {"pos_scores": [1, 2]}, "pos_scores has 2 numbers for 1 texts"),
        (GOOD | {"pos_scores": 1}, "pos_scores: Input should be a valid array, got 1"),
        (GOOD | {"neg_scores": ["1"]}, "neg_scores[0]: Input should be a valid number, got '1'"),
        (GOOD | {"neg_scores": [float("nan")]}, "neg_scores[0]: Input should be a finite number"),
        (GOOD | {"prompt": 3}, "prompt: Input should be a valid string"),
        (GOOD | {"type": "symmetric"}, "type: Input should be 'normal', 'only_1neg'"),
        (GOOD | {"type": ["normal"]}, "type: Input should be 'normal', 'only_1neg'"),
    ],
)
def test_a_bad_line_is_left_out_with_its_number_and_reason(tmp_path, line, reason):
    file = read_finetune(written(tmp_path / "a.jsonl", GOOD, "", line, GOOD))
    assert file.lines == 3
    assert [example.line for example in file.examples] == [1, 4]
    assert [bad.line for bad in file.bad_lines] == [3]
    assert reason in file.bad_lines[0].reason


@pytest.mark.parametrize(
    ("more", "negatives"),
    [
        ({"neg": [""]}, ()),
        ({"neg": ["", "n"]}, ("n",)),
        ({"pos_scores": [0.5], "neg_scores": [-1]}, ("n",)),
        ({"pos_scores": None, "neg_scores": None, "prompt": None, "type": None}, ("n",)),
        ({"prompt": "find: ", "type": "symmetric_class", "category": [1]}, ("n",)),
    ],
)
def test_what_training_takes_is_in_order(tmp_path, more, negatives):
    file = read_finetune(written(tmp_path / "a.jsonl", GOOD | more))
    assert file.bad_lines == ()
    assert file.examples == (Example(1, "q", ("p",), negatives),)


def test_no_negatives_is_told_apart_in_three_ways(tmp_path):
    file = read_finetune(written(tmp_path / "a.jsonl", GOOD | {"neg": [""]}, GOOD | {"neg": []}, without("neg")))
    assert [example.line for example in file.examples] == [1]
    assert [(bad.line, bad.reason.partition(" at least")[0]) for bad in file.bad_lines] == [
        (2, "neg: List should have"),
        (3, 'neg: Field required; FlagEmbedding needs it: write [""] where there are no negatives'),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps(GOOD, indent=2), "Expected one object on each line; jq -c . a.jsonl makes such lines"),
        (json.dumps([GOOD, GOOD]), "not one of its 1 lines can be used; line 1: Input should be an object"),
        (json.dumps([GOOD, GOOD], indent=1), "jq -c '.[]' of a list"),
        ("", "is empty"),
        ("\n \n", "is empty"),
        ("{}\n[]", "not one of its 2 lines can be used; line 1: query: Field required"),
    ],
)
def test_a_file_without_a_good_line_is_explained(tmp_path, text, message):
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    with pytest.raises(DatasetError) as error:
        read_finetune(path)
    assert message in str(error.value)


def test_a_single_line_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n")
    assert read_finetune(path).examples == (Example(1, "q", ("p",), ("n",)),)


def test_the_committed_sample_is_in_order():
    file = read_finetune(COMMITTED)
    assert file.bad_lines == ()
    assert len(file.examples) == 26
    assert [example.line for example in file.examples if not example.negatives] == [26]
    for example in file.examples:
        assert not set(example.positives) & set(example.negatives)
