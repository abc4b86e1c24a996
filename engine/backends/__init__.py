"""Backends: who runs forward, backward and step. To add one: write its file, then name it here."""

from typing import Annotated

from pydantic import Field

from engine.backends.deepspeed_zero import DeepSpeedZero
from engine.backends.plain import Plain

BackendConfig = Annotated[DeepSpeedZero | Plain, Field(discriminator="name")]

__all__ = ["BackendConfig", "DeepSpeedZero", "Plain"]
