"""A distilled set in the forms other people's code reads, opened with the libraries they are for; and the commands that write, send and make it again."""
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch

from rded import baselines, datasets as data, distilled, export
from rded.cli import main
from rded.distilled import DistilledSet
from rded.images import to_tensor

NAMES = ['zebra: "striped"', 'ant # not a comment', 'no', '1e3', "it's", '猫 | 😀', 'train', 'test tube', 'new\nline', '- *x* <b>']


@pytest.fixture(scope='module')
def hub(tmp_path_factory):
    "Hugging Face's library, offline, with a cache of this test's own."
    home = tmp_path_factory.mktemp('home')
    os.environ.update(HF_HUB_OFFLINE='1', HF_DATASETS_OFFLINE='1', HF_HOME=str(home), HF_DATASETS_CACHE=str(home / 'datasets'))
    library = pytest.importorskip('datasets')
    library.config.HF_DATASETS_CACHE = str(home / 'datasets')
    library.disable_progress_bars()
    return library


@pytest.fixture(scope='module')
def made():
    "Random mosaics of digits whose classes have awkward names."
    images = data.load('digits', 'train')
    images.classes = NAMES
    return baselines.random_mosaics(images, ipc=3, size=16, factor=2)


@pytest.fixture
def folder(tmp_path, made):
    made.save(tmp_path / 'set')
    return tmp_path / 'set'


def pixels(images): return torch.stack([to_tensor(img) for img in images])


def files(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


def run(capsys, *argv):
    "Status and output of a command."
    capsys.readouterr()
    code = main([*map(str, argv), '--quiet'])
    return code, capsys.readouterr()


# WebDataset

@pytest.mark.parametrize('write', [lambda made, out: made.save(out), lambda made, out: export.webdataset(made, out)])
def test_a_part_of_a_set_is_not_written_under_the_whole_sets_manifest(tmp_path, made, write):
    part = DistilledSet(made.x[:7], made.y[:7], made.classes, made.wnids, made.names, made.manifest)
    with pytest.raises(ValueError, match='the manifest is of 30 images, the set has 7'): write(part, tmp_path / 'part')
    assert not [*tmp_path.iterdir()]


def test_webdataset_reads_the_shards(tmp_path, made):
    wds = pytest.importorskip('webdataset')
    export.webdataset(made, tmp_path / 'wds', each=7)
    shards = sorted(str(p) for p in (tmp_path / 'wds').glob('train-*.tar'))
    samples = list(wds.WebDataset(shards, shardshuffle=False).decode('pil').to_tuple('png', 'cls', 'json'))
    assert len(shards) == 5 and torch.equal(pixels(img for img, _, _ in samples), made.x) and [y for _, y, _ in samples] == made.y.tolist()
    assert [about for _, _, about in samples] == [{'class': NAMES[i['label']], 'name': NAMES[i['label']], **i} for i in made.manifest['images']]
    assert json.loads((tmp_path / 'wds' / 'rded.json').read_text()) == made.manifest


def test_the_cards_lines_open_the_shards(tmp_path, made, monkeypatch):
    pytest.importorskip('webdataset')
    export.webdataset(made, tmp_path / 'wds', each=7)
    monkeypatch.chdir(tmp_path / 'wds')
    code, names = re.findall('```python\n(.*?)```', (tmp_path / 'wds' / 'CARD.md').read_text(), re.S)[0], {}
    exec(code, names)
    assert [y for _, y, _ in names['samples']] == made.y.tolist() and torch.equal(names['small'].x, made.x)


@pytest.mark.parametrize('write', [export.webdataset, export.huggingface], ids=['webdataset', 'hf'])
def test_the_cards_lines_train_on_an_export(tmp_path, monkeypatch, capsys, write):
    from dataclasses import replace
    from rded import recipes
    if write is export.huggingface: pytest.importorskip('pyarrow')
    write(baselines.random_images(data.load('digits', 'train'), 2, 16), tmp_path / 'out')
    monkeypatch.chdir(tmp_path / 'out')
    paper = recipes.paper_training
    monkeypatch.setattr(recipes, 'paper_training', lambda *args, **more: replace(paper(*args, **more), epochs=1))      # 300 in the card
    text = next(p for p in (tmp_path / 'out').iterdir() if p.suffix == '.md').read_text()
    exec(next(c for c in re.findall('```python\n(.*?)```', text, re.S) if 'train_student' in c), {})
    assert "'top1'" in capsys.readouterr().out


def test_the_same_set_gives_the_same_bytes(tmp_path, made, folder):
    for name, one in (('a', made), ('b', DistilledSet.load(folder))):
        export.webdataset(one, tmp_path / name / 'wds', each=4)
    assert files(tmp_path / 'a') == files(tmp_path / 'b') and len(files(tmp_path / 'a')) == 10


# Hugging Face

def test_load_dataset_opens_the_folder(tmp_path, made, hub):
    export.huggingface(made, tmp_path / 'hf', each=13)
    loaded = hub.load_dataset(str(tmp_path / 'hf'))
    assert list(loaded) == ['train'] and loaded['train'].column_names == ['image', 'label']
    train = loaded['train']
    assert isinstance(train.features['image'], hub.Image) and isinstance(train.features['label'], hub.ClassLabel)
    assert train.features['label'].names == NAMES and list(train['label']) == made.y.tolist() and torch.equal(pixels(train['image']), made.x)
    assert train.info.splits['train'].num_examples == 30 and train.info.download_size == sum(p.stat().st_size for p in (tmp_path / 'hf' / 'data').iterdir())


def test_its_page_is_what_the_hub_reads(tmp_path, made, hub):
    from huggingface_hub import DatasetCard
    export.huggingface(made, tmp_path / 'hf')
    head = DatasetCard.load(tmp_path / 'hf' / 'README.md').data
    assert (head.license, head.task_categories, head.size_categories, head.pretty_name) == ('unknown', ['image-classification'], ['n<1K'], 'digits, distilled')
    assert list(head.dataset_info['features'][1]['dtype']['class_label']['names'].values()) == NAMES and 'dataset-distillation' in head.tags
    text = (tmp_path / 'hf' / 'README.md').read_text()
    assert text.count('\n---\n') == 1 and r'\*x\* &lt;b&gt;' in text and 'new line' in text


def test_a_folder_that_is_opened_elsewhere(tmp_path, made, hub):
    "In another process, without rded."
    export.huggingface(made, tmp_path / 'hf')
    code = f"import datasets; d = datasets.load_dataset({str(tmp_path / 'hf')!r}, split='train'); print(d[29]['label'], d[29]['image'].size, 'rded' in __import__('sys').modules)"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.strip().endswith(f'{int(made.y[29])} (16, 16) False'), done.stderr[-500:]


def test_many_classes_and_a_licence(tmp_path, hub):
    "A thousand WordNet ids with names, of which two are alike."
    x, y = torch.zeros(1000, 3, 8, 8, dtype=torch.uint8), torch.arange(1000)
    many = DistilledSet(x, y, [f'n{k:08d}' for k in range(1000)], names=['crane', 'crane', *map(str, range(998))])
    export.huggingface(many, tmp_path / 'hf', terms='cc0-1.0')
    train = hub.load_dataset(str(tmp_path / 'hf'), split='train')
    assert train.features['label'].names == many.classes and list(train['label']) == y.tolist()
    assert 'license: cc0-1.0\n' in (tmp_path / 'hf' / 'README.md').read_text() and '- 1K<n<10K' in (tmp_path / 'hf' / 'README.md').read_text()
    with pytest.raises(ValueError, match="'Mine!'"): export.huggingface(many, tmp_path / 'x', terms='Mine!')


# the folder itself

def test_imagefolder_of_torchvision_and_of_datasets(tmp_path, made, hub, folder, monkeypatch):
    from torchvision.datasets import ImageFolder
    ours = ImageFolder(folder / 'images')
    monkeypatch.chdir(folder)
    theirs = hub.load_dataset('imagefolder', data_files='images/**')              # as the card says: two classes are called train and test tube
    assert list(theirs) == ['train'] and ours.classes == theirs['train'].features['label'].names == distilled.folder_names(NAMES)
    assert ours.targets == list(theirs['train']['label']) == made.y.tolist() and torch.equal(pixels(theirs['train']['image']), made.x)


def test_data_dir_where_no_class_is_named_as_a_split(tmp_path, hub):
    made = baselines.random_images(data.load('digits', 'train'), 2, 16)
    made.save(tmp_path / 'set')
    loaded = hub.load_dataset('imagefolder', data_dir=str(tmp_path / 'set'))
    assert list(loaded) == ['train'] and loaded['train'].features['label'].names == made.classes and list(loaded['train']['label']) == made.y.tolist()
    plain = hub.load_dataset(str(tmp_path / 'set'))                               # the library finds out by itself
    assert torch.equal(pixels(plain['train']['image']), made.x)


def test_the_cards_lines_open_the_folder_with_datasets(made, folder, hub, monkeypatch):
    monkeypatch.chdir(folder)
    code, names = next(c for c in re.findall('```python\n(.*?)```', (folder / 'CARD.md').read_text(), re.S) if 'ImageFolder' in c), {}
    exec(code, names)
    assert list(names['images']['train']['label']) == names['small'].y.tolist() == made.y.tolist()


# back

@pytest.mark.parametrize('write', [export.webdataset, export.huggingface], ids=['webdataset', 'hf'])
def test_there_and_back(tmp_path, made, write):
    if write is export.huggingface: pytest.importorskip('pyarrow')
    write(made, tmp_path / 'out', each=8)
    again = export.load(tmp_path / 'out')
    assert again.manifest == made.manifest and again.digest == made.digest and again.classes == NAMES
    path = sorted((tmp_path / 'out').rglob('train-*'))[1]
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole) // 2])
    with pytest.raises(ValueError, match=f'{path.name} is damaged|in its manifest'): export.load(tmp_path / 'out')
    path.unlink()
    with pytest.raises(ValueError, match='22 images in its files, 30 in its manifest'): export.load(tmp_path / 'out')


def test_another_set_under_the_same_manifest_is_refused(tmp_path, made):
    other = DistilledSet(made.x.flip(0), made.y.flip(0), NAMES, manifest=made.manifest)
    for write in (export.webdataset, export.huggingface):
        with pytest.raises(ValueError, match='is not what the manifest says'): write(other, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('content, said', [(distilled.png_bytes(torch.zeros(3, 8, 8, dtype=torch.uint8)), 'is 8×8, the manifest says 16×16'), (b'no image', 'not an image')], ids=['size', 'unreadable'])
def test_an_image_of_a_shard_is_named(tmp_path, made, content, said, monkeypatch):
    with monkeypatch.context() as other:
        other.setattr(export, 'png_bytes', lambda x, real=export.png_bytes: content if torch.equal(x, made.x[1]) else real(x))
        export.webdataset(made, tmp_path / 'shards')
    with pytest.raises(ValueError, match=f'{re.escape(made.files[1])}.*{said}'): export.load(tmp_path / 'shards')


def test_without_the_extra_there_is_one_clear_line(tmp_path, folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pyarrow', None)
    code, said = run(capsys, 'export', '--distilled', folder, '--format', 'hf', '--out', tmp_path / 'hf')
    assert code == 2 and said.err.strip().count('\n') == 0 and "pip install 'rded[export]'" in said.err and not (tmp_path / 'hf').exists()
    assert run(capsys, 'export', '--distilled', folder, '--format', 'webdataset', '--out', tmp_path / 'wds')[0] == 0     # needs nothing


def test_nothing_heavy_is_imported_before_it_is_needed():
    code = "import rded.export, sys; print([m for m in ('datasets', 'pyarrow', 'pandas', 'webdataset') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'


# commands

def test_export_verify_info_of_every_form(tmp_path, made, folder, capsys):
    for form in ('webdataset', 'hf'):
        if form == 'hf': pytest.importorskip('pyarrow')
        code, said = run(capsys, 'export', '--distilled', folder, '--format', form, '--each', 10, '--out', tmp_path / form, '--json', tmp_path / 'e.json')
        told = json.loads((tmp_path / 'e.json').read_text())
        assert code == 0 and told['images'] == 30 and told['bytes'] == sum(map(len, files(tmp_path / form).values())) and 'opens with' in said.out
        assert run(capsys, 'verify', tmp_path / form)[0] == 0 and run(capsys, 'info', tmp_path / form)[0] == 0
        assert run(capsys, 'export', '--distilled', tmp_path / form, '--format', 'webdataset', '--each', 10, '--out', tmp_path / f'{form} again')[0] == 0   # from one form to another
    assert files(tmp_path / 'webdataset') == files(tmp_path / 'webdataset again') == files(tmp_path / 'hf again')


def test_a_manifest_is_sent_and_becomes_the_set_again(tmp_path, capsys):
    baselines.random_mosaics(data.load('digits', 'train'), ipc=3, size=16, factor=2).save(tmp_path / 'set')
    for ending in ('json', 'json.gz', 'json.xz'):
        sent = tmp_path / f'sent.{ending}'
        assert run(capsys, 'export', '--distilled', tmp_path / 'set', '--format', 'manifest', '--out', sent)[0] == 0
        code, said = run(capsys, 'info', sent, '--json', tmp_path / 'info.json')
        assert code == 0 and json.loads((tmp_path / 'info.json').read_text())['images'] == 30 and 'random-mosaics' in said.out
        code, said = run(capsys, 'rebuild', '--manifest', sent, '--data', 'digits', '--out', tmp_path / f'again {ending}')
        assert code == 0 and 'all 30 as they were, to the bit (no library version differs)' in said.out
        assert files(tmp_path / f'again {ending}') == files(tmp_path / 'set')


def test_rebuild_says_how_many_how_far_and_which_versions(tmp_path, capsys, monkeypatch):
    images = data.load('digits', 'train')
    baselines.random_mosaics(images, ipc=3, size=16, factor=2).save(tmp_path / 'set')
    resized = distilled.crop_resize
    def shifted(img, box, size): return resized(img, (box[0], 0, *box[2:]), size)
    monkeypatch.setattr(distilled, 'crop_resize', shifted)
    monkeypatch.setattr(distilled, 'versions', lambda: {'rded': '9', 'pillow': '99.1'})
    code, said = run(capsys, 'rebuild', '--manifest', tmp_path / 'set' / 'rded.json', '--data', 'digits', '--out', tmp_path / 'new', '--json', tmp_path / 'r.json')
    told = json.loads((tmp_path / 'r.json').read_text())
    apart = distilled.compare(DistilledSet.load(tmp_path / 'set'), DistilledSet.load(tmp_path / 'new'))
    assert code == 0 and (told['differing'], told['largest']) == (apart['differing'], apart['largest']) and apart['differing'] > 20
    assert f"{apart['differing']} of 30 images differ, by at most {apart['largest']} of 255; versions that differ: " in said.out and '99.1 now' in said.out
    shutil.copy(tmp_path / 'set' / 'rded.json', tmp_path / 'alone.json')
    code, said = run(capsys, 'rebuild', '--manifest', tmp_path / 'alone.json', '--data', 'digits', '--out', tmp_path / 'other')
    assert code == 0 and 'by how much is not known without the old images' in said.out
    code, said = run(capsys, 'rebuild', '--manifest', tmp_path / 'alone.json', '--against', tmp_path / 'set', '--data', 'digits', '--out', tmp_path / 'third')
    assert code == 0 and f"by at most {apart['largest']} of 255" in said.out


def test_sources_that_changed_stop_rebuild_and_verify(tmp_path, capsys):
    digits = data.load('digits', 'train')
    for c in range(10):
        (tmp_path / 'data' / 'train' / f'd{c}').mkdir(parents=True)
        for k, i in enumerate(digits.of_class(c)[:5].tolist()): digits.image(i).save(tmp_path / 'data' / 'train' / f'd{c}' / f'{k}.png')
    made = baselines.random_images(data.load(tmp_path / 'data', 'train'), 3, 16)
    made.save(tmp_path / 'set')
    assert run(capsys, 'verify', tmp_path / 'set', '--data', tmp_path / 'data')[1].out.endswith('and so are their sources\n')
    changed, missing = made.patches['source'][:2]
    digits.image(9).rotate(90).save(tmp_path / 'data' / changed), os.unlink(tmp_path / 'data' / missing)
    before = files(tmp_path)
    code, said = run(capsys, 'rebuild', '--manifest', tmp_path / 'set' / 'rded.json', '--data', tmp_path / 'data', '--out', tmp_path / 'again')
    assert code == 2 and said.err.count('\n') == 1 and f'1 changed: {changed} ({made.patches[0]["content"]} in the manifest, ' in said.err and f'1 missing: {missing}' in said.err
    code, said = run(capsys, 'verify', tmp_path / 'set', '--data', tmp_path / 'data')
    assert code == 2 and f'1 changed sources ({changed}); 1 missing sources ({missing}): find the original images' in said.err
    assert files(tmp_path) == before and not (tmp_path / 'again').exists()


@pytest.mark.parametrize('argv, words', [
    (['--format', 'manifest', '--out', 'm.txt'], 'should end in .json'),
    (['--format', 'manifest', '--out', 'SET/rded.json'], 'exists'),
    (['--format', 'webdataset', '--out', 'SET'], 'exists and is not empty'),
    (['--format', 'tfrecord', '--out', 'x'], "'tfrecord'"),
    (['--format', 'hf', '--out', 'x', '--license', 'all rights'], "'all rights'"),
    (['--format', 'webdataset', '--out', 'x', '--each', '0'], 'give 1 or more'),
    (['--format', 'webdataset', '--out', 'x', '--results', 'SET'], 'no result of random-mosaics at 3'),
    (['--format', 'webdataset', '--out', 'x', '--results', 'nowhere'], 'no such folder')])
def test_one_line_for_bad_input(argv, words, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = files(tmp_path)
    code, said = run(capsys, 'export', '--distilled', folder, *(a.replace('SET', str(folder)) for a in argv))
    assert code == 2 and said.err.count('\n') == 1 and words in said.err and said.out == '' and files(tmp_path) == before


def test_a_plain_folder_is_exported_too(tmp_path, folder, made, capsys, hub):
    plain = folder / 'images'
    code, said = run(capsys, 'export', '--distilled', plain, '--format', 'hf', '--out', tmp_path / 'hf')
    assert code == 0 and list(hub.load_dataset(str(tmp_path / 'hf'), split='train')['label']) == made.y.tolist()
    code, said = run(capsys, 'export', '--distilled', plain, '--format', 'manifest', '--out', tmp_path / 'm.json')
    assert code == 2 and 'only a set that rded made has a manifest' in said.err


def test_an_exported_set_trains(tmp_path, capsys):
    baselines.random_images(data.load('digits', 'train'), 2, 16).save(tmp_path / 'set')
    assert run(capsys, 'export', '--distilled', tmp_path / 'set', '--format', 'webdataset', '--out', tmp_path / 'wds')[0] == 0
    tops = []
    for name in ('set', 'wds'):
        assert run(capsys, 'train', '--distilled', tmp_path / name, '--hard', '--student', 'conv3', '--val', 'digits', '--epochs', 2,
                   '--out', tmp_path / f'{name}.safetensors', '--json', tmp_path / 'results' / f'{name}.json')[0] == 0
        tops.append(json.loads((tmp_path / 'results' / f'{name}.json').read_text())['top1'])
    assert tops[0] == tops[1]
    read = lambda: json.loads((tmp_path / 'results' / 'set.json').read_text())
    (tmp_path / 'results' / 'older.json').write_text(json.dumps({k: v for k, v in read().items() if k != 'set'} | {'seed': 1}))
    code, said = run(capsys, 'export', '--distilled', tmp_path / 'set', '--format', 'webdataset', '--results', tmp_path / 'results', '--out', tmp_path / 'told')
    row, card = f'| conv3 | class labels | paper, epochs 2-hard | {tops[0]:.2f} % of 355 | 0 |', (tmp_path / 'told' / 'CARD.md').read_text()
    assert code == 0 and card.count('| conv3 |') == card.count(row) == 1 and '1 results of random-images at 2 a class do not say of which set' in said.err
    baselines.random_images(data.load('digits', 'train'), 2, 16, seed=1).save(tmp_path / 'other')
    code, said = run(capsys, 'export', '--distilled', tmp_path / 'other', '--format', 'webdataset', '--results', tmp_path / 'results', '--out', tmp_path / 'no')
    assert code == 2 and 'trained on this set' in said.err and read()['set'] == DistilledSet.load(tmp_path / 'set').digest
