from __future__ import annotations

import pytest
from tiny_silos import TinySilos


@pytest.fixture(scope="session")
def silos(tmp_path_factory: pytest.TempPathFactory) -> TinySilos:
    return TinySilos(tmp_path_factory.mktemp("silos"))
