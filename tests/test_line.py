"""The fast line equals the naive one on real images: draw, boxes, crops, scores, selection, stitched pixels."""
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import naive
from rded import baselines, datasets, distilled, observer, patches, score
from rded.files import hash64

ROOT = Path(__file__).parents[1]


def digits(request): return datasets.load('digits', 'train')


def cifar10(request):
    images = datasets.load(request.getfixturevalue('cifar10_root'), 'train')
    return images.subset(images.y < 4)


def photos(request):
    images = datasets.load(request.getfixturevalue('imagenette_root'), 'train')
    images = images.subset(torch.cat([images.of_class(c)[:12] for c in range(3)]))
    images.classes, images.__dict__['names'] = images.classes[:3], images.classes[:3]
    return images


def oblong(request): return datasets.load(request.getfixturevalue('oblong_root'), 'train')


@pytest.fixture(scope='session')
def oblong_root(tmp_path_factory):
    "Sixteen pieces each of two photographs, upright and lying, no two of one size. (The ImageNette at hand is all squares.)"
    from sklearn.datasets import load_sample_image
    root = tmp_path_factory.mktemp('oblong')
    for name in ('china', 'flower'):
        photo = Image.fromarray(load_sample_image(f'{name}.jpg'))
        (root / 'train' / name).mkdir(parents=True)
        for k in range(16):
            width, height = (90 + 17 * k, 300 - 11 * k) if k % 2 else (330 - 13 * k, 80 + 19 * k)
            photo.crop((3 * k, 2 * k, 3 * k + width, 2 * k + height)).save(root / 'train' / name / f'{k}.jpg', quality=90)
    return root


CASES = {'digits, factor 1': (digits, dict(size=16, factor=1, preselect=12, ipc=3)),
         'digits, factor 2 enlarged': (digits, dict(size=16, factor=2, preselect=12, ipc=2, canvas='enlarge')),
         'cifar10, factor 1': (cifar10, dict(size=32, factor=1, preselect=8, ipc=3)),
         'cifar10, factor 2': (cifar10, dict(size=32, factor=2, preselect=8, ipc=2, canvas='mean')),
         'photos, factor 2': (photos, dict(size=48, factor=2, preselect=8, ipc=1, canvas='mean')),
         'oblong photos, factor 2': (oblong, dict(size=48, factor=2, preselect=16, ipc=2, canvas='enlarge')),
         'photos, factor 3': (photos, dict(size=48, factor=3, preselect=9, ipc=1, crops=2, canvas='enlarge'))}


@pytest.fixture(params=CASES)
def case(request):
    load, settings = CASES[request.param]
    images = load(request)
    images.classes = images.classes[:int(images.y.max()) + 1]
    return images, naive.NearestMean(images, settings['size'], 20), {'crops': 5, 'canvas': 'mean', 'seed': 3, **settings}


def fast(images, observer, *, size, factor, ipc, preselect, crops, canvas, seed):
    found = score.score_images(images, observer, size=size, factor=factor, preselect=preselect, crops=crops, canvas=canvas, seed=seed, batch=50, workers=2)
    return found, distilled.build(images, found, score.choose(found, images, ipc, factor), size, factor, observer=observer)


def test_the_line_is_the_naive_one(case):
    images, observer, settings = case
    found, made = fast(images, observer, **settings)
    slow = naive.distill(images, observer, **settings)
    assert len(made) == len(slow)
    for j, (label, chosen, picture) in enumerate(slow):
        row = made.manifest['images'][j]
        assert row['label'] == label == int(made.y[j])
        same = all(p['source'] == images.sources[i] and p['box'] == list(box) for p, (_, _, _, i, box) in zip(row['patches'], chosen))
        if same: assert np.array_equal(made.x[j].permute(1, 2, 0).numpy(), np.array(picture))
        else: assert_within_tolerance(row['patches'], chosen)


def assert_within_tolerance(ours, theirs):
    "Where two selections differ, the scores concerned are closer than the stated tolerance."
    for p, (value, *_) in zip(ours, theirs): assert abs(p['score'] - value) < score.TOLERANCE


def test_every_score_and_box(case):
    images, observer, settings = case
    found, _ = fast(images, observer, **settings)
    del settings['ipc']
    for label in range(2):
        rows = (found.label == label).nonzero()[:, 0]
        slow = naive.candidates(images, observer, label, **settings)
        assert found.index[rows].tolist() == [i for *_, i, _ in slow]
        assert np.allclose(found.score[rows], [s for s, *_ in slow], atol=score.TOLERANCE / 10, rtol=1e-5)
        for r, (s, _, k, _, box) in zip(rows.tolist(), slow):
            if int(found.crop[r]) == k: assert tuple(found.box[r].tolist()) == box
            else: assert abs(found.scores[r, k] - found.score[r]) < score.TOLERANCE


@pytest.mark.parametrize('scale, ratio', [((0.08, 1.0), (1, 1)), ((0.3, 0.9), (1, 1)), ((0.08, 1.0), (3 / 4, 4 / 3)), ((0.5, 1.0), (2, 3))])
def test_boxes(scale, ratio):
    for height, width in ((32, 32), (375, 500), (500, 333), (16, 200), (1, 1)):
        keys = [hash64(9, height, i) for i in range(40)]
        boxes = patches.sample_boxes(keys, height, width, 3, scale, ratio)
        plain = [[list(naive.box_of(key, height, width, k, scale, ratio)) for k in range(3)] for key in keys]
        assert boxes.tolist() == plain


def test_boxes_are_distributed_as_torchvisions():
    from torchvision.transforms import RandomResizedCrop
    ours = patches.sample_boxes(np.arange(4000), 100, 150, crops=1)[:, 0].double()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = torch.tensor([RandomResizedCrop.get_params(torch.empty(3, 100, 150), (0.08, 1.0), (1.0, 1.0)) for _ in range(4000)]).double()
    for column in range(4):
        a, b = ours[:, column], theirs[:, column]
        assert abs(a.mean() - b.mean()) < 4 * math.sqrt((a.var() + b.var()) / 4000)
        assert torch.allclose(a.quantile(torch.tensor([0.1, 0.5, 0.9]).double()), b.quantile(torch.tensor([0.1, 0.5, 0.9]).double()), atol=4)


def test_crops_are_pillows_bit_for_bit(cifar10_root):
    images = datasets.load(cifar10_root, 'train').subset(range(30))
    x = torch.stack([images[i][0] for i in range(30)])
    boxes = patches.sample_boxes(np.arange(30), 32, 32)
    for size in (16, 32, 40):
        ours = patches.crop(x, boxes, size)
        plain = np.stack([[np.array(naive.cut(images.image(i), b, size)) for b in boxes[i].tolist()] for i in range(30)])
        apart = np.abs(ours.permute(0, 1, 3, 4, 2).numpy().astype(int) - plain)
        assert apart.max() <= 1 and (apart > 0).mean() < 1e-4


@pytest.mark.parametrize('scale', [(0.08, 1.0), (0.2, 0.4)])
def test_a_random_set_uses_the_same_draw_and_boxes(oblong_root, scale):
    images = datasets.load(oblong_root, 'train')
    made = baselines.random_mosaics(images, 2, 32, 2, seed=5, scale=scale)
    for label in (0, 1):
        drawn = naive.draw(images, label, 8, 5)
        sizes = {i: images.image(i).size[::-1] for i in drawn}
        assert {h > w for h, w in sizes.values()} == {True, False}
        ours = {p['source']: p['box'] for p in made.patches if p['label'] == label}
        assert ours == {images.sources[i]: list(naive.box_of(naive.hash64(5, images.ids[i]), *sizes[i], 0, scale)) for i in drawn}


def test_nothing_changes_its_inputs():
    images = datasets.load('digits', 'train')
    before, sources = images.x.clone(), list(images.sources)
    observer = naive.NearestMean(images, 16)
    found, made = fast(images, observer, size=16, factor=2, ipc=1, preselect=8, crops=5, canvas='mean', seed=0)
    copies = [found.score.clone(), found.box.clone(), dict(found.settings), made.x.clone()]
    distilled.build(images, found, score.choose(found, images, 1, 2), 16, 2)
    distilled.rebuild(made.manifest, images)
    assert torch.equal(images.x, before) and images.sources == sources
    assert torch.equal(found.score, copies[0]) and torch.equal(found.box, copies[1]) and found.settings == copies[2] and torch.equal(made.x, copies[3])


GROWTH = """
import re, sys
import torch
import naive
from rded import datasets, score
torch.set_num_threads(1)
images = datasets.load(sys.argv[1], 'train')
images = images.subset(images.of_class(0)[:240])
images.classes = images.classes[:1]
observer, peaks = naive.NearestMean(images, 112, 5), []
for preselect in (20, 240):
    score.score_images(images, observer, preselect=preselect, size=112, factor=2, workers=2)
    peaks.append(int(re.search('VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) / 1024)  # ru_maxrss would begin at the parent's
print(peaks[1] - peaks[0])
"""


def test_memory_does_not_grow_with_the_class(imagenette_root):
    "The crops of one image on their canvases are 0.75 MB; 220 more images leave nothing of it behind. MiB, in a fresh process."
    if not os.path.exists('/proc/self/status'): pytest.skip('no /proc')
    run = subprocess.run([sys.executable, '-c', GROWTH, str(imagenette_root)], cwd=os.path.dirname(__file__), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 15  # 3 to 7; 30 and more where one small tensor a chunk is kept


@pytest.fixture(scope='module')
def real(cifar10_root):
    "(CIFAR-10 as files, the report's observer)."
    weights = ROOT / 'reports' / 'observers' / 'cifar10-conv3.safetensors'
    if not weights.exists(): pytest.skip(f'{weights.name} is not here')
    images = datasets.load(cifar10_root, 'train')
    return images, observer.get_observer(str(weights), images)


def best_ten(found, label):
    rows = (found.label == label).nonzero()[:, 0]
    rows = rows[found.score[rows].argsort(descending=True)][:10]
    return [(i, box) for i, box in zip(found.index[rows].tolist(), found.box[rows].tolist())]


def test_bfloat16_screens_and_float32_decides(real):
    "On real images the ten best of each class are those of float32 throughout, in the same order, and most crops were scored but once."
    images, eyes = real
    options = dict(size=32, factor=1, preselect=60)
    slowly = score.score_images(images, eyes, **options)
    quickly = score.score_images(images, eyes, **options, exact=10, precision='bfloat16')
    for label in range(10): assert best_ten(slowly, label) == best_ten(quickly, label)
    assert 0 < quickly.environment['again'] < 0.3 and quickly.environment['share'] < 0.5
    assert (slowly.scores != quickly.scores).float().mean() > 0.5


def test_the_engine_agrees_with_the_plain_reference_on_real_images(real):
    "One image at a time against chunks and threads: the ten best of forty are the same ten."
    images, eyes = real
    found = score.score_images(images, eyes, size=32, factor=1, preselect=40, exact=10)
    plain = sorted(naive.candidates(images, eyes, 2, size=32, factor=1, preselect=40, crops=5, canvas='mean', seed=0), key=lambda c: (-c[0], c[1]))[:10]
    assert {i for i, _ in best_ten(found, 2)} == {i for _, _, _, i, _ in plain}
    ours = dict(best_ten(found, 2))
    assert all(ours[i] == list(box) for _, _, _, i, box in plain)
