"""Turn a heap of files into a corpus: read, repair, filter, redact, remove copies, mix.

    python examples/curate.py [FILE_OR_FOLDER ...]     # your own, or texts that came with the installed packages

Under two minutes on two CPU cores, no network; needs pip install -e ".[curate]". Leaves a folder that pretrain.py takes, and a report:
open curated-example/report.html. The command `python -m tinygpt curate` does the same with a flag for every choice.
"""

import argparse
import shutil
from pathlib import Path

from tinygpt.cli import run
from tinygpt.curate.command import Rows, installed_texts, write_report
from tinygpt.curate.executors import Executor
from tinygpt.curate.language import TECHNICAL, Language
from tinygpt.curate.mixing import Mixing
from tinygpt.curate.pipeline import Steps, opened, run_stages
from tinygpt.curate.privacy import Redact
from tinygpt.curate.repair import Repair
from tinygpt.curate.rules import Limits, Rules
from tinygpt.curate.sources import open_sources, parse_spec
from tinygpt.curate.stages import ExactCopies, NearCopies, Reading, RepeatedText

FOLDER = Path("curated-example")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", nargs="*", help="files or folders; default: texts that came with the installed packages")
    sources = open_sources([parse_spec(given) for given in parser.parse_args().input] or installed_texts(), FOLDER)

    # Steps look at one document at a time, and keep, change or remove it.
    steps = (
        Repair(),  # "donâ€™t" becomes "don't"
        Language(("en",), min_confidence=TECHNICAL),  # documentation is half code, of which the model is less sure
        Rules("docs", Limits(min_words=20)),
        Redact(),  # anna@example.org becomes <EMAIL>
    )
    # Stages look at all documents. Each reads the files that the one before has written.
    stages = [
        Reading(tuple(sources), bad_input="skip"),
        Steps(steps),
        ExactCopies(),
        NearCopies(),
        RepeatedText(),  # paragraphs that other documents hold, too
        Mixing(FOLDER, {source.name: source.license() for source in sources}),
    ]

    # What a killed run has finished is found again, as long as the settings are the same.
    settings = {stage.name: stage.settings() for stage in stages}
    with opened(FOLDER, settings, {}):
        reports = run_stages(stages, FOLDER, Executor(), done=Rows())
        write_report(FOLDER, reports, settings, {})
        shutil.rmtree(FOLDER / "work")
    print(f"\nreport   {FOLDER / 'report.html'}\nnext: python examples/pretrain.py --corpus {FOLDER}")


if __name__ == "__main__":
    run(main)
