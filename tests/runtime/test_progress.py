import io
import itertools
import re
import sys
import time

from m3_runtime.io.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_steps_say_how_long_they_took(capsys):
    progress = Progress(quiet=False)
    with progress.step("trace the model"):
        progress.say("inside")
    first, second, third = capsys.readouterr().err.splitlines()
    assert first.endswith("s] trace the model …")
    assert second.endswith("s] inside")
    assert "trace the model: done in 0.0 s" in third


def test_a_meter_of_known_work_estimates_the_time_left(capsys):
    """Standard error is no terminal here: plain lines, none of them empty."""
    with Progress(quiet=False).meter(total=100, done=40) as meter:
        meter.advance(30, "begun")
        time.sleep(0.01)
        meter.advance(30, f"{meter.per_s(60):.0f} rows/s")
    assert re.fullmatch(r"100% \d+ rows/s \[00:00, left 00:00\]\n", capsys.readouterr().err)


def test_a_meter_of_unknown_work_shows_the_note_alone(capsys):
    with Progress(quiet=False).meter() as meter:
        meter.advance(5, "5 texts")
    assert capsys.readouterr().err == "5 texts [00:00]\n"


def test_a_job_that_does_nothing_says_nothing(capsys):
    with Progress(quiet=False).meter(total=0):
        pass
    assert capsys.readouterr().err == ""


def test_a_long_job_writes_a_line_every_half_minute(capsys, monkeypatch):
    now_s = itertools.count(0, 20)
    monkeypatch.setattr(time, "monotonic", lambda: next(now_s))
    with Progress(quiet=False).meter(total=8) as meter:
        for row in range(8):
            meter.advance(1, f"{row + 1} rows")
    lines = capsys.readouterr().err.splitlines()
    assert 2 < len(lines) < 8
    assert all(re.fullmatch(r" *\d+% \d rows \[\d\d:\d\d, left \d\d:\d\d\]", line) for line in lines), lines
    assert lines[-1].startswith("100% 8 rows")


def test_a_long_list_says_now_and_then_how_far_it_is(capsys, monkeypatch):
    """Standard error is no terminal, so there is no bar."""
    now_s = itertools.count(0, 20)
    monkeypatch.setattr(time, "monotonic", lambda: next(now_s))
    assert list(Progress(quiet=False).bar(range(8), "reference")) == list(range(8))
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) < 8
    assert all(re.fullmatch(r"\[ *[\d.]+ s\] reference: \d of 8", line) for line in lines), lines


def test_on_a_terminal_one_line_is_rewritten(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with Progress(quiet=False).meter(total=2) as meter:
        meter.advance(2, "2 rows")
    assert re.fullmatch(r"\r100% 2 rows \[00:00, left 00:00\] +\n", screen.getvalue())


def test_quiet_nothing_is_shown_and_everything_is_done(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    quiet = Progress(quiet=True)
    quiet.say("nothing")
    with quiet.meter(total=2) as meter:
        assert list(quiet.bar([1, 2], "items")) == [1, 2]
        meter.advance(2, "done")
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert list(Progress(quiet=False).bar([1, 2], "items")) == [1, 2]
    assert capsys.readouterr().err == ""
