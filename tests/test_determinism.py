"""The same seed gives the same bytes, however the work is split; another seed does not."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import naive
from rded import datasets, distilled, models, observer, pipeline, score


def convnet(images):
    "A real network with random weights: its kernels are what batch sizes could change."
    net = models.build('conv3', len(images.classes), 16, images.classes, images.wnids, seed=0)
    return observer.Observer([net], [torch.arange(len(images.classes))], images.classes, label='random weights', sha='0')


class Watched:
    "An observer that remembers what it was shown."
    def __init__(self, eyes): self.eyes, self.seen = eyes, []
    def __getattr__(self, name): return getattr(self.eyes, name)
    def logits(self, x):
        self.seen.append(x.clone())
        return self.eyes.logits(x)


def manifest(images, eyes, *, ipc=2, factor=2, seed=0, strategy='top', **how):
    "The manifest's text without the line that says how the work was split."
    found = score.score_images(images, eyes, size=16, factor=factor, preselect=24, seed=seed, **how)
    made = distilled.build(images, found, score.choose(found, images, ipc, factor, strategy, seed), 16, factor, observer=eyes, workers=how.get('workers', 0))
    lines = distilled.manifest_text(made.manifest).splitlines()
    assert sum(line.startswith('"environment":') for line in lines) == 1
    return '\n'.join(line for line in lines if not line.startswith('"environment":'))


@pytest.fixture(scope='module')
def digits(): return datasets.load('digits', 'train')


@pytest.fixture(scope='module')
def as_files(tmp_path_factory, digits):
    "Some digits as a folder of PNG files, one of them torn."
    root = tmp_path_factory.mktemp('digits')
    for c in range(10):
        folder = root / 'train' / str(c)
        folder.mkdir(parents=True)
        for i in digits.of_class(c)[:30].tolist(): digits.image(i).save(folder / f'{i}.png')
    torn = next((root / 'train' / '3').iterdir())
    images = datasets.load(root, 'train')
    torn = root / images.sources[datasets.draw_order(images, 3, 0)[0]]
    torn.write_bytes(torn.read_bytes()[:60])
    return datasets.load(root, 'train')


@pytest.mark.parametrize('how', [dict(batch=1), dict(batch=37, workers=1), dict(batch=10 ** 6, workers=4), dict(workers=2),
                                 dict(exact=8, precision='float32'), dict(exact=8, precision='bfloat16')])
def test_neither_splitting_the_work_nor_screening_changes_a_byte(digits, how):
    eyes = convnet(digits)
    assert manifest(digits, eyes, **how) == manifest(digits, eyes)


@pytest.mark.parametrize('threads', [1, 3])
def test_the_number_of_threads_changes_no_byte(digits, as_files, threads):
    eyes, before = convnet(digits), torch.get_num_threads()
    expected = manifest(as_files, eyes)
    torch.set_num_threads(threads)
    try: assert manifest(as_files, eyes) == expected
    finally: torch.set_num_threads(before)


@pytest.mark.parametrize('how', [dict(batch=1, workers=1), dict(batch=100, workers=4)])
def test_the_observer_is_shown_the_same_chunks(digits, as_files, how):
    "Rounding may hide what another grouping does to the last bit; the grouping itself cannot hide. Threads may change the order."
    plain, split = (Watched(naive.NearestMean(digits, 16)) for _ in range(2))
    manifest(as_files, plain), manifest(as_files, split, **how)
    plain, split = (sorted(one.seen, key=lambda x: x.double().sum().item()) for one in (plain, split))
    assert len(plain) == len(split) and all(torch.equal(a, b) for a, b in zip(plain, split))


@pytest.mark.parametrize('how', [dict(batch=1, workers=1), dict(batch=37, workers=4), dict(workers=2)])
def test_nor_with_files_and_a_torn_one(as_files, how):
    eyes = convnet(as_files)
    plain = manifest(as_files, eyes)
    assert manifest(as_files, eyes, **how) == plain
    assert '"broken": ["train/3/' in plain


def test_files_and_memory_give_the_same_scores(as_files):
    eyes = convnet(as_files)
    with pytest.warns(UserWarning, match='1 of 300 images cannot be read'): readable = as_files.in_memory(16)
    assert readable.native and len(readable) == len(as_files) - 1
    again = readable.subset(range(len(readable)))
    again.x, again.native = None, False
    assert manifest(readable, eyes) == manifest(again, eyes)


def test_another_seed_is_another_set(digits):
    eyes = naive.NearestMean(digits, 16)
    first, second = manifest(digits, eyes, seed=0), manifest(digits, eyes, seed=1)
    same = set(first.splitlines()) & set(second.splitlines())
    assert not [line for line in same if line.startswith('{"file"')]


def test_the_draw_of_one_class_does_not_depend_on_the_others(digits):
    eyes, some = naive.NearestMean(digits, 16), digits.subset(digits.y < 4)
    whole = score.score_images(digits, eyes, size=16, preselect=10)
    part = score.score_images(some, eyes, size=16, preselect=10)
    assert part.drawn == [10] * 4 + [0] * 6
    n = len(part)
    assert [digits.ids[i] for i in whole.index[:n]] == [some.ids[i] for i in part.index] and torch.equal(whole.box[:n], part.box) and torch.equal(whole.score[:n], part.score)


def test_equal_scores_go_by_identity_then_crop(digits):
    eyes = naive.NearestMean(digits, 16)
    eyes.logits = lambda x: torch.zeros(len(x), 10)
    found = score.score_images(digits, eyes, size=16, preselect=24)
    assert (found.crop == 0).all()
    chosen = score.choose(found, digits, 3, 2)
    for c in range(10):
        ranked = [digits.ids[i] for i in found.index[chosen[c].T.flatten()].tolist()]
        assert ranked == sorted(digits.ids[i] for i in found.index[found.label == c].tolist())[:12]


def test_random_selection_is_seeded(digits):
    eyes = naive.NearestMean(digits, 16)
    one, two, three = (manifest(digits, eyes, strategy='random', **how) for how in (dict(), dict(workers=3), dict(seed=1)))
    assert one == two != three


class Elsewhere(str):
    "A CPU that denies being one: the engine then works as it does for a GPU, with processes that cut and threads that cut again."
    def __eq__(self, other): return False
    __hash__ = str.__hash__


@pytest.mark.parametrize('how', [dict(workers=2), dict(workers=1, exact=8, precision='bfloat16')])
def test_the_stream_that_feeds_a_gpu_changes_no_byte(as_files, how):
    eyes = convnet(as_files)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score, 'PART', 1)  # a GPU's part is a chunk
        expected = manifest(as_files, eyes)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try: assert manifest(as_files, eyes, device=Elsewhere('cpu'), **how) == expected
    finally: torch.set_num_threads(before)


@pytest.mark.parametrize('told', [None, '0123456789ab'])
def test_outside_a_repository_the_commit_is_what_one_is_told(told, tmp_path):
    shutil.copytree(Path(pipeline.__file__).parent, tmp_path / 'rded')
    env = {k: v for k, v in os.environ.items() if k not in ('RDED_COMMIT', 'PYTHONPATH')} | ({'RDED_COMMIT': told} if told else {}) | {'GIT_CEILING_DIRECTORIES': str(tmp_path.parent)}
    found = subprocess.run([sys.executable, '-c', 'from rded import pipeline; print(pipeline.__file__, pipeline.commit())'], cwd=tmp_path, env=env, capture_output=True, text=True, check=True).stdout.split()
    assert found == [str(tmp_path / 'rded' / 'pipeline.py'), str(told)]
