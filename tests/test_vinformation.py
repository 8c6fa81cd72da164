"""Entropies and bounds against what is known exactly: constant and perfect predictors, Gaussians, sets that share nothing."""
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from rded import baselines, datasets, models, observer, vinformation as vi

quick = settings(max_examples=40, deadline=None)


@pytest.fixture(scope='module')
def digits(): return datasets.load('digits', 'train')


@pytest.fixture(scope='module')
def judge(digits): return observer.get_observer(models.build('conv3', 10, 16, digits.classes, seed=3), digits)


class Given:
    "A judge whose features are the pixels of a 'picture' [n,3,1,1], so that the family is linear in what we choose."
    name = 'given'
    def __init__(self): self.nets = [self]
    mean = torch.zeros(3)
    def features(self, x): return x.flatten(1)


@quick
@given(st.integers(1, 30), st.integers(1, 6))
def test_hard_labels_of_a_balanced_set_have_log_c(classes, each):
    y = torch.arange(classes).repeat_interleave(each)
    assert math.isclose(vi.label_entropy(y, classes), math.log(classes), abs_tol=1e-12)


@quick
@given(st.integers(0, 2 ** 31))
def test_the_mean_label_is_the_best_constant(seed):
    g = torch.Generator().manual_seed(seed)
    p = torch.rand(20, 5, generator=g, dtype=torch.double)
    p = p / p.sum(1, keepdim=True)
    best = vi.label_entropy(p)
    assert best <= math.log(5) + 1e-12
    other = torch.rand(5, generator=g, dtype=torch.double) + 0.01
    constant = (other / other.sum()).log().expand(20, 5)
    assert vi.conditional_entropy(constant, p) >= best - 1e-12
    assert math.isclose(vi.conditional_entropy(p.mean(0).log().expand(20, 5), p), best, rel_tol=1e-9)


def test_no_information_and_all_of_it():
    "Labels that have nothing to do with the image leave log C; labels that are written on it leave almost nothing."
    g = torch.Generator().manual_seed(0)
    y = torch.arange(2).repeat(1000)
    noise = torch.randn(2000, 3, 1, 1, generator=g)
    told = noise.clone(); told[:, 0, 0, 0] = 20.0 * (2 * y - 1)
    for x, low, high in ((noise, -0.03, 0.01), (told, 0.6, math.log(2))):
        probe = vi.fit_probe(Given(), x[:1000], y[:1000])
        found = vi.information(probe, x[1000:], y[1000:], times=50)
        assert low < found['I, at least'][0] <= high
        assert found['H(Y|∅), hard'] == (math.log(2),) * 3


def test_the_estimate_is_near_the_exact_value_of_two_directions():
    "Features on the circle: angle ± φ by class plus noise; the exact posterior is known and the family is nearly right."
    g = torch.Generator().manual_seed(1)
    y = torch.arange(2).repeat(4000)
    centre = torch.tensor([[1.0, 0.3, 0.0], [1.0, -0.3, 0.0]])[y]
    x = centre + 0.2 * torch.randn(8000, 3, generator=g)
    log_ratio = (x[:, 1] * 0.6 / 0.04)                                   # log p(x|0) − log p(x|1) of the unnormalised features
    exact = torch.nn.functional.softplus(-log_ratio * (1 - 2 * y)).mean().item()
    probe = vi.fit_probe(Given(), x[:4000, :, None, None], y[:4000], decay=0)
    found = vi.conditional_entropy(probe.log_p(vi.features(Given(), x[4000:, :, None, None])), y[4000:])
    assert exact - 0.02 < found < exact + 0.04                           # bringing features to unit length loses a little


def test_the_bound_holds_from_above():
    "Labels drawn from a known posterior of the family: no probe is less surprised than who knows it, and one of many images hardly more."
    g = torch.Generator().manual_seed(2)
    x = torch.nn.functional.normalize(torch.randn(8000, 3, generator=g, dtype=torch.double), dim=1)
    p = torch.stack([-4 * x[:, 0], 4 * x[:, 0]], 1).softmax(1)
    y = (torch.rand(8000, generator=g) < p[:, 1]).long()
    seen, p_seen, y_seen, pictures = x[4000:], p[4000:], y[4000:], x[..., None, None]
    exact, lucky = vi.conditional_entropy(p_seen.log(), p_seen), vi.conditional_entropy(p_seen.log(), y_seen)
    excess = []
    for n in (20, 200, 4000):
        probe = vi.fit_probe(Given(), pictures[:n], y[:n], decay=0)
        excess.append(vi.conditional_entropy(probe.log_p(vi.features(Given(), pictures[4000:])), p_seen) - exact)
        found = vi.information(probe, pictures[4000:], y_seen, times=2)['I, at least'][0]
        assert found <= vi.label_entropy(y_seen, 2) - lucky + 0.002, n
    assert excess[0] > 0.05 and excess[0] > excess[1] > excess[2] >= 0 and excess[2] < 0.002


def test_what_is_fitted_on_gave_no_patch(digits):
    sets = [baselines.random_mosaics(digits, 3, 16, 2, seed=s) for s in (0, 1)]
    free = vi.outside(digits, sets, 50)
    used = {p['source'] for made in sets for p in made.patches}
    assert not used & {digits.sources[i] for i in free.tolist()} and len(set(free.tolist())) == len(free)
    assert torch.equal(free, vi.outside(digits, sets, 50)) and not torch.equal(free, vi.outside(digits, sets, 50, seed=1))
    few = digits.subset([digits.sources.index(p['source']) for p in sets[0].patches])
    with pytest.raises(ValueError, match='every image gave a patch'): vi.outside(few, sets[:1])


def test_the_interval_covers_the_mean_about_as_often_as_it_says():
    hits = 0
    for trial in range(100):
        values = torch.randn(60, generator=torch.Generator().manual_seed(trial))
        _, low, high = vi.bootstrap(lambda rows: values[rows].mean().item(), torch.zeros(60), times=200, seed=trial)
        hits += low <= 0 <= high
    assert 86 <= hits <= 100


def test_rows_of_a_group_are_drawn_together_and_classes_keep_their_size():
    groups, y = torch.arange(6).repeat_interleave(3), torch.arange(2).repeat_interleave(9)
    def whole(rows):
        assert len(rows) == 18 and (torch.bincount(y[rows]) == 9).all()
        assert all((groups[rows] == g).sum() % 3 == 0 for g in range(6))
        return 0.0
    vi.bootstrap(whole, y, groups, times=20)


def test_spread_is_written_out(digits, judge):
    seen, y = vi.features(judge, digits.x[:40]), digits.y[:40]
    assert torch.allclose(seen.norm(dim=1), torch.ones(40, dtype=torch.double))
    plain = []
    for c in y.unique():
        mine = seen[y == c]
        pairs = [1 - float(mine[i] @ mine[j]) for i in range(len(mine)) for j in range(len(mine)) if i != j]
        if pairs: plain.append(sum(pairs) / len(pairs))
    assert math.isclose(vi.spread(seen, y), sum(plain) / len(plain), rel_tol=1e-9)
