"""What scripts 26 and 27 share: recurrent cells, a language model, and encoder-decoders with and without attention, made of the ops that exist."""

import math

import numpy as np

import autograd as ag
from autograd import nn

IGNORED = -100  # targets that do not count


class Cell(nn.Module):
    """A network with a memory: reads x_1, x_2, ... and keeps a state, a tuple of arrays (B, H) whose first one is its output.

    The products with x do not wait for the state, so they are one product for all steps. Only those with h are made step by step.
    """

    n_parts, n_states = 1, 1  # products of width H that a step needs; arrays in the state

    def __init__(self, n_in, n_hidden, stream):
        self.n_hidden = n_hidden
        self.input = nn.Linear(n_in, self.n_parts * n_hidden, init=lambda shape: nn.uniform(shape, stream=stream))  # x W + b
        self.hidden = nn.Linear(n_hidden, self.n_parts * n_hidden, False, init=lambda shape: nn.uniform(shape, stream=stream))  # h U

    def start(self, batch, first=None):
        """The state before the first step: zeros, but for the output if it is given. (B, H) each"""
        zeros = ag.Tensor(np.zeros((batch, self.n_hidden), np.float32))
        return (zeros if first is None else first, *[zeros] * (self.n_states - 1))

    def forward(self, x, state=None, mask=None):
        """x (B, T, n_in) -> outputs (B, T, H), last state. mask (B, T): at False the state stays as it was, so that padding changes nothing."""
        state = state or self.start(x.shape[0])
        outputs = []
        for t, x_t in enumerate(steps(self.input(x))):  # (B, parts H) each
            new = self.step(x_t, state)
            if mask is not None and not mask[:, t].all():
                new = tuple(ag.where(mask[:, t, None], n, old) for n, old in zip(new, state, strict=True))
            state = new
            outputs.append(state[0])
        return ag.stack(outputs, axis=1), state


class RNN(Cell):
    """h = tanh(x W + b + h U). Elman 1990, "Finding structure in time"."""

    def step(self, x, state):
        return (ag.tanh(x + self.hidden(state[0])),)


class LSTM(Cell):
    """c = f c + i g, h = o tanh(c): the memory c passes a step by a product with f and a sum, not through a matrix and a tanh.

    Hochreiter and Schmidhuber 1997, "Long short-term memory", with the forget gate f of Gers et al. 2000. Its bias begins at 1, so that
    the memory lasts before anything is learned (Jozefowicz et al. 2015).
    """

    n_parts, n_states = 4, 2

    def __init__(self, n_in, n_hidden, stream):
        super().__init__(n_in, n_hidden, stream)
        self.input.bias.data[:n_hidden] = 1.0

    def step(self, x, state):
        h, c = state
        gates, g = ag.split(x + self.hidden(h), [3 * self.n_hidden, self.n_hidden])
        f, i, o = ag.split(ag.sigmoid(gates), 3)
        c = f * c + i * ag.tanh(g)
        return o * ag.tanh(c), c


class GRU(Cell):
    """h = h + z (n - h), n = tanh(x W + b + r (h U)): the same idea with two gates and no second array. Cho et al. 2014, arXiv:1406.1078."""

    n_parts = 3

    def step(self, x, state):
        (h,) = state
        x_gates, x_new = ag.split(x, [2 * self.n_hidden, self.n_hidden])
        h_gates, h_new = ag.split(self.hidden(h), [2 * self.n_hidden, self.n_hidden])
        z, r = ag.split(ag.sigmoid(x_gates + h_gates), 2)
        return (h + z * (ag.tanh(x_new + r * h_new) - h),)


def steps(x):
    """(B, T, C) -> T times (B, C)."""
    return [x_t.reshape(x.shape[0], x.shape[2]) for x_t in ag.split(x, x.shape[1], axis=1)]


def convolution(x, weight):
    """y_t = tanh(x_t W_0 + x_{t-1} W_1 + ...), weight (k, C, C), the same at each position: no state, all steps at once, a reach of k tokens.

    (B, T, C). Collobert and Weston 2008; stacked for language, Dauphin et al. 2016, arXiv:1612.08083.
    """
    k, n = len(weight), x.shape[1]
    padded = ag.concatenate([ag.Tensor(np.zeros((len(x.data), k - 1, x.shape[2]))), x], axis=1)
    return ag.tanh(sum(padded[:, k - 1 - i : k - 1 - i + n] @ weight[i] for i in range(k)))


class Trained(nn.Module):
    """What the library's loop asks of a model besides its loss."""

    def __init__(self, seed):
        self.dropout_stream = ag.RandomStream(seed)  # draws the weights; there is no dropout

    def embedding(self, n_ids, channels):
        return nn.Embedding(n_ids, channels, init=lambda shape: nn.uniform(shape, fan=1, stream=self.dropout_stream))

    def linear(self, n_in, n_out, bias=True):
        return nn.Linear(n_in, n_out, bias, init=lambda shape: nn.uniform(shape, stream=self.dropout_stream))


class LanguageModel(Trained):
    """Embedding, cell, output layer: logits for the next token after each."""

    def __init__(self, cell, n_vocab, channels, n_hidden, seed=0):
        super().__init__(seed)
        self.wte = self.embedding(n_vocab, channels)
        self.cell = cell(channels, n_hidden, self.dropout_stream)
        self.out = self.linear(n_hidden, n_vocab)

    def forward(self, ids, state=None):
        """ids (B, T) -> logits (B, T, V)"""
        return self.out(self.cell(self.wte(ids), state)[0])

    def loss(self, ids, targets):
        return ag.cross_entropy(self(ids), targets)


class EncoderDecoder(Trained):
    """An RNN that reads the source in both directions, and one that writes the target from what was read.

    One context vector (Cho et al. 2014, arXiv:1406.1078; Sutskever et al. 2014, arXiv:1409.3215): c is the last state of both directions.
    It sets the decoder's first state and enters each of its steps. However long the source is, c has as many numbers.

    Attention (Bahdanau et al. 2014, arXiv:1409.0473): the encoder keeps its states h_1 ... h_S. Before each step the decoder compares its
    state s with all of them and gets a mean of its own:

        e_j = v . tanh(s W + h_j U)     a = softmax(e)     c = sum_j a_j h_j

    Nothing else differs. `weights` holds the rows a of the last call.
    """

    def __init__(self, n_vocab, channels, n_hidden, *, attention, cell=GRU, start_id=0, pad_id=0, seed=0):
        super().__init__(seed)
        self.start_id, self.pad_id, self.weights = start_id, pad_id, None
        self.source, self.target = self.embedding(n_vocab, channels), self.embedding(n_vocab, channels)
        self.ahead, self.back = (cell(channels, n_hidden // 2, self.dropout_stream) for _ in range(2))
        self.decoder = cell(channels, n_hidden, self.dropout_stream)
        self.first = self.linear(n_hidden, n_hidden)
        self.context = self.linear(n_hidden, cell.n_parts * n_hidden, bias=False)  # c's part of a step's input
        if attention:
            self.of_state, self.of_source = self.linear(n_hidden, n_hidden // 2), self.linear(n_hidden, n_hidden // 2, bias=False)
            self.score = self.linear(n_hidden // 2, 1, bias=False)
        self.attention = attention
        self.out = self.linear(2 * n_hidden + channels, n_vocab)  # of the state, the context and the token before

    def encode(self, source_ids, mask=None):
        """source_ids (B, S) -> states of both directions (B, S, H) and the last of each (B, H). mask (B, S): False is padding."""
        x = self.source(source_ids)  # (B, S, C)
        ahead, (last, *_) = self.ahead(x, mask=mask)
        backwards = slice(None, None, -1)
        back, (first, *_) = self.back(x[:, backwards], mask=None if mask is None else mask[:, backwards])
        return ag.concatenate([ahead, back[:, backwards]], axis=2), ag.concatenate([last, first], axis=1)

    def begin(self, source_ids, mask=None):
        """The decoder's first state, and the function that gives a step's context (B, H) from the state."""
        states, summary = self.encode(source_ids, mask)
        self.weights = []
        if not self.attention:
            return self.decoder.start(len(source_ids), ag.tanh(self.first(summary))), lambda state: summary
        keys = self.of_source(states)  # (B, S, A), once for all steps
        hidden = None if mask is None or mask.all() else ag.Tensor(np.where(mask, 0, -1e9).astype(np.float32))

        def attend(state):
            query = self.of_state(state[0])  # (B, A)
            scores = self.score(ag.tanh(keys + query.reshape(len(source_ids), 1, -1))).reshape(source_ids.shape)
            a = ag.softmax(scores if hidden is None else scores + hidden)  # (B, S)
            self.weights.append(a.data)
            return (a.reshape(len(source_ids), 1, -1) @ states).reshape(len(source_ids), -1)

        return self.decoder.start(len(source_ids), ag.tanh(self.first(summary))), attend

    def forward(self, source_ids, target_ids, attention_mask=None):
        """target_ids (B, T): the decoder's inputs, the start and then the target -> logits (B, T, V)"""
        state, context_of = self.begin(source_ids, attention_mask)
        y = self.target(target_ids)  # (B, T, C)
        outputs, contexts, fixed = [], [], None
        for x_t in steps(self.decoder.input(y)):
            c = context_of(state)
            if fixed is None or self.attention:
                fixed = self.context(c)  # the same at all steps without attention
            state = self.decoder.step(x_t + fixed, state)
            outputs.append(state[0])
            contexts.append(c)
        return self.out(ag.concatenate([ag.stack(outputs, axis=1), ag.stack(contexts, axis=1), y], axis=2))

    def loss(self, source_ids, targets, attention_mask=None):
        """targets (B, T): the last one ends the text; IGNORED: does not count. Mean cross-entropy in nats."""
        return ag.cross_entropy(self(source_ids, shifted(targets, self.start_id, self.pad_id), attention_mask), targets)

    def translate(self, source_ids, n, attention_mask=None, end_id=None):
        """The likeliest token at each of n steps, or until all have written end_id, fed back. (B, n) ids; `weights`: (B, n, S)."""
        ids, found = np.full((len(source_ids), 1), self.start_id), []
        ended = np.zeros((len(source_ids), 1), bool)
        with ag.no_grad():
            state, context_of = self.begin(source_ids, attention_mask)
            while len(found) < n and not ended.all():
                c, y = context_of(state), self.target(ids)
                state = self.decoder.step(self.decoder.input(y).reshape(len(ids), -1) + self.context(c), state)
                logits = self.out(ag.concatenate([state[0], c, y.reshape(len(ids), -1)], axis=1))
                ids = logits.data.argmax(axis=1)[:, None]
                found.append(ids)
                ended |= ids == (-1 if end_id is None else end_id)
        self.weights = np.stack(self.weights, axis=1) if self.attention else None
        return np.concatenate(found, axis=1)


def shifted(targets, start_id, pad_id):
    """What the decoder reads: the start, then the targets but the last one."""
    ids = np.where(targets == IGNORED, pad_id, targets)
    return np.concatenate([np.full((len(ids), 1), start_id), ids[:, :-1]], axis=1)


def hidden_for(make, n_weights, step=4):
    """The largest H, a multiple of `step`, for which make(H) has at most n_weights."""
    low = max(step, step * int(math.sqrt(n_weights) / 16 / step))
    while make(low + step).n_parameters() <= n_weights:
        low += step
    return low
