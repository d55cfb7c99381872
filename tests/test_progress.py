"""Progress: what a user is told while training waits."""

import io
import time

from afterimage.training import progress
from afterimage.training.progress import Progress


def test_a_batch_that_does_not_come_is_told_of_once(monkeypatch):
    monkeypatch.setattr(progress, "_OVERDUE_SECONDS", 0.05)
    output = io.StringIO()
    shown = Progress(2, batch_size=4, stream=output)

    def blocks():
        yield 1
        time.sleep(0.3)
        yield 2

    assert list(shown.waiting(blocks())) == [1, 2]
    assert output.getvalue().count("No batch for") == 1


def test_batches_that_come_are_passed_through_in_silence():
    output = io.StringIO()
    shown = Progress(3, batch_size=4, stream=output)
    assert list(shown.waiting(iter([1, 2, 3]))) == [1, 2, 3]
    assert output.getvalue() == ""


def test_the_time_left_includes_evaluations_and_saves_to_come(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    output = io.StringIO()
    shown = Progress(
        10, batch_size=4, every={"evaluating": 2, "saving": 5}, stream=output
    )
    shown.start(0)

    def train(steps, seconds):
        now[0] += seconds
        shown.add(steps)

    def pause(what, seconds):
        shown.pause(what)
        now[0] += seconds
        shown.resume()

    train(1, 30.0)  # compiles
    train(1, 1.0)
    shown.show(2, {"loss": 1.0})
    assert "0:08 left and 5 evaluations" in output.getvalue()
    pause("evaluating", 20.0)  # compiles
    assert shown.left() == 8 + 4 * 20
    train(2, 2.0)
    pause("evaluating", 3.0)
    assert shown.left() == 6 + 3 * 3
    train(1, 1.0)
    pause("saving", 7.0)
    assert shown.left() == 5 + 3 * 3 + 1 * 7
    train(1, 1.0)
    pause("evaluating", 5.0)
    assert shown.left() == 4 + 2 * 4 + 7
    train(4, 4.0)
    assert shown.left() == 4 + 7
    pause("evaluating", 4.0)
    pause("saving", 7.0)
    assert shown.left() == 0


def test_the_loss_is_said_beside_that_of_the_mean_image():
    output = io.StringIO()
    shown = Progress(1, batch_size=4, stream=output)
    shown.show(1, {"loss": 1.392, "relative_loss": 2.1123})
    assert "loss 1.392 (2.11 × the mean-image baseline)" in output.getvalue()


def test_what_takes_long_is_said():
    output = io.StringIO()
    shown = Progress(4, batch_size=4, every={"evaluating": 2}, stream=output)
    shown.start(0)
    for _ in range(2):
        shown.pause("evaluating")
        shown.resume()
    said = output.getvalue().lower()
    assert said.count("compiling") == 1
    assert said.count("evaluating") == 1  # the second will be as quick
