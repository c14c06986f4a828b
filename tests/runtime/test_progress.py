import sys
import time

from m3_runtime.io.progress import Progress


def test_steps_say_how_long_they_took(capsys):
    progress = Progress(quiet=False)
    with progress.step("trace the model"):
        progress.say("inside")
    first, second, third = capsys.readouterr().err.splitlines()
    assert first.endswith("s] trace the model …")
    assert second.endswith("s] inside")
    assert "trace the model: done in 0.0 s" in third


def test_a_meter_of_known_work_estimates_the_time_left(capsys):
    with Progress(quiet=False).meter(total=100, done=40) as meter:
        time.sleep(0.01)
        meter.advance(60, f"{meter.per_s(60):.0f} rows/s")
    last = capsys.readouterr().err.split("\n")[-2].lstrip("\r")
    assert last.startswith("100%")
    assert "rows/s [" in last
    assert ", left " in last


def test_a_meter_of_unknown_work_shows_the_note_alone(capsys):
    with Progress(quiet=False).meter() as meter:
        meter.advance(5, "5 texts")
    assert "5 texts [" in capsys.readouterr().err


def test_quiet_and_without_tqdm_nothing_is_shown_and_everything_is_done(capsys, monkeypatch):
    quiet, bare = Progress(quiet=True), Progress(quiet=False)
    quiet.say("nothing")
    for progress in (quiet, bare):
        with progress.meter(total=2) as meter:
            assert list(progress.bar([1, 2], "items")) == [1, 2]
            meter.advance(2, "done")
        monkeypatch.setitem(sys.modules, "tqdm", None)
    assert capsys.readouterr().err == ""
