"""Bytes that a forward pass leaves for its backward pass, layer by layer, by arithmetic.

Counted in tensors of the width of the residual stream (h), of attention (q, kv) and of the
feed-forward layers (f), each for every token: what transformers' modules save under ``sdpa``
attention. tests/engine/test_activations.py holds it to what autograd saves.
"""

from dataclasses import dataclass, replace

from engine.parameter_shapes import ModelShape, Sizes


@dataclass(frozen=True, slots=True)
class Rows:
    """One micro-batch of one rank.

    Attributes:
        count: rows; ``length``: tokens in each, padding included.
        targets: predicted positions, of all.
        width: bytes of a value: 2 in bf16 and fp16, 4 in fp32.
        recomputed_every: of how many layers one is recomputed, with 1 all; None: none is.
        masked: whether rows hold several documents, kept apart by a mask.
        scores_written_out: attention without a fused kernel, as on a CPU.
        in_pieces: targets are scored so many at a time, with their gradients.
        are_compared: with a teacher's predictions, all targets at once.
    """

    count: int
    length: int
    targets: int
    width: int
    recomputed_every: int | None = None
    masked: bool = True
    scores_written_out: bool = False
    in_pieces: bool = True
    are_compared: bool = False

    @property
    def tokens(self) -> int:
        """All positions."""
        return self.count * self.length


@dataclass(frozen=True, slots=True)
class Pass:
    """What a micro-batch takes.

    Attributes:
        layers: saved by the layers, before the backward pass begins.
        recomputed: of the one layer that is being computed again.
        head: logits and their gradients, at their most.
        passing: the gradients that flow through a layer.
    """

    layers: int
    recomputed: int
    head: int
    passing: int

    @property
    def bytes(self) -> int:
        """The most at once: the head's come and go before the first layer's gradients flow."""
        return self.layers + max(self.head, self.recomputed + self.passing)


def activations(shape: ModelShape, rows: Rows) -> Pass:
    """What one micro-batch of a model needs."""
    sizes = shape.sizes
    whole = layer_bytes(shape.model_type, sizes, rows)
    again = 0 if rows.recomputed_every is None else -(-sizes.layers // rows.recomputed_every)
    inputs = rows.width * rows.tokens * sizes.hidden
    layers = whole * (sizes.layers - again) + inputs * again + 2 * inputs
    widest = max(sizes.ffn * sizes.ffn_matrices * sizes.experts, sizes.queries * 3)
    passing = rows.width * rows.tokens * (2 * sizes.hidden + widest)
    return Pass(layers, whole if again else 0, head_bytes(shape, rows), passing)


def layer_bytes(kind: str, sizes: Sizes, rows: Rows) -> int:
    """Saved by one layer."""
    tokens, width = rows.tokens, rows.width
    hidden, ffn, queries = sizes.hidden, sizes.ffn, sizes.queries
    bytes_of = {
        "gpt2": lambda: width * (8 * hidden + 5 * ffn) + 16,
        "modernbert": lambda: width * (10 * hidden + 4 * ffn) + 16,
    }
    if kind in bytes_of:
        per_token = bytes_of[kind]()
    elif sizes.ffn_matrices == 2:
        per_token = width * (8 * hidden + 2 * ffn) + 16
    else:
        # Norms are computed in fp32, and keep that copy beside two of the stream's own width.
        norms = 2 * hidden * (4 + 2 * width)
        # Keys and values are written out for all heads where there are fewer of them.
        attention = 4 * queries
        mixed = sizes.experts * (2 * hidden + 4 * ffn) if kind == "mixtral" else 4 * ffn
        per_token = norms + width * (attention + mixed) + 8
    saved = tokens * (per_token + 4 * sizes.heads)
    if sizes.dropout and sizes.ffn_matrices == 2:
        saved += 2 * tokens * hidden
    square = width * rows.count * rows.length**2
    if rows.scores_written_out:
        saved += 3 * sizes.heads * square
    # A boolean mask is made anew as numbers in each layer.
    return saved + (square if rows.masked else 0)


def beside_teacher(own: Pass, teacher: ModelShape, rows: Rows) -> Pass:
    """The same with a teacher: it reads the rows when the model's layers are saved, saving none."""
    logits = rows.width * rows.targets * teacher.sizes.vocabulary
    passing = activations(teacher, replace(rows, recomputed_every=None)).passing
    return replace(own, head=max(own.head, passing + 2 * logits))


_COMPARED = 20
"""Bytes a logit while two predictions are compared in fp32, beside both models' logits."""
_PIECE = 1 << 25
_LEAST_TARGETS = 256


def targets_at_once(vocabulary: int) -> int:
    """How many targets are scored in one piece: 32 million logits, but never fewer than 256."""
    return max(_LEAST_TARGETS, _PIECE // vocabulary)


def head_bytes(shape: ModelShape, rows: Rows) -> int:
    """Logits at the targets in fp32, their log-softmax and a gradient, beside the model's own."""
    if shape.output is None:
        return 0
    sizes = shape.sizes
    if rows.are_compared:
        return rows.targets * sizes.vocabulary * (_COMPARED + 2 * rows.width)
    scored, kept = rows.targets, 0
    if rows.in_pieces and scored > targets_at_once(sizes.vocabulary):
        # The gradients are there when the loss is: of the layer in fp32, and of what it sees.
        kept = 4 * sizes.vocabulary * sizes.hidden + rows.width * scored * sizes.hidden
        scored = targets_at_once(sizes.vocabulary)
    own = rows.width if rows.width < 4 else 0
    return scored * sizes.vocabulary * (12 + own) + kept
