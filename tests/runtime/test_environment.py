"""Options from the environment: every one of serve and bulk, by the same rules."""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import Done, run_main
from m3_runtime.cli import commands_of, main, parser
from m3_runtime.cli.environment import PREFIX, variables

COMMANDS = ("serve", "bulk")
POSITIONAL = {"serve": {"bundle": "a bundle"}, "bulk": {"bundle": "a bundle", "inputs": "an input"}}
VALUES = {
    "engine": "openvino", "streams": "2", "verify": "full", "heads": "dense,colbert", "input_format": "jsonl",
    "on_truncate": "reject", "dense_dtype": "float16", "colbert_dtype": "int8", "log_level": "error",
    "log_format": "text", "root_path": "/m3", "cors_allow_origin": "https://one.example,http://two.example:8080",
    "otlp_endpoint": "http://localhost:4318", "api_key": "a-key-of-the-environment", "output": "out",
}  # fmt: skip
"""What an option takes that takes neither any word nor the number 7."""


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)


def every_argument() -> list[tuple[str, str]]:
    commands = commands_of(parser())
    return [(command, variable) for command in COMMANDS for variable in variables(commands[command])]


def given(command: str, *words: str) -> dict[str, object]:
    """What the command line and the environment give together."""
    return vars(parser().parse_args([command, *words]))


def required(command: str, without: str = "") -> dict[str, str]:
    """The variables of what a command cannot do without."""
    needed = {"M3_BUNDLE": "a bundle"} | ({"M3_INPUTS": "an input", "M3_OUTPUT": "out"} if command == "bulk" else {})
    return {name: value for name, value in needed.items() if name != without}


def as_words(action: argparse.Action, value: str) -> list[str]:
    """The same by the command line."""
    if not action.option_strings:
        return [value]
    option = next(name for name in action.option_strings if name.startswith("--"))
    if action.nargs == 0:
        return [option]
    is_repeated = isinstance(action, argparse._AppendAction)
    return [f"{option}={part}" for part in (value.split(",") if is_repeated else [value])]


@pytest.mark.parametrize(("command", "variable"), every_argument())
def test_a_variable_means_what_its_argument_means(monkeypatch, command, variable):
    action = variables(commands_of(parser())[command])[variable]
    value = "true" if action.nargs == 0 else VALUES.get(action.dest, "7")
    value = POSITIONAL[command].get(action.dest, value)
    for name, needed in required(command, variable).items():
        monkeypatch.setenv(name, needed)
    by_command_line = given(command, *as_words(action, value)) if action.option_strings or command == "serve" else None
    monkeypatch.setenv(variable, value)
    by_variable = given(command)
    if by_command_line is not None:
        assert by_variable[action.dest] == by_command_line[action.dest]
    assert by_variable[action.dest] not in (None, action.default)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_names_every_variable(monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "1000")
    shown = run_main(main, command, "--help").stdout
    monkeypatch.setenv("M3_THREADS", "7")
    monkeypatch.setenv("M3_WORKERS", "two")  # help is given whatever is set: it says what to set
    monkeypatch.setenv("M3_BUNDLE", "a bundle")
    assert run_main(main, command, "--help").stdout.replace("[BUNDLE]", "BUNDLE") == shown
    names = [variable for one, variable in every_argument() if one == command]
    assert len(names) > 15
    assert [name for name in names if f"[{name}]" not in shown] == []


def test_a_positional_may_come_from_either_place(monkeypatch):
    monkeypatch.setenv("M3_BUNDLE", "of the environment")
    assert given("serve")["bundle"] == "of the environment"
    assert given("serve", "of the line")["bundle"] == "of the line"
    monkeypatch.setenv("M3_OUTPUT", "out")
    bulk = given("bulk", "docs.jsonl")
    assert (bulk["bundle"], bulk["inputs"], bulk["output"]) == ("of the environment", ["docs.jsonl"], Path("out"))
    monkeypatch.setenv("M3_INPUTS", "one.jsonl,two.jsonl")
    assert given("bulk")["inputs"] == ["one.jsonl", "two.jsonl"]


def test_flags_win_whole(monkeypatch):
    """Of what repeats too: the environment's origins do not join those of the command line."""
    monkeypatch.setenv("M3_PORT", "not looked at")
    monkeypatch.setenv("M3_CORS_ALLOW_ORIGIN", "https://one.example,https://two.example")
    found = given("serve", "a", "--port", "8081", "--cors-allow-origin", "https://three.example")
    assert found["port"] == 8081
    assert found["cors_allow_origin"] == ["https://three.example"]


@pytest.mark.parametrize(("word", "is_on"), [("1", True), ("TRUE", True), ("yes", True), ("off", False), ("0", False)])
def test_switches(monkeypatch, word, is_on):
    monkeypatch.setenv("M3_NO_UI", word)
    assert given("serve", "a")["no_ui"] is is_on


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("M3_PORT", "eighty", "M3_PORT: expected an integer from 0 to 65535, got 'eighty'"),
        ("M3_PORT", "-1", "M3_PORT: expected an integer from 0 to 65535, got '-1'"),
        ("M3_PORT", "tcp://10.0.0.9:8080", "enableServiceLinks"),
        ("M3_PORT", "", "M3_PORT: it is empty"),
        ("M3_NO_UI", "perhaps", "M3_NO_UI: expected true or false"),
        ("M3_ENGINE", "abacus", "M3_ENGINE: expected one of auto, onnxruntime, openvino, got 'abacus'"),
        ("M3_VERIFY", "all", "M3_VERIFY: expected size or full, got 'all'"),
        ("M3_DEADLINE_S", "soon", "M3_DEADLINE_S: expected a number above 0, at most 1000000, got 'soon'"),
        ("M3_DEADLINE_S", "0", "M3_DEADLINE_S: expected a number above 0, at most 1000000, got '0'"),
        ("M3_BODY_TIMEOUT_S", "0", "M3_BODY_TIMEOUT_S: expected a number above 0, at most 1000000, got '0'"),
        ("M3_DRAIN_S", "-1", "M3_DRAIN_S: expected a number from 0 to 1000000, got '-1'"),
        ("M3_DRAIN_S", "nan", "M3_DRAIN_S: expected a number from 0 to 1000000, got 'nan'"),
        ("M3_STREAMS", "all", "M3_STREAMS: expected an integer from 1 to 4096, got 'all'; or auto"),
        ("M3_STREAMS", "0", "M3_STREAMS: expected an integer from 1 to 4096, got '0'"),
        ("M3_CORS_ALLOW_ORIGIN", "https://a.example,b.example", "M3_CORS_ALLOW_ORIGIN: expected SCHEME://HOST"),
        ("M3_CORS_ALLOW_ORIGIN", "https://a.example/", "M3_CORS_ALLOW_ORIGIN: expected SCHEME://HOST"),
        ("M3_ROOT_PATH", "m3", "M3_ROOT_PATH: expected a path"),
        ("M3_OTLP_ENDPOINT", "localhost:4318", "M3_OTLP_ENDPOINT: expected a URL"),
    ],
)
def test_a_variable_that_cannot_be_parsed_is_named(monkeypatch, variable, value, message):
    done = run_with(monkeypatch, variable, value)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize(
    "key", ["too-short", "a key with several blanks", "a-key-with-a-line-end\n", "a-key-that-no-client-can-sénd"]
)
def test_a_key_that_cannot_be_used_is_not_shown(monkeypatch, key):
    done = run_with(monkeypatch, "M3_API_KEY", key)
    assert done.returncode == 2
    assert "M3_API_KEY: expected a key of at least 16 characters" in done.stderr
    assert key.strip() not in done.stderr


def test_unknown_variables_are_named_with_the_nearest(monkeypatch, tmp_path):
    monkeypatch.setenv("M3_MAX_TEXT", "7")
    monkeypatch.setenv("M3_HEADS", "dense")  # bulk's: known, though not of serve
    done = run_with(monkeypatch, "M3_XYZZY", "1", str(tmp_path))
    lines = [line for line in done.stderr.splitlines() if "warning" in line]
    assert lines == [
        "m3-runtime: warning: no option reads the environment variable M3_MAX_TEXT; did you mean M3_MAX_TEXTS?",
        "m3-runtime: warning: no option reads the environment variable M3_XYZZY",
    ]
    assert "m3-runtime: " in done.stderr
    assert done.returncode == 2  # there is no bundle: warnings stop nothing


def test_other_commands_read_none(monkeypatch, tmp_path):
    monkeypatch.setenv("M3_VERIFY", "nonsense")
    done = run_main(main, "info", tmp_path)
    assert "M3_VERIFY" not in done.stderr


def test_two_names_of_one_option_that_disagree(monkeypatch):
    """No option has two long names now; the rule is the parser's own."""
    from m3_runtime.cli.environment import CommandParser

    command = CommandParser(prog="two", exit_on_error=False)
    command.add_argument("--model-name", "--served-model-name", help="a name")
    command.take_environment()
    monkeypatch.setenv("M3_MODEL_NAME", "one")
    monkeypatch.setenv("M3_SERVED_MODEL_NAME", "one")
    assert command.parse_args([]).model_name == "one"
    monkeypatch.setenv("M3_SERVED_MODEL_NAME", "another")
    done = run_main(lambda words: int(command.parse_args(words) is None))
    assert done.returncode == 2
    assert "M3_MODEL_NAME and M3_SERVED_MODEL_NAME disagree" in done.stderr


def run_with(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, bundle: str = "no bundle") -> Done:
    monkeypatch.setenv(variable, value)
    return run_main(main, "serve", bundle, *(() if variable == "M3_PORT" else ("--port", "0")))


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_lists_every_variable(command):
    """To write the tables again after a change of options, paste what this prints."""
    page = (Path(__file__).parents[2] / "docs" / "operate" / "configuration.md").read_text()
    table = page.partition(f"\n## Options of {command}\n")[2].partition("\n## ")[0].strip().splitlines()
    expected = list(table_of(command))
    assert table == expected, "\n" + "\n".join(expected)


def table_of(command: str) -> Iterator[str]:
    yield "| variable | option | |"
    yield "|---|---|---|"
    for variable, action in variables(commands_of(parser())[command]).items():
        option = next((name for name in action.option_strings if name.startswith("--")), "")
        shown = " ".join(word for word in (option, "" if action.nargs == 0 else metavar(action)) if word)
        said = (action.help or "").replace(f" [{variable}]", "") % vars(action)
        yield f"| `{variable}` | `{escaped(shown)}` | {escaped(said)} |"


def metavar(action: argparse.Action) -> str:
    if action.choices is not None and action.metavar is None:
        return "|".join(map(str, action.choices))
    return str(action.metavar or action.dest.upper())


def escaped(text: str) -> str:
    return text.replace("|", r"\|")
