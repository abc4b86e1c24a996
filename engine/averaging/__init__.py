"""Averages of the weights. To add one: write its file, then name it here."""

from engine.averaging.ema import MovingAverage

AveragingConfig = MovingAverage

__all__ = ["AveragingConfig", "MovingAverage"]
