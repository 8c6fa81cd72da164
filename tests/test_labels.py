"""Recorded labels: the same training as with live ones, bytes as predicted, whole after any kill, flat in memory, and refused where they do not belong."""
import json
import os
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import naive
from rded import baselines, datasets, labels, models, recipes, student
from rded.cli import main
from rded.labels import FixedLabels, LiveLabels, StoredLabels, predict_bytes, relabel
from rded.observer import get_observer
from rded.views import Views, apply_views, draw_epoch

KEEPS = ('full', '8bit', 'top1', 'top3', 'top9', '50%', 'top3+30%', '8bit+7%')


@pytest.fixture(scope='session')
def site(tmp_path_factory):
    "An observer of digits, twenty distilled digits, and their labels for six epochs in three parts."
    root = tmp_path_factory.mktemp('labels')
    run = lambda *argv: main([*map(str, argv), '--quiet', '--device', 'cpu'])
    assert run('observer', '--data', 'digits', '--arch', 'conv3', '--size', '16', '--epochs', '2', '--out', root / 'observer.safetensors') == 0
    assert run('distill', '--data', 'digits', '--observer', root / 'observer.safetensors', '--ipc', '2', '--preselect', '8', '--crops', '2', '--factor', '2', '--out', root / 'set') == 0
    assert run('relabel', '--distilled', root / 'set', '--observer', root / 'observer.safetensors', '--epochs', '6', '--part-epochs', '2', '--batch-size', '6', '--out', root / 'labels') == 0
    return root


@pytest.fixture
def own(site, tmp_path):
    "A copy of it that a test may spoil."
    shutil.copytree(site, tmp_path / 'site')
    return tmp_path / 'site'


def everything(folder): return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob('*'))}


def refused(capsys, folder, *argv):
    "The one line with which a command that must fail does fail, having left the folder as it was."
    before = everything(folder)
    capsys.readouterr()
    code, (out, err) = main([*map(str, argv), '--quiet', '--device', 'cpu']), capsys.readouterr()
    lines = [l for l in err.splitlines() if not l.startswith(('rded: note:', 'rded: warning:'))]
    assert code == 2 and out == '' and len(lines) == 1 and lines[0].startswith('rded: ') and 'Traceback' not in err, err + out
    assert everything(folder) == before
    return lines[0]


def training_command(site, *more):
    return ['train', '--distilled', site / 'set', '--student', 'conv3', '--val', 'digits', '--out', site / 's.safetensors', *more]


# the same training

def cifar10(request):
    "Thirty images, and the observer in `reports`."
    images, path = datasets.load(request.getfixturevalue('cifar10_root'), 'train'), Path(__file__).parents[1] / 'reports' / 'observers' / 'cifar10-conv3.safetensors'
    if not path.is_file(): pytest.skip(f'{path.name} is not there')
    return baselines.random_images(images, 3, 32, 0), get_observer(str(path), images)


def digits(factor, request):
    images = datasets.load('digits', 'train')
    return baselines.random_mosaics(images, 3, 16, factor, 0), get_observer(str(request.getfixturevalue('site') / 'observer.safetensors'), images)


SETS = {'digits': partial(digits, 1), 'mosaics of digits': partial(digits, 2), 'CIFAR-10': cifar10}
CHANGES = {'paper': {}, 'mixup': dict(mix='mixup', mix_alpha=0.8, temperature=4.0), 'plain': dict(mix='none', flip=False), 'all tiles': dict(tiles='all', min_scale=0.3), 'randaugment': dict(randaugment=2, strength=12), 'one operation': dict(randaugment=1)}


@pytest.fixture(params=SETS)
def world(request):
    "A set, an observer of its classes, and what the paper trains it with."
    return *SETS[request.param](request), replace(recipes.paper_training('conv3', 3, 10), epochs=10)


def plain_digits(factor=1):
    "Digits, and thirty of them."
    images = datasets.load('digits', 'train')
    return images, baselines.random_mosaics(images, 3, 16, factor, 0)


def same(a, b): return all(torch.equal(torch.as_tensor(getattr(a, f.name)), torch.as_tensor(getattr(b, f.name))) for f in fields(Views))


@pytest.mark.parametrize('change', CHANGES)
def test_views_are_those_of_live_labels_and_labels_the_observers_to_sixteen_bits(world, change, tmp_path):
    small, observer, training = world
    training = replace(training, batch_size=7, **CHANGES[change])
    stored = relabel(small, observer, training, 3, seed=5, out=tmp_path / 'labels', part=1)
    for epoch in range(3):
        for (indices, views), (again, shown, logits) in zip(draw_epoch(len(small), small.size, small.factor, training, 5, epoch), stored.epoch(epoch), strict=True):
            live = observer.logits(apply_views(small.x[indices], views))
            assert torch.equal(indices, again) and same(views, shown)
            assert ((logits - live).abs() <= 2 ** -11 * live.abs() + 2 ** -25).all()


class Unrounded(LiveLabels):
    def __call__(self, x, views, y): return self.observer.logits(x)


@pytest.mark.parametrize('batch', [1000, 6])
def test_losses_are_those_of_live_labels(world, batch, tmp_path):
    "To the last bit; ten steps of one batch an epoch, and ten epochs of several. With labels of thirty-two bits, close to."
    small, observer, training = world
    training = replace(training, batch_size=min(batch, len(small)))
    stored = relabel(small, observer, training, 10, out=tmp_path / 'labels')
    lines, nets = [], []
    for kind in (LiveLabels(observer), stored, Unrounded(observer)):
        nets.append(models.build('conv3', len(small.classes), small.size, seed=3))
        lines.append([r['loss'] for r in student.train_student(nets[-1], small, kind, training, seed=0).rows])
    live, recorded, unrounded = lines
    assert live == recorded and all(torch.equal(a, b) for a, b in zip(*(net.state_dict().values() for net in nets[:2])))
    assert np.allclose(recorded[0], unrounded[0], rtol=1e-3, atol=0) and np.allclose(recorded, unrounded, rtol=3e-2, atol=0)


def test_several_observers_are_averaged(tmp_path):
    images, small = plain_digits()
    nets = [models.build('conv3', 10, 16, images.classes, seed=s) for s in (1, 2)]
    stored = relabel(small, get_observer(nets, images), replace(recipes.paper_training('conv3', 3, 10), epochs=1), 1, out=tmp_path / 'l')
    indices, views, logits = stored.batch(0)
    x = apply_views(small.x[indices], views)
    with torch.no_grad(): mean = (nets[0].eval()(x) + nets[1].eval()(x)) / 2
    assert torch.allclose(logits, mean, rtol=1e-3, atol=1e-5) and stored.observer['arch'] == 'conv3,conv3'


# bytes

@pytest.mark.parametrize('keep', KEEPS)
@pytest.mark.parametrize('change', CHANGES)
def test_bytes_are_as_predicted(world, keep, change, tmp_path):
    small, observer, training = world
    training, part = replace(training, batch_size=7, **CHANGES[change]), 2
    predicted = predict_bytes(len(small), small.size, small.factor, len(small.classes), training, 5, keep, seed=4, part=part)
    stored = relabel(small, observer, training, 5, seed=4, out=tmp_path / 'l', keep=keep, part=part)
    from safetensors.torch import load_file
    found, headers, stand = {'views': 0, 'labels': 0}, 0, ('logits', 'value', 'class', 'code', 'scale')
    for p in stored.parts:
        path = tmp_path / 'l' / p['file']
        with path.open('rb') as f: headers += 8 + int.from_bytes(f.read(8), 'little')
        for name, t in load_file(path).items(): found['labels' if name in stand else 'views'] += t.nbytes
    assert found == {k: predicted[k] for k in found} and len(stored.parts) == predicted['parts']
    assert stored.bytes == sum(found.values()) + headers + (tmp_path / 'l' / 'labels.json').stat().st_size and headers < 2000 * predicted['parts']


def test_a_share_of_the_batches_is_gone_through_evenly(site, tmp_path):
    images, small = plain_digits()
    training = replace(recipes.paper_training('conv3', 3, 10), epochs=12, batch_size=7)
    stored = relabel(small, naive.NearestMean(images, 16), training, 12, out=tmp_path / 'l', keep='top3+10%')
    used = torch.tensor([j for e in range(12) for j in stored.sequence(e)]).bincount()
    assert stored.meta['batches'] == {'epoch': 5, 'recorded': 6} and used.tolist() == [10] * 6
    history = student.train_student(models.build('conv3', 10, 16, seed=0), small, stored, training)
    assert history.updates == 60


def test_reuse_is_fixed_views_in_turn(tmp_path):
    images, small = plain_digits()
    training = replace(recipes.paper_training('conv3', 3, 10), epochs=6)
    path = relabel(small, naive.NearestMean(images, 16), training, 2, out=tmp_path / 'l').path
    with pytest.raises(ValueError, match='--reuse'): StoredLabels(path).check(small, training, 0)
    stored = StoredLabels(path, reuse=True)
    stored.check(small, training, 0)
    for a, b in ((0, 2), (1, 5)):
        assert all(torch.equal(x[0], y[0]) and same(x[1], y[1]) and torch.equal(x[2], y[2]) for x, y in zip(stored.epoch(a), stored.epoch(b), strict=True))


def test_fixed_labels_are_of_the_whole_image():
    images, small = plain_digits(2)
    observer = naive.NearestMean(images, 16)
    fixed, training = FixedLabels(small, observer), replace(recipes.paper_training('conv3', 3, 10), mix='none')
    fixed.check(small, training, 0)
    for indices, views, logits in fixed.epoch(3):
        whole = observer.logits(small.x[indices])
        assert torch.allclose(logits.softmax(1), whole.softmax(1), atol=1e-2)


def test_labels_of_one_kind_of_batchnorm_train_no_other(tmp_path):
    images, small = plain_digits()
    eyes, training = get_observer(models.build('conv3', 10, 16, images.classes, seed=0), images), replace(recipes.paper_training('conv3', 3, 10), epochs=1)
    by_batch = replace(training, batch_statistics=True)
    stored = relabel(small, eyes, training, 1, out=tmp_path / 'labels')
    with pytest.raises(ValueError, match='recorded with batch statistics False, the training has True'): stored.check(small, by_batch, 0)
    with pytest.raises(ValueError, match='fixed labels'): FixedLabels(small, eyes).check(small, by_batch, 0)
    stored.check(small, training, 0)


# killed at any moment

KILLER = '''
import os, random, shutil, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from rded import cli, distilled, labels, models, observer, recipes  # once, for all the children
root, argv = Path(sys.argv[1]), sys.argv[2:]

def run(name, after=None, call=None):
    "A recorder in a process of its own, killed after some seconds or at its n-th wait for the disk or renaming."
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if call:
            left = [call]
            def fatal(real):
                def one(*args):
                    left[0] -= 1
                    if left[0] == 0: os.kill(os.getpid(), signal.SIGKILL)
                    return real(*args)
                return one
            os.fsync, os.replace = fatal(os.fsync), fatal(os.replace)
        os._exit(cli.main([*argv, '--out', str(root / name)]))
    if after is not None:
        time.sleep(after)
        os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]

def files(name): return {p.name: p.read_bytes() for p in (root / name).iterdir()} if (root / name).exists() else {}

start = time.monotonic()
assert run('whole') == 0
seconds, whole, killed = time.monotonic() - start, files('whole'), 0

def sound(name):
    "Nothing half-written has a final name, and nobody takes what is there for complete."
    for file, data in files(name).items():
        if file.startswith('part-'): assert data == whole[file], file
    if files(name).get('labels.json') == whole['labels.json']: return
    try: labels.StoredLabels(root / name)
    except ValueError: return
    assert False, 'taken for complete'

dice = random.Random(1)
for k in range(5):
    killed += run('random', after=seconds * (0.3 + 0.5 * dice.random())) == signal.SIGKILL
    sound('random')
call = 0
while True:
    call += 1
    status = run('calls', call=call)
    sound('calls')
    if status == 0: break
    killed += 1
assert run('random') == 0
assert files('random') == files('calls') == whole, [sorted(files(n)) for n in ('random', 'calls', 'whole')]
print(killed, call, len(whole))
'''


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork')
def test_killed_at_any_moment_it_ends_in_the_same_bytes(site, tmp_path):
    argv = ['relabel', '--distilled', site / 'set', '--observer', site / 'observer.safetensors', '--epochs', '4', '--part-epochs', '1', '--batch-size', '6', '--keep', 'top3', '--no-check', '--quiet', '--device', 'cpu']
    done = subprocess.run([sys.executable, '-c', KILLER, tmp_path, *map(str, argv)], capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr
    killed, calls, files = map(int, done.stdout.split())
    assert files == 5 and calls > 6 and killed >= calls - 1


def test_two_at_once_are_refused(site, own, capsys):
    import fcntl
    handle = os.open(own / 'labels', os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    argv = ['relabel', '--distilled', own / 'set', '--observer', own / 'observer.safetensors', '--epochs', '6', '--batch-size', '6', '--out', own / 'labels']
    assert 'another `rded relabel`' in refused(capsys, own, *argv, '--part-epochs', '2')
    os.close(handle)


# memory

SCALE = '''
import json, re, struct, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from rded import labels, recipes
from rded.files import sha256, write_json
root, epochs = Path(sys.argv[1]), int(sys.argv[2])
n, size, classes = 50_000, 224, 1000
training = recipes.get('imagenet1k-resnet18-ipc50').training
keep, drawn = labels.parse_keep('full'), labels.drawn_by(training, 2)
will = labels.layout(n, size, 2, classes, drawn, epochs, 0, keep)
kinds = {torch.uint8: 'U8', torch.uint16: 'U16', torch.int32: 'I32', torch.float16: 'F16', torch.float64: 'F64'}
about = {'format': labels.FORMAT, 'view_format': labels.VIEWS, 'digest': '0' * 16, 'images': n, 'size': size, 'factor': 2, 'classes': classes, 'observer': {'name': 'none', 'arch': 'none'},
         'training': drawn, 'temperature': None, 'seed': 0, 'epochs': epochs, 'keep': 'full', 'batches': {'epoch': will['epoch'], 'recorded': len(will['numbers'])}, 'versions': {}, 'environment': {}}

def hollow(path, part):
    "A part with its header and the sizes of its batches; the rest are holes that take no room on the disk."
    rows = {'image': part['images'], 'batch': part['batches']}
    shapes = {name: (kind, [rows[per]] + [numbers] * (numbers > 1)) for name, (kind, numbers, per) in will['views'].items()}
    shapes |= {'logits': (torch.float16, [n, classes]), 'flip': (torch.uint8, [-(-n // 8)])}
    header, at = {}, 0
    for name, (kind, shape) in sorted(shapes.items(), key=lambda item: -item[1][0].itemsize):
        count = kind.itemsize
        for side in shape: count *= side
        header[name] = {'dtype': kinds[kind], 'shape': shape, 'data_offsets': [at, at + count]}
        at += count
    header['__metadata__'] = {'rded': json.dumps({'settings': settings, 'part': len(parts)})}
    text = json.dumps(header).encode()
    text += b' ' * (-len(text) % 8)
    with path.open('wb') as f:
        f.write(struct.pack('<Q', len(text)) + text)
        f.seek(8 + len(text) + header['images']['data_offsets'][0])
        f.write(struct.pack(f'<{part["batches"]}i', *[200] * part['batches']))
        f.truncate(8 + len(text) + at)

names, parts = [f'part-{k:05d}.safetensors' for k in range(len(will['parts']))], []
settings = labels.fingerprint({**about, 'parts': [{'file': name, **p} for name, p in zip(names, will['parts'])]})
for k, (name, p) in enumerate(zip(names, will['parts'])):
    path = root / name
    hollow(path, p)
    parts.append({'file': name, **p, 'size': path.stat().st_size, 'sha256': sha256(path) if k == len(will['parts']) - 1 else '0' * 64})
write_json(root / 'labels.json', {**about, 'settings': settings, 'parts': parts})

def anonymous(): return int(re.search(r'RssAnon:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) / 1024
before = anonymous()
stored = labels.StoredLabels(root)
most = opened = anonymous()
for indices, views, logits in stored.epoch(epochs - 1):
    assert logits.shape == (200, classes) and len(views) == len(indices) == 200
    most = max(most, anonymous())
print(stored.bytes / 1e9, len(parts), opened - before, most - before)
'''


def test_memory_does_not_grow_with_the_record(tmp_path):
    "ImageNet-1K at IPC 50: the files of 3 and of 300 epochs (30 GB, all but the index hollow); opened, and one epoch read. MiB of memory of one's own."
    if not os.path.exists('/proc/self/status'): pytest.skip('no /proc')
    grown = {}
    for epochs in (3, 300):
        (tmp_path / str(epochs)).mkdir()
        done = subprocess.run([sys.executable, '-c', SCALE, tmp_path / str(epochs), str(epochs)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        grown[epochs] = list(map(float, done.stdout.split()))
    assert 30.1 < grown[300][0] < 30.3 and grown[300][1] == 300
    assert grown[300][2] < 8 and grown[300][3] < grown[3][3] + 8 < 40, grown


# the command

def test_the_command_says_its_bytes_before_and_after(site, tmp_path, capsys):
    argv = ['relabel', '--distilled', site / 'set', '--observer', site / 'observer.safetensors', '--epochs', '2', '--keep', 'top3+50%', '--out', tmp_path / 'l', '--json', tmp_path / 'l.json', '--device', 'cpu']
    assert main(list(map(str, argv))) == 0
    out, told = capsys.readouterr().out, json.loads((tmp_path / 'l.json').read_text())
    assert out.startswith('to be recorded: 2 batches, 20 views: 180 bytes of labels (top3+50%) and') and f"{tmp_path / 'l'}: {told['bytes']:,} bytes in 1 part" in out
    assert told['bytes'] == sum(p.stat().st_size for p in (tmp_path / 'l').iterdir()) and told['observer']['name'] == 'observer.safetensors'
    assert main(list(map(str, argv))) == 0 and '1 of 1 parts done' in capsys.readouterr().out


def test_training_from_labels_needs_no_observer(site, own, capsys, tmp_path):
    (own / 'observer.safetensors').unlink()
    assert main([*map(str, training_command(own, '--labels', own / 'labels', '--json', tmp_path / 'a.json', '--device', 'cpu', '--precision', 'float32'))]) == 0
    assert main([*map(str, training_command(site, '--observer', site / 'observer.safetensors', '--epochs', '6', '--batch-size', '6', '--json', tmp_path / 'b.json', '--device', 'cpu', '--precision', 'float32', '--out', tmp_path / 't.safetensors'))]) == 0
    stored, live = [json.loads((tmp_path / f'{n}.json').read_text()) for n in 'ab']
    assert stored['training'] == 'paper, min scale 0.5, epochs 6, batch size 6, labels full' and live['training'] == 'paper, min scale 0.5, epochs 6, batch size 6'
    assert stored['updates'] == live['updates'] and stored['observer'] == live['observer'] and abs(stored['top1'] - live['top1']) < 3, (stored['top1'], live['top1'])
    assert stored['bytes']['observer'] == 0 < live['bytes']['observer'] and stored['bytes']['labels'] == sum(p.stat().st_size for p in (own / 'labels').iterdir())
    from rded.report import check_result
    check_result(stored)


def test_info_and_verify_know_a_folder_of_labels(site, own, capsys, tmp_path):
    assert main(['info', str(site / 'labels'), '--json', str(tmp_path / 'i.json')]) == 0 and json.loads((tmp_path / 'i.json').read_text())['epochs'] == 6
    assert main(['verify', str(site / 'labels')]) == 0 and 'all 3 parts' in capsys.readouterr().out
    data = bytearray((own / 'labels' / 'part-00002.safetensors').read_bytes())
    data[-1] ^= 1
    (own / 'labels' / 'part-00002.safetensors').write_bytes(data)
    assert 'part-00002.safetensors is damaged' in refused(capsys, own, 'verify', own / 'labels')


def test_reuse_and_another_seed_are_asked_for(site, own, capsys, tmp_path):
    with_labels = training_command(own, '--labels', own / 'labels')
    assert '6 epochs are recorded, the training has 7' in refused(capsys, own, *with_labels, '--epochs', '7')
    assert 'views of seed 0, the training has seed 1' in refused(capsys, own, *with_labels, '--seed', '1')
    assert main([*map(str, with_labels), '--epochs', '7', '--reuse', '--seed', '1', '--any-seed', '--device', 'cpu', '--json', str(tmp_path / 'a.json')]) == 0
    assert json.loads((tmp_path / 'a.json').read_text())['training'].endswith('labels full, 6 fixed views')


def test_a_recipes_protocol(site, tmp_path, capsys):
    recipe = ['--recipe', 'cifar10-conv3-ipc10-tiny']
    argv = ['relabel', '--distilled', site / 'set', '--observer', site / 'observer.safetensors', '--epochs', '2', *recipe, '--out', tmp_path / 'l', '--device', 'cpu']
    assert main(list(map(str, argv))) == 0
    assert main([*map(str, training_command(site, '--labels', tmp_path / 'l', *recipe, '--out', tmp_path / 's.safetensors', '--json', tmp_path / 'a.json', '--device', 'cpu'))]) == 0
    assert json.loads((tmp_path / 'a.json').read_text())['training'] == 'paper-tiny, labels full' and StoredLabels(tmp_path / 'l').meta['training']['flip'] is False


# bad input

def test_what_does_not_belong_is_refused_in_one_line(site, own, capsys):
    labels_of = lambda **more: training_command(own, '--labels', own / 'labels')
    says = lambda: refused(capsys, own, *labels_of())
    assert 'batch size 6, the training has 5' in refused(capsys, own, *labels_of(), '--batch-size', '5')
    assert 'one of them' in refused(capsys, own, *labels_of(), '--hard') and 'one of them' in refused(capsys, own, *labels_of(), '--observer', own / 'observer.safetensors')
    assert '--labels' in refused(capsys, own, *training_command(own, '--hard', '--reuse'))
    assert 'no labels.json' in refused(capsys, own, *training_command(own, '--labels', own / 'set'))
    assert 'no such folder' in refused(capsys, own, *training_command(own, '--labels', own / 'nowhere'))
    part, index = own / 'labels' / 'part-00001.safetensors', own / 'labels' / 'labels.json'
    whole, told = part.read_bytes(), index.read_text()
    part.write_bytes(whole[:-1])
    assert f'{len(whole) - 1} bytes, {len(whole)} were written' in says() and '`rded relabel`' in says()
    part.write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
    assert 'part-00001.safetensors is damaged or was edited' in says()
    part.unlink()
    assert 'part-00001.safetensors is missing' in says()
    part.write_bytes(whole)
    for edit, words in ((lambda t: t.replace('"rded-labels-1"', '"rded-labels-2"'), 'rded-labels-2'), (lambda t: t.replace('"seed": 0', '"seed": 1'), 'edited'),
                        (lambda t: t.replace('part-00001', 'part-00002'), 'edited'), (lambda t: t.replace('"file"', '"name"'), 'edited'), (lambda t: t[:200], 'labels.json, line'), (lambda t: '[]', 'format None'), (lambda t: '{"format": "rded-labels-1"}', 'edited')):
        index.write_text(edit(told))
        assert words in says()


def test_a_part_of_other_labels_is_refused(site, own, capsys):
    "Even where somebody copied its hash, too."
    argv = ['relabel', '--distilled', own / 'set', '--observer', own / 'observer.safetensors', '--epochs', '6', '--part-epochs', '2', '--batch-size', '6', '--seed', '1', '--out', own / 'other', '--quiet', '--device', 'cpu']
    assert main(list(map(str, argv))) == 0
    shutil.copy(own / 'other' / 'part-00001.safetensors', own / 'labels')
    there, here = [json.loads((own / d / 'labels.json').read_text()) for d in ('other', 'labels')]
    here['parts'][1].update({k: there['parts'][1][k] for k in ('size', 'sha256')})
    (own / 'labels' / 'labels.json').write_text(json.dumps(here))
    assert 'part-00001.safetensors is a part of other labels' in refused(capsys, own, *training_command(own, '--labels', own / 'labels'))


def test_a_set_that_was_edited_or_is_another_is_refused(site, own, capsys):
    from PIL import Image
    file = sorted((own / 'set' / 'images').rglob('*.png'))[3]
    picture = Image.open(file).convert('RGB')
    picture.putpixel((5, 5), (1, 2, 3))
    picture.save(file)
    relabelling = ['relabel', '--distilled', own / 'set', '--observer', own / 'observer.safetensors', '--epochs', '6', '--part-epochs', '2', '--batch-size', '6', '--out', own / 'labels']
    for argv in (training_command(own, '--labels', own / 'labels'), relabelling): assert f'{file} is not what the manifest says' in refused(capsys, own, *argv)
    (own / 'set' / 'rded.json').unlink()                # now it is anyone's folder
    assert 'images were edited' in refused(capsys, own, *training_command(own, '--labels', own / 'labels'))
    assert 'digest' in refused(capsys, own, *relabelling)


@pytest.mark.parametrize('more, words', [
    (['--keep', 'half'], "'half'"), (['--keep', 'top10'], '10 classes'), (['--keep', 'top3+8bit'], 'one kind'), (['--keep', '0%'], '0%'), (['--epochs', '0'], '0: give 1 or more'),
    (['--observer', 'nobody'], "'nobody'"), (['--distilled', 'nowhere'], 'nowhere: no such folder'), (['--student', 'conv33'], 'conv3'), (['--keep', '8bit', '--out', 'LABELS'], 'keep full, now 8bit'),
    (['--seed', '1', '--out', 'LABELS'], 'seed 0, now 1'), (['--epochs', '5', '--out', 'LABELS'], 'epochs 6, now 5'), (['--batch-size', '7', '--out', 'LABELS'], 'batch_size 6, now batch_size 7'),
    (['--out', 'LABELS'], '3 parts, now 1'), (['--out', 'SET'], 'not empty'), (['--out', 'OBSERVER'], 'is a file'), (['--observer', 'OTHER', '--no-check', '--out', 'LABELS'], 'observer')])
def test_relabel_refuses(more, words, own, capsys, monkeypatch):
    monkeypatch.chdir(own)
    models.save(models.build('conv3', 10, 16, datasets.load('digits').classes, seed=9), own / 'other.safetensors')
    known = {'LABELS': own / 'labels', 'SET': own / 'set', 'OBSERVER': own / 'observer.safetensors', 'OTHER': own / 'other.safetensors'}
    argv = ['--distilled', own / 'set', '--observer', own / 'observer.safetensors', '--epochs', '6', '--batch-size', '6', '--out', own / 'new']
    assert words in refused(capsys, own, 'relabel', *argv, *(known.get(m, m) for m in more))


def test_an_observer_of_another_class_order_does_not_label(own, capsys):
    net = models.load(own / 'observer.safetensors')
    net.classes = net.classes[1:] + net.classes[:1]
    models.save(net, own / 'turned.safetensors')
    argv = ['relabel', '--distilled', own / 'set', '--observer', own / 'turned.safetensors', '--epochs', '1', '--out', own / 'new']
    assert 'looks like its' in refused(capsys, own, *argv)
    assert main([*map(str, argv), '--no-check', '--device', 'cpu']) == 0


def test_an_observer_that_answers_with_no_number_is_named(own, capsys):
    net = models.load(own / 'observer.safetensors')
    with torch.no_grad(): next(iter(net.body.parameters())).fill_(float('nan'))
    models.save(net, own / 'nan.safetensors')
    argv = ['relabel', '--distilled', own / 'set', '--observer', own / 'nan.safetensors', '--epochs', '1', '--no-check', '--quiet', '--out', own / 'new']
    assert main(list(map(str, argv))) == 2 and 'the observer nan.safetensors answers with numbers that are not finite' in capsys.readouterr().err


def test_other_library_versions_are_told_and_a_run_is_not_continued_with_them(own, capsys, monkeypatch):
    now = labels.versions()
    monkeypatch.setattr(labels, 'versions', lambda: {**now, 'torch': '9.9'})
    argv = ['relabel', '--distilled', own / 'set', '--observer', own / 'observer.safetensors', '--epochs', '6', '--part-epochs', '2', '--batch-size', '6', '--out', own / 'labels']
    assert f"versions torch {now['torch']}, now torch 9.9" in refused(capsys, own, *argv)
    assert main([*map(str, training_command(own, '--labels', own / 'labels')), '--quiet', '--device', 'cpu']) == 0
    err = capsys.readouterr().err
    assert err.count('rded: warning:') == 1 and f"recorded with torch {now['torch']}, this is torch 9.9" in err


def test_a_disk_too_small_is_known_before(own, capsys, monkeypatch):
    monkeypatch.setattr(labels.shutil, 'disk_usage', lambda path: type('usage', (), {'free': 10}))
    argv = ['relabel', '--distilled', own / 'set', '--observer', own / 'observer.safetensors', '--epochs', '6', '--out', own / 'new']
    assert '--keep top10' in refused(capsys, own, *argv)
