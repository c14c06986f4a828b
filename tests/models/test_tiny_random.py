"""tiny-random: small, the same bytes every time, and noise in which a mistake would show."""

import filecmp
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from m3_models import write_checkpoint

TEXTS = [
    "What is the model of this text?",
    "Das Modell sucht im Text, nicht im Wort.",
    "搜索 模型 是什么",
    "  trailing blanks, <mask> and </s>   ",
    "",
]


@pytest.fixture(scope="module")
def hidden(tiny_random_checkpoint: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Last hidden states (B, T, H) and mask (B, T)."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_random_checkpoint)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    model = AutoModel.from_pretrained(tiny_random_checkpoint, add_pooling_layer=False).eval()
    with torch.inference_mode():
        return model(**batch).last_hidden_state, batch["attention_mask"].bool()


def test_two_writes_give_the_same_bytes(tmp_path: Path) -> None:
    write_checkpoint("tiny-random", tmp_path / "a")
    write_checkpoint("tiny-random", tmp_path / "b")
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == [
        "colbert_linear.pt",
        "config.json",
        "model.safetensors",
        "sparse_linear.pt",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert filecmp.cmpfiles(tmp_path / "a", tmp_path / "b", files, shallow=False) == (files, [], [])
    assert sum((tmp_path / "a" / file).stat().st_size for file in files) < 1_000_000


def test_heads_are_plain_state_dicts_and_colbert_is_narrower(tiny_random_checkpoint: Path) -> None:
    shapes = {}
    for name in ("sparse_linear", "colbert_linear"):
        state = torch.load(tiny_random_checkpoint / f"{name}.pt", weights_only=True)
        assert list(state) == ["weight", "bias"]
        assert all(tensor.dtype == torch.float32 for tensor in state.values())
        assert all(bool((tensor != 0).all()) for tensor in state.values())
        shapes[name] = [tuple(tensor.shape) for tensor in state.values()]
    assert shapes == {"sparse_linear": [(1, 64), (1,)], "colbert_linear": [(24, 64), (24,)]}


def test_transformers_finds_every_tensor_and_no_stranger(tiny_random_checkpoint: Path) -> None:
    _, info = AutoModel.from_pretrained(tiny_random_checkpoint, add_pooling_layer=False, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def test_hidden_states_differ_between_tokens_and_texts(hidden: tuple[torch.Tensor, torch.Tensor]) -> None:
    states, mask = hidden
    real = states[mask]
    assert bool(torch.isfinite(real).all())
    assert real.std(0).mean() > 0.3
    first = torch.nn.functional.normalize(states[:, 0], dim=-1)
    cosines = (first @ first.T)[~torch.eye(len(first), dtype=torch.bool)]
    assert cosines.max() < 0.95


def test_sparse_weights_are_a_mixture(tiny_random_checkpoint: Path, hidden: tuple[torch.Tensor, torch.Tensor]) -> None:
    state = torch.load(tiny_random_checkpoint / "sparse_linear.pt", weights_only=True)
    raw = hidden[0][hidden[1]] @ state["weight"].T + state["bias"]
    assert 0.5 < (raw > 0).float().mean() < 0.99


def test_biases_are_not_zero(tiny_random_checkpoint: Path) -> None:
    model = AutoModel.from_pretrained(tiny_random_checkpoint, add_pooling_layer=False)
    for name, tensor in model.named_parameters():
        if name.endswith(".bias"):
            assert float(tensor.detach().abs().max()) > 0.01, name


def test_raw_tokenizer_and_transformers_agree(tiny_random_checkpoint: Path) -> None:
    raw = Tokenizer.from_file(str(tiny_random_checkpoint / "tokenizer.json"))
    loaded = AutoTokenizer.from_pretrained(tiny_random_checkpoint)
    for text in [*TEXTS, "unknown ☃ 𠀀", "ไม่มี การ", "Русский на в", "tab\tand\nnewline", " "]:
        assert raw.encode(text).ids == loaded(text)["input_ids"], text
    assert loaded.model_max_length == 512
    assert loaded.mask_token_id == raw.get_vocab_size() - 1
    assert loaded.pad_token_id == 1


def test_unknown_characters_are_unk_and_known_ones_are_not(tiny_random_checkpoint: Path) -> None:
    raw = Tokenizer.from_file(str(tiny_random_checkpoint / "tokenizer.json"))
    assert 3 in raw.encode("☃").ids
    for text in ("The model 42!", "Übermäßig", "поиск", "模型", "ไม่", "가나"):
        assert 3 not in raw.encode(text).ids, text


def test_config_has_the_layout_of_bge_m3(tiny_random_checkpoint: Path) -> None:
    config = json.loads((tiny_random_checkpoint / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("xlm-roberta", ["XLMRobertaModel"])
    assert (config["type_vocab_size"], config["pad_token_id"]) == (1, 1)
    assert not (tiny_random_checkpoint / "modules.json").exists(), "no such file means CLS pooling"
    assert np.isclose(config["layer_norm_eps"], 1e-5)


def test_the_reranker_opens_in_transformers_and_tells_pairs_apart(reranker_checkpoint: Path) -> None:
    model, found = AutoModelForSequenceClassification.from_pretrained(reranker_checkpoint, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    batch = AutoTokenizer.from_pretrained(reranker_checkpoint)(TEXTS, TEXTS[::-1], padding=True, return_tensors="pt")
    with torch.inference_mode():
        scores = model.eval()(**batch).logits
    assert scores.shape == (len(TEXTS), 1)
    assert scores.std() > 0.2
