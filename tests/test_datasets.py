"""Data sets against the readers that everybody uses: ImageFolder and torchvision's own."""
import json
import os
import shutil
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets as theirs

from rded.datasets import TORCHVISION, ImageSet, _map, draw_order, load, load_folder
from rded.files import digest64
from rded.images import to_rgb, to_tensor


def paint(path, seed, size=(9, 7), mode='RGB'):
    "A random image of its own at `path`."
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def drawn(images, label, seed, count=10): return [images.ids[i] for i in draw_order(images, label, seed)[:count]]


# Folders

NAMES = {
    'twelve numbers': [str(k) for k in range(1, 13)],
    'cases and signs': ['Zebra', 'ant', 'a-b', 'a_b', 'a b', 'A', 'b.c', '#1', '~x', '[z]'],
    'scripts': ['chat', 'éléphant', 'Ärger', '猫', 'кот', '🐈'],
    'nested': ['a', 'a!', 'aa'],
}


@pytest.mark.parametrize('names', NAMES.values(), ids=NAMES)
def test_classes_and_files_stand_in_imagefolders_order(tmp_path, names):
    for name in names:
        for file in ['10.png', '9.JPG', 'b.jpeg', 'B.webp', 'sub/1.png', 'sub-2/1.png', 'sub/deep/1.bmp', 'note.txt', 'Thumbs.db', '1.gif']:
            touch(tmp_path / 'train' / name / file)
    ours, reference = load(tmp_path), theirs.ImageFolder(tmp_path / 'train')
    assert ours.classes == reference.classes and ours.y.tolist() == reference.targets
    assert [str(tmp_path / source) for source in ours.sources] == [path for path, _ in reference.samples]
    assert load_folder(tmp_path / 'train').y.tolist() == reference.targets


def test_real_imagenette_is_imagefolders(imagenette_root):
    for split in ('train', 'val'):
        ours, reference = load(imagenette_root, split), theirs.ImageFolder(imagenette_root / split)
        assert ours.classes == ours.wnids == reference.classes and ours.y.tolist() == reference.targets
        assert [str(imagenette_root / source) for source in ours.sources] == [path for path, _ in reference.samples]
        for i in range(0, len(ours), 400):
            assert torch.equal(ours[i][0], to_tensor(reference[i][0])) and ours[i][1] == reference[i][1]
            assert ours.content(i) == digest64((imagenette_root / ours.sources[i]).read_bytes())
    assert ours.names[:4] == ['tench', 'English springer', 'cassette player', 'chain saw']


def test_a_large_folder_is_listed_in_about_a_second(tmp_path):
    "50,000, that is: 2,000 in a twenty-fifth of it. Nothing is opened, so the files may be empty."
    for c in range(2):
        folder = tmp_path / 'train' / f'{c:02d}'
        folder.mkdir(parents=True)
        for i in range(1000): os.close(os.open(folder / f'{i:05d}.jpg', os.O_CREAT))
    seconds = []
    for _ in range(3):
        start = time.process_time()
        images = load(tmp_path)
        seconds.append(time.process_time() - start)
    assert len(images) == 2_000 and images.counts() == [1000] * 2 and min(seconds) < 0.05


def test_cifar10_from_its_folder(cifar10_root):
    images = load(cifar10_root)
    val = load(cifar10_root, 'val')
    assert images.classes == val.classes == 'airplane automobile bird cat deer dog frog horse ship truck'.split()
    assert images.ids[0] == 'train/airplane/0000' and val.ids[0] == 'val/airplane/0000' and val.sources[0] == 'test/airplane/0000.jpg'
    order = draw_order(images, 3, 0)
    assert sorted(order) == images.of_class(3).tolist() and order != sorted(order)
    some = images.subset(order[:200])
    alone, pooled = some.in_memory(32), some.in_memory(32, workers=4)
    assert torch.equal(alone.x, pooled.x) and alone.native and alone.ids == pooled.ids == some.ids
    assert torch.equal(alone.x[5], some[5][0]) and some.x is None and some.content(5) == alone.content(5)
    assert torch.equal(some.batch(range(40), 24, workers=3), alone.batch(range(40), 24))


def test_workers_work_side_by_side_and_results_keep_their_order():
    meeting = threading.Barrier(2, timeout=20)
    assert sorted(_map(lambda _: meeting.wait(), range(2), 2)) == [0, 1]
    for workers in (0, 3): assert list(_map(lambda i: i * i, range(3000), workers)) == [i * i for i in range(3000)]


def test_the_order_in_which_a_disk_lists_its_files_changes_nothing(tmp_path, monkeypatch):
    for k in range(40): paint(tmp_path / 'train' / 'ab'[k % 2] / f'{k}.png', k)
    before, scandir = load(tmp_path), os.scandir

    class Backwards(list):
        def __enter__(self): return self
        def __exit__(self, *_): pass

    monkeypatch.setattr(os, 'scandir', lambda path: Backwards(sorted(scandir(path), key=lambda e: e.name, reverse=True)))
    after = load(tmp_path)
    assert before.ids == after.ids and before.sources == after.sources and drawn(before, 1, 7) == drawn(after, 1, 7)


def test_a_path_wins_over_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load('digits').x is not None
    paint(tmp_path / 'digits' / 'train' / 'seven' / '0.png', 0)
    paint(tmp_path / 'torchvision:CIFAR10' / 'train' / 'eight' / '0.png', 0)
    monkeypatch.setenv('HOME', str(tmp_path))
    assert load('~/digits').classes == load(tmp_path / 'digits').classes == ['seven']
    assert load('digits').classes == ['seven'] and load('torchvision:CIFAR10').classes == ['eight']


def test_links_out_of_the_root(tmp_path):
    "Whatever is linked, a class, a file or a split: not followed, said, and followed on request."
    paint(tmp_path / 'elsewhere' / 'train' / 'cat' / '0.png', 0)
    paint(tmp_path / 'elsewhere' / 'train' / 'dog' / '0.png', 1)
    paint(tmp_path / 'data' / 'train' / 'cat' / '1.png', 2)
    (tmp_path / 'data' / 'train' / 'cat' / '0.png').symlink_to(tmp_path / 'elsewhere' / 'train' / 'cat' / '0.png')
    (tmp_path / 'data' / 'train' / 'dog').symlink_to(tmp_path / 'elsewhere' / 'train' / 'dog')
    with pytest.warns(UserWarning, match=r'links that lead out of it are not followed \(2, such as train/dog\): copy what they lead to, or from Python load\(…, links=True\)'):
        assert load(tmp_path / 'data').sources == ['train/cat/1.png']
    followed = load(tmp_path / 'data', links=True)
    assert followed.sources == ['train/cat/0.png', 'train/cat/1.png', 'train/dog/0.png'] and followed.image(2).size == (9, 7)

    (tmp_path / 'linked').mkdir()
    (tmp_path / 'linked' / 'train').symlink_to(tmp_path / 'elsewhere' / 'train')
    with pytest.raises(ValueError, match='has no train/; it holds train; links that lead out of it are not followed'): load(tmp_path / 'linked')
    assert load(tmp_path / 'linked', links=True).sources == ['train/cat/0.png', 'train/dog/0.png']

    for k in range(3):
        (tmp_path / 'full' / 'train' / 'cat').mkdir(parents=True, exist_ok=True)
        (tmp_path / 'full' / 'train' / 'cat' / f'{k}.png').symlink_to(tmp_path / 'elsewhere' / 'train' / 'cat' / '0.png')
    with pytest.raises(ValueError, match=r"class 'cat' of train holds no images; the links in it .*\(3, such as train/cat/..png\) are not followed: copy"): load(tmp_path / 'full')
    (tmp_path / 'full' / 'train' / 'ant').mkdir()
    with pytest.raises(ValueError, match="class 'ant' of train holds no images; add some"): load(tmp_path / 'full')

    (tmp_path / 'way in').symlink_to(tmp_path / 'elsewhere')
    assert load(tmp_path / 'way in').sources == ['train/cat/0.png', 'train/dog/0.png']


def test_a_name_that_only_looks_like_the_root_is_outside(tmp_path):
    paint(tmp_path / 'data-private' / '0.png', 0)
    paint(tmp_path / 'data' / 'train' / 'cat' / '1.png', 1)
    (tmp_path / 'data' / 'train' / 'cat' / '0.png').symlink_to(tmp_path / 'data-private' / '0.png')
    with pytest.warns(UserWarning, match=r'not followed \(1, such as train/cat/0.png\)'): assert len(load(tmp_path / 'data')) == 1


def test_file_names_that_are_not_unicode(tmp_path):
    folder = os.fsencode(tmp_path / 'train' / 'cat')
    os.makedirs(folder)
    paint(tmp_path / 'a.png', 0)
    try: shutil.copy(os.fsencode(tmp_path / 'a.png'), folder + b'/\xff\xfe.png')
    except OSError: pytest.skip('this file system wants Unicode')
    images = load(tmp_path)
    assert images.image(0) == to_rgb(Image.open(tmp_path / 'a.png')) and drawn(images, 0, 0) == images.ids
    images.show()


def test_nothing_changes_its_inputs(tmp_path):
    for k in range(6): paint(tmp_path / 'train' / 'ab'[k % 2] / f'{k}.png', k, (16, 16))
    (tmp_path / 'train' / 'a' / 'x.png').write_bytes(b'broken')
    images = load(tmp_path)
    before = list(images.ids), list(images.sources), images.y.tolist(), list(images.classes)
    with pytest.warns(UserWarning, match='1 of 7 images cannot be read; the first is train/a/x.png: not an image'): memory = images.in_memory(16)
    memory.x.zero_(), memory.y.zero_(), memory.classes.append('c'), repr(images), images.show(), images.batch([0], 8)
    part = load('digits')
    copy = part.x.clone()
    part.subset([1, 2]).x.zero_()
    assert before == (images.ids, images.sources, images.y.tolist(), images.classes) and images.broken == []
    assert torch.equal(part.x, copy)


# Tiny-ImageNet

@pytest.fixture
def tiny(tmp_path):
    "tiny-imagenet-200 as it is downloaded, with 60 classes of few and empty images."
    rng = np.random.default_rng(0)
    wnids = [f'n{k:08d}' for k in rng.choice(10**8, 60, replace=False)]
    root = tmp_path / 'tiny-imagenet-200'
    for wnid in wnids:
        (root / 'train' / wnid / 'images').mkdir(parents=True)
        (root / 'train' / wnid / f'{wnid}_boxes.txt').touch()
        for k in range(2): (root / 'train' / wnid / 'images' / f'{wnid}_{k}.JPEG').touch()
    (root / 'val' / 'images').mkdir(parents=True)
    labels = rng.permutation(wnids * 2).tolist()
    for k in range(120): (root / 'val' / 'images' / f'val_{k}.JPEG').touch()
    (root / 'val' / 'val_annotations.txt').write_text(''.join(f'val_{k}.JPEG\t{wnid}\t0\t1\t62\t63\n' for k, wnid in enumerate(labels)))
    (root / 'wnids.txt').write_text('\n'.join(wnids) + '\n')
    (root / 'words.txt').write_text(''.join(f'{wnid}\tthing {wnid[1:]}, other name\n' for wnid in sorted(wnids)))
    (root / 'test' / 'images').mkdir(parents=True)
    (root / 'test' / 'images' / 'test_0.JPEG').touch()
    return root


def test_tiny_imagenet_as_downloaded_equals_its_imagefolder_view(tiny, tmp_path):
    view = shutil.copytree(tiny, tmp_path / 'view')
    for line in (view / 'val' / 'val_annotations.txt').read_text().splitlines():
        name, wnid = line.split('\t')[:2]
        (view / 'val' / wnid).mkdir(exist_ok=True)
        (view / 'val' / 'images' / name).rename(view / 'val' / wnid / name)
    (view / 'val' / 'images').rmdir()
    (view / 'val' / 'val_annotations.txt').unlink()
    for split in ('train', 'val'):
        ours, moved, reference = load(tiny, split), load(view, split), theirs.ImageFolder(view / split)
        assert ours.classes == ours.wnids == moved.classes == reference.classes and ours.names == [f'thing {w[1:]}' for w in ours.classes]
        assert dict(zip(ours.ids, ours.y.tolist())) == dict(zip(moved.ids, moved.y.tolist()))
        assert {os.path.basename(p): y for p, y in reference.samples} == {os.path.basename(s): int(y) for s, y in zip(ours.sources, ours.y)}
        assert all(drawn(ours, c, 0) == drawn(moved, c, 0) for c in range(0, 60, 7))
        assert all((tiny / source).is_file() for source in ours.sources)


@pytest.mark.parametrize('between', ['', 'images'])
@pytest.mark.parametrize('emptied', [True, False])
def test_tiny_imagenet_moved_by_a_script_that_leaves_the_table(tiny, between, emptied):
    "The usual scripts do, and some leave the empty folder, too."
    before = load(tiny, 'val')
    for line in (tiny / 'val' / 'val_annotations.txt').read_text().splitlines():
        name, wnid = line.split('\t')[:2]
        (tiny / 'val' / wnid / between).mkdir(parents=True, exist_ok=True)
        (tiny / 'val' / 'images' / name).rename(tiny / 'val' / wnid / between / name)
    if not emptied: (tiny / 'val' / 'images').rmdir()
    after = load(tiny, 'val')
    assert after.classes == before.classes and dict(zip(after.ids, after.y.tolist())) == dict(zip(before.ids, before.y.tolist()))
    assert all((tiny / source).is_file() for source in after.sources)


def test_val_is_the_first_of_its_names(tmp_path):
    for split in ('train', 'test', 'validation', 'valid', 'val'):
        paint(tmp_path / split / 'cat' / f'{split}.png', 0)
        if split != 'train': assert load(tmp_path, 'val').sources == [f'{split}/cat/{split}.png']
    with pytest.raises(ValueError, match=f'give the folder above it, {tmp_path}'): load(tmp_path / 'valid', 'val')


def test_whole_numbers_of_32_bits_are_taken_for_8_where_they_fit(tmp_path):
    values = np.arange(256, dtype=np.int32).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / '8.tif')
    Image.fromarray(values * 257).save(tmp_path / '16.tif')
    for name in ('8.tif', '16.tif'): assert np.array_equal(np.asarray(to_rgb(Image.open(tmp_path / name)))[..., 0], values)
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / 'dark.png')
    (tmp_path / 'dark.pgm').write_bytes(b'P5 16 16 65535\n' + values.astype('>u2').tobytes())
    for name in ('dark.png', 'dark.pgm'): assert np.asarray(to_rgb(Image.open(tmp_path / name))).max() == 1


def test_equal_names_below_a_class_are_kept_and_said(tmp_path):
    "Their identities are equal: whatever is drawn comes in clumps."
    for camera in range(2):
        for k in range(3): paint(tmp_path / 'train' / 'a' / f'cam{camera}' / f'{k}.png', 3 * camera + k)
    with pytest.warns(UserWarning, match='3 images have the identity of another, such as train/a/0') as told: images = load(tmp_path)
    assert len([one for one in told if one.category is UserWarning]) == 1 and len(images) == 6 and len({*images.ids}) == 3


def test_images_that_are_enlarged_are_not_the_images_themselves(tmp_path):
    for k in range(2): paint(tmp_path / 'train' / 'ab'[k] / '0.png', k, (64, 64))
    images = load(tmp_path)
    ready = images.in_memory(64)
    assert not ready.native and ready.image(1) == images.image(1) and ready.x.shape == (2, 3, 64, 64)


def test_tiny_imagenet_with_a_table_that_does_not_fit(tiny):
    table = tiny / 'val' / 'val_annotations.txt'
    text, first = table.read_text(), sorted(p.name for p in (tiny / 'train').iterdir())[0]
    table.write_text(''.join(line for line in text.splitlines(True) if first not in line))
    with pytest.raises(ValueError, match=f'disagree about the classes.*lacks {first}'): load(tiny, 'val')
    table.write_text(text + 'val_120.JPEG\tn99999999\t0\t0\t1\t1\n')
    with pytest.raises(ValueError, match='has also n99999999'): load(tiny, 'val')
    table.write_text(text + '../../secret.JPEG\t' + first + '\t0\t0\t1\t1\n')
    assert len(load(tiny, 'val')) == 120


# torchvision's own

def eurosat(home):
    for k in range(23): paint(home / 'eurosat' / '2750' / ['Forest', 'Lake', 'River'][k % 3] / f'{k}.jpg', k)


def food101(home):
    lists = {split: {c: [f'{c}/{split}{k}' for k in range(3)] for c in ['apple_pie', 'waffles']} for split in ('train', 'test')}
    (home / 'food-101' / 'meta').mkdir(parents=True)
    for split, classes in lists.items():
        (home / 'food-101' / 'meta' / f'{split}.json').write_text(json.dumps(classes))
        for k, name in enumerate(sum(classes.values(), [])): paint(home / 'food-101' / 'images' / f'{name}.jpg', k + 10 * len(split))


def pets(home):
    for split, start in [('trainval', 0), ('test', 50)]:
        lines = [f'{["Abyssinian", "great_pyrenees"][k % 2]}_{start + k} {k % 2 + 1} 1 1' for k in range(6)]
        (home / 'oxford-iiit-pet' / 'annotations').mkdir(parents=True, exist_ok=True)
        (home / 'oxford-iiit-pet' / 'annotations' / f'{split}.txt').write_text('\n'.join(lines))
        for k, line in enumerate(lines): paint(home / 'oxford-iiit-pet' / 'images' / f'{line.split()[0]}.jpg', start + k)


def dtd(home):
    base = home / 'dtd' / 'dtd'
    for split in ('train', 'val'):
        names = [f'{c}/{c}_{split}{k}.jpg' for k in range(3) for c in ('banded', 'zigzagged')]
        (base / 'labels').mkdir(parents=True, exist_ok=True)
        (base / 'labels' / f'{split}1.txt').write_text('\n'.join(names) + '\n')
        for k, name in enumerate(names): paint(base / 'images' / name, k + len(split))


def aircraft(home):
    data = home / 'fgvc-aircraft-2013b' / 'data'
    data.mkdir(parents=True)
    (data / 'variants.txt').write_text('707-320\nA300B4\n')
    for start, split in [(0, 'train'), (40, 'val')]:
        lines = [f'{start + k:07d} {["A300B4", "707-320"][k % 2]}' for k in range(5)]
        (data / f'images_variant_{split}.txt').write_text('\n'.join(lines) + '\n')
        for line in lines: paint(data / 'images' / f'{line.split()[0]}.jpg', int(line.split()[0]))


def gtsrb(home):
    for k in range(6): paint(home / 'gtsrb' / 'GTSRB' / 'Training' / f'{k % 3:05d}' / f'{k}.ppm', k)
    rows = ['Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId', *(f'{k:05d}.ppm;9;7;0;0;9;7;{k % 3}' for k in range(4))]
    for k in range(4): paint(home / 'gtsrb' / 'GTSRB' / 'Final_Test' / 'Images' / f'{k:05d}.ppm', 90 + k)
    (home / 'gtsrb' / 'GT-final_test.csv').write_text('\n'.join(rows))


def country211(home):
    for split in ('train', 'valid'):
        for k in range(6): paint(home / 'country211' / split / ['FR', 'DE'][k % 2] / f'{k}.jpg', k + len(split))


def mnist(home, name='MNIST'):
    raw = home / name / 'raw'
    raw.mkdir(parents=True)
    for part, n in [('train', 7), ('t10k', 4)]:
        pixels = np.random.default_rng(n).integers(0, 256, (n, 28, 28), np.uint8)
        sizes = lambda *shape: b''.join(s.to_bytes(4, 'big') for s in shape)
        (raw / f'{part}-images-idx3-ubyte').write_bytes(b'\0\0\x08\x03' + sizes(n, 28, 28) + pixels.tobytes())
        (raw / f'{part}-labels-idx1-ubyte').write_bytes(b'\0\0\x08\x01' + sizes(n) + bytes(k % 10 for k in range(n)))


def flowers(home):
    from scipy.io import savemat
    base = home / 'flowers-102'
    for k in range(1, 13): paint(base / 'jpg' / f'image_{k:05d}.jpg', k)
    savemat(base / 'imagelabels.mat', {'labels': np.array([[1 + k % 102 for k in range(12)]])})
    savemat(base / 'setid.mat', {'trnid': np.array([[1, 5, 9]]), 'valid': np.array([[2, 3]]), 'tstid': np.array([[4, 6, 7, 8, 10, 11, 12]])})


def imagenet(home):
    wnids = ['n01440764', 'n02102040']
    home.mkdir(exist_ok=True)
    torch.save(({w: (w[-3:], 'a thing') for w in wnids}, wnids), home / 'meta.bin')
    for split in ('train', 'val'):
        for k in range(4): paint(home / split / wnids[k % 2] / f'{k}.JPEG', k + len(split))


BUILDERS = {'EuroSAT': eurosat, 'Food101': food101, 'OxfordIIITPet': pets, 'DTD': dtd, 'FGVCAircraft': aircraft, 'GTSRB': gtsrb,
            'Country211': country211, 'MNIST': mnist, 'FashionMNIST': lambda home: mnist(home, 'FashionMNIST'),
            'KMNIST': lambda home: mnist(home, 'KMNIST'), 'Flowers102': flowers, 'ImageNet': imagenet}


def checksums_off(monkeypatch):
    from torchvision.datasets import flowers102
    monkeypatch.setattr(flowers102, 'check_integrity', lambda *_: True)


@pytest.mark.parametrize('name', BUILDERS)
def test_torchvisions_reader_and_ours_agree(tmp_path, monkeypatch, name):
    checksums_off(monkeypatch)
    monkeypatch.setenv('RDED_DATA_HOME', str(tmp_path))
    BUILDERS[name](tmp_path)
    for k, split in enumerate(['train', 'val']):
        ours, made = load(f'torchvision:{name}', split), getattr(theirs, name)(str(tmp_path), **TORCHVISION[name][k])
        numbers = [int(i.split('/')[1]) for i in ours.ids]
        assert len(ours) and ours.ids == ours.sources and ours.ids[0].startswith(f'{split}/') and ours.name == f'torchvision:{name}'
        if name != 'EuroSAT': assert numbers == list(range(len(made)))
        for i, number in enumerate(numbers):
            img, label = made[number]
            assert torch.equal(ours[i][0], to_tensor(to_rgb(img))) and ours[i][1] == label and ours.image(i) == to_rgb(img)
            assert ours.content(i) == ours.reader.content(ours.sources[i])
        assert max(ours.y) < len(ours.classes) == len(ours.names)
        if hasattr(made, 'classes'): assert len(ours.classes) == len(made.classes)
        assert (ours.x is not None) == ('MNIST' in name)
        repr(ours)


def test_cifar_and_svhn_arrays_are_used_as_they_are(tmp_path, monkeypatch):
    "The archives of these sets are checked by MD5, so torchvision's loaded objects stand in for them."
    from scipy.io import savemat
    from torchvision.datasets import svhn
    monkeypatch.setenv('RDED_DATA_HOME', str(tmp_path))
    monkeypatch.setattr(svhn.SVHN, '_check_integrity', lambda self: True)
    rng = np.random.default_rng(0)
    for split, n in [('train', 6), ('test', 3)]:
        savemat(tmp_path / f'{split}_32x32.mat', {'X': rng.integers(0, 256, (32, 32, 3, n), np.uint8), 'y': np.arange(1, n + 1)[:, None]})
    images, made = load('torchvision:SVHN'), theirs.SVHN(str(tmp_path))
    assert images.x.shape == (6, 3, 32, 32) and images.classes == [str(k) for k in range(7)]
    assert all(images.image(i) == made[i][0] and images[i][1] == made[i][1] for i in range(6))

    pixels = rng.integers(0, 256, (5, 32, 32, 3), np.uint8)
    def cifar(self, root, train): self.data, self.targets, self.classes = pixels, [3, 1, 4, 1, 5], list('abcdefghij')
    monkeypatch.setattr(theirs.CIFAR10, '__init__', cifar)
    images = load('torchvision:CIFAR10', 'val')
    assert images.x.shape == (5, 3, 32, 32) and images.y.tolist() == [3, 1, 4, 1, 5] and images.classes == list('abcdefghij')
    assert images.x.permute(0, 2, 3, 1).tolist() == pixels.tolist()


def test_torchvisions_imagenette_on_the_real_one(imagenette_root, tmp_path, monkeypatch):
    (tmp_path / 'imagenette2').symlink_to(imagenette_root)
    monkeypatch.setenv('RDED_DATA_HOME', str(tmp_path))
    for split in ('train', 'val'):
        ours, folder = load('torchvision:Imagenette', split), load(imagenette_root, split)
        assert ours.classes == ours.wnids == folder.wnids and ours.y.tolist() == folder.y.tolist()
        assert ours.names == [names[0] for names in theirs.Imagenette(str(tmp_path), split).classes] and ours.names[0] == 'tench'
        assert all(torch.equal(ours[i][0], folder[i][0]) for i in range(0, len(ours), 500))
        assert ours.ids[7] == f'{split}/7'


def test_what_is_not_there_is_said_and_only_fetched_on_request(tmp_path, monkeypatch):
    monkeypatch.setenv('RDED_DATA_HOME', str(tmp_path / 'home'))
    for name in TORCHVISION:
        with pytest.raises(ValueError, match=f'torchvision:{name} (is not in|has to be fetched by hand)') as caught: load(f'torchvision:{name}')
        assert '\n' not in str(caught.value)
    assert not (tmp_path / 'home').exists() or not any(p.is_file() for p in (tmp_path / 'home').rglob('*'))

    calls = []
    def fetch(self):
        calls.append(self.root)
        eurosat(tmp_path / 'home')
    monkeypatch.setattr(theirs.EuroSAT, 'download', fetch)
    assert len(load('torchvision:EuroSAT', download=True)) + len(load('torchvision:EuroSAT', 'val', download=True)) == 23
    assert calls == [str(tmp_path / 'home')]

    def offline(self): raise OSError('<urlopen error [Errno -3]\nTemporary failure>')
    monkeypatch.setattr(theirs.CIFAR10, 'download', offline)
    with pytest.raises(ValueError, match='torchvision:CIFAR10 cannot be downloaded: [^\n]*Temporary failure'): load('torchvision:CIFAR10', download=True)


def test_every_entry_of_the_table_is_a_reader_with_these_arguments():
    import inspect
    for name, arguments in TORCHVISION.items():
        parameters = inspect.signature(getattr(theirs, name).__init__).parameters
        assert all(set(one) <= set(parameters) for one in arguments), name


def test_a_broken_image_of_a_numbered_set_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv('RDED_DATA_HOME', str(tmp_path))
    eurosat(tmp_path)
    made = theirs.EuroSAT(str(tmp_path))
    open(made.samples[0][0], 'w').write('text')
    with pytest.raises(ValueError, match='^train/0: not an image'): load('torchvision:EuroSAT').image(0)
    with pytest.warns(UserWarning, match='the first is train/0: not an image'): load('torchvision:EuroSAT').in_memory(8)


@pytest.mark.parametrize('size', [28, 64, 32])
def test_the_layout_changes_no_pixel(tmp_path, size):
    "The same images as files and in memory: 28 and 64 pixels are enlarged and cut, 32 stay as they are."
    for k in range(4): paint(tmp_path / 'val' / 'ab'[k % 2] / f'{k}.png', k, (size, size))
    files = load(tmp_path, 'val')
    x = torch.stack([x for x, _ in files])
    held = ImageSet('held', 'val', files.classes, files.y, files.ids, files.sources, files.reader, x=x)
    asked = files.batch(range(4), size)
    assert torch.equal(held.batch(range(4), size), asked) and torch.equal(asked, x) == (size == 32)
    ready = held.in_memory(size)
    assert torch.equal(ready.x, asked) and ready.in_memory(size) is ready and ready.image(2) == files.image(2)
    assert torch.equal(held[2][0], x[2]) and torch.equal(ready.subset([2]).batch([0], size), asked[2:3])
