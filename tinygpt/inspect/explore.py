"""Look inside a model: one prompt, one HTML page with every attention weight, prediction and gradient.

    python -m tinygpt explore --prompt "The capital of"
    explore(model, tokenizer, "The capital of", "page.html")

The page shows the tokens; the attention of every layer and head; how long the residual stream is at each depth; what the model would
predict if it ended after each layer (logit lens: nostalgebraist 2020, "interpreting GPT: the logit lens"); the gradient of the loss on
each input token; a map of the token embeddings, in which near tokens are like ones; and every op with its formula and numbers, forward and
backward. An encoder's tokens see both ways, and masks in its prompt are what it predicts; of an encoder-decoder there are three kinds of
attention to choose from. All numbers come from the plain ops of `autograd/ops`.
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
from tinygpt.errors import InvalidInput, MissingFile, PathExists
from tinygpt.fields import PathName
from tinygpt.inspect.embedding_map import embedding_map
from tinygpt.inspect.passes import Sequence, View, pass_of
from tinygpt.inspect.trace import Steps, watched
from tinygpt.models.base import Model
from tinygpt.models.encoder import Encoder
from tinygpt.models.gpt import GPT
from tinygpt.models.seq2seq import Seq2Seq
from tinygpt.runs.checkpoint import Checkpoint
from tinygpt.runs.layout import newest_run
from tinygpt.storage.checked_json import Json
from tinygpt.weights.config_json import LANGUAGE_MODEL, another_kind

MAX_PAGE_BYTES = 3_000_000
_TOP = 8  # tokens shown per prediction
_CORNER = 5  # rows and columns shown of an op's arrays
_KINDS = {"GPT": "GPT", "Encoder": "encoder", "Seq2Seq": "encoder-decoder"}  # as the page says it
_WEIGHT_UNITS = 65535  # an attention weight is stored in 16 bits: exact to 1 / 65535


def explore(model: Model, tokenizer: Tokenizer, prompt: str, path: str | Path, *, title: str = "", target: str = "") -> dict[str, Json]:
    """Writes the page and returns the numbers in it (see `collect`). model: a GPT, an Encoder, whose prompt may have masks, or a Seq2Seq, which
    translates the prompt, or explains `target`.

    Raises ValueError for a prompt that the model cannot take, or one so long that the page would exceed 3 MB; FileExistsError if
    `path` is a file that is no such page, FileNotFoundError if its folder does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise MissingFile(f"{path}: no folder {path.parent}, expected one; make it, or choose another --out")
    if path.exists() and (path.is_dir() or b"<title>Inside a GPT</title>" not in path.read_bytes()[:1000]):
        raise PathExists(f"{path}: already there and no page of this kind, expected a new file or an earlier page; choose another --out")
    data = collect(model, tokenizer, prompt, target) | {"title": title}
    page = render(data)
    n_bytes = len(page.encode("utf-8"))
    if n_bytes > MAX_PAGE_BYTES:
        found = f"a page of {n_bytes:,} bytes for {len(data['tokens'])} tokens"
        raise InvalidInput(f"explore: {found}, expected at most {MAX_PAGE_BYTES:,}; shorten the prompt")
    path.write_text(page, encoding="utf-8")
    return data


def collect(model: Model, tokenizer: Tokenizer, prompt: str, target: str = "") -> dict[str, Json]:
    """All numbers of the page, ready for JSON.

    tokens      T texts                             ids          T integers
    attention   per layer and head: base64 of the weights, row by row, of the lower triangle where `causal`, uint16 little-endian, in units of 1 / 65535
    norms       (n_layer + 1, T) length of the residual stream: after the embeddings, after each block
    lens        (n_layer + 1, T) predictions at that depth: {"top": [[token, probability], ...], "next": [probability, rank] of the answer or null}
    gradients   T lengths of d loss / d token embedding; the loss is the mean over the answers, a GPT's are its prompt's own next tokens, in nats
    vectors     the map of the token embeddings, see `_vectors`
    ops         every op in order, see `_op`
    views       where attention is more than a GPT's: those of each kind by themselves, see `_view`; the keys above are then those of the first
    Raises ValueError as `tinygpt.inspect.passes.pass_of`.
    """
    kept = [(p, p.grad) for p in model.parameters()]
    for p, _ in kept:
        p.grad = None
    try:
        with nn.evaluating(model), ag.use_kernels("reference"):
            shown, losses = pass_of(model, tokenizer, prompt, target), list[ag.Tensor]()
            steps = watched(model, lambda: losses.append(model.loss(shown.ids, shown.targets)))
            losses[0].backward()
            views = [_view(view, tokenizer, steps) for view in shown.views]
            return views[0] | {
                "prompt": prompt,
                "loss": losses[0].item(),
                "kind": _KINDS[type(model).__name__],
                "model": f"{_shape(model)}, {model.n_parameters():,} weights",
                "about": shown.about,
                "vectors": _vectors(model.wte.weight.data, tokenizer, np.asarray(shown.ids)[0].tolist()),
                "ops": [_op(number, module, step) for number, (module, step) in enumerate(steps)],
                "formulas": {op_name(step.op): inspect.cleandoc(step.op.reference.__doc__ or "") for _, step in steps},
                **({} if isinstance(model, GPT) else {"views": views}),
            }
    finally:
        for p, grad in kept:
            p.grad = grad


def _shape(model: Model) -> str:
    config = model.config
    layers = f"{config.n_layer} + {config.n_decoder_layers}" if isinstance(model, Seq2Seq) else config.n_layer
    return f"{layers} layers, {config.n_head} heads, {config.n_embd} channels"


def _view(view: View, tokenizer: Tokenizer, steps: Steps) -> dict[str, Json]:
    """The numbers of one kind of attention, and of the tokens that look: as in `collect`, and

    name, causal   what the page calls it, and whether later tokens are hidden
    keys           S texts, the tokens that are looked at
    answers        texts of what each position is to predict, or null
    lens           null for tokens that predict nothing
    """
    queries = view.queries
    ids, streams = queries.ids.tolist(), _residual_streams(steps, *queries.blocks)
    embeddings = [step for module, step in steps if module == "wte"][queries.embedded]
    dy = backend.to_host(embeddings.dys[0])[0].astype(np.float64)  # (T, C)
    return {
        "name": view.name,
        "causal": view.causal,
        "ids": ids,
        "tokens": [_text(tokenizer, i) for i in ids],
        "keys": [_text(tokenizer, i) for i in view.keys.ids.tolist()],
        "answers": [None if i is None else _text(tokenizer, i) for i in queries.answers],
        "attention": _attention([(module, step) for module, step in steps if view.within(module)], view.causal),
        "norms": [np.linalg.norm(x, axis=-1).round(4).tolist() for x in streams],
        "lens": None if queries.head is None else [_predictions(queries, tokenizer, x) for x in streams],
        "gradients": [_significant(v) for v in np.linalg.norm(dy, axis=-1)],
    }


def render(data: dict[str, Json]) -> str:
    """The page: the template with the numbers inside. `<` cannot end the script element that holds them."""
    template = Path(__file__).with_name("explore.html").read_text(encoding="utf-8")
    numbers = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return template.replace("/*DATA*/null", numbers)


def _residual_streams(steps: Steps, blocks: str, n_layer: int) -> list[np.ndarray]:
    """(T, C) after the embeddings and after each block: what the first block reads, then the last result of each block or its last norm."""
    own = [(module, step) for module, step in steps if not module.endswith(("cross.c_k", "cross.c_v"))]  # these read the source
    streams = [next(step for module, step in own if module.startswith(f"{blocks}0")).inputs[0].data]
    for layer in range(n_layer):
        streams.append([step for module, step in own if f"{module}.".startswith(f"{blocks}{layer}.")][-1].outputs[0])
    return [backend.to_host(x)[0].astype(np.float64) for x in streams]


def _attention(steps: Steps, causal: bool) -> list[list[str]]:
    """The weights of each layer and head. Relative positions have them as the result of a softmax, others inside an op of their own."""
    found = []
    fused = [step.saved.weights for _, step in steps if op_name(step.op) == "Attention"]
    single = [step.outputs[0] for module, step in steps if op_name(step.op) == "Softmax" and module.endswith((".attn", "relative"))]
    for weights in [backend.to_host(array)[0].astype(np.float64) for array in fused or single]:  # (H, T, S)
        kept = weights[:, *np.tril_indices(weights.shape[-1])] if causal else weights.reshape(len(weights), -1)
        found.append([base64.b64encode(head.tobytes()).decode() for head in np.rint(kept * _WEIGHT_UNITS).astype("<u2")])
    return found


def _predictions(queries: Sequence, tokenizer: Tokenizer, stream: np.ndarray) -> list[dict[str, Json]]:
    """What the model's own last norm and output layer make of the residual stream (T, C) at some depth."""
    assert queries.head is not None
    with ag.no_grad():
        x = ag.Tensor(backend.to_device(stream[None].astype(np.float32)))
        p = backend.to_host(ag.softmax(queries.head(x)).data)[0].astype(np.float64)  # (T, V)
    found = []
    for row, answer in zip(p, queries.answers, strict=True):
        top = [[_text(tokenizer, int(i)), _significant(row[i])] for i in np.argsort(-row, kind="stable")[:_TOP]]
        its_own = None if answer is None else [_significant(row[answer]), int((row > row[answer]).sum()) + 1]
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
    """The text to look at, two tokens at least; all of it becomes part of the page. An encoder's may have masks, an encoder-decoder's is the source."""
    target: str = ""
    """Of an encoder-decoder: the target to look at; default: the model's translation."""
    run: PathName = ""
    """A run or checkpoint directory; default: the newest below runs/."""
    out: PathName = "explore.html"
    """Where the page goes."""


def main(argv: list[str] | None = None) -> None:
    """The command `explore`: the page of one prompt, for a model on this machine."""
    config = parse_args(ExploreConfig(), __doc__, argv, prog="python -m tinygpt explore")
    checkpoint = Checkpoint.open(config.run or newest_run())
    model, tokenizer = checkpoint.model(), checkpoint.tokenizer()
    if not isinstance(model, (GPT, Encoder, Seq2Seq)):
        raise another_kind(checkpoint.path, checkpoint.kind, LANGUAGE_MODEL)
    print(f"backend  {backend.reason}\nmodel    {checkpoint.describe()}, {model.n_parameters():,} weights")
    data = explore(model, tokenizer, config.prompt, config.out, title=str(checkpoint.run or checkpoint.path), target=config.target)
    each = "for each that follows" if isinstance(model, GPT) else "for each answer"
    print(f"{'target  ' if isinstance(model, Seq2Seq) else 'prompt  '} {len(data['tokens'])} tokens, {data['loss']:.3f} nats {each}")
    print(f"page     {config.out}, {Path(config.out).stat().st_size / 1e6:.2f} MB: open it in a browser")
