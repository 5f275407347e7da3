from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest


@pytest.mark.parametrize("package", ["fedsynth.output", "fedsynth.evaluation"])
def test_all_that_a_package_offers_is_found_when_asked_for(package: str) -> None:
    module = import_module(package)
    offered = [getattr(module, name) for name in module.__all__]
    assert [vars(module)[name] for name in module.__all__] == offered
    assert all(item.__module__.startswith(package) for item in offered if hasattr(item, "__module__"))


def test_what_a_package_does_not_offer_is_an_error_as_anywhere() -> None:
    module = import_module("fedsynth.output")
    for name in ("RunFolders", "TYPE_CHECKINGS", "__wrapped__"):
        with pytest.raises(AttributeError, match=f"module 'fedsynth.output' has no attribute '{name}'"):
            getattr(module, name)


def test_base_classes_of_strategies_are_those_that_runs_know_and_come_only_when_asked_for() -> None:
    module = import_module("fedsynth.strategies")
    for name in module.__all__:
        offered = getattr(module, name)
        home = getattr(offered, "__module__", "strategies.conversation.ask")
        assert home.startswith("strategies.") or name == "Question"
        assert getattr(import_module(home), name, offered) is offered
    code = "import sys, fedsynth.cli; print([name for name in sys.modules if name.split('.')[-1] == 'strategies'])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
