"""Hooks: what happens around steps. To add one: write its file, then name it here."""

from engine.hooks.checkpointing import CheckpointHook
from engine.hooks.choice import ChoiceHook
from engine.hooks.forgetting import ForgettingHook
from engine.hooks.garbage import Garbage
from engine.hooks.guard import GuardHook
from engine.hooks.leaving import Leaving
from engine.hooks.livepage import LivePage
from engine.hooks.measured import Measured, MeasuringHook
from engine.hooks.metrics import MetricsHook
from engine.hooks.numbers import JsonLines, Sink
from engine.hooks.origin import Origin
from engine.hooks.profile import ProfileHook
from engine.hooks.stragglers import Stragglers
from engine.hooks.tensorboard import TensorBoardHook
from engine.hooks.throughput import Throughput
from engine.hooks.validation import ValidationHook

__all__ = [
    "CheckpointHook",
    "ChoiceHook",
    "ForgettingHook",
    "Garbage",
    "GuardHook",
    "JsonLines",
    "Leaving",
    "LivePage",
    "Measured",
    "MeasuringHook",
    "MetricsHook",
    "Origin",
    "ProfileHook",
    "Sink",
    "Stragglers",
    "TensorBoardHook",
    "Throughput",
    "ValidationHook",
]
