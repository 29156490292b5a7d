"""Progress tells the same on a terminal and in a log, and the time left is judged by this attempt alone."""

import io

from rich.console import Console

from baleen.pipeline.progress import LiveProgress, Pace, PlainProgress, duration, open_progress, results_table


def test_a_log_has_lines_with_stage_share_figures_and_time_left():
    stream = io.StringIO()
    progress = PlainProgress(stream, every=0.0)
    progress.begin(2, 5, "Dense pre-training")
    progress.update(1, 10, loss=7.25, tokens_per_second=7000.0)
    progress.update(2, 10, loss=7.0, tokens_per_second=7000.0)
    progress.end(65.0)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "[2/5] Dense pre-training"
    assert lines[1] == "[2/5] Dense pre-training: 10%, loss 7.25  7,000 tok/s"
    assert lines[2].startswith("[2/5] Dense pre-training: 20%, loss 7  7,000 tok/s, ")
    assert lines[2].endswith(" left")
    assert lines[3] == "[2/5] Dense pre-training: done in 1 min 05 s"


def test_a_log_is_not_flooded():
    stream = io.StringIO()
    progress = PlainProgress(stream)
    progress.begin(1, 1, "x")
    for step in range(1000):
        progress.update(step, 1000)
    assert stream.getvalue() == "[1/1] x\n"


def test_a_terminal_shows_every_stage_and_is_given_back():
    stream = io.StringIO()
    live = LiveProgress(Console(file=stream, force_terminal=True, width=100))
    live.skip(1, 2, "Tokenizer", 3.0)
    live.begin(2, 2, "Dense pre-training")
    live.update(5, 10, loss=1.5)
    live.end(8.0)
    live.close()
    text = stream.getvalue()
    assert "Tokenizer" in text
    assert "Dense pre-training" in text
    assert text.endswith("\x1b[?25h") or "\x1b[?25h" in text[-40:]  # the cursor is visible again


def test_a_stream_that_is_no_terminal_gets_plain_lines():
    with open_progress(io.StringIO()) as progress:
        assert isinstance(progress, PlainProgress)


def test_what_an_earlier_attempt_did_does_not_count_as_speed():
    pace = Pace()
    assert pace.seconds_left(90, 100) is None
    assert pace.seconds_left(90, 100) is None
    assert pace.seconds_left(91, 100) > 0


def test_durations_read_as_people_say_them():
    assert [duration(seconds) for seconds in (0.04, 8.24, 185, 7800)] == ["0.0 s", "8.2 s", "3 min 05 s", "2 h 10 min"]


def test_the_table_shows_what_was_measured_and_leaves_out_what_was_not():
    stream = io.StringIO()
    summary = {
        "recipe": "nano",
        "pass_at_1": {"mixed_rl": {"value": 0.85, "n": 200}},
        "validation_loss": {"dense": 3.25},
        "wall_seconds": 61.0,
        "peak_rss_bytes": 2**30,
        "stages": [{"name": "a", "title": "Dense pre-training", "seconds": 61.0, "tokens": 1000}],
    }
    Console(file=stream, width=100).print(results_table(summary))
    text = stream.getvalue()
    for part in ("85.0%  (n = 200)", "3.2500", "1 min 01 s", "1.00 GiB", "1,000 tokens"):
        assert part in text
    assert "attention mass" not in text
