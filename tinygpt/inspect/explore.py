"""Look inside a model: one prompt, one HTML page with every attention weight, prediction and gradient.

    python -m tinygpt explore --prompt "The capital of"
    explore(model, tokenizer, "The capital of", "page.html")

The page shows the tokens; the attention of every layer and head; how long the residual stream is at each depth; what the model would
predict if it ended after each layer (logit lens: nostalgebraist 2020, "interpreting GPT: the logit lens"); the gradient of the loss on
each input token; a map of the token embeddings, in which near tokens are like ones; and every op with its formula and numbers, forward and
backward. All numbers come from the plain ops of `autograd/ops`.
"""

import ast
import base64
import contextlib
import inspect
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import autograd as ag
from autograd import Array, backend, nn
from autograd.drawing import op_name
from tinygpt.arguments import parse_args
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.data.windows import IGNORED
from tinygpt.errors import InvalidInput, MissingFile, PathExists
from tinygpt.fields import PathName
from tinygpt.inspect.embedding_map import embedding_map
from tinygpt.inspect.trace import Steps, watched
from tinygpt.models.gpt import GPT
from tinygpt.runs.checkpoint import Checkpoint
from tinygpt.runs.layout import newest_run
from tinygpt.storage.checked_json import Json

MAX_PAGE_BYTES = 3_000_000
_TOP = 8  # tokens shown per prediction
_CORNER = 5  # rows and columns shown of an op's arrays
_WEIGHT_UNITS = 65535  # an attention weight is stored in 16 bits: exact to 1 / 65535


def explore(model: GPT, tokenizer: Tokenizer, prompt: str, path: str | Path, *, title: str = "") -> dict[str, Json]:
    """Writes the page and returns the numbers in it (see `collect`).

    Raises ValueError for a prompt that the model cannot take, or one so long that the page would exceed 3 MB; FileExistsError if
    `path` is a file that is no such page, FileNotFoundError if its folder does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise MissingFile(f"{path}: no folder {path.parent}, expected one; make it, or choose another --out")
    if path.exists() and (path.is_dir() or b"<title>Inside a GPT</title>" not in path.read_bytes()[:1000]):
        raise PathExists(f"{path}: already there and no page of this kind, expected a new file or an earlier page; choose another --out")
    data = collect(model, tokenizer, prompt) | {"title": title}
    page = render(data)
    n_bytes = len(page.encode("utf-8"))
    if n_bytes > MAX_PAGE_BYTES:
        found = f"a page of {n_bytes:,} bytes for {len(data['tokens'])} tokens"
        raise InvalidInput(f"explore: {found}, expected at most {MAX_PAGE_BYTES:,}; shorten the prompt")
    path.write_text(page, encoding="utf-8")
    return data


def collect(model: GPT, tokenizer: Tokenizer, prompt: str) -> dict[str, Json]:
    """All numbers of the page, ready for JSON.

    tokens      T texts                             ids          T integers
    attention   per layer and head: base64 of the lower triangle, row by row, uint16 little-endian, in units of 1 / 65535
    norms       (n_layer + 1, T) length of the residual stream: after the embeddings, after each block
    lens        (n_layer + 1, T) predictions at that depth: {"top": [[token, probability], ...], "next": [probability, rank] or null}
    gradients   T lengths of d loss / d token embedding; the loss is the mean over the prompt's own next tokens, in nats
    vectors     the map of the token embeddings, see `_vectors`
    ops         every op in order, see `_op`
    Raises ValueError unless the prompt has 2 .. n_positions tokens.
    """
    ids = np.array([tokenizer.encode_from_start(prompt)], dtype=np.int64)  # (1, T)
    n_tokens, config = ids.shape[1], model.config
    if not 2 <= n_tokens <= config.n_positions:
        rule = f"2 to {config.n_positions} (the model's context), one to read and one to predict at least"
        raise InvalidInput(f"explore: a prompt of {n_tokens} tokens, expected {rule}; change the prompt")
    targets = np.concatenate([ids[:, 1:], [[IGNORED]]], axis=1)  # nothing is known to follow the last token
    kept = [(p, p.grad) for p in model.parameters()]
    for p, _ in kept:
        p.grad = None
    try:
        with nn.evaluating(model), ag.use_kernels("reference"):
            losses: list[ag.Tensor] = []
            steps = watched(model, lambda: losses.append(model.loss(ids, targets)))
            losses[0].backward()
            streams = _residual_streams(steps, config.n_layer)
            dy = backend.to_host(next(step for module, step in steps if module == "wte").dys[0])[0].astype(np.float64)  # (T, C)
            return {
                "prompt": prompt,
                "loss": losses[0].item(),
                "model": f"{config.n_layer} layers, {config.n_head} heads, {config.n_embd} channels, {model.n_parameters():,} weights",
                "ids": ids[0].tolist(),
                "tokens": [_text(tokenizer, i) for i in ids[0].tolist()],
                "attention": _attention(steps),
                "norms": [np.linalg.norm(x, axis=-1).round(4).tolist() for x in streams],
                "lens": [_predictions(model, tokenizer, x, ids[0]) for x in streams],
                "gradients": [_significant(v) for v in np.linalg.norm(dy, axis=-1)],
                "vectors": _vectors(model.wte.weight.data, tokenizer, ids[0].tolist()),
                "ops": [_op(number, module, step) for number, (module, step) in enumerate(steps)],
                "formulas": {op_name(step.op): inspect.cleandoc(step.op.reference.__doc__ or "") for _, step in steps},
            }
    finally:
        for p, grad in kept:
            p.grad = grad


def render(data: dict[str, Json]) -> str:
    """The page: the template with the numbers inside. `<` cannot end the script element that holds them."""
    template = Path(__file__).with_name("explore.html").read_text(encoding="utf-8")
    numbers = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return template.replace("/*DATA*/null", numbers)


def _residual_streams(steps: Steps, n_layer: int) -> list[np.ndarray]:
    """(T, C) after the embeddings and after each block: what the first block reads, then the last result of each block or its last norm."""
    first_of_block_0 = next(step for module, step in steps if module.startswith("h.0"))
    streams = [first_of_block_0.inputs[0].data]
    for layer in range(n_layer):
        streams.append([step for module, step in steps if f"{module}.".startswith(f"h.{layer}.")][-1].outputs[0])
    return [backend.to_host(x)[0].astype(np.float64) for x in streams]


def _attention(steps: Steps) -> list[list[str]]:
    found = []
    for weights in [backend.to_host(step.saved.weights)[0] for _, step in steps if op_name(step.op) == "Attention"]:  # (H, T, T)
        lower = weights.astype(np.float64)[:, *np.tril_indices(weights.shape[-1])]
        found.append([base64.b64encode(head.tobytes()).decode() for head in np.rint(lower * _WEIGHT_UNITS).astype("<u2")])
    return found


def _predictions(model: GPT, tokenizer: Tokenizer, stream: np.ndarray, ids: np.ndarray) -> list[dict[str, Json]]:
    """What the model's own last norm and output layer make of the residual stream (T, C) at some depth."""
    with ag.no_grad():
        x = ag.Tensor(backend.to_device(stream[None].astype(np.float32)))
        p = backend.to_host(ag.softmax(model.lm_head(model.ln_f(x))).data)[0].astype(np.float64)  # (T, V)
    found = []
    for row, following in zip(p, [*ids[1:], None], strict=True):
        top = [[_text(tokenizer, int(i)), _significant(row[i])] for i in np.argsort(-row, kind="stable")[:_TOP]]
        its_own = None if following is None else [_significant(row[following]), int((row > row[following]).sum()) + 1]
        found.append({"top": top, "next": its_own})
    return found


def _vectors(table: Array, tokenizer: Tokenizer, prompt: list[int]) -> dict[str, Json] | None:
    """What `embedding_map` says of the rows (V, C) of the tokens, and "texts": {row: token} of all rows in it; None if not all are finite.

    The prompt's tokens come first, then the vocabulary in its order: with byte pairs that is from frequent tokens to rare ones. Single bytes
    come last, as half of them occur in no text.
    """
    host = backend.to_host(table)[: tokenizer.n_vocab]  # rows that no token has are padding
    if not np.isfinite(host).all():
        return None
    by_length = sorted(range(len(host)), key=lambda i: len(tokenizer.token_bytes(i)) == 1)
    found = embedding_map(host, [*prompt, *by_length])
    rows = {*found["ids"], *(i for near in found["nearest"] for i, _ in near)}
    return {**found, "texts": {str(i): _text(tokenizer, i) for i in sorted(rows)}}


def _op(number: int, module: str, step: ag.OpRecord) -> dict[str, Json]:
    """One op: its name, module and arrays, each as {"name", "shape", "rows"} with the first rows and columns."""
    names = list(inspect.signature(step.op.forward).parameters)
    arrays = [(names[i] if i < len(names) else f"input {i}", x.data if isinstance(x, ag.Tensor) else x) for i, x in enumerate(step.inputs)]
    gradients = [(f"d{name}", dx) for (name, _), dx in zip(arrays, step.dxs, strict=False)]
    outputs = [(f"y{i + 1}" if len(step.outputs) > 1 else "y", y) for i, y in enumerate(step.outputs)]
    dys = [(f"d{name}", dy) for (name, _), dy in zip(outputs, step.dys, strict=True)]
    shown = {"inputs": arrays, "outputs": outputs, "saved": _saved(step), "dy": dys, "dx": gradients}
    return {"number": number, "op": op_name(step.op), "module": module, **{kind: _shown(named) for kind, named in shown.items()}}


def _saved(step: ag.OpRecord) -> list[tuple[str, Array]]:
    """What the forward pass kept, by the fields of a named tuple, else by the names to which backward unpacks it, else by number."""
    parameter = next(iter(inspect.signature(step.op.backward).parameters))
    if not isinstance(step.saved, tuple):
        return [(parameter, step.saved)]
    names = list(getattr(step.saved, "_fields", ()))
    with contextlib.suppress(OSError):  # no source: an op typed into an interpreter
        for node in ast.walk(ast.parse(inspect.cleandoc(inspect.getsource(step.op.backward)))):
            if not names and isinstance(node, ast.Assign) and ast.unparse(node.value) == parameter:
                names = [ast.unparse(name) for name in getattr(node.targets[0], "elts", [])]
    return list(zip(names or [f"saved {i + 1}" for i in range(len(step.saved))], step.saved, strict=False))


def _shown(named: list[tuple[str, Array]]) -> list[dict[str, Json]]:
    """All but numbers, and None where there is no gradient."""
    found = []
    for name, host in [(name, backend.to_host(array)) for name, array in named if hasattr(array, "shape")]:
        corner = host[(0,) * max(0, host.ndim - 2)] if host.size else host.reshape(0, 0)  # the first matrix of a stack
        rows = np.atleast_2d(corner)[:_CORNER, :_CORNER].tolist()
        found.append({"name": name, "shape": list(host.shape), "rows": [[_significant(v) for v in row] for row in rows]})
    return found


def _significant(value: float) -> float | None:
    """A number with few digits, so that the page stays small; None for what JSON has no number for."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _text(tokenizer: Tokenizer, i: int) -> str:
    """A token as text; bytes that are not a complete character as numbers. A row of the output layer may have no token: padding."""
    if i >= tokenizer.n_vocab:
        return f"<no token {i}>"
    token = tokenizer.token_bytes(i)
    try:
        return token.decode("utf-8")
    except UnicodeDecodeError:
        return "".join(f"<{byte:02x}>" for byte in token)


@dataclass(frozen=True)
class ExploreConfig:
    prompt: str = "Return a sorted copy of an array."
    """The text to look at, two tokens at least; all of it becomes part of the page."""
    run: PathName = ""
    """A run or checkpoint directory; default: the newest below runs/."""
    out: PathName = "explore.html"
    """Where the page goes."""


def main(argv: list[str] | None = None) -> None:
    """The command `explore`: the page of one prompt, for a model on this machine."""
    config = parse_args(ExploreConfig(), __doc__, argv, prog="python -m tinygpt explore")
    checkpoint = Checkpoint.open(config.run or newest_run())
    model, tokenizer = checkpoint.language_model(), checkpoint.tokenizer()
    print(f"backend  {backend.reason}\nmodel    {checkpoint.describe()}, {model.n_parameters():,} weights")
    data = explore(model, tokenizer, config.prompt, config.out, title=str(checkpoint.run or checkpoint.path))
    print(f"prompt   {len(data['tokens'])} tokens, {data['loss']:.3f} nats for each that follows")
    print(f"page     {config.out}, {Path(config.out).stat().st_size / 1e6:.2f} MB: open it in a browser")
