"""The scripts of benchmarks/ as modules."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def fixture_of(*names: str) -> Any:
    """A fixture for the tests of a file: these scripts by name; afterwards path and modules are what they were."""

    @pytest.fixture(scope="module")
    def benchmarks() -> Iterator[dict[str, ModuleType]]:
        path, modules = list(sys.path), set(sys.modules)
        sys.path.insert(0, str(BENCHMARKS))
        yield {name: importlib.import_module(name) for name in names}
        sys.path[:] = path
        for name in sys.modules.keys() - modules:
            if Path(getattr(sys.modules[name], "__file__", None) or "").parent == BENCHMARKS:
                del sys.modules[name]

    return benchmarks
