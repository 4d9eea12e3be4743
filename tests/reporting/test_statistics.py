"""The statistics of a report: intervals, tests, the best configuration, the Pareto front."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from src.reporting.statistics import configurations, interval, p_value, pareto, verdict

SWEEPS = 120  # simulated ones


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


def test_p_values_are_those_of_scipys_test_of_all_pairs_and_of_welch_for_two():
    groups = [[1.0, 2.0, 4.0], [0.5, 1.9, 3.0, 9.0], [7.0, 7.1]]
    all_pairs = stats.tukey_hsd(*groups, equal_var=False).pvalue  # Games-Howell
    for i, ours in enumerate(groups):
        for j, theirs in enumerate(groups[:i]):
            assert p_value(ours, theirs, among=3) == pytest.approx(all_pairs[i, j])
            assert p_value(ours, theirs, among=2) == pytest.approx(
                stats.ttest_ind(ours, theirs, equal_var=False).pvalue
            )
    assert math.isnan(p_value(groups[0], [1.0], among=2))
    assert [p_value([1.0, 1.0], [mean, mean], among=2) for mean in (1.0, 2.0)] == [1.0, 0.0]


def test_the_best_is_chosen_by_the_mean_and_told_from_those_that_are_worse():
    table = points({(c, s): mean + s / 10 for c, mean in (("a", -10.0), ("b", -9.0)) for s in range(3)})
    chosen = verdict(table, ["config"], maximize=True)
    assert chosen.best.config == "b"
    assert (chosen.rivals, chosen.few_seeds) == ([], False)
    assert chosen.text == "at 95 % better than 1 of 1 other"
    assert verdict(table, ["config"], maximize=False).best.config == "a"
    apart = points({(c, s): mean + s for c, mean in (("a", -10.0), ("b", -9.0)) for s in range(3)})
    assert [rival.config for rival in verdict(apart, ["config"], maximize=True).rivals] == ["a"]


def test_all_pairs_count_as_any_of_the_configurations_might_have_been_the_best():
    noise = [0.0, 0.1, -0.1]
    two = {("a", s): -9.0 + noise[s] for s in range(3)} | {("b", s): -9.27 + noise[s] for s in range(3)}
    assert verdict(points(two), ["config"], maximize=True).rivals == []  # p = 0.03
    more = {(c, s): -11.0 - s * i for i, c in enumerate("cdefgh") for s in range(3)}
    chosen = verdict(points(two | more), ["config"], maximize=True)
    assert "(Games-Howell test, corrected for all pairs), cannot be told from" in chosen.text
    assert "b" in {rival.config for rival in chosen.rivals}


@pytest.mark.parametrize("scales", [(1, 1, 1, 1), (1, 1, 1, 5)])
def test_among_equals_no_more_than_one_sweep_in_twenty_names_any_as_worse(scales):
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(SWEEPS):
        seeds = {(c, s): rng.normal(scale=scales[c]) for c in range(4) for s in range(3)}
        wrong += len(verdict(points(seeds), ["config"], maximize=True).rivals) < 3
    assert stats.binomtest(wrong, SWEEPS, 0.05, alternative="greater").pvalue > 0.01


def test_it_is_said_when_seeds_are_too_few():
    one = verdict(points({("a", 0): -10.0, ("b", 0): -9.0}), ["config"], maximize=True)
    assert one.text == "1.00 better than the next one, but one seed gives no error estimate"
    assert one.few_seeds
    two = verdict(points({("a", 0): -10.0, ("a", 1): -11.0, ("b", 0): -9.0, ("b", 1): -9.5}), ["config"], maximize=True)
    assert two.text == "at 95 % better than 0 of 1 other, cannot be told from 1; 2 seeds are too few to be sure"
    alone = verdict(points({("a", 0): -1.0}), ["config"], maximize=True)
    assert "only configuration; 1 seed is too few" in alone.text


def test_a_configuration_that_lost_its_seeds_leaves_the_others_comparable():
    good = {("a", s): -9.0 - s / 100 for s in range(3)} | {("b", s): -19.0 - s / 90 for s in range(3)}
    chosen = verdict(points({**good, ("c", 0): -12.0}), ["config"], maximize=True)
    assert chosen.text == "at 95 % better than 1 of 2 others, 1 with one seed cannot be judged"
    assert chosen.rivals == []


def test_the_same_seed_twice_is_one_seed():
    rows = [
        {"point": f"{c}{i}", "config": c, "seed": 0, "value": v}
        for i in range(2)
        for c, v in (("a", -1.0), ("b", -2.0))
    ]
    table = configurations(pd.DataFrame(rows), ["config"], ["value"])
    assert table.seeds.tolist() == [1, 1]
    assert "one seed gives no error estimate" in verdict(pd.DataFrame(rows), ["config"], maximize=True).text


def test_configurations_average_over_seeds_alone():
    table = configurations(points({("a", 0): 1.0, ("a", 1): 3.0, ("b", 0): 5.0}), ["config"], ["value"])
    assert table.value.tolist() == [2.0, 5.0]
    assert table.seeds.tolist() == [2, 1]
    assert table.value_ci[0] == pytest.approx(stats.t.ppf(0.975, 1) * 2**0.5 / 2**0.5)


def test_the_pareto_front_holds_what_nothing_beats():
    cost, quality = [1, 2, 3, 4, 2, math.nan], [1, 3, 2, 5, 2, 9]
    assert pareto(cost, quality) == [0, 1, 3]
    assert pareto([1, 1], [1, 2]) == [1]
    told_apart = {(1, 0), (3, 0), (3, 1)}
    assert pareto(cost, quality, lambda i, j: (i, j) in told_apart) == [0, 1, 3]
    assert pareto(cost, quality, lambda i, j: False) == [0]
