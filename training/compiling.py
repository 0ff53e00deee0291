"""torch.compile for training, given up with one line where it fails."""

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

Result = TypeVar("Result")

logger = logging.getLogger(__name__)

_MAX_REASON_CHARS = 150
_NOISY = ("torch._inductor", "torch._dynamo", "torch._functorch")


class Compiler:
    """Compiles modules; where that fails, whatever the reason, they run as they are from then on."""

    def __init__(self, *, is_on: bool) -> None:
        self.is_on = is_on
        self._has_run = False
        self._names: list[str] = []
        if is_on:
            for name in _NOISY:  # what they would say at length is said in one line here
                logging.getLogger(name).setLevel(logging.CRITICAL)

    def compile(self, module: nn.Module) -> Callable[..., Any]:
        """Return a function that calls ``module``, compiled as long as compiling works."""
        if not self.is_on:
            return module
        self._names.append(type(getattr(module, "module", module)).__name__)  # what a group wraps
        compiled = torch.compile(module)
        return lambda *inputs: (compiled if self.is_on else module)(*inputs)

    def run(self, attempt: Callable[[], Result]) -> Result:
        """Return what ``attempt`` returns; if it fails compiled, it is made once more without.

        So it must not change what it starts from, and draw the same numbers again.
        """
        if not self.is_on:
            return attempt()
        started = time.monotonic()
        if not self._has_run:
            logger.info(
                "the first step compiles %s, forward and backward, which takes about a minute on two"
                " cores and 20 s on a GPU; is_compiled = false skips it",
                " and ".join(self._names) or "nothing",
            )
        try:
            result = attempt()
        except (RuntimeError, OSError, ImportError) as error:  # torch's own are of the first kind
            reason = " ".join(str(error).partition("Set TORCHDYNAMO")[0].split())[:_MAX_REASON_CHARS]
        else:
            if not self._has_run:
                logger.info("the first step took %.0f s", time.monotonic() - started)
            self._has_run = True
            return result
        self.is_on = False
        torch._dynamo.reset()
        result = attempt()  # if it is not the compiler's fault, this raises what is
        logger.warning("torch.compile failed, going on without it, as with is_compiled = false: %s", reason)
        return result
