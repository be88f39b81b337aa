"""The probabilities that a certificate states, simulated against known truth (docs/method.md, section 6).

Every simulation draws D in {−1, 0, 1} with a known mean, so whether a certificate is false is known. One check,
`assert_controls`, judges every rule; the last tests show that the same check catches rules that are wrong, the paper's
among them. N = 250 throughout. Run as a script, this file prints the tables of docs/method.md.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from merasteer.method.bounds import (
    betting_lower_bounds,
    betting_p_values,
    mcnemar_p_values,
    paper_margin,
    scaled_hoeffding_margin,
)
from merasteer.method.certify import ORDER_SEED, certify, rank

N = 250
RUNS = 20_000
CHUNK = 2_000  # runs held in memory at once
CANDIDATES = 10
DISCORDANCE = (0.1, 0.3, 0.5, 1.0)
VALID = (("mcnemar", 0.0), ("betting", 0.0), ("betting", 0.02), ("hoeffding", 0.0), ("hoeffding", 0.02))

Outcomes = NDArray[np.float64]  # D, (runs, candidates, N)
Passed = NDArray[np.bool_]  # (runs,)
Rule = Callable[[Outcomes, float, float], Passed]  # D of the tested candidates, epsilon, delta -> certified


# ------------------------------------------------------------------------------------------ truth


def draw(rng: np.random.Generator, shape: tuple[int, ...], discordance: float, gain: float) -> Outcomes:
    """D with P(D ≠ 0) = discordance and E[D] = gain."""
    u = rng.random(shape, dtype=np.float32)
    return (u < (discordance + gain) / 2).astype(np.float64) - (u > 1 - (discordance - gain) / 2)


def chunks(runs: int) -> Iterator[int]:
    while runs > 0:
        yield min(runs, CHUNK)
        runs -= CHUNK


def best_candidates(rng: np.random.Generator, runs: int, chances: int, discordance: float, gain: float) -> Outcomes:
    """Calibration outcomes (runs, chances, N) of the best of CANDIDATES, ranked on ordering items of their own."""
    shares = [(discordance + gain) / 2, (discordance - gain) / 2, 1 - discordance]
    counts = rng.multinomial(N, shares, size=(runs, CANDIDATES))
    best = np.argsort(counts[..., 1] - counts[..., 0], axis=1, kind="stable")[:, :chances]
    calibration = draw(rng, (runs, CANDIDATES, N), discordance, gain)
    return np.take_along_axis(calibration, best[..., None], axis=1)


# ------------------------------------------------------------------------------------------ rules


def passes(test: str, d: Outcomes, epsilon: float, level: float) -> Passed:
    """Whether one candidate passes at `level`. d: (runs, N)."""
    if test == "mcnemar":
        return mcnemar_p_values((d > 0).sum(-1), (d < 0).sum(-1)) <= level
    if test == "betting":
        return betting_p_values(d, epsilon, level=level) <= level
    return d.mean(-1) > epsilon + scaled_hoeffding_margin(N, level)


def each_at_its_share(test: str) -> Rule:
    """Every tested candidate at δ/m: what `certify` does."""

    def rule(d: Outcomes, epsilon: float, delta: float) -> Passed:
        return np.any([passes(test, d[:, i], epsilon, delta / d.shape[1]) for i in range(d.shape[1])], axis=0)

    return rule


def paper_rule(d: Outcomes, epsilon: float, delta: float) -> Passed:
    """The best of all candidates on these items against the paper's margin."""
    return d.mean(-1).max(-1) > epsilon + paper_margin(N, delta, d.shape[1])


def chosen_where_tested(d: Outcomes, epsilon: float, delta: float) -> Passed:
    """The best on these very items, then McNemar at full δ: forgets that choosing is testing."""
    winner = d.mean(-1).argmax(-1)
    return passes("mcnemar", d[np.arange(len(d)), winner], epsilon, delta)


# ------------------------------------------------------------------------------------------ checks


def rate(rule: Rule, candidates: Callable[[int], Outcomes], epsilon: float, delta: float, runs: int = RUNS) -> float:
    """Share of runs that the rule certifies."""
    return sum(int(rule(candidates(size), epsilon, delta).sum()) for size in chunks(runs)) / runs


def assert_controls(measured: float, delta: float, runs: int = RUNS) -> None:
    """The stated probability holds, up to three Monte-Carlo standard errors."""
    assert measured <= delta + 3.0 * math.sqrt(delta * (1.0 - delta) / runs)


def at_null(seed: int, candidates: int, discordance: float, gain: float) -> Callable[[int], Outcomes]:
    """Calibration outcomes of candidates that were not chosen by anything."""
    rng = np.random.default_rng(seed)
    return lambda runs: draw(rng, (runs, candidates, N), discordance, gain)


def best_at_null(seed: int, chances: int, discordance: float, gain: float) -> Callable[[int], Outcomes]:
    rng = np.random.default_rng(seed)
    return lambda runs: best_candidates(rng, runs, chances, discordance, gain)


def bounds_above_truth(seed: int, chances: int, discordance: float, gain: float, delta: float, runs: int) -> float:
    """Share of runs in which the lower bound of any of the tested candidates, each at δ/m, is above E[D]."""

    def rule(d: Outcomes, truth: float, delta: float) -> Passed:
        return np.any([betting_lower_bounds(d[:, i], delta / chances) > truth for i in range(chances)], axis=0)

    return rate(rule, at_null(seed, chances, discordance, gain), gain, delta, runs)


@pytest.mark.parametrize("discordance", DISCORDANCE)
@pytest.mark.parametrize(("test", "epsilon"), VALID)
def test_one_candidate_is_falsely_certified_at_most_delta(test: str, epsilon: float, discordance: float) -> None:
    assert_controls(rate(each_at_its_share(test), at_null(1, 1, discordance, epsilon), epsilon, 0.05), 0.05)


@pytest.mark.parametrize("discordance", DISCORDANCE)
@pytest.mark.parametrize(("test", "epsilon"), VALID)
@pytest.mark.parametrize("runs", [6_000, pytest.param(40_000, marks=pytest.mark.slow)])
def test_the_best_three_of_ten_together(test: str, epsilon: float, discordance: float, runs: int) -> None:
    measured = rate(each_at_its_share(test), best_at_null(2, 3, discordance, epsilon), epsilon, 0.05, runs)
    assert_controls(measured, 0.05, runs)


@pytest.mark.slow
@pytest.mark.parametrize("discordance", DISCORDANCE)
@pytest.mark.parametrize(("test", "epsilon"), VALID)
@pytest.mark.parametrize("chances", [1, 3])
def test_a_small_delta_too(test: str, epsilon: float, discordance: float, chances: int) -> None:
    measured = rate(each_at_its_share(test), best_at_null(3, chances, discordance, epsilon), epsilon, 0.01)
    assert_controls(measured, 0.01)


@pytest.mark.parametrize("gain", [0.0, 0.1])
@pytest.mark.parametrize("discordance", DISCORDANCE)
@pytest.mark.parametrize("runs", [2_000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_the_lower_bound_is_above_the_truth_at_most_delta(discordance: float, gain: float, runs: int) -> None:
    assert_controls(bounds_above_truth(4, 1, discordance, gain, 0.05, runs), 0.05, runs)


@pytest.mark.parametrize("runs", [1_000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_so_are_those_of_three_candidates_together(runs: int) -> None:
    assert_controls(bounds_above_truth(5, 3, 0.3, 0.1, 0.05, runs), 0.05, runs)


def test_power_of_one_candidate() -> None:
    """Gain .10, discordance .2: testing one, Bonferroni over ten, the paper over ten."""
    one = functools.partial(at_null, 6, 1, 0.2, 0.1)
    assert rate(each_at_its_share("mcnemar"), one(), 0.0, 0.05) == pytest.approx(0.97, abs=0.01)
    assert rate(each_at_its_share("betting"), one(), 0.0, 0.05) == pytest.approx(0.92, abs=0.015)
    assert rate(each_at_its_share("mcnemar"), one(), 0.0, 0.005) == pytest.approx(0.83, abs=0.015)
    assert rate(lambda d, e, _: d[:, 0].mean(-1) > e + paper_margin(N, 0.05, 10), one(), 0.0, 0.05) < 0.4


# ------------------------------------------------------------------------------------------ certify itself


@pytest.mark.parametrize("chances", [1, 3])
@pytest.mark.parametrize(("test", "epsilon"), VALID)
def test_certify_decides_as_the_simulated_rule(test, epsilon: float, chances: int) -> None:
    gain = 0.16 if test == "hoeffding" else 0.06
    d = draw(np.random.default_rng(7), (60, chances, N), 0.4, gain)
    order = np.random.default_rng(ORDER_SEED).permutation(N)
    expected = each_at_its_share(test)(d[..., order], epsilon, 0.05)
    decided = [
        certify(
            [str(i) for i in range(chances)],
            lambda key, run=run: (run[int(key)] < 0, run[int(key)] > 0),
            delta=0.05,
            epsilon=epsilon,
            chances=chances,
            test=test,
        ).certified
        for run in d
    ]
    assert decided == expected.tolist()
    assert set(decided) == {True, False}


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [0.0, 0.02])
def test_rank_and_certify_end_to_end(epsilon: float) -> None:
    """Ten candidates at the null, from ordering gains to certificate, as the pipeline calls them."""
    rng, runs, false = np.random.default_rng(8), 4_000, 0
    for _ in range(runs):
        ordering, calibration = draw(rng, (2, CANDIDATES, N), 0.5, epsilon)
        ranked = rank({str(i): float(gain) for i, gain in enumerate(ordering.mean(-1))})

        def outcomes(key: str, d: Outcomes = calibration) -> tuple[Passed, Passed]:
            return d[int(key)] < 0, d[int(key)] > 0

        false += certify(ranked, outcomes, delta=0.05, epsilon=epsilon, chances=3).certified
    assert_controls(false / runs, 0.05, runs)


# ------------------------------------------------------------------------------------------ the check can fail


@pytest.mark.parametrize(("discordance", "expected"), [(0.5, 0.068), (1.0, 0.352)])
def test_the_check_catches_the_papers_bound(discordance: float, expected: float) -> None:
    measured = rate(paper_rule, at_null(9, CANDIDATES, discordance, 0.0), 0.0, 0.05, 6_000)
    assert measured == pytest.approx(expected, abs=0.02)
    with pytest.raises(AssertionError):
        assert_controls(measured, 0.05, 6_000)


def test_the_check_catches_choosing_on_the_calibration_items() -> None:
    measured = rate(chosen_where_tested, at_null(10, CANDIDATES, 0.5, 0.0), 0.0, 0.05, 4_000)
    with pytest.raises(AssertionError):
        assert_controls(measured, 0.05, 4_000)


def tables() -> Iterator[tuple[object, ...]]:
    """The rows of the tables in docs/method.md."""
    rules = [
        paper_rule,
        chosen_where_tested,
        *(each_at_its_share(test) for test in ("mcnemar", "betting", "hoeffding")),
    ]
    for discordance in DISCORDANCE:
        null = functools.partial(at_null, 11, CANDIDATES, discordance, 0.0)
        yield (
            "ten on one set",
            discordance,
            *(rate(rule, null(), 0.0, delta) for delta in (0.05, 0.01) for rule in rules),
        )
    for chances in (1, 3):
        for discordance in DISCORDANCE:
            nulls = [(test, e, best_at_null(12, chances, discordance, e)) for test, e in VALID]
            yield "best", chances, discordance, *(rate(each_at_its_share(test), d, e, 0.05) for test, e, d in nulls)
    for discordance in DISCORDANCE:
        above = (bounds_above_truth(13, 1, discordance, gain, 0.05, RUNS) for gain in (0.0, 0.1))
        yield "lower bound above the truth", discordance, *above
    for gain, discordance in ((0.05, 0.1), (0.05, 0.2), (0.1, 0.2), (0.1, 0.5), (0.2, 0.5)):
        one = functools.partial(at_null, 14, 1, discordance, gain)
        mcnemar = (rate(each_at_its_share("mcnemar"), one(), 0.0, 0.05 / tries) for tries in (1, 3, 10))
        betting = (rate(each_at_its_share("betting"), one(), epsilon, 0.05) for epsilon in (0.0, 0.02))
        hoeffding = rate(each_at_its_share("hoeffding"), one(), 0.0, 0.05)
        paper = rate(lambda d, e, _: d[:, 0].mean(-1) > e + paper_margin(N, 0.05, 10), one(), 0.0, 0.05)
        yield "power", gain, discordance, *mcnemar, *betting, hoeffding, paper


if __name__ == "__main__":
    for row in tables():
        print(*(f"{value:.4f}" if isinstance(value, float) else value for value in row), flush=True)  # noqa: T201
