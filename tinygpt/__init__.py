"""A GPT you can read in an afternoon and still want to run, over the engine in `autograd/`.

from tinygpt import GPT, GPTConfig
model = GPT(GPTConfig.preset("laptop"))
"""

import autograd

if not hasattr(autograd, "linear_cross_entropy"):
    raise ImportError(
        f"autograd: imported from {getattr(autograd, '__file__', None)}, expected the package that comes with tinygpt; "
        "PyPI's unrelated `autograd` has the same name: pip uninstall autograd, then reinstall tinygpt"
    )

from tinygpt.config import GPTConfig, PretrainConfig, TrainConfig
from tinygpt.model import GPT

__all__ = ["GPT", "GPTConfig", "PretrainConfig", "TrainConfig"]
