"""What clients may call the model."""

import pytest
from in_process import served

from m3_runtime import Bundle
from m3_runtime.cli import main


@pytest.mark.parametrize(
    "name",
    [
        "BAAI/bge-m3",
        "bge-m3",
        "BGE-M3",
        "baai/BGE-m3",
        " bge-m3 ",
        "embedder",
        "tiny-random",
        "any/tiny-random",
        "",
        None,
    ],
)
def test_names_that_mean_the_model(app, name):
    answer = app.post("/v1/embeddings", json={"model": name, "input": "a"})
    assert answer.status_code == 200
    assert answer.json()["model"] == "BAAI/bge-m3"


def test_no_name_at_all_and_the_spaces_id(app, tiny_bundle):
    assert app.post("/v1/embeddings", json={"input": "a"}).status_code == 200
    space_id = Bundle.open(tiny_bundle).manifest.space_id
    assert app.post("/v1/embeddings", json={"model": space_id, "input": "a"}).status_code == 200


@pytest.mark.parametrize("name", ["text-embedding-3-small", "other/bge-m3", "bge", "BAAI", "m3", "bge-m3/"])
def test_other_names_are_404_and_the_known_ones_are_listed(app, name):
    answer = app.post("/v1/embeddings", json={"model": name, "input": "a"})
    assert answer.status_code == 404
    problem = answer.json()["error"]
    assert (problem["code"], problem["param"]) == ("model_not_found", "model")
    assert "this server has: BAAI/bge-m3, embedder, tiny-random, m3-" in problem["message"]


def test_a_name_of_the_wrong_type(app):
    answer = app.post("/v1/embeddings", json={"model": 5, "input": "a"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "model"


def test_all_names_are_listed(app):
    assert [model["id"] for model in app.get("/v1/models").json()["data"]] == ["BAAI/bge-m3", "embedder"]
    assert app.get("/v1/models/embedder").json()["id"] == "embedder"
    assert app.get("/v1/models/BAAI/bge-m3").json()["id"] == app.get("/v1/models/BGE-M3").json()["id"] == "BAAI/bge-m3"
    assert app.get("/v1/models/gpt").status_code == 404
    info = app.get("/info").json()
    assert (info["model_id"], info["served_model_name"]) == ("BAAI/bge-m3", "BAAI/bge-m3")


def test_any_name(tiny_bundle):
    with served(tiny_bundle, is_any_model_served=True) as client:
        for name in ("text-embedding-3-small", "gpt", None):
            answer = client.post("/v1/embeddings", json={"model": name, "input": "a"})
            assert (answer.status_code, answer.json()["model"]) == (200, "tiny-random")


def test_the_options(capsys):
    from m3_runtime.cli import serve

    for words, names in (
        (["--served-model-name", "a,b", "--model-name", "c"], ("a", "b", "c")),
        (["--model-name", "BAAI/bge-m3"], ("BAAI/bge-m3",)),
        ([], ()),
    ):
        assert serve.settings(parsed("serve", "bundle", *words)).model_names == names
    given = serve.settings(parsed("serve", "bundle", "--any-model-name", "--accept-token-ids", "--allow-dimensions"))
    assert given.is_any_model_served and given.takes_token_ids and given.cuts_dimensions
    with pytest.raises(SystemExit) as ended:
        main(["serve", "bundle", "--served-model-name", "a,,b"])
    assert ended.value.code == 2
    assert "expected one name or several" in capsys.readouterr().err


def parsed(*words: str):
    from m3_runtime.cli import parser

    return parser().parse_args(words)
