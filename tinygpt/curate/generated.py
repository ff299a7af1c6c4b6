"""New instructions and answers from a model of yours, filtered: rows that `examples/finetune_instructions.py --data` takes.

    python -m tinygpt instruct                                   the newest run, prompted with everyday instructions
    python -m tinygpt instruct RUN --seeds rows.json --n 100 --output more.json

The model is shown a few rows and writes the next one. A row is kept if its instruction differs from every other one, and if rules find nothing
wrong with its form. Nothing checks whether an answer is true. The output says by which run each row was made. Every row that was written is in
OUTPUT.candidates.jsonl with what became of it: a run that was stopped continues there, and ends with the same rows as one that was not.

Source  Wang et al. 2022, Self-Instruct, arXiv:2212.10560, section 2.2.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from autograd import backend
from tinygpt.arguments import parse_args
from tinygpt.curate.rules import Limits, Rules
from tinygpt.curate.rules.check import check
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.errors import InvalidInput
from tinygpt.fields import PathName, check_fields
from tinygpt.finetuning.instructions import Instruction, Style, generate_answers, load_instructions, prompt
from tinygpt.finetuning.rows import plain
from tinygpt.inference.sampling import Sampling
from tinygpt.inference.text import complete_all
from tinygpt.models.gpt import GPT
from tinygpt.runs.checkpoint import Checkpoint
from tinygpt.runs.layout import newest_run
from tinygpt.storage.checked_json import Json, read_json_object, to_json
from tinygpt.storage.durable import replace_file

ROUND = 16  # candidates that are written at once, all from the rows that were kept before
MOST_PER_ROW = 20  # candidates for each row that is wanted, at most
WORDS = (4, 150)  # of an instruction. Source  the code of Self-Instruct, bootstrap_instructions.py, `post_process_gpt3_response`
KEYWORDS = frozenset(
    "image images graph graphs picture pictures file files map maps draw plot".split()
)  # what no text can answer; from there

# Gopher's rules on repetition without those on the most frequent pair of words and the like: of ten words, any pair is a large share.
ROW_RULES = Rules("gopher-repetition", Limits(skip=("max_top_2_gram", "max_top_3_gram", "max_top_4_gram")))

EVERYDAY = """
What is the opposite of the word "early"?|Late.
Name three colors of the rainbow.|Red, green and blue.
Put these words in alphabetical order: pear, apple, fig.|Apple, fig, pear.
How many days does a leap year have?|A leap year has 366 days.
Correct the spelling: "I recieved your letter."|I received your letter.
Say in one sentence what a thermometer does.|A thermometer measures temperature.
Turn this sentence into a question: "The shop is open."|Is the shop open?
What do you call the young of a cow?|The young of a cow is called a calf.
Make this sentence polite: "Give me the salt."|Could you please pass me the salt?
Continue the series: 2, 4, 6, 8.|10, 12, 14.
Write a short title for a story about a lost key.|The Key Under the Stone
Which is heavier, a kilogram of iron or a kilogram of wool?|Neither. Both weigh one kilogram.
Give an example of a mammal that lives in the sea.|The blue whale, which is no fish.
Rewrite in the past tense: "They walk to school."|They walked to school.
Explain why we wear coats in winter.|Coats keep the warmth of the body in, so we do not get cold.
List two tools that a carpenter uses.|A hammer and a saw.
"""


def everyday() -> list[Instruction]:
    """Sixteen instructions of many kinds, written for this project: the seeds where there are none."""
    rows = (line.split("|") for line in EVERYDAY.strip().split("\n"))
    return [Instruction(instruction, output) for instruction, output in rows]


def longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest sequence of words that is in both, in order, with gaps.

    The table of the textbook, a row of it as the bits of one number.  Source  Hyyrö 2004, Bit-parallel LCS-length computation revisited
    """
    where: dict[str, int] = {}
    for i, word in enumerate(a):
        where[word] = where.get(word, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full
    for word in b:
        matches = row & where.get(word, 0)
        row = (row + matches | row - matches) & full
    return len(a) - row.bit_count()


def words_of(text: str) -> list[str]:
    """Lower-case words as ROUGE counts them: letters a to z and digits."""
    return re.findall("[a-z0-9]+", text.lower())


def rouge_l(a: Sequence[str], b: Sequence[str]) -> float:
    """ROUGE-L of two lists of words, 0 to 1: harmonic mean of the shares that their longest common subsequence has of each.

    Source  Lin 2004, ROUGE, section 3.1, with beta = 1, as the package rouge-score computes it.
    """
    common = longest_common(a, b)
    return 2 * common / (len(a) + len(b)) if common else 0.0


@dataclass(frozen=True)
class Candidate:
    """A row that a model wrote, and the rule that removed it, "" if none did; `value` is beyond `limit`. nearest: the most similar
    instruction before it; similarity: ROUGE-L with that one."""

    number: int
    instruction: str
    output: str
    rule: str = ""
    value: float = 0.0
    limit: float = 0.0
    nearest: str = ""
    similarity: float = 0.0


class Filter:
    """Keeps what differs from all it has seen.

    seeds        instructions that there are already
    similarity   ROUGE-L of two instructions from which on they are too similar
    rules        on the text of instruction and answer together
    """

    def __init__(self, seeds: Sequence[Instruction], similarity: float = 0.7, rules: Rules | None = None) -> None:
        self.similarity, self.limits = similarity, (rules or ROW_RULES).limits
        self._known = [(row.instruction, words_of(row.instruction)) for row in seeds]

    def __call__(self, made: Candidate) -> Candidate:
        """The candidate with its verdict; one that is kept is known from now on."""
        words = words_of(made.instruction)
        best = max(((rouge_l(words, other), text) for text, other in self._known), default=(0.0, ""))
        made = replace(made, similarity=round(best[0], 4), nearest=best[1])
        rule, value, limit = self._verdict(made, len(made.instruction.split()))
        if not rule:
            self._known.append((made.instruction, words))
        return replace(made, rule=rule, value=round(value, 4), limit=limit)

    def _verdict(self, made: Candidate, n_words: int) -> tuple[str, float, float]:
        if not made.instruction or not made.output:
            return "no row", 0, 1
        if not WORDS[0] <= n_words <= WORDS[1]:
            return "length", n_words, WORDS[n_words > WORDS[0]]
        if found := KEYWORDS & set(words_of(made.instruction)):
            return "keyword", len(found), 0
        if made.similarity >= self.similarity:
            return "similar", made.similarity, self.similarity
        if plain(made.output) in plain(made.instruction) or plain(made.instruction) in plain(made.output):
            return "repeats itself", 1, 0
        verdict = check(f"{made.instruction}\n{made.output}", self.limits)
        return verdict.rule, verdict.number, verdict.limit


@dataclass(frozen=True)
class Writer:
    """A model that writes rows after a few examples.

    style   of an assistant: it reads rows in the template that it was trained on, writes an instruction, and answers that as always. "": a
            model without one reads and writes "Instruction: ...", "Answer: ..."
    """

    model: GPT
    tokenizer: Tokenizer
    sampling: Sampling
    max_new_tokens: int = 64
    style: Style | Literal[""] = ""

    def prompt(self, rows: Sequence[Instruction]) -> list[int]:
        """Ids of rows, and of what begins the next one."""
        if not self.style:
            return self.tokenizer.encode_from_start(
                "".join(f"Instruction: {r.instruction}\nAnswer: {r.output}\n\n" for r in rows) + "Instruction:"
            )
        end = [] if self.tokenizer.eos_id is None else [self.tokenizer.eos_id]
        parts = [self.tokenizer.encode_from_start(prompt(r, self.style)) + self.tokenizer.encode(r.output) + end for r in rows]
        return [id for ids in parts for id in ids] + self.tokenizer.encode_from_start(
            prompt(Instruction("\0", ""), self.style).split("\0")[0]
        )

    def fitting(self, rows: Sequence[Instruction]) -> list[int]:
        """The prompt of as many of the rows as leave room for a new one, or of the first one that does; none if there are none.

        Raises ValueError if not one does."""
        if not rows:
            return self.prompt(rows)
        for few in (*(rows[:n] for n in range(len(rows), 0, -1)), *([row] for row in rows[1:])):
            ids = self.prompt(few)
            if len(ids) + self.max_new_tokens <= self.model.config.n_positions:
                return ids
        found = f"a row of {len(self.prompt(rows[:1]))} tokens and {self.max_new_tokens} new ones"
        rule = f"expected both to fit into the context of {self.model.config.n_positions}"
        raise InvalidInput(f"seeds: {found}, {rule}; lower --max-new-tokens, or take shorter seeds")

    def write(self, shown: Sequence[Sequence[Instruction]], seeds: Sequence[int]) -> list[tuple[str, str]]:
        """(instruction, answer) after each list of examples, each with its own seed; ("", "") for what is no row."""
        stop = [prompt(Instruction("\0", ""), self.style).split("\0")[1].strip()] if self.style else ["\n\n", "\nInstruction:"]
        prompts = [self.fitting(rows) for rows in shown]
        made = complete_all(self.model, self.tokenizer, prompts, self.max_new_tokens, self.sampling, stop=stop, seed=list(seeds))
        if not self.style:
            return [parsed(completion.text) for completion in made]
        ended = (completion.text.strip() if completion.stop_reason == "stop string" else "" for completion in made)
        asked = [Instruction(text, "") if text and "\n" not in text and "<|" not in text else None for text in ended]
        answers = iter(generate_answers(
            self.model, self.tokenizer, [row for row in asked if row], style=self.style, max_new_tokens=self.max_new_tokens
        ))  # fmt: skip
        return [(row.instruction, next(answers)) if row else ("", "") for row in asked]


def parsed(text: str) -> tuple[str, str]:
    """Instruction and answer of what a model wrote after "Instruction:"; ("", "") where there are not both."""
    match = re.fullmatch(r"\s*(\S.*?)\s*\nAnswer:\s*(\S.*?)\s*", text, re.DOTALL)
    return (match[1], match[2]) if match and "\n" not in match[1] else ("", "")


@dataclass(frozen=True)
class GenerateConfig:
    model: Annotated[PathName, tyro.conf.Positional] = ""
    """A run, a checkpoint directory, or a name on the hub; default: the newest run. An assistant answers its instructions itself."""
    seeds: PathName = "everyday"
    """Rows to show: everyday (16 of many kinds), doc-questions, instructions, or a json, jsonl, csv, tsv or txt file."""
    n: int = 100
    """Rows to keep; fewer if 20 times as many candidates do not give them."""
    output: PathName = "instructions.json"
    """The file of the rows."""
    shots: int = 8
    """Rows that the model is shown, a quarter of them its own; fewer where they do not fit into its context. 0: an assistant that has also
    learned its prompts (--no-mask-prompt) writes the next one from nothing, as in Magpie (Xu et al. 2024, arXiv:2406.08464)."""
    similarity: float = 0.7
    """ROUGE-L with another instruction from which on a new one is removed."""
    max_new_tokens: int = 64
    """Longest row."""
    temperature: float = 0.8
    """Of sampling; lower: more alike."""
    seed: int = 0
    """Decides which rows are shown and what is sampled."""

    def __post_init__(self) -> None:
        check_fields(self, {1: "n max_new_tokens", 0: "shots seed temperature similarity"})


def candidates(writer: Writer, keep: Filter, seeds: Sequence[Instruction], config: GenerateConfig, log: Path) -> Iterator[list[Candidate]]:
    """All candidates so far, after each round, those of an earlier call first; until enough are kept, or there were too many.

    What a round is made from is decided by the seed and the rounds before. Raises ValueError if the log is of other settings.
    """
    settings: Json = {"seeds": [asdict(row) for row in seeds], **asdict(config), "n": 0, "output": ""}
    made = [keep(candidate) for candidate in _read_log(log, settings)]
    with log.open("a", encoding="utf-8") as file:
        while sum(not candidate.rule for candidate in made) < config.n and len(made) < MOST_PER_ROW * config.n:
            kept = [Instruction(candidate.instruction, candidate.output) for candidate in made if not candidate.rule]
            numbers = range(len(made), len(made) + ROUND)
            shown = [_shown(seeds, kept, config, number) for number in numbers]
            rows = writer.write(shown, [_seed(config.seed, number) for number in numbers])
            new = [keep(Candidate(number, *row)) for number, row in zip(numbers, rows, strict=True)]
            file.write("".join(json.dumps(asdict(candidate)) + "\n" for candidate in new))
            file.flush()
            made += new
            yield made
    yield made


def _shown(seeds: Sequence[Instruction], kept: Sequence[Instruction], config: GenerateConfig, number: int) -> list[Instruction]:
    """The examples of a candidate: three quarters of the seeds, the rest of what was kept; in random order."""
    rng = np.random.default_rng([config.seed, number])
    n_own = min(len(kept), config.shots // 4)
    rows = [seeds[i] for i in rng.permutation(len(seeds))[: config.shots - n_own]] + [kept[i] for i in rng.permutation(len(kept))[:n_own]]
    return [rows[i] for i in rng.permutation(len(rows))]


def _seed(seed: int, number: int) -> int:
    return int(np.random.default_rng([seed, number, 1]).integers(2**31))


def _read_log(path: Path, settings: Json) -> list[Candidate]:
    """Candidates of earlier calls, complete rounds only; the file is cut after them. A new file begins with the settings."""
    first = json.dumps({"settings": settings}, sort_keys=True)
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
    if lines and lines[0] != first:
        rule = "expected candidates of the same model, seeds and flags"
        raise InvalidInput(f"{path}: begun with other settings, {rule}; delete it, or choose another --output")
    n = (len(lines) - 1) // ROUND * ROUND if lines else 0
    replace_file(path, "\n".join([first, *lines[1 : n + 1], ""]))
    return [Candidate(**json.loads(line)) for line in lines[1 : n + 1]]


def summary(made: Sequence[Candidate], n_shown: int = 8) -> str:
    """How many were kept, what removed the others, and the first rows as they are."""
    counts = Counter(candidate.rule or "kept" for candidate in made)
    width = max(map(len, counts))
    lines = [f"{rule:<{width}}  {n:5d}  {n / len(made):6.1%}" for rule, n in counts.most_common()]
    rows = [f"  {c.instruction}\n    {c.output}\n    most similar, {c.similarity:.2f}: {c.nearest}" for c in made if not c.rule]
    return "\n".join([f"{'rows':<{width}}  {len(made):5d}", *lines, "", *rows[:n_shown]])


def main(argv: list[str] | None = None, note: Callable[[str], None] = print) -> None:
    """The command `instruct`."""
    config = parse_args(GenerateConfig(), __doc__, argv, prog="python -m tinygpt instruct")
    seeds = everyday() if config.seeds == "everyday" else load_instructions(config.seeds).rows
    checkpoint = Checkpoint.open(config.model or newest_run())
    style: Json = read_json_object(checkpoint.run / "config.json").get("prompt_style", "") if checkpoint.run else ""
    note(
        f"backend  {backend.reason}\nmodel    {checkpoint.describe()}{', an assistant' if style else ''}\nseeds    {len(seeds)} rows, {config.seeds}"
    )
    if not config.shots and not style:
        raise InvalidInput("shots: 0 with a model that is no assistant, expected at least 1; show it rows, or fine-tune it first")
    config = replace(config, model=str(checkpoint.path.resolve()))
    writer = Writer(
        checkpoint.language_model(), checkpoint.tokenizer(), Sampling(temperature=config.temperature), config.max_new_tokens, style
    )
    keep = Filter(seeds, config.similarity)
    output = Path(config.output)
    from rich.progress import Progress

    made: list[Candidate] = []
    with Progress(transient=True) as progress:
        task = progress.add_task("rows kept", total=config.n)
        for made in candidates(writer, keep, seeds, config, output.with_name(f"{output.name}.candidates.jsonl")):
            progress.update(task, completed=sum(not candidate.rule for candidate in made))
    rows = [
        {"instruction": c.instruction, "input": "", "output": c.output, "made_by": checkpoint.describe(), "similarity": c.similarity}
        for c in made
        if not c.rule
    ][: config.n]
    replace_file(output, to_json(rows))
    note(f"\n{summary(made)}\n\noutput   {output}, {len(rows)} rows")
    if rows:
        note(f"\nnext: python examples/finetune_instructions.py --data {output}")
