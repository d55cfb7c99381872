"""Stop signals set a flag, a second one stops at once, handlers are given back."""

import os
import signal

import pytest

from afterimage.training.loop import StopRequested, StopSignal


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_a_request(number, capsys):
    before = signal.getsignal(number)
    with StopSignal() as stop:
        stop.check()
        os.kill(os.getpid(), number)
        assert stop.requested()
        assert stop.agreed()
        with pytest.raises(StopRequested, match=signal.Signals(number).name):
            stop.check()
    assert signal.getsignal(number) is before
    said = capsys.readouterr().err
    assert "at once" in said
    assert ("Ctrl-C" in said) == (number == signal.SIGINT)


def test_a_second_signal_stops_at_once():
    with pytest.raises(KeyboardInterrupt):
        with StopSignal():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
