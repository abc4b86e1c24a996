"""torch.compile of the whole learner: two graphs, one for training and one for evaluation.

Which code a batch meets is a function of its shape alone, never of the batches before it, so that
a resumed run computes the same bits. What varies from batch to batch, the number of targets, is
symbolic from the first batch on, and told to the compiler by one made-up size.
"""

import atexit
import os
import shutil
import tempfile
from typing import TYPE_CHECKING, Any

from configs.errors import RecipeError, ResourceError
from configs.schema import Config
from engine.rows import BOUNDS, TARGET_WISE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

# The compiler plans for one target in so many tokens.
_PLANNED = 4
_ROWS_PLANNED = 8
MOST_STAGE = 2
_FOLDER = "TORCHINDUCTOR_CACHE_DIR"


class Compilation(Config):
    """Compile forward and backward; the losses are eager's within rounding, dropout is not.

    It has no options: autotuning picks kernels by their time, and so other bits at every start;
    CUDA graphs would be recorded anew for every number of targets.
    """

    def check(self, stage: int) -> None:
        """RecipeError at ZeRO stage 3, which gathers each layer's weights by hooks as it runs."""
        if stage > MOST_STAGE:
            msg = (
                "compile: ZeRO stage 3 gathers weights between layers, where a compiled graph "
                "cannot stop; use zero_optimization.stage 0, 1 or 2, or remove compile"
            )
            raise RecipeError(msg)

    def apply(self, learner: "nn.Module") -> None:
        """From now on the learner runs compiled; the first batch of either kind compiles.

        The process uses torch's deterministic algorithms from here on, compiled or not.

        Raises:
            ResourceError: this machine has no compiler that torch can use.
        """
        import torch

        from engine import distributed
        from engine.isolation import first_position

        _require_compiler(distributed.device())
        _own_folder()
        # Else sums over a token's places would be added by whichever thread comes first: compiled
        # that way when the flag is off, and run that way in the backward pass, on a CPU, too.
        torch.use_deterministic_algorithms(mode=True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a property
        # Found before tracing, which cannot keep it.
        backbone: Any = learner.backbone
        first_position(backbone)
        compiled = torch.compile(
            learner.forward, fullgraph=True, dynamic=False, options={"deterministic": True}
        )
        learner.forward = _Compiled(compiled, learner)


class _Compiled:
    """A learner's forward pass, compiled."""

    def __init__(self, forward: Any, learner: "nn.Module") -> None:
        self._forward = forward
        self._learner = learner

    def __call__(self, tensors: "Mapping[str, Tensor]") -> "tuple[Tensor, Tensor]":
        """As ``Learner.forward``; RecipeError if the model does not make one graph."""
        from torch._dynamo.exc import BackendCompilerFailed, Unsupported
        from torch._inductor.exc import InductorError

        # Of another size in each batch, and nothing that a mask does not say.
        tensors = {name: tensor for name, tensor in tensors.items() if name != BOUNDS}
        _mark(tensors, any_rows=not self._learner.training)
        try:
            answer: tuple[Tensor, Tensor] = self._forward(tensors)
        except Unsupported as error:
            first = str(error).strip().splitlines()[0]
            msg = f"compile: this model cannot be compiled as one graph ({first}); remove compile"
            raise RecipeError(msg) from error
        except (BackendCompilerFailed, InductorError) as error:
            msg = (
                f"compile: the compiler failed in {os.environ[_FOLDER]}: {error}; if an earlier "
                "start was interrupted there, empty that folder; or remove compile"
            )
            raise ResourceError(msg) from error
        return answer


def _own_folder() -> None:
    """A folder for what is compiled, of this process alone, unless the environment names one.

    An interrupted compiler leaves half a library behind, at which every later start would fail.
    torch itself names its usual folder, shared by all, in the environment once it has looked there.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    if os.environ.get(_FOLDER, default_cache_dir()) == default_cache_dir():
        folder = tempfile.mkdtemp(prefix="onward-compiled-")
        os.environ[_FOLDER] = folder
        atexit.register(shutil.rmtree, folder, ignore_errors=True)


def _mark(tensors: "Mapping[str, Tensor]", *, any_rows: bool) -> None:
    """Tell the compiler which sizes vary; sizes of 0 and 1 have graphs of their own."""
    from torch._dynamo import mark_dynamic

    planned = tensors["tokens"].numel() // _PLANNED
    for name, tensor in tensors.items():
        if name in TARGET_WISE and tensor.shape[0] > 1:
            mark_dynamic(tensor, 0, hint_override=max(2, planned))
        elif name not in TARGET_WISE and any_rows and tensor.shape[0] > 1:
            mark_dynamic(tensor, 0, hint_override=_ROWS_PLANNED)


def _require_compiler(device: Any) -> None:
    from torch.utils._triton import has_triton

    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler as error:
            msg = (
                f"compile: no C++ compiler here ({error}); install g++, point CXX to one, "
                "or remove compile"
            )
            raise ResourceError(msg) from error
    elif not has_triton():
        msg = f"compile: no Triton for this {device.type}; install it, or remove compile"
        raise ResourceError(msg)
