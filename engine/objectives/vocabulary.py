"""The layer onto the vocabulary and its cross-entropy, without ever holding all logits.

Many targets times a large vocabulary is the largest tensor of a step, several times over. So they
are scored piece by piece, and a piece's gradient is taken while its logits are there: nothing is
computed twice (the idea of Hsu et al., 2024, arXiv:2410.10989). torch's own
``linear_cross_entropy`` in pieces rounds the losses to the weights' dtype and was fifteen times
slower on a CPU (benchmarks/LOG.md).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from engine.activations import targets_at_once
from engine.rows import TargetLosses


def target_losses(output: nn.Module, hidden: Tensor, labels: Tensor) -> TargetLosses:
    """The loss at each target.

    Args:
        output: the layer onto the vocabulary; called as a module, as ZeRO's hooks gather its
            weights then. What ``prepare`` has seen takes large batches in pieces.
        hidden: [T, D], what the layer is to see.
        labels: int64 [T].
    """
    if isinstance(output, VocabularyLayer) and output.takes_pieces(hidden):
        return TargetLosses(*output(hidden, labels))
    return losses_of(output(hidden), labels)


def losses_of(logits: Tensor, labels: Tensor) -> TargetLosses:
    """The same from logits [T, V] that are there."""
    scores = logits.float()
    losses = cross_entropy(scores, labels, reduction="none")
    return TargetLosses(losses.sum(), losses.detach(), _hits(scores.detach(), labels))


def _hits(scores: Tensor, labels: Tensor) -> Tensor:
    """fp32 [T] from scores [T, V]: by the greatest score, which is quicker found than its place."""
    return (scores.gather(1, labels[:, None])[:, 0] >= scores.amax(1)).float()


def prepare(backbone: nn.Module) -> None:
    """Let the backbone's layer onto the vocabulary score in pieces; it stays the same layer.

    One of another kind than ``nn.Linear`` (wrapped by an adaptation, say) is left alone.
    """
    find: Any = getattr(backbone, "get_output_embeddings", None)
    output = find() if find else None
    if type(output) is nn.Linear:
        output.__class__ = VocabularyLayer


class VocabularyLayer(nn.Linear):
    """A linear layer that can go on to the losses of its targets."""

    def takes_pieces(self, hidden: Tensor) -> bool:
        """Whether the logits of these targets are too many at once.

        Not in fp16, whose small gradients would vanish before the loss scale is there; and a
        compiler makes its own pieces.
        """
        if hidden.dtype is torch.float16 or torch.compiler.is_compiling():
            return False
        return hidden.shape[0] > targets_at_once(self.out_features)

    def forward(self, hidden: Tensor, labels: Tensor | None = None) -> Any:
        """Logits [T, V]; with ``labels`` int64 [T] the fields of TargetLosses."""
        if labels is None:
            return linear(hidden, self.weight, self.bias)
        return _InPieces.apply(hidden, self.weight, self.bias, labels, torch.is_grad_enabled())  # type: ignore[no-untyped-call]  # torch's own


class _InPieces(torch.autograd.Function):
    """(hidden [T, D], weight [V, D], bias [V] or None, labels [T], whether gradients are wanted).

    -> (sum, each [T], hits [T]).
    """

    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
        hidden, weight, bias, labels, is_training = given
        # Of the inputs alone: it does not say whether somebody asked for no gradients at all.
        wanted = [is_training and needed for needed in ctx.needs_input_grad]
        each = hidden.new_empty(hidden.shape[0], dtype=torch.float32)
        hits = torch.empty_like(each)
        gradients = _Gradients(hidden, weight, bias, wanted)
        size = targets_at_once(weight.shape[0])
        for start in range(0, hidden.shape[0], size):
            piece = slice(start, start + size)
            logits = linear(hidden[piece], weight, bias).float()
            logged = logits.log_softmax(1)
            each[piece] = -logged.gather(1, labels[piece, None])[:, 0]
            hits[piece] = _hits(logged, labels[piece])
            if any(wanted):
                gradients.add(piece, logged, labels[piece])
        ctx.save_for_backward(gradients.hidden, gradients.weight, gradients.bias)
        ctx.kinds = (weight.dtype, None if bias is None else bias.dtype)
        ctx.mark_non_differentiable(each, hits)
        return each.sum(), each, hits

    @staticmethod
    def backward(ctx: Any, *given: Any) -> tuple[Tensor | None, ...]:
        total, *_ = given
        hidden, weight, bias = ctx.saved_tensors
        kinds = ctx.kinds
        return (
            None if hidden is None else hidden * total.to(hidden.dtype),
            None if weight is None else (weight * total).to(kinds[0]),
            None if bias is None else (bias * total).to(kinds[1]),
            None,
            None,
        )


class _Gradients:
    """Of the sum of the losses; the weights' are summed in fp32."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: Sequence[bool]
    ) -> None:
        self._of = hidden, weight
        self.hidden = torch.empty_like(hidden) if wanted[0] else None
        self.weight = torch.zeros_like(weight, dtype=torch.float32) if wanted[1] else None
        has_bias = bias is not None and wanted[2]
        self.bias = weight.new_zeros(weight.shape[0], dtype=torch.float32) if has_bias else None

    def add(self, piece: slice, logged: Tensor, labels: Tensor) -> None:
        """Those of a piece; ``logged``, its log-softmax in fp32, is used up."""
        hidden, weight = self._of
        slope = logged.exp_()
        slope.scatter_add_(1, labels[:, None], slope.new_full((len(labels), 1), -1.0))
        if self.bias is not None:
            self.bias += slope.sum(0)
        slope = slope.to(weight.dtype)
        if self.hidden is not None:
            torch.mm(slope, weight, out=self.hidden[piece])
        if self.weight is not None:
            self.weight += slope.t() @ hidden[piece]
