"""The module of a soft prompt, and the hooks that put it in front of the text and cut it off."""

from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from configs.errors import RecipeError
from engine.additions import Adding
from engine.isolation import PROMPT, first_position

if TYPE_CHECKING:
    from engine.adaptation.prompt import Prompt

_NEEDED = ("input_ids", "inputs_embeds", "attention_mask", "position_ids")


class SoftPrompt(nn.Module):
    """Learned embeddings [length, D]."""

    def __init__(self, first: Tensor) -> None:
        super().__init__()
        self.length = first.shape[0]
        self.weight = nn.Parameter(first.detach().clone())

    def forward(self, text: Tensor) -> Tensor:
        """In front of embeddings [B, L, D]: [B, length + L, D]."""
        own = self.weight.to(text.dtype)
        return torch.cat([own.expand(text.shape[0], -1, -1), text], dim=1)


class PromptAdaptation(Adding):
    """The prompt is a module of the base model, which hides it from those who call it."""

    def __init__(self, config: "Prompt", seed: int) -> None:
        super().__init__(config, seed)
        self._config = config

    def insert(self, backbone: nn.Module) -> tuple[str, ...]:
        """It begins with embeddings of words drawn at random, as Lester et al. do."""
        model: Any = backbone
        base = model.base_model
        names = tuple(signature(base.forward).parameters)
        if lacking := [name for name in _NEEDED if name not in names]:
            msg = (
                f"adaptation prompt: model {model.config.model_type} takes no "
                f"{', '.join(lacking)}; take adaptation prefix or lora"
            )
            raise RecipeError(msg)
        table = base.get_input_embeddings().weight
        drawn = torch.randint(table.shape[0], (self._config.length,))
        base.add_module(PROMPT, SoftPrompt(table[drawn]))
        first = first_position(backbone)
        base.register_forward_pre_hook(partial(_put_in_front, names, first), with_kwargs=True)
        base.register_forward_hook(_cut_off)
        return (PROMPT,)


def _put_in_front(
    names: tuple[str, ...], first: int, base: Any, inputs: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[()], dict[str, Any]]:
    """The base model's arguments with the prompt before the text.

    Masks and positions may have its places already (``isolated_inputs`` gives such); else they
    get them.
    """
    given = dict(zip(names, inputs, strict=False)) | named
    if given.get("past_key_values") is not None:
        msg = "a model with a soft prompt reads whole rows; it cannot go on from past_key_values"
        raise ValueError(msg)
    tokens = given.pop("input_ids", None)
    text = given.get("inputs_embeds")
    if text is None:
        text = base.get_input_embeddings()(tokens)
    prompt = base.get_submodule(PROMPT)
    given["inputs_embeds"] = prompt(text)
    ahead, length = prompt.length, text.shape[1]
    given["position_ids"] = _positions(given.get("position_ids"), ahead, length, first, text)
    mask, kinds = given.get("attention_mask"), given.get("token_type_ids")
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] == length:
        given["attention_mask"] = nn.functional.pad(mask, (ahead, 0), value=1)
    if kinds is not None and kinds.shape[1] == length:
        given["token_type_ids"] = nn.functional.pad(kinds, (ahead, 0))
    return (), given


def _positions(given: Tensor | None, ahead: int, length: int, first: int, text: Tensor) -> Tensor:
    if given is None:
        return torch.arange(first, first + ahead + length, device=text.device)[None]
    if given.shape[1] != length:
        return given
    own = torch.arange(first, first + ahead, device=text.device)
    return torch.cat([own.expand(given.shape[0], -1), given + ahead], dim=1)


def _cut_off(base: Any, inputs: Any, output: Any) -> Any:
    """Hidden states of the text alone."""
    del inputs
    ahead = base.get_submodule(PROMPT).length
    if isinstance(output, tuple):
        return (output[0][:, ahead:], *output[1:])
    output.last_hidden_state = output.last_hidden_state[:, ahead:]
    if output.get("hidden_states") is not None:
        output.hidden_states = tuple(states[:, ahead:] for states in output.hidden_states)
    return output
