"""1. What a large language model is: one that predicts the next word, grown large, and then taught what to do with it.

    python examples/learn/01_language_models.py
    python examples/learn/01_language_models.py --plot sizes.png      # with matplotlib: pip install -e ".[plot]"

A second. A language model made of counts, which already does what a GPT does: it gives probabilities, takes a word, and reads on. Then
the families by size, each counted by formula.
"""

import argparse
import pydoc_data.topics
import re
from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
from show import heading, say

from tinygpt import GPTConfig
from tinygpt.encoder_config import EncoderConfig
from tinygpt.seq2seq_config import Seq2SeqConfig

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--plot", metavar="FILE", help="also draw the first words that it writes and the sizes by year into this picture")
plot = parser.parse_args().plot

heading("a language model in four lines: which words follow which, counted in Python's language manual")
words = re.findall(r"[\w']+|[.,]", " ".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics)).lower())
follows = defaultdict(Counter)
for word, following in pairwise(words):
    follows[word][following] += 1
print(f"{len(words):,} words, {len(follows):,} different")
for word in ("the", "for", "exception"):
    total = follows[word].total()
    print(f"  after {word!r} ({total:,} times):", ", ".join(f"{w} {n / total:.2f}" for w, n in follows[word].most_common(4)))
following, n = follows["exception"].most_common(1)[0]
print(f"{following!r} follows 'exception' {n} times: {n} / {follows['exception'].total()} = {n / follows['exception'].total():.2f}")
say(
    "That is all that any language model gives: a probability for each possible next word. Nobody labeled anything: the text is its "
    "own answer (self-supervised). A large one looks at thousands of words instead of one, and does not count but computes: its "
    "weights, numbers that it has learned, replace the counts."
)

heading("it writes by predicting one word, appending it, and predicting again (autoregressive)")
dice, text = np.random.default_rng(3), ["the"]
for _ in range(24):
    after = follows[text[-1]]
    text.append(str(dice.choice(list(after), p=np.array(list(after.values())) / after.total())))
print(" ".join(text[:13]))
print(" ".join(text[13:]))
say(
    "Each word has followed the one before it somewhere in the manual, and all of it is nonsense: a view of one word is too short. "
    "Script 10 trains a small GPT."
)

heading("two stages: first learn to predict text (pretraining), then learn a task from few examples (fine-tuning)")
say(
    "The first stage takes nearly all of the computing, and its result, a base or foundation model, serves many tasks: to continue a text, "
    "to sort mails (a few hundred labels), to follow instructions (some ten thousand), to hold a conversation, to prefer what people "
    "prefer. A base model does some tasks without any training for them, from examples in its prompt, the text that it is given to "
    "continue. This was nobody's aim; where such a skill shows above a certain size it is called emergent (how sudden it is depends on "
    "how it is measured)."
)

heading("families: what each is, and its weights counted from its shape (script 8 counts those of one with a pencil)")
say(
    "An encoder sees the text in both directions and gives each word a meaning in its context; a decoder sees what came before and keeps "
    "writing; an encoder-decoder does the first with one text and the second with another."
)
decoder, encoder, both = (config.preset for config in (GPTConfig, EncoderConfig, Seq2SeqConfig))
FAMILIES = [  # name, year, kind, weights, what came of it
    ("transformer", 2017, "encoder-decoder", both("transformer-base"), "translates; the first"),
    ("GPT-1", 2018, "decoder", decoder("gpt1"), "pretrain, then fine-tune"),
    ("BERT base", 2018, "encoder", encoder("bert-base"), "fills in blanks; sorts texts"),
    ("GPT-2", 2019, "decoder", decoder("gpt2-xl"), "tasks without examples"),
    ("T5 small", 2019, "encoder-decoder", both("t5-small"), "every task as text to text"),
    ("GPT-3", 2020, "decoder", decoder("gpt3"), "tasks from examples in the prompt"),
    ("Llama 2 70B", 2023, "decoder", decoder("llama-2-70b"), "weights that anybody may load"),
    ("SmolLM2 135M", 2024, "decoder", decoder("smollm2-135m"), "small, and trained for long"),
    ("ours", 2026, "decoder", decoder("laptop", positions="rotary"), "trained in minutes on a laptop"),  # examples/pretrain.py
]
print(f"{'':<13} year  {'kind':<16} {'weights':>15}")
for name, year, kind, config, what in FAMILIES:
    print(f"{name:<13} {year}  {kind:<16} {config.n_parameters():>15,}  {what}")
say(
    "The T in GPT is the transformer, which scripts 5 to 8 build; G and P are generative (it writes) and pretrained. InstructGPT (2022) is "
    "GPT-3 fine-tuned with instructions and then with people's preferences: with 1.3 billion weights it was preferred to GPT-3 with 175 "
    "billion. ChatGPT came of it."
)

if plot:
    from train import COLORS, MARKERS, pyplot

    figure, axes = pyplot().subplot_mosaic([["0", "1", "2"], ["sizes"] * 3], figsize=(8, 7), layout="constrained", height_ratios=(2, 3))
    for i in range(3):  # the likeliest words after each of the first ones, and, in orange, the one that the dice took
        counts, axis = follows[text[i]], axes[str(i)]
        shown = [word for word, _ in counts.most_common(5) if word != text[i + 1]] + [text[i + 1]]
        axis.barh(shown, [counts[word] / counts.total() for word in shown], color=[COLORS[7]] * (len(shown) - 1) + [COLORS[1]])
        axis.set(title=" ".join(text[: i + 1]) + " __", xlabel="probability", xlim=(0, None))
        axis.invert_yaxis()
    axis = axes["sizes"]
    for kind, color, marker in zip(("decoder", "encoder", "encoder-decoder"), COLORS, MARKERS, strict=False):
        rows = [(year, config.n_parameters(), name) for name, year, k, config, _ in FAMILIES if k == kind]
        axis.scatter([row[0] for row in rows], [row[1] for row in rows], color=color, marker=marker, label=kind)
        for year, weights, name in rows:
            at = {"encoder": (-7, 5, "right"), "encoder-decoder": (0, -14, "center")}.get(kind, (6, 4, "left"))
            axis.annotate(name, (year, weights), xytext=at[:2], ha=at[2], textcoords="offset points", fontsize=8)
    axis.set(yscale="log", xlabel="year", ylabel="weights (each line: ten times as many)", xlim=(2016, 2027.5), ylim=(5e5, 1e12))
    axis.legend(loc="lower left", frameon=False)
    axis.grid(alpha=0.25)
    figure.savefig(plot, dpi=120)
    print("picture:", plot)
