"""What a report computes from its points: intervals, the best configuration, the Pareto front."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t

from src.reporting.statistics import configurations, interval, pareto, verdict


def test_an_interval_is_students():
    values = [1.0, 2.0, 4.0]
    mean, half = interval(values)
    assert mean == pytest.approx(7 / 3)
    assert half == pytest.approx(4.302653 * np.std(values, ddof=1) / 3**0.5, rel=1e-6)
    assert interval([1.0])[0] == 1.0
    assert math.isnan(interval([1.0])[1])


def test_intervals_hold_the_mean_as_often_as_they_say():
    rng = np.random.default_rng(0)
    hits = [abs(mean) <= half for mean, half in (interval(rng.normal(size=3)) for _ in range(2000))]
    assert np.mean(hits) == pytest.approx(0.95, abs=0.015)


def points(values: dict[tuple, float]) -> pd.DataFrame:
    rows = [{"point": f"{c}-{s}", "config": c, "seed": s, "value": v} for (c, s), v in values.items()]
    return pd.DataFrame(rows)


def test_the_best_is_chosen_by_the_mean_and_compared_seed_by_seed():
    # Seeds differ by far more than configurations: only pairs show that b is better than a each time.
    table = points(
        {("a", 0): -10.0, ("a", 1): -20.0, ("a", 2): -30.0, ("b", 0): -9.0, ("b", 1): -19.1, ("b", 2): -28.9}
    )
    chosen = verdict(table, ["config"], maximize=True)
    assert chosen.best.config == "b"
    assert chosen.rivals == []
    assert chosen.text == "at 95 % better than 1 of 1 other"
    unpaired = table.assign(seed=[0, 1, 2, 3, 4, 5])
    assert [rival.config for rival in verdict(unpaired, ["config"], maximize=True).rivals] == ["a"]
    assert verdict(table, ["config"], maximize=False).best.config == "a"


def test_it_is_said_when_seeds_are_too_few():
    one = verdict(points({("a", 0): -10.0, ("b", 0): -9.0}), ["config"], maximize=True)
    assert one.text.startswith("1.00 better than the next one, but with one seed")
    two = verdict(points({("a", 0): -10.0, ("a", 1): -11.0, ("b", 0): -9.0, ("b", 1): -9.5}), ["config"], maximize=True)
    assert (
        two.text
        == "at 95 % better than 0 of 1 other, not to be told from 1; 2 seeds are too few to be sure: add seed=0,1,2"
    )
    alone = verdict(points({("a", 0): -1.0}), ["config"], maximize=True)
    assert "only configuration; 1 seed is too few" in alone.text


def test_a_configuration_that_lost_its_seeds_leaves_the_others_comparable():
    good = {("a", s): -9.0 - s / 100 for s in range(3)} | {("b", s): -19.0 - s / 90 for s in range(3)}
    chosen = verdict(points({**good, ("c", 0): -12.0}), ["config"], maximize=True)
    assert chosen.text == (
        "at 95 % better than 1 of 2 others (each by itself, without correction for choosing among 3), "
        "1 with one seed cannot be judged"
    )
    assert chosen.rivals == []


def test_the_same_seed_twice_is_one_seed():
    rows = [
        {"point": f"{c}{i}", "config": c, "seed": 0, "value": v}
        for i in range(2)
        for c, v in (("a", -1.0), ("b", -2.0))
    ]
    table = configurations(pd.DataFrame(rows), ["config"], ["value"])
    assert table.seeds.tolist() == [1, 1]
    assert "with one seed nobody knows" in verdict(pd.DataFrame(rows), ["config"], maximize=True).text


def test_configurations_average_over_seeds_alone():
    table = configurations(points({("a", 0): 1.0, ("a", 1): 3.0, ("b", 0): 5.0}), ["config"], ["value"])
    assert table.value.tolist() == [2.0, 5.0]
    assert table.seeds.tolist() == [2, 1]
    assert table.value_ci[0] == pytest.approx(t.ppf(0.975, 1) * 2**0.5 / 2**0.5)


def test_the_pareto_front_holds_what_nothing_beats():
    cost, quality = [1, 2, 3, 4, 2, math.nan], [1, 3, 2, 5, 2, 9]
    assert pareto(cost, quality) == [0, 1, 3]
    assert pareto([1, 1], [1, 2]) == [1]
