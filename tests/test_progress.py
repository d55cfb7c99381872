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
