"""Pipeline parallelism: each rank holds some of the layers, and micro-batches pass through the ranks one after another.

    mpiexec -n 2 python -m mpi4py examples/parallel/04_pipeline.py   # pip install -e ".[mpi]"

A rank gets the activations of the one before, computes its blocks, and sends them on; gradients come back the other way. The order is 1F1B:
after a few forward passes, one forward and one backward in turn, so that few micro-batches are held. Embedding and output layer are one matrix:
the first and the last rank have a copy each, and add up its gradients.
"""

import math
import time

import numpy as np

from autograd import Tensor
from autograd.optim import AdamW
from tinygpt import GPT, GPTConfig
from tinygpt.parallel.communicator import tell, world
from tinygpt.parallel.pipeline import Pass
from tinygpt.parallel.timeline import as_text, collected, measured_bubble

ranks = world()
stage, P, M = ranks.rank, ranks.size, 6  # stages, micro-batches of an update
config = GPTConfig(n_layer=4, n_head=2, n_embd=32, n_positions=16, vocab_size=64)
model, alone = GPT(config, seed=0), GPT(config, seed=0)  # `alone`: what one process would train, to compare with
for p in (*model.parameters(), *alone.parameters()):
    p.data = p.data.astype(np.float64)  # float32's rounding would hide small mistakes
ids = np.random.default_rng(0).integers(0, 64, (10, M, 4, 17))
first, last, own = stage == 0, stage == P - 1, range(config.n_layer * stage // P, config.n_layer * (stage + 1) // P)
prefixes = tuple(f"h.{i}." for i in own) + ("wte.", "wpe.") * first + ("ln_f.", "wte.") * last
optimizer = AdamW([(name, p) for name, p in model.named_parameters() if name.startswith(prefixes)], lr=1e-2)
reference = AdamW(alone, lr=1e-2)
ends = ranks.split(int(first or last))  # the ranks that hold a copy of the embedding; one of a single rank

for batch in ids:
    optimizer.zero_grad()
    ahead = min(P - 1 - stage, M)
    order, counts = "F" * ahead + "FB" * (M - ahead) + "B" * ahead, {"F": 0, "B": 0}
    passes, graphs, sent, total = [], {}, [], 0.0
    for kind in order:
        i, shape = counts[kind], (4, 16, config.n_embd)
        counts[kind] += 1
        message = np.empty(shape)
        if kind == "F":
            if not first:
                ranks.receive(message, stage - 1)  # the activations of the stage before
            begin = time.perf_counter()
            x = Tensor(message, requires_grad=not first)
            y = model.embed(batch[i, :, :-1], np.arange(16)) if first else x
            for layer in own:
                y = model.h[layer](y)
            if last:
                y = model.loss_of(model.ln_f(y), batch[i, :, 1:]) * (1 / M)
                total += y.item()
            graphs[i] = x, y
        else:
            x, y = graphs.pop(i)
            if not last:
                ranks.receive(message, stage + 1)  # the gradient with respect to what this stage has sent
            begin = time.perf_counter()
            y.backward(None if last else message)
        passes.append(Pass(kind, i, begin, time.perf_counter()))
        if kind == "F" and not last:
            sent.append(ranks.send(y.data, stage + 1))  # begins to send: two ranks that wait for each other to receive wait for ever
        if kind == "B" and not first:
            sent.append(ranks.send(x.grad, stage - 1))
    for message in sent:
        message.wait()
    if (first or last) and not (first and last):
        ends.all_reduce(model.wte.weight.grad)
    twice = np.sum(model.wte.weight.grad**2) if last and not first else 0.0  # the copy counts once
    squared = np.array([optimizer.gradient @ optimizer.gradient - twice])
    ranks.all_reduce(squared)
    optimizer.step(max_norm=1.0, norm=np.asarray(math.sqrt(float(squared[0]))))

    reference.zero_grad()
    expected = alone.loss(batch[:, :, :-1].reshape(-1, 16), batch[:, :, 1:].reshape(-1, 16))
    expected.backward()
    reference.step(max_norm=1.0)

trained = dict(alone.named_parameters())
difference = ranks.agree(max(float(np.abs(p.data - trained[name].data).max()) for name, p in optimizer.named))
loss, weights = float(tell(ranks, str(total), P - 1)), f"{optimizer.weight.size:>9,}  {2 * optimizer.weight.size:>9,}"
parts = f"{'embedding, ' * first}blocks {own.start} to {own.stop - 1}{', output layer' * last}"
lines, stages = [tell(ranks, f"{stage:>6}  {weights}  {parts}", rank) for rank in range(P)], collected(passes, ranks)
if stage == 0:
    print(f"{'rank':>6}  {'weights':>9}  {'moments':>9}  layers", *lines, sep="\n")
    print(f"the last update; digits: forward passes, letters: backward passes, points: waiting\n{as_text(stages)}")
    print(
        f"waiting {measured_bubble(stages):.0%} of the time; (P - 1) / (M + P - 1) = {(P - 1) / (M + P - 1):.0%} where all passes take equally long"
    )
    print(f"loss {loss:.6f}, in one process {expected.item():.6f}; weights after 10 updates differ by at most {difference:.0e}")
