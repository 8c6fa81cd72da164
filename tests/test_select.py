"""Strategies hold for any scores and features: no order of arrival, no candidate twice, and what their names promise."""
from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

import naive
from rded import datasets, evidence, models, observer, pipeline, recipes, score, select

quick = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2 ** 32 - 1)


def problem(seed, n=24, classes=3, observers=2, levels=4):
    "Scores, labels, identities and evidence in which ties and twins are common."
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(np.concatenate([np.arange(classes).repeat(4), rng.integers(0, classes, n - 4 * classes)]))
    return (torch.from_numpy(rng.integers(-levels, 1, n)).float(), labels, torch.from_numpy(rng.permutation(n)),
            SimpleNamespace(features=torch.from_numpy(rng.integers(0, 3, (n, 2))).float(), logits=torch.from_numpy(rng.integers(-2, 3, (n, observers, classes))).float()))


def rows_of(e, rows): return SimpleNamespace(features=e.features[rows], logits=e.logits[rows])


@pytest.mark.parametrize('name', select.STRATEGIES | select.TOGETHER)
@quick
@given(seeds, st.integers(1, 4))
def test_no_order_of_arrival_and_nobody_twice(name, seed, k):
    scores, labels, identity, seen = problem(seed)
    chosen = select.pick(name, scores, labels, k, identity, 3, seed, seen)
    assert chosen.shape == (3, k) and (labels[chosen] == torch.arange(3)[:, None]).all()
    assert all(len(set(row)) == k for row in chosen.tolist())
    shuffled = torch.from_numpy(np.random.default_rng(seed + 1).permutation(len(scores)))
    again = select.pick(name, scores[shuffled], labels[shuffled], k, identity[shuffled], 3, seed, rows_of(seen, shuffled))
    assert torch.equal(shuffled[again], chosen)
    assert torch.equal(select.pick(name, scores, labels, k, identity, 3, seed, seen), chosen)


@pytest.mark.parametrize('name', select.STRATEGIES)
def test_a_class_does_not_depend_on_the_others(name):
    scores, labels, identity, seen = problem(5)
    some = (labels < 2).nonzero()[:, 0]
    ranks = identity[some].argsort().argsort()
    alone = select.pick(name, scores[some], labels[some], 3, ranks, 2, 7, rows_of(seen, some))
    assert torch.equal(some[alone], select.pick(name, scores, labels, 3, identity, 3, 7, seen)[:2])


@pytest.mark.parametrize('name', [name for name, (wanted, _) in select.STRATEGIES.items() if wanted != 'logits' and name != 'random'])
def test_a_class_does_not_depend_on_its_number(name):
    "`random` draws by it; columns of logits are classes, too, and the order of a sum may round otherwise."
    scores, labels, identity, seen = problem(5)
    some = (labels > 0).nonzero()[:, 0]
    alone = select.pick(name, scores[some], labels[some] - 1, 3, identity[some].argsort().argsort(), 2, 7, rows_of(seen, some))
    assert torch.equal(some[alone], select.pick(name, scores, labels, 3, identity, 3, 7, seen)[1:])


@quick
@given(seeds, st.integers(1, 4))
def test_top_is_top_per_class(seed, k):
    scores, labels, identity, _ = problem(seed)
    assert torch.equal(select.pick('top', scores, labels, k, identity), select.top_per_class(scores, labels, k, identity))
    assert torch.equal(select.pick('bottom', scores, labels, k, identity), select.top_per_class(-scores, labels, k, identity))


@quick
@given(seeds, st.integers(1, 4), st.integers(0, 8))
def test_k_centre_is_within_twice_the_best_radius(seed, k, first):
    points = np.random.default_rng(seed).normal(size=(9, 2))
    apart = np.linalg.norm(points[:, None] - points, axis=-1)
    radius = lambda rows: apart[:, list(rows)].min(1).max()
    assert radius(select.k_centre(points, k, first)) <= 2 * min(map(radius, combinations(range(9), k))) + 1e-12


@quick
@given(seeds)
def test_every_step_of_herding_is_the_best_one(seed):
    points = np.random.default_rng(seed).normal(size=(8, 3))
    chosen = select.herding(points, 8).tolist()
    error = lambda rows: np.linalg.norm(points[rows].mean(0) - points.mean(0))
    for n in range(8):
        left = [i for i in range(8) if i not in chosen[:n]]
        assert error(chosen[:n + 1]) <= min(error(chosen[:n] + [i]) for i in left) + 1e-12


def test_herding_follows_the_mean_better_than_chance():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(200, 10))
    error = lambda rows: np.linalg.norm(points[rows].mean(0) - points.mean(0))
    errors = [error(select.herding(points, k)) for k in (1, 5, 20, 80)]
    assert errors == sorted(errors, reverse=True)
    for k, ours in zip((5, 20, 80), errors[1:]): assert ours < min(error(rng.permutation(200)[:k]) for _ in range(50))


@quick
@given(seeds, st.integers(1, 9))
def test_k_means_gives_different_rows_even_of_twins(seed, k):
    points = np.random.default_rng(seed).integers(0, 2, (9, 2)).astype(float)
    assert len(set(select.k_means(points, k, seed).tolist())) == k


def test_k_means_finds_separate_lumps():
    rng = np.random.default_rng(3)
    lumps = np.concatenate([rng.normal(10 * c, 0.1, (5 + c, 2)) for c in range(4)])
    found = select.k_means(lumps, 4)
    assert np.round(lumps[found] / 10).astype(int)[:, 0].tolist() == [3, 2, 1, 0]    # the largest first
    for row, c in zip(found, (3, 2, 1, 0)):
        mine = np.flatnonzero(np.round(lumps[:, 0] / 10) == c)
        assert row == mine[np.linalg.norm(lumps[mine] - lumps[mine].mean(0), axis=1).argmin()]


def test_strategies_that_look_say_what_they_miss():
    scores, labels, _, _ = problem(0)
    for name in select.STRATEGIES:
        if select.looks_at(name) == 'score': select.pick(name, scores, labels, 1); continue
        with pytest.raises(ValueError, match=select.looks_at(name)): select.pick(name, scores, labels, 1)
    with pytest.raises(ValueError, match="'best': choose one of top"): select.looks_at('best')


@pytest.fixture(scope='module')
def eyes():
    digits = datasets.load('digits', 'train')
    nets = [models.build('conv3', 10, 16, digits.classes, seed=s) for s in (0, 1)]
    return digits, observer.get_observer(nets, digits)


@pytest.mark.parametrize('name', select.STRATEGIES)
def test_through_the_line(eyes, name):
    digits, pair = eyes
    found = score.score_images(digits, pair, size=16, factor=2, preselect=12)
    seen = evidence.look(digits, found.index, found.box, pair, size=16, factor=2)
    own = seen.logits.mean(1).double().log_softmax(1).gather(1, found.label[:, None])[:, 0]
    assert (own - found.score).abs().max() < score.TOLERANCE
    chosen = score.choose(found, digits, 2, 2, name, 1, seen)
    assert chosen.shape == (10, 2, 4) and len(set(chosen.flatten().tolist())) == 80


def test_one_observer_has_its_own_mean(eyes):
    digits, pair = eyes
    alone = observer.get_observer(pair.nets[:1], digits)
    found = score.score_images(digits, alone, size=16, factor=1, preselect=12)
    seen = evidence.look(digits, found.index, found.box, alone, size=16)
    assert torch.equal(score.choose(found, digits, 3, 1, 'mean-score', 0, seen), score.choose(found, digits, 3, 1))


def test_an_observer_without_networks_has_no_features(eyes):
    digits, _ = eyes
    with pytest.raises(ValueError, match='nearest-mean shows no networks'):
        evidence.look(digits, torch.tensor([0]), torch.tensor([[0, 0, 16, 16]]), naive.NearestMean(digits, 16), size=16)


def test_an_observer_without_features_is_refused_before_anything_is_scored():
    recipe, eyes = replace(recipes.get('digits-conv3-ipc10'), selection='k-centre'), SimpleNamespace(name='eyes.pth', nets=[SimpleNamespace(body=torch.nn.Conv2d(3, 10, 1))])
    with pytest.raises(ValueError, match='observer eyes.pth: Conv2d has no linear layer'): pipeline.distill(recipe, datasets.load('digits', 'train'), eyes)
