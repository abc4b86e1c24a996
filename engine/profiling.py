"""Settings of the profile of a few training steps."""

from typing import Any, Literal

from pydantic import GetJsonSchemaHandler, PositiveInt, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from configs.schema import Config


class ProfileConfig(Config):
    """Which steps of a start of the stage are looked at, on which ranks; ``true`` is the defaults.

    ``first`` is counted from the step that this start goes on at. Where fewer steps are left than
    asked for, the last ones are looked at.
    """

    first: PositiveInt = 5
    steps: PositiveInt = 3
    ranks: Literal["first", "all"] = "first"

    @model_validator(mode="before")
    @classmethod
    def _from_true(cls, given: Any) -> Any:
        return {} if given is True else given

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"anyOf": [{"const": True}, handler(core_schema)]}
