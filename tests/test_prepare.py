"""Data laid out from archives of the official structure, made here: counts, resumption after SIGKILL, and archives that want to write elsewhere."""
import io
import json
import os
import signal
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rded import datasets, prepare
from rded.cli import main
from rded.prepare import ILSVRC, KNOWN


def jpeg(k):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(k).integers(0, 256, (12, 16, 3), np.uint8)).save(file, 'jpeg')
    return file.getvalue()


def add(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def tar_of(files):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode='w') as tar:
        for name, data in files.items(): add(tar, name, data)
    return file.getvalue()


def official(root, images, val_each=2, spoil=None):
    "The three archives of ILSVRC for {wnid: [bytes of each training image]}; the last of each class are validated on."
    from scipy.io import savemat
    root.mkdir(parents=True, exist_ok=True)
    wnids = list(images)
    with tarfile.open(root / ILSVRC['train'], 'w') as tar:
        for w in wnids: add(tar, f'{w}.tar', tar_of({f'{w}_{k}.JPEG': data for k, data in enumerate(images[w])}))
    truth = [c for _ in range(val_each) for c in range(len(wnids))]
    with tarfile.open(root / ILSVRC['val'], 'w') as tar:
        for k, c in enumerate(truth, 1): add(tar, f'ILSVRC2012_val_{k:08d}.JPEG', images[wnids[c]][-1 - (k - 1) // len(wnids)])
    kinds = [('ILSVRC2012_ID', int), ('WNID', object), ('num_children', int), ('num_train_images', int)]
    ids = {w: 7 + 3 * k for k, w in enumerate(wnids)}                 # the kit's numbers are no positions
    meta = io.BytesIO()
    savemat(meta, {'synsets': np.array([(ids[w], w, 0, len(images[w])) for w in wnids] + [(999, 'n00000001', 4, 0)], kinds)})
    with tarfile.open(root / ILSVRC['devkit'], 'w:gz') as tar:
        add(tar, 'ILSVRC2012_devkit_t12/data/meta.mat', meta.getvalue())
        add(tar, 'ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt', ''.join(f'{ids[wnids[c]]}\n' for c in truth).encode())
    return root


FOUR = ['n02979186', 'n01440764', 'n03000684', 'n02102040']           # not in order, as in the archive


@pytest.fixture
def drawn(tmp_path):
    "Archives of four classes with 5, 6, 7 and 8 images."
    return official(tmp_path / 'official', {w: [jpeg(10 * c + k) for k in range(5 + c)] for c, w in enumerate(FOUR)})


@pytest.fixture
def small(monkeypatch):
    "An ImageNet-1K of four classes."
    monkeypatch.setitem(KNOWN, 'imagenet1k', replace(KNOWN['imagenet1k'], classes=4, train=(5, 8), val=(2, 2), totals=None))


def tree(folder): return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob('*')) if p.is_file() and not p.name.startswith('.')}


def test_imagenet_from_its_archives(drawn, small, tmp_path):
    made = prepare.prepare('imagenet1k', drawn, tmp_path / 'out')
    assert made == {'name': 'imagenet1k', 'folder': str(tmp_path / 'out'), 'classes': 4, 'made': 8, 'train': 26, 'val': 8}
    train, val = (datasets.load(tmp_path / 'out', s) for s in ('train', 'val'))
    assert train.classes == sorted(FOUR) and train.counts() == [6, 8, 5, 7] and val.counts() == [2] * 4
    for c, w in enumerate(FOUR):                                       # the very bytes, under the right class
        assert (tmp_path / 'out' / 'train' / w / f'{w}_3.JPEG').read_bytes() == jpeg(10 * c + 3)
        assert {p.read_bytes() for p in (tmp_path / 'out' / 'val' / w).iterdir()} == {jpeg(10 * c + 4 + c), jpeg(10 * c + 3 + c)}
    record = json.loads((tmp_path / 'out' / 'rded-data.json').read_text())
    assert record['checked'] and record['counts']['train']['n02979186'] == 5


def test_real_photographs_keep_their_bytes_and_labels(imagenette_root, tmp_path, monkeypatch):
    wnids = sorted(os.listdir(imagenette_root / 'train'))[:4]
    files = {w: sorted((imagenette_root / 'train' / w).iterdir())[:6] for w in reversed(wnids)}
    official(tmp_path / 'official', {w: [f.read_bytes() for f in fs] for w, fs in files.items()})
    monkeypatch.setitem(KNOWN, 'imagenette', replace(KNOWN['imagenette'], classes=wnids[:3], train=(6, 6), val=(2, 2), totals=(18, 6)))
    prepare.prepare('imagenette', tmp_path / 'official', tmp_path / 'out')
    images = datasets.load(tmp_path / 'out')
    assert images.wnids == wnids[:3]
    for i in range(len(images)): assert images.content(i) == datasets.digest64(files[images.classes[images.y[i]]][i % 6].read_bytes())


@pytest.mark.parametrize('spoil, words', [
    (lambda c: c.pop('n01440764'), ['3 classes, not 4']), (lambda c: c['n02979186'].pop(), ['train/n02979186', 'not 5'])])
def test_what_is_missing_is_said(drawn, small, tmp_path, spoil, words):
    images = {w: [jpeg(10 * c + k) for k in range(5 + c)] for c, w in enumerate(FOUR)}
    whole = (drawn / ILSVRC['devkit']).read_bytes(), (drawn / ILSVRC['val']).read_bytes()
    spoil(images)
    official(drawn, images)
    for name, data in zip(('devkit', 'val'), whole): (drawn / ILSVRC[name]).write_bytes(data)
    with pytest.raises(ValueError) as error: prepare.prepare('imagenet1k', drawn, tmp_path / 'out')
    assert all(w in str(error.value) for w in words) and '--no-check' in str(error.value)
    assert prepare.prepare('imagenet1k', drawn, tmp_path / 'out', check=False)['classes'] in (3, 4)


def test_a_missing_archive_is_named(drawn, tmp_path):
    (drawn / ILSVRC['devkit']).unlink()
    with pytest.raises(ValueError, match='devkit_t12.tar.gz not found.*an account is needed'): prepare.prepare('imagenet1k', drawn, tmp_path / 'out')


def test_killed_at_any_moment_it_goes_on(drawn, tmp_path):
    "SIGKILL inside a class, again and again; what stands is whole, and the end is what an undisturbed run makes."
    code = '''
import sys, time
from dataclasses import replace
from rded import prepare
prepare.KNOWN['imagenet1k'] = replace(prepare.KNOWN['imagenet1k'], classes=4, train=(5, 8), val=(2, 2), totals=None)
put = prepare._put
def slow(member, target):
    put(member, target)
    print(target, flush=True)
    time.sleep(0.02)
prepare._put = slow
prepare.prepare('imagenet1k', sys.argv[1], sys.argv[2])
'''
    for stop in (3, 9, 5):
        process = subprocess.Popen([sys.executable, '-c', code, drawn, tmp_path / 'out'], stdout=subprocess.PIPE, text=True)
        for _ in range(stop): process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
        for folder in (p for s in ('train', 'val') for p in (tmp_path / 'out' / s).glob('*')):
            assert len(list(folder.iterdir())) == (5 + FOUR.index(folder.name) if folder.parent.name == 'train' else 2)
    process = subprocess.run([sys.executable, '-c', code, drawn, tmp_path / 'out'], capture_output=True, text=True, check=True)
    assert len(process.stdout.splitlines()) < 34                       # not all over again
    subprocess.run([sys.executable, '-c', code.replace('0.02', '0'), drawn, tmp_path / 'whole'], capture_output=True, check=True)
    assert tree(tmp_path / 'out') == tree(tmp_path / 'whole')
    assert not (tmp_path / 'out' / '.preparing').exists()


@pytest.mark.parametrize('name', ['../evil.JPEG', '/evil.JPEG', 'a/../../evil.JPEG'])
def test_members_may_not_leave_their_folder(tmp_path, name):
    for kind in ('tar', 'inner'):
        root = official(tmp_path / kind, {w: [jpeg(k) for k in range(3)] for w in FOUR})
        with tarfile.open(root / ILSVRC['val' if kind == 'tar' else 'train'], 'a') as tar:
            add(tar, name if kind == 'tar' else 'n09999999.tar', jpeg(1) if kind == 'tar' else tar_of({name: jpeg(1)}))
        with pytest.raises(ValueError, match='leaves its folder'):
            prepare._groups('imagenet1k', KNOWN['imagenet1k'], root) if kind == 'tar' else [list(g[2]) for g in prepare._train_tars(root / ILSVRC['train'], {'n09999999'})]
    assert not list(tmp_path.rglob('evil*'))


@pytest.mark.parametrize('kind', [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    with tarfile.open(tmp_path / 'imagenette2.tgz', 'w:gz') as tar:
        info = tarfile.TarInfo('imagenette2/train/n01440764/x.JPEG')
        info.type, info.linkname = kind, '../../../secret'
        tar.addfile(info)
    assert main(['prepare', 'imagenette-fastai', '--source', str(tmp_path), '--out', str(tmp_path / 'out')]) == 2
    assert not list((tmp_path / 'out').rglob('*.JPEG'))


def test_a_link_in_a_zip_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / 'tiny-imagenet-200.zip', 'w') as archive:
        info = zipfile.ZipInfo('tiny-imagenet-200/train/n01443537/images/x.JPEG')
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, '/etc/passwd')
    with pytest.raises(ValueError, match='is a link'): prepare.prepare('tinyimagenet', tmp_path, tmp_path / 'out')


def tiny(root):
    "tiny-imagenet-200 with two classes: folder and zip."
    top = root / 'tiny-imagenet-200'
    for c, w in enumerate(('n01443537', 'n01629819')):
        (top / 'train' / w / 'images').mkdir(parents=True)
        for k in range(3): (top / 'train' / w / 'images' / f'{w}_{k}.JPEG').write_bytes(jpeg(10 * c + k))
        (top / 'train' / w / f'{w}_boxes.txt').write_text('0 0 1 1')
    for part in ('val', 'test'):
        (top / part / 'images').mkdir(parents=True)
        for k in range(4): (top / part / 'images' / f'{part}_{k}.JPEG').write_bytes(jpeg(50 + k))
    (top / 'val' / 'val_annotations.txt').write_text(''.join(f'val_{k}.JPEG\t{("n01443537", "n01629819")[k % 2]}\t0\t0\t9\t9\n' for k in range(4)))
    with zipfile.ZipFile(root / 'tiny-imagenet-200.zip', 'w') as archive:
        for p in sorted(top.rglob('*')): archive.write(p, p.relative_to(root))
    return top


def test_tiny_imagenet_from_zip_and_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(KNOWN, 'tinyimagenet', replace(KNOWN['tinyimagenet'], classes=2, train=(3, 3), val=(2, 2), totals=(6, 4)))
    top = tiny(tmp_path)
    for name, source in (('zip', tmp_path), ('folder', top)):
        made = prepare.prepare('tinyimagenet', source, tmp_path / name)
        assert (made['train'], made['val']) == (6, 4)
        val = datasets.load(tmp_path / name, 'val')
        assert sorted(s.split('/')[1] + s[-6] for s in val.sources) == ['n014435370', 'n014435372', 'n016298191', 'n016298193']
    assert {k: v for k, v in tree(tmp_path / 'zip').items() if k.endswith('JPEG')} == {k: v for k, v in tree(tmp_path / 'folder').items() if k.endswith('JPEG')}
    (tmp_path / 'tiny-imagenet-200.zip').write_bytes((tmp_path / 'tiny-imagenet-200.zip').read_bytes()[:-300])
    with pytest.raises(ValueError, match='damaged or incomplete'): prepare.prepare('tinyimagenet', tmp_path / 'tiny-imagenet-200.zip', tmp_path / 'again')


def test_fastai_keeps_its_own_split(tmp_path, monkeypatch):
    monkeypatch.setitem(KNOWN, 'imagenette-fastai', replace(KNOWN['imagenette-fastai'], classes=FOUR, train=(2, 2), val=(3, 3), totals=(8, 12)))
    with tarfile.open(tmp_path / 'imagenette2-160.tgz', 'w:gz') as tar:
        add(tar, 'imagenette2-160/.DS_Store', b'x')
        add(tar, 'imagenette2-160/noisy_imagenette.csv', b'x')
        for split, n in (('train', 2), ('val', 3)):
            for w in FOUR:
                for k in range(n): add(tar, f'imagenette2-160/{split}/{w}/{w}_{k}.JPEG', jpeg(k))
    made = prepare.prepare('imagenette-fastai', tmp_path, tmp_path / 'out')
    assert (made['train'], made['val'], made['made']) == (8, 12, 8)


def fastai(path, missing=(), scale=1):
    "fast.ai's archive of four classes with two training and three validation images each."
    with tarfile.open(path, 'w:gz') as tar:
        for split, n in (('train', 2), ('val', 3)):
            for w in FOUR:
                for k in range(n):
                    if (split, w, k) not in missing: add(tar, f'imagenette2/{split}/{w}/{w}_{k}.JPEG', scale * jpeg(k))


@pytest.fixture
def four(monkeypatch): monkeypatch.setitem(KNOWN, 'imagenette-fastai', replace(KNOWN['imagenette-fastai'], classes=FOUR, train=(1, 2), val=(2, 3), totals=(8, 12)))


def test_two_sources_are_not_mixed(tmp_path, four, monkeypatch):
    small, large, out = tmp_path / 'imagenette2-160.tgz', tmp_path / 'imagenette2-320.tgz', tmp_path / 'out'
    fastai(small); fastai(large, scale=2)
    make = lambda source: prepare.prepare('imagenette-fastai', source, out)
    fill, left = prepare.fill, [3]
    def interrupted(*args):
        left[0] -= 1
        if left[0] < 0: raise KeyboardInterrupt
        return fill(*args)
    monkeypatch.setattr(prepare, 'fill', interrupted)
    with pytest.raises(KeyboardInterrupt): make(small)
    monkeypatch.setattr(prepare, 'fill', fill)
    refused = pytest.raises(ValueError, match=r'was made from imagenette2-160.tgz \(\d+ bytes\), not from imagenette2-320.tgz')
    with refused: make(large)
    assert make(small)['made'] == 5 and make(small)['made'] == 0
    with refused: make(large)
    record = json.loads((out / 'rded-data.json').read_text())
    assert record['source'] == {small.name: small.stat().st_size} and str(tmp_path) not in str(record)
    record.pop('source')                                               # prepared before sources were noted
    (out / 'rded-data.json').write_text(json.dumps(record))
    assert make(large)['made'] == 0


def test_an_unfinished_set_begins_anew_when_its_archive_is_fetched_again(tmp_path, four):
    source, out = tmp_path / 'imagenette2-160.tgz', tmp_path / 'out'
    fastai(source, scale=2)
    prepare.prepare('imagenette-fastai', source, out)
    record = json.loads((out / 'rded-data.json').read_text())
    (out / 'rded-data.json').write_text(json.dumps({k: v for k, v in record.items() if k not in prepare.FINISHED}))
    fastai(source)
    assert prepare.prepare('imagenette-fastai', source, out)['made'] == 8
    assert {p.read_bytes() for p in out.rglob('*_0.JPEG')} == {jpeg(0)}


@pytest.mark.parametrize('missing', [{('train', FOUR[1], 1)}, {('val', FOUR[2], k) for k in range(3)}, {('train', FOUR[0], 0), ('train', FOUR[0], 1), ('val', FOUR[0], 0)}])
@pytest.mark.parametrize('unpacked', [False, True])
def test_what_was_wrong_is_made_again_from_a_mended_source(tmp_path, four, missing, unpacked):
    source = tmp_path / 'imagenette2-160.tgz'
    def give(missing):
        fastai(source, missing)
        if not unpacked: return source
        with tarfile.open(source) as tar: tar.extractall(tmp_path / 'folder', filter='data')
        return tmp_path / 'folder' / 'imagenette2'
    argv = lambda missing: ['prepare', 'imagenette-fastai', '--source', str(give(missing)), '--out', str(tmp_path / 'out')]
    assert main(argv(missing)) == 2
    assert len(tree(tmp_path / 'out')) == 8 + 12 + 1 - len(missing)     # what stands is left
    assert main(argv(set())) == 0
    assert len(tree(tmp_path / 'out')) == 8 + 12 + 1


def test_what_torchvision_leaves_of_imagenet_is_a_folder_that_is_laid_out(drawn, small, tmp_path):
    prepare.prepare('imagenet1k', drawn, tmp_path / 'imagenet')
    (tmp_path / 'imagenet' / ILSVRC['devkit']).write_bytes((drawn / ILSVRC['devkit']).read_bytes())
    assert prepare.prepare('imagenet1k', tmp_path / 'imagenet', tmp_path / 'out')['train'] == 26


def test_linked_class_folders_are_named(tmp_path, four, capsys):
    for split in ('train', 'val'): (tmp_path / 'mine' / split).mkdir(parents=True)
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'mine' / 'train' / FOUR[0]).symlink_to(tmp_path / 'elsewhere')
    assert main(['prepare', 'imagenette-fastai', '--source', str(tmp_path / 'mine'), '--out', str(tmp_path / 'out')]) == 2
    err = capsys.readouterr().err
    assert f'{FOUR[0]} is a link to a folder' in err and err.count('\n') == 1


def test_a_test_folder_validates_only_without_a_val_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(KNOWN, 'imagenette-fastai', replace(KNOWN['imagenette-fastai'], classes=FOUR, train=(2, 2), val=(3, 3), totals=(8, 12)))
    for splits, name in ((('train', 'val', 'test'), 'three'), (('train', 'test'), 'two')):
        for split in splits:
            for w in FOUR:
                (tmp_path / name / split / w).mkdir(parents=True)
                for k in range(2 if split == 'train' else 3): (tmp_path / name / split / w / f'{split}_{k}.JPEG').write_bytes(jpeg(k))
        made = prepare.prepare('imagenette-fastai', tmp_path / name, tmp_path / f'{name}-out', check=False)
        assert (made['train'], made['val']) == (8, 12), name
        assert {p.name.partition('_')[0] for p in (tmp_path / f'{name}-out' / 'val').glob('*/*')} == {splits[1]}


def test_subsets_share_the_files_of_a_prepared_set(drawn, small, tmp_path):
    prepare.prepare('imagenet1k', drawn, tmp_path / 'all')
    (tmp_path / 'list.txt').write_text('n02979186\nn03000684\n')
    argv = ['prepare', 'imagenet-subset', '--source', str(tmp_path / 'all'), '--classes', str(tmp_path / 'list.txt'), '--out', str(tmp_path / 'two')]
    assert main(argv) == 2                                             # 5 and 7 images are no ImageNet class
    assert main([*argv, '--no-check', '--json', str(tmp_path / 'x.json')]) == 0
    assert datasets.load(tmp_path / 'two').counts() == [5, 7] and json.loads((tmp_path / 'x.json').read_text())['classes'] == 2
    assert os.path.samefile(tmp_path / 'all' / 'train' / 'n02979186' / 'n02979186_0.JPEG', tmp_path / 'two' / 'train' / 'n02979186' / 'n02979186_0.JPEG')


def test_cifar_from_bytes(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    folder = tmp_path / 'cifar-10-batches-bin'
    folder.mkdir()
    y, x = np.arange(60) % 10, rng.integers(0, 256, (60, 3, 32, 32), np.uint8)
    rows = np.concatenate([y[:, None].astype(np.uint8), x.reshape(60, -1)], 1)
    for k in range(5): (folder / f'data_batch_{k + 1}.bin').write_bytes(rows[10 * k:10 * k + 10].tobytes())
    (folder / 'test_batch.bin').write_bytes(rows[50:].tobytes())
    (folder / 'batches.meta.txt').write_text('airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n\n')
    monkeypatch.setitem(KNOWN, 'cifar10', replace(KNOWN['cifar10'], train=(5, 5), val=(1, 1), totals=(50, 10)))
    prepare.prepare('cifar10', tmp_path, tmp_path / 'out')
    train = datasets.load(tmp_path / 'out')
    assert train.names[3] == 'cat' and (train.batch(train.of_class(3), 32).numpy() == x[:50][y[:50] == 3]).all()


def test_a_pickle_is_not_opened_unless_official(tmp_path):
    import pickle

    class Evil:
        def __reduce__(self): return Path.touch, (tmp_path / 'ran',)
    for folder in ('cifar-10-batches-py',):
        (tmp_path / folder).mkdir()
        for name in [f'data_batch_{k}' for k in range(1, 6)] + ['test_batch', 'batches.meta']: (tmp_path / folder / name).write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match='fetch the binary version'): prepare.prepare('cifar10', tmp_path, tmp_path / 'out')
    assert not (tmp_path / 'ran').exists()


def test_a_torn_training_archive_is_said(drawn, small, tmp_path):
    data = (drawn / ILSVRC['train']).read_bytes()
    (drawn / ILSVRC['train']).write_bytes(data[:len(data) // 2])
    with pytest.raises(ValueError, match='damaged or incomplete|not 4'): prepare.prepare('imagenet1k', drawn, tmp_path / 'out')


def test_one_line_for_what_cannot_be_prepared(tmp_path, capsys):
    (tmp_path / 'taken').mkdir()
    (tmp_path / 'taken' / 'mine.txt').write_text('x')
    (tmp_path / 'source' / 'train' / 'n01440764').mkdir(parents=True)
    (tmp_path / 'source' / 'val' / 'n01440764').mkdir(parents=True)
    for argv, words in ((['imagenett', '--source', '.', '--out', 'o'], 'did you mean imagenette'),
                        (['imagenet1k', '--source', str(tmp_path / 'no'), '--out', 'o'], 'no such folder'),
                        (['imagenet1k', '--source', str(tmp_path / 'taken'), '--download', '--out', 'o'], 'cannot be downloaded'),
                        (['tinyimagenet', '--source', str(tmp_path / 'taken'), '--out', 'o'], 'holds no tiny-imagenet-200.zip; --download fetches it'),
                        (['imagenette', '--source', str(tmp_path / 'source'), '--out', str(tmp_path / 'taken')], 'holds something else (mine.txt)'),
                        (['imagenet10', '--source', str(tmp_path / 'source'), '--classes', str(tmp_path / 'taken' / 'mine.txt'), '--out', 'o'], 'x in it')):
        assert main(['prepare', *argv]) == 2
        err = capsys.readouterr().err
        assert words in err and err.count('\n') == 1, err
    assert (tmp_path / 'taken' / 'mine.txt').exists() and not Path('o').exists()
