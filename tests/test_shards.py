"""Tar shards as a data set: the same draw as from a folder, little read and little held, and whatever shards arrive as."""
import gzip
import io
import json
import os
import pickle
import random
import shutil
import sys
import tarfile
import tracemalloc
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from rded import baselines, cli, datasets, distilled, export, pipeline, recipes, score, shards
from rded.models import build
from rded.observer import get_observer, train_observer

torch.set_num_threads(1)


def jpeg(seed, side=24):
    "A small picture unlike the others."
    page = io.BytesIO()
    x = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), np.uint8)
    Image.fromarray(x).resize((side + seed % 5, side), Image.BICUBIC).save(page, 'JPEG')
    return page.getvalue()


def write_tar(path, files, mode='w'):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def by_folder(rows): return [(f'{cls}/{stem}.jpg', content) for cls, stem, content in rows]
def by_key(rows): return [f for cls, stem, content in rows for f in ((f'{stem}.jpg', content), (f'{stem}.cls', str('abc'.index(cls)).encode()))]
def by_json(rows): return [f for cls, stem, content in rows for f in ((f'{stem}.json', json.dumps({'label': 'abc'.index(cls)}).encode()), (f'{stem}.jpg', content))]


def deal(path, rows, parts, layout, ending='tar', mode='w'):
    "Rows dealt out to so many shards, and the list of classes beside them."
    for k in range(parts): write_tar(path / f'train-{k:05d}.{ending}', layout(rows[k::parts]), mode)
    (path / 'classes.json').write_text('["a", "b", "c"]')
    return path


@pytest.fixture(scope='module')
def rows(): return random.Random(0).sample([('abc'[k % 3], f'{k:05d}', jpeg(k)) for k in range(180)], 180)


@pytest.fixture(scope='module')
def plain(tmp_path_factory, rows):
    "The images as class folders."
    root = tmp_path_factory.mktemp('plain') / 'photos'
    for cls, stem, content in rows:
        for split in ('train', 'val'):
            (root / split / cls).mkdir(parents=True, exist_ok=True)
            (root / split / cls / f'{stem}.jpg').write_bytes(content)
    return root


@pytest.fixture(scope='module')
def sharded(tmp_path_factory, rows):
    "The same images in five shards."
    root = deal(tmp_path_factory.mktemp('sharded') / 'photos', rows, 5, by_folder)
    write_tar(root / 'val-0.tar', by_folder(rows))
    return root


@pytest.fixture(scope='module')
def eye(plain, tmp_path_factory):
    torch.manual_seed(0)
    images = datasets.load(plain)
    net = build('conv3', 3, 16, images.classes)
    from rded.models import save
    save(net, tmp_path_factory.mktemp('eye') / 'eye.safetensors')
    return tmp_path_factory.getbasetemp() / 'eye0' / 'eye.safetensors'


def named(images, seed, count): return [[images.ids[i] for i in datasets.draw_order(images, c, seed)[:count]] for c in range(len(images.classes))]


def without_sources(manifest):
    "A manifest without the places of its sources."
    images = [{**image, 'patches': [{k: v for k, v in p.items() if k != 'source'} for p in image['patches']]} for image in manifest['images']]
    return {**manifest, 'images': images}


RECIPE = dict(name='own', data='photos', dataset='photos', classes=3, size=16, ipc=2, factor=2, observer='conv3', student='conv3',
              training=recipes.paper_training('conv3', 2, 3), preselect=20, crops=3)


@pytest.mark.parametrize('method', ['rded', 'random-images', 'random-mosaics', 'herding'])
def test_the_manifest_is_the_folders_in_all_but_the_sources(plain, sharded, eye, method):
    recipe, made = recipes.Recipe(**RECIPE), {}
    for data in (plain, sharded):
        images = datasets.load(data, drawn=(7, 20))
        made[data] = pipeline.make_set(method, recipe, images, get_observer(str(eye), images, 16), 7)
    assert without_sources(made[plain].manifest) == without_sources(made[sharded].manifest)
    assert torch.equal(made[plain].x, made[sharded].x) and made[sharded].manifest['data'] == {'name': 'photos', 'split': 'train', 'images': 180}
    source = made[sharded].patches[0]['source']
    assert source.partition('!')[0] in [f'train-{k:05d}.tar' for k in range(5)] and f"train/{source.partition('!')[2]}" in datasets.load(plain).sources


def test_a_set_is_rebuilt_from_either(plain, sharded, tmp_path):
    for first, other in ((plain, sharded), (sharded, plain)):
        made = baselines.random_mosaics(datasets.load(first, drawn=(0, 8)), 2, 16, 2)
        made.save(tmp_path / first.parent.name)
        again = distilled.rebuild(made.manifest, datasets.load(other))
        assert torch.equal(again.x, made.x) and len(again.moved) == 24
        assert torch.equal(distilled.rebuild(made.manifest, datasets.load(first)).x, made.x)
        report = distilled.verify(tmp_path / first.parent.name, images=datasets.load(other))
        assert report['ok'] and report['moved_sources'] == 24


@pytest.mark.parametrize('layout', [by_folder, by_key, by_json])
@pytest.mark.parametrize('parts', [1, 4, 60])
def test_the_draw_knows_nothing_of_order_and_sharding(plain, rows, tmp_path, layout, parts):
    mixed = random.Random(parts).sample(rows, len(rows))
    found = datasets.load(deal(tmp_path, mixed, parts, layout), drawn=((0, 'other'), 9, 3))
    whole = datasets.load(plain)
    for seed in (0, 'other'): assert named(found, seed, 99) == named(whole, seed, 12)
    assert found.scan.counts == whole.counts() and found.classes == whole.classes and len(found) < 72
    contents = {i: whole.content(k) for k, i in enumerate(whole.ids)}
    assert all(found.content(k) == contents[i] for k, i in enumerate(found.ids))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 50)), st.integers(1, 12))
def test_the_smallest_are_those_of_a_full_sort(numbers, k):
    found = shards.Smallest(k)
    items = [(n, j) for j, n in enumerate(numbers)]
    for item in items:
        if found.wants(item[0]): found.add(item)
        assert len(found.items) < 2 * k
    assert found.sorted() == sorted(items)[:k]


def test_only_what_was_drawn_is_read_again(sharded, rows, monkeypatch):
    found, bytes_read = shards.draw(sharded, preselect=4, spares=0), []
    pread = shards.os.pread
    monkeypatch.setattr(shards.os, 'pread', lambda fd, n, at: bytes_read.append(n) or pread(fd, n, at))
    made = baselines.random_images(found, 4, 16)
    sizes = {f'train/{cls}/{stem}': len(content) for cls, stem, content in rows}
    assert set(bytes_read) <= set(sizes.values()) and len(found) == 12 == len(made)
    assert sum(bytes_read) <= 4 * sum(sizes[i] for i in found.ids)     # looked at, cut out, digested


def test_a_scan_seeks_over_large_members(tmp_path):
    content = bytes(2 ** 20)
    path = write_tar(tmp_path / 'train.tar', [(f'a/{k}.jpg', content) for k in range(8)])
    read = []
    class Counting(io.FileIO):
        def readinto(self, buffer):
            n = super().readinto(buffer)
            read.append(n)
            return n
    with io.BufferedReader(Counting(path)) as file: assert len(list(shards.members(file, path.stat().st_size))) == 8
    assert sum(read) < 2 ** 18


def warned(f):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        result = f()
    return result, [str(w.message) for w in caught]


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('share', [0.0, 0.02, 0.5, 0.85])
def test_a_shard_that_breaks_off_is_named_and_the_rest_goes_on(tmp_path, rows, packed, share):
    ending, mode = ('tar.gz', 'w:gz') if packed else ('tar', 'w')
    root = deal(tmp_path / 'photos', rows, 3, by_folder, ending, mode)
    path = root / f'train-00001.{ending}'
    whole = path.read_bytes()
    path.write_bytes(whole[:int(share * len(whole))])
    found, told = warned(lambda: shards.load(root))
    assert len(told) == 1 and f'1 of 3 shards are damaged: train-00001.{ending}' in told[0] and 'fetch' in told[0] and '\n' not in told[0]
    here = len(found) - 120
    assert f'; {here} images before that' in told[0] and (here > 10 if share == 0.85 else 0 <= here < 45)
    assert list(found.described()['damaged']) == [path.name]
    assert all(found.image(i) for i in range(len(found)))      # no half image among them
    assert baselines.random_images(found, 2, 16).manifest['data']['damaged'] == found.scan.damaged


def test_archives_that_were_joined_are_said_and_the_first_is_used(tmp_path, rows):
    first, second = (write_tar(tmp_path / name, by_folder(part)) for name, part in (('a', rows[:60]), ('b', rows[60:])))
    (tmp_path / 'd').mkdir()
    (tmp_path / 'd' / 'train-0.tar').write_bytes(first.read_bytes() + second.read_bytes())
    with pytest.warns(UserWarning, match='more follows its end mark'): images = datasets.load(tmp_path / 'd')
    assert len(images) == 59      # the last sample before damage may lack a part
    (tmp_path / 'd' / 'train-0.tar').write_bytes(first.read_bytes() + bytes(30000))
    with warnings.catch_warnings(action='error'): assert len(datasets.load(tmp_path / 'd')) == 60


def test_hidden_folders_are_no_classes(tmp_path, rows):
    deal(tmp_path / 'train', rows, 2, by_folder)
    (tmp_path / 'train' / '.cache').mkdir()
    assert len(datasets.load(tmp_path)) == len(rows)


def test_a_class_that_was_in_a_damaged_shard_alone_is_an_error(tmp_path, rows):
    root = deal(tmp_path, sorted(rows), 1, by_folder)
    path = root / 'train-00000.tar'
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    with pytest.raises(ValueError, match="class 'c' of train has no images: fetch the damaged shards again, such as train-00000.tar"): warned(lambda: shards.draw(root))


@pytest.mark.parametrize('where', range(0, 6000, 411))
def test_noise_in_a_shard_is_no_traceback(tmp_path, rows, where):
    path = write_tar(tmp_path / 'train.tar', by_folder(rows[:20]))
    data = bytearray(path.read_bytes())
    data[where:where + 60] = random.Random(where).randbytes(60)
    path.write_bytes(data)
    try: found, told = warned(lambda: shards.load(tmp_path))
    except ValueError as error: assert 'nothing in 1 shards can be used' in str(error)
    else: assert len(found) <= 20 and len(told) <= 2


def member(name, kind=tarfile.REGTYPE, target=''):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_hostile_members_are_refused_and_counted(tmp_path, rows):
    (tmp_path / 'secret.jpg').write_bytes(rows[0][2])
    path = write_tar(tmp_path / 'photos' / 'train.tar', by_folder(rows[:6]))
    with tarfile.open(path, 'a') as tar:
        for info in (member('../secret.jpg'), member('a/../../secret.jpg'), member('/secret.jpg'), member('C:\\secret.jpg'), member('a/s.jpg', tarfile.SYMTYPE, str(tmp_path / 'secret.jpg')),
                     member('a/h.jpg', tarfile.LNKTYPE, 'a/00000.jpg'), member('a/d.jpg', tarfile.CHRTYPE), member('a/f.jpg', tarfile.FIFOTYPE), member('a/.h.jpg'), member('a', tarfile.DIRTYPE)): tar.addfile(info)
    found, told = warned(lambda: shards.load(tmp_path / 'photos'))
    assert sorted(found.ids) == sorted(f'train/{cls}/{stem}' for cls, stem, _ in rows[:6])
    assert len(told) == 1 and '4 members whose names lead out of their folder are refused, the first is ../secret.jpg' in told[0]
    assert '4 members that are links or no files are not followed, the first is a/s.jpg' in told[0]


def test_a_name_or_a_size_without_end_is_damage(tmp_path):
    for kind in (b'L', b'x', b'g'):
        header = bytearray(member('a.jpg', kind).tobuf(tarfile.GNU_FORMAT))
        header[124:136] = b'77777777777\0'
        header[148:156] = b'%06o\0 ' % (sum(header) - sum(header[148:156]) + 256)
        (tmp_path / 'train.tar').write_bytes(bytes(header) + bytes(5000))
        with pytest.raises(ValueError, match='a name of more than'): shards.load(tmp_path)
    deep = b''.join(member('x', b'L').tobuf(tarfile.GNU_FORMAT) for _ in range(5000))
    (tmp_path / 'train.tar').write_bytes(deep)
    with pytest.raises(ValueError, match='no header of a tar archive'): shards.load(tmp_path)


def test_a_gzipped_bomb_of_one_name_stays_small(tmp_path):
    header = bytearray(member('a.jpg', b'L').tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b'%011o\0' % 2 ** 28
    header[148:156] = b'%06o\0 ' % (sum(header) - sum(header[148:156]) + 256)
    with gzip.open(tmp_path / 'train.tar.gz', 'wb', 1) as file:
        file.write(header)
        for _ in range(64): file.write(bytes(2 ** 22))
    tracemalloc.start()
    with pytest.raises(ValueError, match='a name of more than'): shards.load(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 2 ** 24
    tracemalloc.stop()


@pytest.mark.parametrize('listed', [True, False])
def test_a_negative_class_is_none_and_is_counted(tmp_path, rows, listed):
    files = [(f'{k}.jpg', rows[k][2]) for k in range(6)]
    said = [(f'{k}.cls', str(k % 2).encode()) for k in range(4)] + [('4.cls', b'-1'), ('5.json', b'{"label": -7}')]
    write_tar(tmp_path / 'train.tar', [one for pair in zip(files, said) for one in pair])
    if listed: (tmp_path / 'classes.txt').write_text('a\nb\n')
    found, told = warned(lambda: shards.load(tmp_path))
    assert found.counts() == [2, 2] and found.classes == (['a', 'b'] if listed else ['0', '1'])
    assert len(told) == 1 and '2 images have a negative number for a class, which is none, the first is train.tar!4.jpg' in told[0]


def test_an_observer_of_shards_whose_splits_differ_is_refused(tmp_path, rows):
    for split, classes in (('train', 'abc'), ('val', 'ac')): write_tar(tmp_path / f'{split}.tar', by_folder([(c, f'{k}', rows[k][2]) for c in classes for k in range(2)]))
    splits = [datasets.load(tmp_path, split) for split in ('train', 'val')]
    with pytest.raises(ValueError, match=r"different classes \(3 and 2\): 'b' is in train only"): train_observer(*splits, 'conv3', 16, recipes.observer_training('conv3', 'photos', 16))


def test_what_is_kept_of_shards_is_taken_up_for_these_alone(tmp_path, rows):
    for mode, ending in (('w', 'tar'), ('w:gz', 'tar.gz')):
        root = deal(tmp_path / ending, rows, 2, by_folder, ending, mode)
        before = datasets.load(root).digest()
        assert datasets.load(root).digest() == before
        os.utime(root / f'train-00001.{ending}', ns=(0, 0))
        assert datasets.load(root).digest() != before


def test_nothing_is_unpickled(tmp_path, rows):
    class Trap:
        def __reduce__(self): return (pytest.fail, ('unpickled',))
    trap = pickle.dumps(Trap())
    files = [file for stem, ending in (('1', 'pyd'), ('2', 'pth'), ('3', 'pkl')) for file in ((f'{stem}.cls', b'0'), (f'{stem}.{ending}', trap), (f'{stem}.jpg', rows[0][2]))]
    write_tar(tmp_path / 'train.tar', files)
    assert shards.load(tmp_path).image(2).size[1] == 24 and len(shards.load(tmp_path)) == 3


def test_one_identity_twice_is_kept_and_said(tmp_path, rows):
    for k in range(2): write_tar(tmp_path / f'train-{k}.tar', [(f'a/{j}.jpg', rows[k * 5 + j][2]) for j in range(5)])
    found, told = warned(lambda: shards.draw(tmp_path, preselect=6, spares=0))
    assert len(found) == 6 and found.scan.counts == [10] and len(told) == 1 and 'have the identity of another' in told[0]
    order = [found.sources[i] for i in datasets.draw_order(found, 0, 0)]
    assert order == sorted(order, key=lambda s: (datasets.hash64(0, f"train/a/{s.partition('!')[2][2:-4]}"), s))


def test_compressed_shards_are_spooled_and_the_spool_goes(tmp_path, plain, rows, monkeypatch):
    monkeypatch.setattr(shards.tempfile, 'tempdir', str(tmp_path))
    for ending, mode in (('tar.gz', 'w:gz'), ('tgz', 'w:gz'), ('tar.xz', 'w:xz')):
        root = deal(tmp_path / ending / 'photos', rows, 2, by_key, ending, mode)
        found = datasets.load(root, drawn=(3, 5, 1))
        assert named(found, 3, 99) == named(datasets.load(plain), 3, 6) and len(list(tmp_path.glob('rded-shards-*'))) == 1
        contents = {stem: content for _, stem, content in rows}
        assert next(tmp_path.glob('rded-shards-*')).stat().st_size == sum(len(contents[i[-5:]]) for i in found.ids)
        assert [found.content(i) for i in range(18)] == [datasets.digest64(contents[i[-5:]]) for i in found.ids]
        del found
        assert not list(tmp_path.glob('rded-shards-*'))


def test_workers_of_other_processes_read_them(tmp_path, rows):
    from torch.utils.data import DataLoader
    for ending, mode in (('tar', 'w'), ('tar.gz', 'w:gz')):
        found = shards.draw(deal(tmp_path / ending, rows, 2, by_folder, ending, mode), preselect=5, spares=0)
        for images in (found, pickle.loads(pickle.dumps(found))):
            loaded = list(DataLoader(range(15), batch_size=None, num_workers=2, multiprocessing_context='fork', collate_fn=images.__getitem__))
            assert all(torch.equal(x, found[i][0]) and y == found[i][1] for i, (x, y) in enumerate(loaded))


@pytest.fixture
def memory(rows):
    "The shards in fsspec's memory."
    fsspec = pytest.importorskip('fsspec')
    fs = fsspec.filesystem('memory')
    for k in range(3):
        page = io.BytesIO()
        with tarfile.open(fileobj=page, mode='w') as tar:
            for name, content in by_key(rows[k::3]):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        data = page.getvalue()
        fs.pipe(f'/bucket/photos/train-{k:02d}.tar' + '.gz' * (k == 2), gzip.compress(data, 1) if k == 2 else data)
    fs.pipe('/bucket/photos/classes.json', b'["a", "b", "c"]')
    yield fs
    fs.rm('/bucket', recursive=True)


def test_a_url_is_scanned_and_read_by_parts(memory, plain):
    found = datasets.load('memory://bucket/photos', drawn=(0, 6, 2))
    assert found.name == 'photos' and named(found, 0, 99) == named(datasets.load(plain), 0, 8)
    whole = datasets.load(plain)
    assert all(found.content(k) == whole.content(whole.ids.index(i)) for k, i in enumerate(found.ids))
    for pattern in ('memory://bucket/photos/train-{00..01}.tar', 'memory://bucket/photos/train-0*.tar'):
        part = datasets.load(pattern)
        assert part.name == 'photos' and len(part) == 120 and {s.partition('!')[0] for s in part.sources} == {'train-00.tar', 'train-01.tar'}
    with pytest.raises(ValueError, match='has no tar files of val'): datasets.load('memory://bucket/photos', 'val')
    with pytest.raises(ValueError, match='train-07.tar'): datasets.load('memory://bucket/photos/train-{06..07}.tar'.replace('06', '07'))


def test_a_missing_library_is_one_line(monkeypatch, sharded):
    monkeypatch.setitem(sys.modules, 'fsspec.core', None)
    with pytest.raises(ValueError, match=r"needs fsspec, which is not installed: pip install 'rded\[shards\]'"): datasets.load('s3://bucket/photos')
    monkeypatch.setitem(sys.modules, 'webdataset.shardlists', None)
    with pytest.raises(ValueError, match='needs webdataset, which is not installed'): datasets.load(str(sharded / 'train-{00000..00001}.tar'))
    assert len(datasets.load(sharded)) == 180      # a folder needs neither


def test_patterns_splits_and_what_is_not_there(sharded, plain, tmp_path):
    assert len(datasets.load(str(sharded / 'train-{00001..00002}.tar'))) == 72 and len(datasets.load(str(sharded / 'train-0000[12].tar'.replace('[12]', '1')))) == 36
    assert len(datasets.load(str(sharded / 'train-*.tar'))) == 180 and len(datasets.load(sharded, 'val')) == 180
    assert datasets.load(sharded, 'val').ids[0].startswith('val/a/')
    with pytest.raises(ValueError, match='names shards of train, and val is wanted'): datasets.load(str(sharded / 'train-*.tar'), 'val')
    with pytest.raises(ValueError, match='no such shard'): datasets.load(str(sharded / 'train-9.tar'))
    mixed = tmp_path / 'mixed'
    shutil.copytree(plain / 'val', mixed / 'val')
    write_tar(mixed / 'train' / '0.tar', [('a/1.jpg', jpeg(1)), ('b/1.jpg', jpeg(2)), ('c/1.jpg', jpeg(3))])
    assert len(datasets.load(mixed)) == 3 and len(datasets.load(mixed, 'val')) == 180
    (plain.parent / 'train.tar').write_bytes(b'')
    assert len(datasets.load(plain)) == 180      # class folders win


def test_an_archive_with_both_splits_gives_each_its_own(tmp_path):
    names = [f'set/{split}/{cls}/{split}{k}' for split in ('train', 'val') for cls in ('cat', 'dog', 'train') for k in range(3)]
    write_tar(tmp_path / 'set.tgz', [(f'{name}.jpg', jpeg(0)) for name in names], 'w:gz')
    write_tar(tmp_path / 'keys.tar', [file for k, name in enumerate(names) for file in ((f'{name}.jpg', jpeg(0)), (f'{name}.cls', str(k // 3 % 3).encode()))])
    for name, classes in (('set.tgz', ['cat', 'dog', 'train']), ('keys.tar', ['0', '1', '2'])):
        for split, other in (('train', 'val'), ('val', 'train')):
            found, told = warned(lambda: datasets.load(str(tmp_path / name), split))
            assert found.classes == classes and found.counts() == [3, 3, 3] and all(source.partition('!')[2].startswith(f'set/{split}/') for source in found.sources)
            assert len(told) == 1 and f'9 images lie in a folder of {other} and are passed over, the first is set/{other}/cat/{other}0.jpg' in told[0]


@pytest.mark.parametrize('labelled', [False, True])
def test_a_class_may_be_called_as_a_split(tmp_path, labelled):
    for split in ('train', 'val'):
        files = [(f'{cls}/{k}.jpg', jpeg(k)) for cls in ('apple', 'test', 'train') for k in range(2)]
        if labelled: files = [file for name, data in files for file in ((name, data), (name[:-3] + 'cls', str(['apple', 'test', 'train'].index(name[:-6])).encode()))]
        write_tar(tmp_path / f'{split}-0.tar', files)
        found, told = warned(lambda: datasets.load(tmp_path, split))
        assert found.counts() == [2, 2, 2] and not told


def test_images_to_validate_on_are_called_so(tmp_path):
    content = [(f'{cls}/{k}.jpg', jpeg(k)) for cls in 'ab' for k in range(3)]
    for name in ('shard-0.tar', 'train/0.tar', 'val/0.tar', 'photos-test/0.tar', 'val/train/0.tar'): write_tar(tmp_path / name, content)
    for name in ('shard-0.tar', 'shard-*.tar', 'train/0.tar', 'val/train/0.tar'):
        with pytest.raises(ValueError, match=r'does not say which split it is, .*: give a folder that holds both \(train\*.tar and val\*.tar\)'): datasets.load(str(tmp_path / name), 'val')
        assert len(datasets.load(str(tmp_path / name))) == 6
    for name in ('val/0.tar', 'photos-test/0.tar'): assert len(datasets.load(str(tmp_path / name), 'val')) == 6
    assert [len(datasets.load(f"held-out-1:{tmp_path / 'shard-0.tar'}", split)) for split in ('train', 'val')] == [4, 2]
    write_tar(tmp_path / 'inside.tar', [('readme.jpg', jpeg(0)), *((f'val/{name}', data) for name, data in content)])
    assert datasets.load(str(tmp_path / 'inside.tar'), 'val').classes == ['a', 'b']


def test_labels_in_json_are_whole_numbers_or_names(tmp_path):
    said = ['{"label": 1.0}', '{"label": 0}', '{"label": "", "cls": 2}', '{"label": " ", "class": 0.0}']
    write_tar(tmp_path / 'train.tar', [file for k, text in enumerate(said) for file in ((f'x/{k}.jpg', jpeg(k)), (f'x/{k}.json', text.encode()))])
    found, told = warned(lambda: datasets.load(tmp_path))
    assert found.classes == ['0', '1', '2'] and found.counts() == [2, 1, 1] and not told
    write_tar(tmp_path / 'train.tar', [file for k, text in enumerate(['{"label": 1.5}', '{"label": null}', '{"label": true, "cls": [3]}', '{"caption": "x"}'])
                                       for file in ((f'x/{k}.json', text.encode()), (f'x/{k}.jpg', jpeg(k)))])
    found, told = warned(lambda: datasets.load(tmp_path))
    assert found.classes == ['x'] and len(found) == 4
    assert len(told) == 1 and '3 labels in .json are neither a whole number nor a name and are passed over, the first is x/0.json' in told[0]


@pytest.mark.parametrize('label', ['3000000', '1e300'])
def test_a_large_number_for_a_class_stays_small(tmp_path, label):
    write_tar(tmp_path / 'train.tar', [file for k, said in enumerate(['0', label]) for file in ((f'{k}.jpg', jpeg(k)), (f'{k}.json', f'{{"label": {said}}}'.encode()))])
    tracemalloc.start()
    with pytest.raises(ValueError, match="class '1' of train has no images: classes are numbers from 0 on"): shards.load(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 2 ** 24
    tracemalloc.stop()


def test_shards_beside_and_in_the_folder_of_a_split_are_refused(tmp_path):
    for name in ('train-extra.tar', 'train/000.tar'): write_tar(tmp_path / name, [('a/0.jpg', jpeg(0))])
    with pytest.raises(ValueError, match='tar files of train both in train/ and beside it, such as train-extra.tar: move them'): datasets.load(tmp_path)


def test_a_list_of_classes_in_another_encoding_is_named(tmp_path):
    write_tar(tmp_path / 'train.tar', [('0.jpg', jpeg(0)), ('0.cls', b'0')])
    (tmp_path / 'classes.txt').write_bytes('café\n'.encode('latin-1'))
    with pytest.raises(ValueError, match=r'classes.txt is not in UTF-8: save it as UTF-8'): datasets.load(tmp_path)


def test_links_out_of_the_folder_are_not_followed(sharded, tmp_path):
    (tmp_path / 'photos').mkdir()
    shutil.copy(sharded / 'train-00000.tar', tmp_path / 'photos')
    (tmp_path / 'photos' / 'train-00001.tar').symlink_to(sharded / 'train-00001.tar')
    found, told = warned(lambda: datasets.load(tmp_path / 'photos'))
    assert len(found) == 36 and 'links that lead out of it are not followed (1, such as train-00001.tar)' in told[0]
    assert len(datasets.load(tmp_path / 'photos', links=True)) == 72


def test_what_rded_exports_it_also_reads(tmp_path, plain):
    made = baselines.random_mosaics(datasets.load(plain), 4, 16, 2)
    export.webdataset(made, tmp_path / 'out', each=5)
    images = datasets.load(tmp_path / 'out')
    assert images.classes == made.classes and images.y.tolist() == made.y.tolist()
    assert all(torch.equal(images[i][0], made.x[i]) for i in range(12))


def test_webdataset_sees_the_same_samples(sharded, tmp_path, rows):
    import webdataset
    root = deal(tmp_path, rows, 2, by_key)
    theirs = {s['__key__']: (s['jpg'], int(s['cls'])) for s in webdataset.WebDataset(sorted(map(str, root.glob('*.tar'))), shardshuffle=False, empty_check=False)}
    found = shards.load(root)
    assert {i[-5:]: (datasets.digest64(theirs[i[-5:]][0]), theirs[i[-5:]][1]) for i in found.ids} == {i[-5:]: (found.content(k), int(found.y[k])) for k, i in enumerate(found.ids)}


def broken_rows(rows, n):
    "Rows whose class a has n broken images at the head of its draw."
    order = sorted((r for r in rows if r[0] == 'a'), key=lambda r: datasets.hash64(0, f'train/a/{r[1]}'))
    bad = {r[1] for r in order[:n]}
    return [(cls, stem, b'no image' if stem in bad else content) for cls, stem, content in rows]


def test_broken_images_are_replaced_and_a_lack_of_spares_is_said(tmp_path, rows, plain, eye):
    recipe = recipes.Recipe(**{**RECIPE, 'preselect': 10})
    few = datasets.load(deal(tmp_path / 'few', broken_rows(rows, 4), 2, by_folder), drawn=(0, 10, 4))
    for more, said in ((dict(preselect=11), '11 images a class are asked, 10 were drawn'), (dict(preselect=10, seed=1), 'drawn for seed 0')):     # not what lies there of spares
        with pytest.raises(ValueError, match=said): score.score_images(few, get_observer(str(eye), few, 16), size=16, **more)
    made, told = warned(lambda: pipeline.distill(recipe, few, get_observer(str(eye), few, 16)))
    assert len(made.manifest['broken']) == 4 and made.manifest['settings']['drawn'] == [10, 10] and not told
    many = datasets.load(deal(tmp_path / 'many', broken_rows(rows, 6), 2, by_folder), drawn=(0, 10, 4))
    made, told = warned(lambda: pipeline.distill(recipe, many, get_observer(str(eye), many, 16)))
    assert made.manifest['settings']['drawn'] == [8, 10]
    most = datasets.load(deal(tmp_path / 'most', broken_rows(rows, 7), 2, by_folder), drawn=(0, 10, 4))
    with pytest.raises(ValueError, match='more images of a are broken than the 4 kept in reserve, and too few are left'): pipeline.distill(recipe, most, get_observer(str(eye), most, 16))
    assert any('more images of a are broken than the 4 kept in reserve' in t and '--spares' in t for t in told)
    with pytest.raises(ValueError, match='drawn for seed 0'): pipeline.distill(recipe, few, get_observer(str(eye), few, 16), seed=1)
    with pytest.raises(ValueError, match='11 images a class are asked, 10 were drawn'): pipeline.distill(recipes.Recipe(**{**RECIPE, 'preselect': 11}), few, get_observer(str(eye), few, 16))


def test_memory_is_flat(tmp_path):
    content, most = jpeg(0), []
    for n in (1_500, 9_000):
        path = write_tar(tmp_path / f'{n}' / 'train.tar', ((f'{k % 3}/{k:06d}.jpg', content) for k in range(n)))
        tracemalloc.start()
        found = shards.draw(path.parent, preselect=30, spares=0)
        most.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert sum(found.scan.counts) == n and len(found) == 90
    assert most[1] < 1.25 * most[0]


def test_the_command_distils_shards_without_listing_them(sharded, plain, eye, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shards, 'load', lambda *_: pytest.fail('everything was indexed'))
    words = ['distill', '--observer', str(eye), '--ipc', '2', '--factor', '2', '--preselect', '20', '--crops', '2', '--no-check', '--quiet', '--device', 'cpu']
    for name, data in (('s', sharded), ('f', plain)): assert cli.main([*words, '--data', str(data), '--out', str(tmp_path / name)]) == 0
    read = lambda name: distilled.read_manifest(tmp_path / name / 'rded.json')
    assert without_sources(read('s')) == without_sources(read('f'))
    monkeypatch.undo()
    assert cli.main(['verify', str(tmp_path / 's'), '--data', str(plain)]) == 0 and '(24 of them moved)' in capsys.readouterr().out
    assert cli.main(['rebuild', '--manifest', str(tmp_path / 'f' / 'rded.json'), '--data', str(sharded), '--out', str(tmp_path / 'again')]) == 0
    assert 'to the bit' in capsys.readouterr().out


@pytest.mark.parametrize('make, message', [
    (lambda p: write_tar(p / 'train.tar', [('1.jpg', b'x')]), 'images have no class'),
    (lambda p: write_tar(p / 'train.tar', [('n1/inner.tar', b'x')]), 'they hold no image files'),
    (lambda p: (p / 'train.tar').write_bytes(b''), 'it is empty'),
    (lambda p: (p / 'other.tar').write_bytes(b''), 'has no tar files of train'),
    (lambda p: (write_tar(p / 'train.tar', [('1.jpg', b'x'), ('1.cls', b'9')]), (p / 'classes.json').write_text('["a"]')), 'class 9 is not among the 1'),
    (lambda p: (write_tar(p / 'train.tar', [('1.jpg', b'x'), ('1.cls', b'1')])), "class '0' of train has no images"),
    (lambda p: (write_tar(p / 'train.tar', [('a/1.jpg', b'x')]), (p / 'classes.txt').write_text('a\na\n')), "names 'a' twice"),
    (lambda p: (write_tar(p / 'train.tar', [('a/1.jpg', b'x')]), (p / 'classes.json').write_text('[')), 'a list of class names is expected')])
def test_what_cannot_be_used_is_one_line_and_status_2(tmp_path, capsys, make, message):
    make(tmp_path)
    assert cli.main(['distill', '--data', str(tmp_path), '--method', 'random-images', '--size', '16', '--ipc', '1', '--out', str(tmp_path / 'out')]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said and '\n' not in said and 'Traceback' not in said


def test_real_images_in_shards_are_drawn_as_from_their_folder(cifar10_root, tmp_path):
    folder = datasets.load(cifar10_root)
    some = [i for c in range(10) for i in folder.of_class(c)[:60].tolist()]
    files = [(folder.sources[i].removeprefix('train/'), (cifar10_root / folder.sources[i]).read_bytes()) for i in random.Random(1).sample(some, len(some))]
    for k in range(4): write_tar(tmp_path / 'cifar10' / f'train-{k}.tar', files[k::4])
    theirs, ours = folder.subset(some), datasets.load(tmp_path / 'cifar10', drawn=(5, 12, 0))
    assert named(ours, 5, 99) == named(theirs, 5, 12) and Counter(ours.y.tolist()) == {c: 12 for c in range(10)}
    a, b = (baselines.random_mosaics(images, 3, 32, 2, 5) for images in (ours, theirs))
    assert without_sources(a.manifest)['images'] == without_sources(b.manifest)['images'] and torch.equal(a.x, b.x)
