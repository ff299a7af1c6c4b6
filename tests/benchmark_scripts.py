"""The scripts of benchmarks/ as modules."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@contextmanager
def imported(*names: str) -> Iterator[dict[str, ModuleType]]:
    """These scripts by name; afterwards path and modules are what they were."""
    path, modules = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(BENCHMARKS))
    yield {name: importlib.import_module(name) for name in names}
    sys.path[:] = path
    for name in sys.modules.keys() - modules:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == BENCHMARKS:
            del sys.modules[name]
