"""Look inside a model: one prompt, one HTML page with every attention weight, prediction and gradient.

    python examples/explore.py --prompt "numpy.sort returns a sorted copy"
    python examples/explore.py --run my-encoder --prompt "Return the [MASK] of an array"
    python examples/explore.py --run my-translator --prompt "one hundred and twenty-three" --target "einhundertdreiundzwanzig"

Seconds. Uses the newest run under runs/ (python examples/pretrain.py makes one), or the run or checkpoint directory that you name, GPT-2's
included. The page needs no network and no server: open it in any browser, also on a phone.
"""

from tinygpt.cli import run
from tinygpt.inspect.explore import main

if __name__ == "__main__":
    run(main)
