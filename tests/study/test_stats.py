"""Statistics against values worked out by hand."""

import math

import pytest
from scipy.stats import ttest_ind

from symboliclight.study.stats import Difference, against_zero, paired, pooled, reproduces, slope, spread, unpaired


def test_the_deviation_of_a_sample_has_n_minus_1_below():
    assert spread([1.0, 2.0, 6.0]) == spread([6.0, 1.0, 2.0])
    assert spread([1.0, 2.0, 6.0]).sd == pytest.approx(math.sqrt(7))
    assert spread([5.0]).sd is None and spread([5.0]).n == 1


def test_a_paired_interval_is_students():
    # differences 1, 2, 3: mean 2, sd 1, error 1/sqrt(3); t(0.975, 2) = 4.302653; p of t = 3.4641 with 2 is 0.07418
    d = paired({1: 2.0, 2: 4.0, 3: 7.0, 9: 0.0}, {1: 1.0, 2: 2.0, 3: 4.0, 8: 0.0})
    assert (d.n, d.mean, d.sd, d.freedom) == (3, 2.0, 1.0, 2)
    assert d.half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert d.p == pytest.approx(0.07418, abs=1e-5)
    assert (d.low, d.high) == (pytest.approx(2 - d.half), pytest.approx(2 + d.half))


def test_one_pair_has_no_interval_and_none_no_difference():
    assert paired({1: 2.0}, {1: 1.5}) == Difference(1, 0.5, None, None, None)
    assert paired({1: 2.0}, {2: 1.5}) is None
    assert against_zero([0.0, 0.0]).p == 1.0 and against_zero([1.0, 1.0]).p == 0.0


def test_a_pooled_interval_takes_the_spread_of_the_whole_table():
    # Residuals of the two-way table after rows and columns: +-0.5 for a, -+0.5 for b, 0 for c; sum of squares 1.
    # freedom (3-1)(2-1) = 2, variance of a run 1/2, of a difference of two runs 1; of the mean of two 1/2.
    table = {"a": {1: 1.0, 2: 4.0}, "b": {1: 2.0, 2: 3.0}, "c": {1: 5.0, 2: 7.0}, "short": {1: 9.0}}
    d = pooled(table, "a", "c")
    assert (d.n, d.mean, d.sd, d.freedom) == (2, -3.5, pytest.approx(1.0), 2)
    assert d.half == pytest.approx(4.302653 / math.sqrt(2), rel=1e-6)
    assert pooled(table, "a", "short").half is None and pooled(table, "a", "absent") is None


def test_with_two_models_the_pooled_interval_is_the_paired_one():
    table = {"a": {1: 1.0, 2: 4.0, 3: 2.5}, "b": {1: 2.0, 2: 3.0, 3: 2.0}}
    ours, alone = pooled(table, "a", "b"), paired(table["a"], table["b"])
    assert (ours.half, ours.p, ours.freedom) == (pytest.approx(alone.half), pytest.approx(alone.p), alone.freedom)


def test_a_slope_is_that_of_least_squares():
    assert slope([(0, 1.0), (1, 2.0), (2, 6.0)]) == pytest.approx(2.5)


def test_an_ordering_is_decided_by_its_interval():
    assert reproduces(Difference(2, -1.0, 0.1, 0.5, 0.01)) == "yes"
    assert reproduces(Difference(2, 1.0, 0.1, 0.5, 0.01)) == "no"
    assert reproduces(Difference(2, -0.4, 0.1, 0.5, 0.1)) == "undecided"
    assert reproduces(Difference(1, -0.4, None, None, None)) == "undecided" and reproduces(None) == "undecided"


def test_runs_without_a_common_seed_are_compared_by_welchs_t():
    d = unpaired([1.0, 2.0, 3.0], [5.0, 9.0])  # variances 1 and 8: error² 1/3 + 4, freedom (13/3)² / (1/18 + 16)
    assert (d.n, d.mean) == (2, -5.0)
    assert d.freedom == pytest.approx((13 / 3) ** 2 / (1 / 18 + 16))
    reference = ttest_ind([1.0, 2.0, 3.0], [5.0, 9.0], equal_var=False)
    assert d.p == pytest.approx(reference.pvalue)
    assert (d.low, d.high) == pytest.approx(tuple(reference.confidence_interval()))
    assert unpaired([1.0], [2.0, 3.0]) is None
