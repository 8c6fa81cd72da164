"""DD-Ranking's scores against values worked by hand, digit by digit."""
import math

import pytest

from rded.fair import augmentation_robust_score, hard_label_recovery, improvement_over_random, label_robust_score, over_seeds, squash

# e = 2.718281828459045, 1/e = 0.36787944117144233, e − 1/e = 2.3504023872876028
BY_HAND = [  # full, hard, ours, random, w: α and (e^α − 1/e) / (e − 1/e), worked with the series of e^α
    ((80, 30, 50, 40, 0.5), -0.2, 0.191818),    # ½·0.10 − ½·0.50 = −0.2;   e^−0.2 = 0.818731; 0.450851 / 2.350402
    ((90, 40, 70, 40, 0.5), -0.1, 0.228454),    # ½·0.30 − ½·0.50 = −0.1;   e^−0.1 = 0.904837; 0.536958 / 2.350402
    ((90, 40, 70, 40, 0.8), 0.14, 0.332876),    # 0.8·0.30 − 0.2·0.50 = 0.14; e^0.14 = 1.150274; 0.782394 / 2.350402
    ((60, 60, 75, 25, 0.5), 0.25, 0.389783),    # ½·0.50 − 0 = 0.25;        e^0.25 = 1.284025; 0.916146 / 2.350402
]


@pytest.mark.parametrize('accuracies, alpha, score', BY_HAND)
def test_label_robust_score(accuracies, alpha, score):
    *four, w = accuracies
    assert abs(squash(alpha) - score) < 1e-6
    assert abs(label_robust_score(*four, weight=w) - score) < 1e-6


@pytest.mark.parametrize('four, weight, beta, score', [
    ((50, 40, 30, 10), 0.5, 0.15, 0.337795),    # ½·0.10 + ½·0.20; e^0.15 = 1.161834; 0.793955 / 2.350402
    ((50, 40, 30, 10), 0.9, 0.11, 0.318413),    # 0.09 + 0.02;     e^0.11 = 1.116278; 0.748399 / 2.350402
    ((20, 40, 10, 30), 0.5, -0.2, 0.191818)])
def test_augmentation_robust_score(four, weight, beta, score):
    assert abs(squash(beta) - score) < 1e-6
    assert abs(augmentation_robust_score(*four, weight=weight) - score) < 1e-6
    assert math.isclose(augmentation_robust_score(*four, weight=weight), squash(beta))


def test_the_ends_and_the_middle():
    assert (squash(-1), squash(1)) == (0, 1) and math.isclose(squash(0), 1 / (1 + math.e))


def test_differences_are_in_points_and_signed():
    assert hard_label_recovery(80, 30) == 50 and hard_label_recovery(30, 80) == -50
    assert improvement_over_random(50, 40) == 10 and improvement_over_random(40, 50) == -10


def test_fractions_and_nonsense_are_refused():
    for f in (lambda: hard_label_recovery(101, 3), lambda: improvement_over_random(3, -0.1), lambda: squash(1.01), lambda: label_robust_score(1, 1, 1, 1, -0.1)):
        with pytest.raises(ValueError): f()


def test_mean_and_deviation_of_pairs():
    mean, std = over_seeds(improvement_over_random, [3, 5, 10], [1, 2, 3])
    assert math.isclose(mean, 4) and math.isclose(std, math.sqrt((4 + 1 + 9) / 2))   # 2, 3 and 7
    assert math.isnan(over_seeds(hard_label_recovery, 80, 30)[1])
    with pytest.raises(ValueError, match='no pairs'): over_seeds(improvement_over_random, [1], [1, 2])
