"""Rules that keep or remove a document by a number: Gopher's, C4's, FineWeb's and this project's.

check(text, PROFILES["web"])                            # Verdict(text, rule="min_words", number=12, limit=50)
step = Rules("docs", Limits(min_words=20))              # a step of a pipeline
check.py      what is called        limits.py   limits, profiles, and where the papers differ from the code
measures.py   one number per rule   c4.py       the rules on lines
"""

from tinygpt.curate.rules.check import Profile, Rules, Verdict, check
from tinygpt.curate.rules.limits import PAPERS, PROFILES, RULES, Limits, overridden
from tinygpt.curate.rules.measures import MEASURES, Text, measure

__all__ = ["MEASURES", "PAPERS", "PROFILES", "RULES", "Limits", "Profile", "Rules", "Text", "Verdict", "check", "measure", "overridden"]
