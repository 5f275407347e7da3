from __future__ import annotations

import itertools
import logging

import numpy as np
import pytest
from hand_made_models import (
    BUFFER,
    Exact,
    Model,
    answers,
    assert_equal,
    assert_near,
    counts_of,
    exact,
    gather,
    mean_of,
    model,
    play,
    round_of,
    send,
)

from fedsynth.config import RunConfig
from fedsynth.errors import RunError, UserError
from strategies import build_strategy
from strategies.averaging.krum import Bulyan, Krum, KrumFamily, MultiKrum


def rank(models: list[Model], neighbours: int) -> list[int]:
    """Positions by Krum's score, the sum of squared distances to the nearest others, the smallest first.

    Blanchard et al. 2017, Sections 3 and 4: Krum takes the first, Multi-Krum the mean of the m first.
    """
    points = [np.concatenate([v.ravel() for name, v in exact(one).items() if name != BUFFER]) for one in models]
    scores = []
    for i, mine in enumerate(points):
        distances = sorted(((mine - other) ** 2).sum() for j, other in enumerate(points) if j != i)
        scores.append(sum(distances[:neighbours]))
    return sorted(range(len(models)), key=lambda i: scores[i])


def bulyan_by_hand(models: list[Model], f: int) -> Exact:
    """El Mhamdi et al. 2018, Section 4: n - 2f times Krum among the rest, then the n - 4f values nearest the median."""
    rest, chosen = list(models), []
    for _ in range(len(models) - 2 * f):
        neighbours = max(1, len(rest) - f - 2)
        chosen.append(rest.pop(rank(rest, neighbours)[0]))
    result = {}
    for name in models[0]:
        values = np.stack([exact(weights)[name] for weights in chosen])
        middle = np.median(values, axis=0)
        nearest = np.argsort(np.abs(values - middle), axis=0, kind="stable")[: len(models) - 4 * f]
        result[name] = np.take_along_axis(values, nearest, axis=0).mean(axis=0)
    return result


def test_krum_agrees_with_brute_force() -> None:
    strategy, weights, winners = Krum(num_malicious_nodes=4), model(0), []
    for number in range(1, 5):
        models = round_of(number, 11, 4)
        weights = play(strategy, number, weights, models, counts_of(11))
        winners.append(rank(models, 11 - 4 - 2)[0])
        assert_equal(weights, models[winners[-1]])
    assert len(set(winners)) > 1


@pytest.mark.parametrize(("n", "f", "m"), [(3, 0, 2), (8, 1, 5), (7, 2, 0)])
def test_multikrum_is_the_plain_mean_of_the_m_best(n: int, f: int, m: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fedsynth")
    models = round_of(1, n, f)
    found = play(MultiKrum(num_malicious_nodes=f, num_nodes_to_select=m), 1, model(0), models, counts_of(n))
    best = sorted(rank(models, n - f - 2)[: m or n - f])
    assert_near(found, mean_of([models[k] for k in best], [1] * len(best)))
    assert f"chosen: {', '.join(f'silo-{k}' for k in best)}" in caplog.text


@pytest.mark.parametrize(("n", "f"), [(3, 0), (4, 0), (10, 1), (16, 3)])
def test_bulyan_agrees_with_brute_force(n: int, f: int) -> None:
    models = round_of(1, n, f)
    assert_near(play(Bulyan(num_malicious_nodes=f), 1, model(0), models, counts_of(n)), bulyan_by_hand(models, f))


def test_multikrum_of_one_is_krum_and_of_all_without_hostile_silos_the_plain_mean() -> None:
    models = round_of(3, 9, 3)
    one = play(MultiKrum(num_malicious_nodes=3, num_nodes_to_select=1), 1, model(0), models, counts_of(9))
    assert_equal(one, play(Krum(num_malicious_nodes=3), 1, model(0), models, counts_of(9)))
    everyone = play(MultiKrum(num_nodes_to_select=9), 1, model(0), models, counts_of(9))
    assert_near(everyone, mean_of(models, [1] * 9))
    assert_equal(everyone, play(MultiKrum(), 1, model(0), models, counts_of(9)))


@pytest.mark.parametrize(("chosen", "count"), [(Krum, 1), (MultiKrum, 8), (Bulyan, 7)])
def test_work_of_silos_that_are_not_chosen_counts(chosen: type[KrumFamily], count: int) -> None:
    strategy, models = chosen(num_malicious_nodes=1), round_of(1, 9, 1)
    metrics = gather(strategy, 1, answers(send(strategy, 1, model(0), range(9)), models, counts_of(9)))[1]
    assert metrics["client-seconds"] == pytest.approx(9 * 0.5)
    assert metrics["silos"] == count
    assert int(str(metrics["num-examples"])) < sum(counts_of(9)), "images of the chosen alone"


def config_of(strategy: str, **changes: int | float) -> RunConfig:
    return RunConfig.from_run_config({"strategy": strategy, **{k.replace("_", "-"): v for k, v in changes.items()}})


def test_more_hostile_silos_than_the_rule_bears_are_refused_before_the_run() -> None:
    for config, said in (
        (config_of("krum", num_malicious_nodes=3, fraction_train=0.8), r"= 9 of them, but 8 silos .* must be <= 2"),
        (config_of("bulyan", num_malicious_nodes=2), r"Bulyan needs 4f \+ 3 = 11 of them, but 10 .* must be <= 1"),
        (config_of("krum", num_clients=2), r"num-malicious-nodes = 0: Krum needs 2f \+ 3 = 3 of them, but 2 silos"),
        (config_of("multikrum", num_malicious_nodes=2, num_nodes_to_select=9), r"-select = 9: must be <= 8, .* = 2"),
    ):
        with pytest.raises(UserError, match=said):
            build_strategy(config)


@pytest.mark.parametrize(("chosen", "per_hostile"), [(Krum, 2), (MultiKrum, 2), (Bulyan, 4)])
def test_exactly_the_papers_numbers_of_silos_are_taken(chosen: type[KrumFamily], per_hostile: int) -> None:
    for n, f in itertools.product(range(1, 20), range(5)):
        strategy, config = chosen(num_malicious_nodes=f), config_of("krum", num_clients=n)
        if n >= per_hostile * f + 3:
            strategy.check(config)
        else:
            with pytest.raises(UserError, match=f"num-malicious-nodes = {f}: "):
                strategy.check(config)


def test_no_hostile_silo_by_default_and_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    build_strategy(config_of("krum"))
    assert "num-malicious-nodes = 0 promises nothing against hostile silos" in caplog.text
    caplog.clear()
    build_strategy(config_of("krum", num_malicious_nodes=1))
    assert "hostile" not in caplog.text


@pytest.mark.parametrize(
    ("strategy", "n", "said"),
    [
        (Krum(num_malicious_nodes=2), 6, r"6 usable answers: Krum needs 2f \+ 3 = 7 of them; lower num-malicious-n"),
        (Bulyan(num_malicious_nodes=2), 10, r"10 usable .*: Bulyan needs 4f \+ 3 = 11 of them; lower .* more silos"),
        (MultiKrum(num_malicious_nodes=2, num_nodes_to_select=8), 9, r"9 usable .* needs 10 .* select 8 against 2 .*"),
    ],
)
def test_too_few_sound_answers_say_what_to_do(strategy: KrumFamily, n: int, said: str) -> None:
    with pytest.raises(RunError, match=said):
        play(strategy, 1, model(0), round_of(1, n, 2), counts_of(n))
