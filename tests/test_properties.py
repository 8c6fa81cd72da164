"""What holds for any size, factor, key and score."""
import numpy as np
import torch
from hypothesis import given, settings, strategies as st

import naive
from rded import mosaic, patches, select

sizes = st.integers(1, 40).flatmap(lambda size: st.tuples(st.just(size), st.integers(1, min(size, 7))))
quick = settings(max_examples=60, deadline=None)


@quick
@given(sizes, st.integers(0, 2 ** 32))
def test_taking_apart_and_tiling_gives_the_image_back(both, seed):
    size, factor = both
    x = torch.randint(0, 256, (2, 3, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    cells = mosaic.untile(x, factor)
    assert cells.shape == (2, factor ** 2, 3, *[mosaic.cell_size(size, factor)] * 2)
    assert torch.equal(mosaic.tile(cells, size), x)


@quick
@given(st.integers(1, 8), st.integers(1, 5), st.integers(0, 2 ** 32))
def test_tiling_and_taking_apart_gives_the_patches_back_where_the_factor_divides(p, factor, seed):
    cells = torch.randint(0, 256, (2, factor ** 2, 3, p, p), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    assert torch.equal(mosaic.untile(mosaic.tile(cells, p * factor), factor), cells)


@quick
@given(st.integers(0, 2 ** 64 - 1), st.integers(1, 600), st.integers(1, 600), st.floats(0.01, 1), st.floats(0.01, 1), st.floats(0.3, 3), st.floats(0.3, 3))
def test_boxes_lie_inside_and_are_the_naive_ones(key, height, width, a, b, r, s):
    scale, ratio = (min(a, b), max(a, b)), (min(r, s), max(r, s))
    for k, box in enumerate(patches.sample_boxes([key], height, width, 2, scale, ratio)[0].tolist()):
        top, left, h, w = box
        assert top >= 0 and left >= 0 and h >= 0 and w >= 0 and top + h <= height and left + w <= width
    for k, (top, left, h, w) in enumerate(patches.sample_boxes([key], height, width, 2, scale)[0].tolist()):
        assert h == w >= 1 and (top, left, h, w) == naive.box_of(key, height, width, k, scale)


@quick
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=4, max_size=40), st.integers(1, 3), st.randoms())
def test_ranking_is_a_sort_and_knows_no_order_of_arrival(rows, k, random):
    rows = [(c, s, n) for n, (c, s) in enumerate([(c, 5) for c in range(4)] * k + rows)]
    labels, scores, order = (torch.tensor(column) for column in zip(*rows))
    plain = [[n for _, _, n in sorted((r for r in rows if r[0] == c), key=lambda r: (-r[1], r[2]))[:k]] for c in range(4)]
    assert select.top_per_class(scores, labels, k, order).tolist() == plain
    shuffled = torch.tensor(random.sample(range(len(rows)), len(rows)))
    assert shuffled[select.top_per_class(scores[shuffled], labels[shuffled], k, order[shuffled])].tolist() == plain


@quick
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=20))
def test_realism_is_finite_and_at_most_zero(logits):
    scores = patches.realism(torch.tensor([logits] * len(logits)), torch.arange(len(logits)))
    assert scores.isfinite().all() and (scores <= 0).all()
    assert np.allclose(scores, [naive.realism(logits, c) for c in range(len(logits))], atol=1e-3, rtol=1e-5)
