"""What a stranger's file may not do: run code, write or read elsewhere, fill the memory, or speak to a terminal or a browser."""
import ast
import gzip
import io
import json
import lzma
import os
import pickle
import re
import struct
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image

import rded
from rded import datasets, distilled, export, files, images, models, prepare, report
from rded.cli import main
from rded.damage import workshop

ROOT = Path(rded.__file__).parent
MODULES = sorted(ROOT.glob('*.py'))


@pytest.fixture(scope='module')
def shop(tmp_path_factory): return workshop(tmp_path_factory.mktemp('shop'))


class Evil:
    "Whoever unpickles it makes a folder called `ran`."
    def __reduce__(self): return os.mkdir, ('ran',)


def refused(capsys, *argv, saying=''):
    "The one line with which a command refuses its input."
    capsys.readouterr()
    status, (out, err) = main([*map(str, argv), '--quiet']), capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith(('rded: note:', 'rded: warning:'))]
    assert status == 2 and len(lines) == 1 and lines[0].startswith('rded: ') and saying in lines[0], (status, err)
    return lines[0]


# Code

BANNED = {'pickle', 'cPickle', 'dill', 'cloudpickle', 'joblib', 'shelve', 'marshal', 'yaml'}
CALLS = {'eval', 'exec', 'compile', 'os.system', 'os.popen', 'yaml.load', 'torch.jit.load', 'torch.hub.load', 'pd.read_pickle', 'pandas.read_pickle'}


@pytest.mark.parametrize('path', MODULES, ids=lambda p: p.stem)
def test_no_module_unpickles_or_evaluates(path):
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import): assert not BANNED & {a.name.split('.')[0] for a in node.names}
        if isinstance(node, ast.ImportFrom): assert (node.module or '').split('.')[0] not in BANNED
        if not isinstance(node, ast.Call): continue
        name, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        assert name not in CALLS, name
        assert given.get('shell', 'False') == 'False' and given.get('allow_pickle', 'False') == 'False'
        if name == 'torch.load': assert given.get('weights_only') == 'True'
        if name.endswith('.extractall') or name.endswith('.extract'): assert given.get('filter') == "'data'"


@pytest.mark.parametrize('name', ['evil.pth', 'evil.pt', 'evil.bin', 'evil.tar', 'evil.safetensors'])
@pytest.mark.parametrize('how', ['pickle', 'torch', 'torch, old'])
def test_a_hostile_observer_is_not_unpickled(shop, tmp_path, monkeypatch, capsys, name, how):
    monkeypatch.chdir(tmp_path)
    if how == 'pickle': Path(name).write_bytes(pickle.dumps({'model': Evil()}))
    else: torch.save({'model': {'fc.weight': torch.zeros(2, 2), 'more': Evil()}}, name, _use_new_zipfile_serialization=how == 'torch')
    refused(capsys, 'distill', '--data', shop / 'data', '--observer', tmp_path / name, '--ipc', 1, '--out', 'out', saying=name)
    refused(capsys, 'evaluate', '--model', tmp_path / name, '--data', shop / 'data', saying=name)
    assert sorted(os.listdir()) == [name]


def test_hostile_labels_and_sets_are_not_unpickled(shop, tmp_path, monkeypatch, capsys):
    import shutil
    monkeypatch.chdir(tmp_path)
    shutil.copytree(shop / 'labels', 'labels'), shutil.copytree(shop / 'set', 'set')
    part = Path('labels', 'part-00000.safetensors')
    part.write_bytes(pickle.dumps(Evil()))
    meta = json.loads(Path('labels', 'labels.json').read_text())
    meta['parts'][0].update(size=part.stat().st_size, sha256=files.sha256(part))          # as whoever means harm would
    Path('labels', 'labels.json').write_text(json.dumps(meta))
    train = ['train', '--distilled', shop / 'set', '--labels', 'labels', '--student', 'conv2', '--val', shop / 'data', '--out', 's.safetensors']
    refused(capsys, *train, saying='part-00000.safetensors is not a safetensors file')
    Path('labels', 'labels.json').write_bytes(pickle.dumps(Evil()))
    refused(capsys, *train, saying='labels.json')
    Path('set', 'rded.json').write_bytes(pickle.dumps(Evil()))
    refused(capsys, 'info', 'set', saying='rded.json')
    next(Path('set', 'images').rglob('*.png')).write_bytes(pickle.dumps(Evil()))
    Path('set', 'rded.json').write_bytes((shop / 'set' / 'rded.json').read_bytes())
    refused(capsys, 'info', 'set', saying='.png: not an image')
    assert sorted(os.listdir()) == ['labels', 'set']


@pytest.mark.parametrize('arch', ['hf-hub:someone/model', 'hf_hub:someone/model', 'local-dir:/tmp/model', 'timm:hf-hub:someone/model', 'timm:local-dir:/tmp/x', 'resnet18.../../x',
                                  'os.system', 'torchvision:../resnet18', 'https://example.org/x', 'vit_giant_patch14_224', 'resnet18@IMAGENET1K_V1', '__class__', 'a' * 10 ** 5])
def test_the_architecture_a_file_names_fetches_and_runs_nothing(shop, tmp_path, monkeypatch, arch):
    import socket
    monkeypatch.setattr(socket.socket, 'connect', lambda *_: pytest.fail('a connection'))
    monkeypatch.setattr(torch.hub, 'load_state_dict_from_url', lambda *_, **__: pytest.fail('a download'))
    tensors, about = files.load_tensors(shop / 'eye.safetensors')
    files.save_tensors(tmp_path / 'net.safetensors', tensors, {**about, 'arch': arch})
    with pytest.raises(ValueError, match='net.safetensors'): models.load(tmp_path / 'net.safetensors')


# Elsewhere

@pytest.mark.parametrize('file', ['../../secret.png', 'images/../../../secret.png', '/etc/passwd', 'images/3/../../../secret.png'])
def test_a_manifest_neither_reads_nor_writes_outside(shop, tmp_path, file, capsys):
    import shutil
    shutil.copytree(shop / 'set', tmp_path / 'a' / 'set')
    Image.new('RGB', (16, 16), 'red').save(tmp_path / 'secret.png'), Image.new('RGB', (16, 16), 'red').save(tmp_path / 'a' / 'secret.png')
    manifest = json.loads((tmp_path / 'a' / 'set' / 'rded.json').read_text())
    manifest['images'][0]['file'] = file
    (tmp_path / 'a' / 'set' / 'rded.json').write_text(json.dumps(manifest))
    refused(capsys, 'info', tmp_path / 'a' / 'set'), refused(capsys, 'verify', tmp_path / 'a' / 'set')
    before = sorted(tmp_path.rglob('*'))
    assert main(['rebuild', '--manifest', str(tmp_path / 'a' / 'set' / 'rded.json'), '--data', str(shop / 'data'), '--out', str(tmp_path / 'out' / 'set'), '--quiet']) in (0, 2)
    new = set(tmp_path.rglob('*')) - set(before) - {tmp_path / 'out'}
    assert all(p.is_relative_to(tmp_path / 'out' / 'set') for p in new)


@pytest.mark.parametrize('name', ['..', '../../x', '/tmp/x', '.ssh', '', '.', 'a\0b', 'CON', 'x' * 400, '\u202egnp.exe', '<script>', 'a\nb', '~', '-rf', '$(id)', '`id`'])
def test_class_names_out_of_a_manifest_name_folders_inside(shop, tmp_path, name):
    made = distilled.DistilledSet.load(shop / 'set')
    made.classes[0], made.manifest['classes'][0], made.names[0] = name, name, name
    made.save(tmp_path / 'deep' / 'set')
    export.webdataset(made, tmp_path / 'deep' / 'tars')
    assert sorted(os.listdir(tmp_path)) == ['deep'] and sorted(os.listdir(tmp_path / 'deep')) == ['set', 'tars']
    assert len(list((tmp_path / 'deep' / 'set' / 'images').glob('*/*.png'))) == 2 and len(os.listdir(tmp_path / 'deep' / 'set')) == 3


def test_links_out_of_a_set_are_not_read(shop, tmp_path):
    import shutil
    shutil.copytree(shop / 'set', tmp_path / 'set')
    picture = sorted((tmp_path / 'set' / 'images').rglob('*.png'))[0]
    shutil.move(picture, tmp_path / 'outside.png')
    picture.symlink_to(tmp_path / 'outside.png')
    with pytest.raises(ValueError, match='leads out of the folder'): distilled.DistilledSet.load(tmp_path / 'set')
    (tmp_path / 'set' / 'images' / '3' / 'more.png').symlink_to('/dev/zero')
    os.mkfifo(tmp_path / 'set' / 'images' / '3' / 'fifo.png')
    with pytest.raises(ValueError, match='leads out of the folder'): distilled.verify(tmp_path / 'set')
    picture.unlink(), shutil.move(tmp_path / 'outside.png', picture)
    assert distilled.verify(tmp_path / 'set')['unexpected'] == ['images/3/fifo.png', 'images/3/more.png']


def test_links_out_of_a_data_set_are_not_followed_unless_asked(tmp_path):
    for split in ('train', 'val'):
        for c in 'ab':
            (tmp_path / 'data' / split / c).mkdir(parents=True)
            Image.new('RGB', (8, 8)).save(tmp_path / 'data' / split / c / '1.png')
    (tmp_path / 'other').mkdir()
    Image.new('RGB', (8, 8)).save(tmp_path / 'other' / '2.png')
    (tmp_path / 'data' / 'train' / 'a' / '2.png').symlink_to(tmp_path / 'other' / '2.png'), (tmp_path / 'data' / 'train' / 'c').symlink_to(tmp_path / 'other')
    (tmp_path / 'words').write_text('a\tsecret\n'), (tmp_path / 'data' / 'words.txt').symlink_to(tmp_path / 'words')
    with pytest.warns(UserWarning, match='links that lead out of it are not followed'): images = datasets.load(tmp_path / 'data')
    assert images.classes == ['a', 'b'] and len(images) == 2 and images.names == ['a', 'b']
    asked = datasets.load(tmp_path / 'data', links=True)
    assert asked.classes == ['a', 'b', 'c'] and len(asked) == 4 and asked.names == ['secret', 'b', 'c']


# Archives

def tar(path, members, mode='w'):
    with tarfile.open(path, mode) as archive:
        for name, kind, to in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mode, info.size = kind, to if kind != tarfile.REGTYPE else '', 0o6777, len(to) if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(to) if kind == tarfile.REGTYPE else None)


def png():
    buffer = io.BytesIO()
    Image.new('RGB', (8, 8)).save(buffer, 'png')
    return buffer.getvalue()


HOSTILE = {'above': [('../evil.png', tarfile.REGTYPE, png())], 'absolute': [('/tmp/evil.png', tarfile.REGTYPE, png())], 'through': [('train/../../evil.png', tarfile.REGTYPE, png())],
           'link, then through it': [('train', tarfile.SYMTYPE, '..'), ('train/evil.png', tarfile.REGTYPE, png())], 'link': [('train/n01440764/evil.png', tarfile.SYMTYPE, '/etc/passwd')],
           'hard link': [('train/n01440764/evil.png', tarfile.LNKTYPE, '/etc/passwd')], 'device': [('train/n01440764/evil.png', tarfile.CHRTYPE, '')],
           'block device': [('train/n01440764/evil.png', tarfile.BLKTYPE, '')], 'pipe': [('train/n01440764/evil.png', tarfile.FIFOTYPE, '')],
           'backslashes': [('train\\..\\..\\evil.png', tarfile.REGTYPE, png())], 'line end': [('train/n01440764/evil\n.png', tarfile.REGTYPE, png())], 'drive': [('C:/evil.png', tarfile.REGTYPE, png())]}


@pytest.mark.parametrize('kind', HOSTILE)
@pytest.mark.parametrize('mode', ['w', 'w:gz', 'w:xz'])
def test_members_that_leave_their_folder_are_refused(tmp_path, capsys, kind, mode):
    tar(tmp_path / 'imagenette2.tgz', HOSTILE[kind], mode)
    refused(capsys, 'prepare', 'imagenette-fastai', '--source', tmp_path / 'imagenette2.tgz', '--out', tmp_path / 'out', '--no-check', saying='imagenette2.tgz')
    assert not list(tmp_path.rglob('*evil*')) and not Path('/tmp/evil.png').exists()


def test_bits_and_owners_of_members_are_not_taken_over(tmp_path):
    tar(tmp_path / 'a.tgz', [(f'x/{s}/n01440764/{k}.png', tarfile.REGTYPE, png()) for s in ('train', 'val') for k in range(2)])
    prepare.prepare('imagenette-fastai', tmp_path / 'a.tgz', tmp_path / 'out', check=False)
    modes = {p.stat().st_mode & 0o7777 for p in (tmp_path / 'out').rglob('*.png')}
    assert len(list((tmp_path / 'out').rglob('*.png'))) == 4 and all(mode & 0o7111 == 0 for mode in modes)


def test_tables_that_name_classes_lead_nowhere(tmp_path):
    for key in ('../../evil', '/tmp/evil', '..', 'a\x1b[31m'):
        with zipfile.ZipFile(tmp_path / 'tiny-imagenet-200.zip', 'w') as archive:
            archive.writestr('t/val/images/1.JPEG', png()), archive.writestr('t/val/val_annotations.txt', f'1.JPEG\t{key}\t0\n'), archive.writestr('t/train/n01440764/images/1.JPEG', png())
        with pytest.raises(ValueError, match='no name of a class'): prepare.prepare('tinyimagenet', tmp_path / 'tiny-imagenet-200.zip', tmp_path / 'out', check=False)
    tar(tmp_path / 'cifar-10-binary.tar.gz', [(f'c/{n}', tarfile.REGTYPE, bytes(3073)) for n in [f'data_batch_{k}.bin' for k in range(1, 6)] + ['test_batch.bin']] + [('c/batches.meta.txt', tarfile.REGTYPE, b'../../evil\n')], 'w:gz')
    with pytest.raises(ValueError, match='no name of a class'): prepare.prepare('cifar10', tmp_path / 'cifar-10-binary.tar.gz', tmp_path / 'out2', check=False)
    assert not [p for p in tmp_path.rglob('*evil*')]


def test_a_source_folder_does_not_link_out(tmp_path, capsys):
    for split in ('train', 'val'): (tmp_path / 'in' / split / 'n01440764').mkdir(parents=True)
    (tmp_path / 'secret.png').write_bytes(png())
    (tmp_path / 'in' / 'train' / 'n01440764' / '1.png').symlink_to(tmp_path / 'secret.png')
    refused(capsys, 'prepare', 'imagenette-fastai', '--source', tmp_path / 'in', '--out', tmp_path / 'out', '--no-check', saying='leads out of')
    assert not list((tmp_path / 'out').rglob('*.png'))


def test_a_member_without_end_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare, 'MAX_MEMBER', 10 ** 6)
    with zipfile.ZipFile(tmp_path / 'tiny-imagenet-200.zip', 'w', zipfile.ZIP_DEFLATED) as archive: archive.writestr('t/train/n01440764/images/1.JPEG', bytes(10 ** 7))
    assert (tmp_path / 'tiny-imagenet-200.zip').stat().st_size < 20_000
    refused(capsys, 'prepare', 'tinyimagenet', '--source', tmp_path, '--out', tmp_path / 'out', '--no-check', saying='unfolds to 10000000 bytes')


# Bombs

def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def claims(width, height, format):
    "A small file that says it is so large."
    if format == 'png': return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)) + chunk(b'IDAT', zlib.compress(bytes(10 ** 6), 9)) + chunk(b'IEND', b'')
    buffer = io.BytesIO()
    Image.new('L' if format == 'gif' else 'RGB', (16, 16)).save(buffer, {'jpg': 'JPEG', 'gif': 'GIF', 'bmp': 'BMP', 'tif': 'TIFF', 'webp': 'WEBP', 'ppm': 'PPM'}[format])
    data = bytearray(buffer.getvalue())
    if format == 'jpg': at = data.index(b'\xff\xc0'); data[at + 5:at + 9] = struct.pack('>HH', height, width)
    if format == 'gif': data[6:10] = struct.pack('<HH', width, height)
    if format == 'bmp': data[18:26] = struct.pack('<ii', width, height)
    if format == 'tif':
        for tag, value in ((256, width), (257, height)): at = data.index(struct.pack('<HH', tag, 4 if struct.pack('<HH', tag, 4) in data else 3)); data[at + 2:at + 12] = struct.pack('<HII', 4, 1, value)
    if format == 'webp': data = b'RIFF' + struct.pack('<I', 40) + b'WEBPVP8X' + struct.pack('<I', 10) + bytes(4) + (width - 1).to_bytes(3, 'little') + (height - 1).to_bytes(3, 'little') + bytes(data[12:])
    if format == 'ppm': data = data.replace(b'16 16', f'{width} {height}'.encode(), 1)
    return bytes(data)


@pytest.mark.parametrize('format', ['png', 'jpg', 'gif', 'bmp', 'tif', 'webp', 'ppm'])
@pytest.mark.parametrize('size', [(60_000, 60_000), (65_535, 3_000)])
def test_bombs_are_refused_before_they_unfold(tmp_path, format, size):
    import tracemalloc
    (tmp_path / f'bomb.{format}').write_bytes(claims(*size, format))
    assert (tmp_path / f'bomb.{format}').stat().st_size < 10 ** 4
    tracemalloc.start()
    with pytest.raises(ValueError, match=f'bomb.{format}: '): images.read_image(tmp_path / f'bomb.{format}')
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


@pytest.mark.parametrize('pack', [gzip.compress, lzma.compress])
def test_json_that_unfolds_without_end(tmp_path, monkeypatch, pack, capsys):
    monkeypatch.setattr(files, 'MAX_JSON', 10 ** 6)
    (tmp_path / 'rded.json.gz').write_bytes(pack(b'[' + b'0,' * 10 ** 7))
    refused(capsys, 'info', tmp_path / 'rded.json.gz', saying='more than 1000000 bytes')


def test_tensors_larger_than_their_file(tmp_path, capsys, shop):
    torch.save({'features.0.weight': torch.zeros(1).expand(128, 3, 3, 3), 'classifier.weight': torch.zeros(1).expand(10 ** 9, 2048)}, tmp_path / 'conv3.pth')
    refused(capsys, 'evaluate', '--model', tmp_path / 'conv3.pth', '--data', shop / 'data', saying='is not stored')


def test_exported_shards_are_not_trusted(shop, tmp_path, monkeypatch):
    export.webdataset(distilled.DistilledSet.load(shop / 'set'), tmp_path / 'tars')
    monkeypatch.setattr(export, 'MAX_MEMBER', 100)
    with pytest.raises(ValueError, match='train-00000.tar'): export.load(tmp_path / 'tars')


# Names

NASTY = '<script>alert(1)</script>|`x`[a](javascript:alert(1))![b](//e)\n# H\x1b[31m\u202e&amp;$x$ *b* _i_ ~~s~~ <!--'


def spoken(capsys): return ''.join(capsys.readouterr())


def test_names_out_of_data_are_quiet_on_a_terminal(tmp_path, capsys):
    "Class folders and files with terminal escapes and line ends, through distill, info, verify, rebuild and errors."
    for split in ('train', 'val'):
        for c in ('a\x1b[2J\nrded: fake', '<script>b\u202e'):
            (tmp_path / 'da\x1b[31mta' / split / c).mkdir(parents=True)
            for k in range(2): Image.new('RGB', (16, 16), (k, 0, 0)).save(tmp_path / 'da\x1b[31mta' / split / c / f'{k}\x1b[1m\n.png')
    (tmp_path / 'da\x1b[31mta' / 'train' / '<script>b\u202e' / 'x\x1b[7m.png').write_text('broken')
    data = str(tmp_path / 'da\x1b[31mta')
    assert main(['distill', '--method', 'random-images', '--data', data, '--size', '16', '--ipc', '2', '--out', str(tmp_path / 'set')]) == 0
    for argv in (['info', tmp_path / 'set'], ['verify', tmp_path / 'set'], ['verify', tmp_path / 'set', '--data', data], ['rebuild', '--manifest', tmp_path / 'set' / 'rded.json', '--data', data, '--out', tmp_path / 'again']):
        assert main([*map(str, argv)]) == 0
    assert main(['distill', '--method', 'random-images', '--data', data, '--size', '16', '--ipc', '9', '--out', str(tmp_path / 'x')]) == 2
    assert main(['evaluate', '--model', f'{data}/no.pth', '--data', data]) == 2
    text = spoken(capsys)
    assert '\\x1b' in text and not re.search('[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]', text) and '\nrded: fake' not in text


def rendered(text):
    "The Markdown as HTML, by the reference rules."
    return pytest.importorskip('markdown_it').MarkdownIt('gfm-like', {'html': True, 'linkify': False}).render(text)


def test_names_out_of_data_make_no_markup_in_a_card(shop):
    made = distilled.DistilledSet.load(shop / 'set')
    plain = rendered(distilled.card(made))
    m, worse = made.manifest, NASTY + '\n```\n<script>\n````\n<img src=x onerror=y>'
    m['data'].update(name=worse, split=NASTY), m.update(method=NASTY, seed=NASTY, broken=[worse], versions={NASTY: NASTY})
    m['settings'].update({NASTY: NASTY, 'list': [NASTY], 'selection': NASTY}), m.update(observer=dict(name=worse, arch=NASTY, sha256=worse, top1=1.0))
    html = rendered(distilled.card(distilled.DistilledSet(made.x, made.y, [NASTY, worse], names=[NASTY, worse], manifest=m), terms=NASTY))
    tags = lambda page: {tag for tag in re.findall(r'<(/?[a-z!][^\s>]*)', page)}
    assert tags(html) <= tags(plain) | {'h1', '/h1'} and html.count('<h1>') == 1 and html.count('<h2>') == plain.count('<h2>') and 'href="javascript' not in html


def test_names_out_of_data_make_no_markup_in_a_report(shop, tmp_path):
    good = json.loads((shop / 'result.json').read_text())
    for k, name in enumerate(('plain', NASTY)):
        (tmp_path / f'{k}').mkdir()
        bad = {**good, **{key: name for key in ('recipe', 'dataset', 'split', 'method', 'student', 'training', 'command', 'note', 'commit')}, 'environment': {'hardware': name}, 'observer': {'name': name, 'sha256': name, 'top1': 1.0}}
        (tmp_path / f'{k}' / 'r.json').write_text(json.dumps(bad))
        report.write_report(tmp_path / f'{k}', tmp_path / f'out{k}')
    plain, html = (rendered((tmp_path / f'out{k}' / 'README.md').read_text()) for k in (0, 1))
    tags = lambda page: sorted(re.findall(r'<(/?[a-z!][^\s>]*)', page))
    assert tags(html) == tags(plain)
    assert not re.search('[\x00-\x08\x0b-\x1f\x7f\u202e]', (tmp_path / 'out1' / 'README.md').read_text())
    assert {p.name for p in (tmp_path / 'out1' / 'figures').iterdir()} <= {p.name for p in (tmp_path / 'out1' / 'figures').glob('*.png')}


# Temporary files

def test_temporary_files_are_beside_their_target_and_nobody_can_guess_them(tmp_path):
    seen = []
    for _ in range(2):
        with files.atomic_file(tmp_path / 'a.json') as temporary:
            seen.append(temporary.name)
            assert temporary.parent == tmp_path and not temporary.exists()
            temporary.write_text('x')
    assert seen[0] != seen[1] and all(len(set(name)) > 8 for name in seen) and os.listdir(tmp_path) == ['a.json']


def test_the_package_writes_nothing_to_shared_temporary_folders():
    for path in MODULES:
        assert not re.search(r'mktemp\(|[\'"]/tmp|gettempdir', path.read_text(encoding='utf-8')), path.name
