"""A silo without ``--warm``, beside one with it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from deployed import Deployment, deployed, same_run_in_process
from tiny_runs import images_of

SILOS = {"north": (0, 1), "south": (1, 2)}


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployed(tmp_path_factory.mktemp("stock"), SILOS, stock=["south"]) as link:
        yield link


def test_silo_for_which_flower_starts_a_process_a_message_gives_the_same_images(link: Deployment) -> None:
    run = link.run("stock", num_clients=2, dfd_rounds=2)
    assert images_of(run) == images_of(same_run_in_process(run, link, list(SILOS)))
    assert len(images_of(run)) == 60
