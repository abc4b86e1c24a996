"""The one way a YAML recipe becomes a typed, frozen config."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Base of every config: unknown keys are errors, and nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)
