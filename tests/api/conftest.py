from __future__ import annotations

import pytest
from tiny_runs import tiny_settings, without_pictures

import fedsynth


@pytest.fixture(scope="package")
def run(tmp_path_factory: pytest.TempPathFactory) -> fedsynth.Run:
    """A tiny run in this process, with a generator."""
    settings = tiny_settings(tmp_path_factory.mktemp("run"), generator_steps=4)
    with without_pictures():
        return fedsynth.synthesise(settings, progress=False)
