"""Signals as an exception: the first raises, later ones only tell."""

import os
import signal

import pytest

from launcher import interruption
from launcher.interruption import SIGNALS, Interrupted, heeded_signals, signals_interrupt


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_raises_and_a_late_one_means_at_once(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(interruption.time, "monotonic", lambda: now[0])
    before = signal.getsignal(number)
    with signals_interrupt():
        with pytest.raises(Interrupted) as caught:
            os.kill(os.getpid(), number)
        stop = caught.value
        assert (stop.exit_code, str(stop)) == (128 + number, f"stopped by {number.name}")
        # Several within moments are one request.
        now[0] += 2.0
        os.kill(os.getpid(), signal.SIGTERM)
        assert not stop.is_repeated
        now[0] += 2.0
        os.kill(os.getpid(), number)
        assert stop.is_repeated
    assert signal.getsignal(number) == before


def test_a_closed_terminal_is_no_matter_to_who_was_started_with_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_interrupt():
            os.kill(os.getpid(), signal.SIGHUP)
        assert heeded_signals() == (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signal.SIGHUP in heeded_signals()
