"""A distilled set on disk: folders in label order, nothing half-written, and from manifest and originals the same pixels again."""
import gzip
import json
import lzma
import os
import random
import re
import shutil
import time
from contextlib import contextmanager

import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

import naive
from rded import baselines, datasets, distilled, score
from rded.cli import main
from rded.distilled import DistilledSet, folder_names, rebuild, verify
from rded.images import to_image, to_tensor


def make(images, ipc=2, factor=1, size=16):
    found = score.score_images(images, naive.NearestMean(images, size), size=size, factor=factor, preselect=10)
    return distilled.build(images, found, score.choose(found, images, ipc, factor), size, factor)


def renamed(images, classes):
    "The same images under other class names."
    images = images.subset(range(len(images)))
    images.classes = list(classes)
    return images


@pytest.fixture(scope='module')
def digits(): return datasets.load('digits', 'train')


@pytest.fixture
def folder(tmp_path, digits):
    "A data set of files: nine images of each digit."
    for c in range(10):
        (tmp_path / 'data' / 'train' / str(c)).mkdir(parents=True)
        for k, i in enumerate(digits.of_class(c)[:9].tolist()): digits.image(i).save(tmp_path / 'data' / 'train' / str(c) / f'{k}.png')
    return tmp_path / 'data'


NAMES = {'numeric': [str(k) for k in range(12)],
         'duplicate': ['crane', 'maillot', 'crane', 'maillot', *'abcdefgh'],
         'unsafe': ['a/b', '..', '.hidden', '', 'tab\there', 'x' * 300, 'ends.', 'C:\\d', 'ü', 'nul\0', 'a_b', ' '],
         'one folder for some': ['Cat', 'cat', 'CAT', *'abcdefghi'],
         'unsorted': [*'lkjihgfedcba'],
         'wnids': [f'n{k:08d}' for k in range(12)]}


@pytest.mark.parametrize('names', NAMES.values(), ids=NAMES)
def test_imagefolder_has_the_manifests_order(tmp_path, digits, names):
    "Twelve classes: the digits, and 0 and 1 again as 10 and 11."
    twelve = datasets.ImageSet('twelve', 'train', names, torch.cat([digits.y, digits.y[digits.y < 2] + 10]), [f'train/{i}' for i in range(len(digits) + int((digits.y < 2).sum()))],
                               [f'train/{i}' for i in range(len(digits) + int((digits.y < 2).sum()))], None, torch.cat([digits.x, digits.x[digits.y < 2]]))
    twelve.content = lambda i: '0' * 16
    made = baselines.random_images(twelve, 2, 16)
    made.save(tmp_path / 'set')
    opened = ImageFolder(tmp_path / 'set' / 'images')
    assert opened.targets == made.y.tolist() == [image['label'] for image in made.manifest['images']]
    assert made.manifest['classes'] == names and len(opened.classes) == 12
    assert all(torch.equal(to_tensor(x), made.x[j]) for j, (x, _) in enumerate(opened))
    loaded = DistilledSet.load(tmp_path / 'set')
    assert loaded.classes == names and torch.equal(loaded.x, made.x) and torch.equal(loaded.y, made.y)
    assert verify(tmp_path / 'set')['ok']
    assert torch.equal(DistilledSet.load(tmp_path / 'set' / 'images').y, made.y)
    assert {p.parent.parent for p in (tmp_path / 'set').rglob('*.png')} == {tmp_path / 'set' / 'images'}


def test_names_of_folders_stay_plain_where_they_can():
    assert folder_names(['n01440764', 'n02102040']) == ['n01440764', 'n02102040'] and folder_names(['airplane', 'bird']) == ['airplane', 'bird']
    assert folder_names(['10', '9']) == ['10', '9']


def test_save_load_rebuild_verify(tmp_path, folder):
    images = datasets.load(folder, 'train')
    made = make(images, ipc=2, factor=2)
    made.save(tmp_path / 'set', workers=2)
    loaded = DistilledSet.load(tmp_path / 'set', workers=2)
    assert loaded.manifest == json.loads((tmp_path / 'set' / 'rded.json').read_text()) == made.manifest and loaded.digest == made.digest
    again = rebuild(tmp_path / 'set' / 'rded.json', datasets.load(folder, 'train'), workers=2)
    again.save(tmp_path / 'again')
    assert torch.equal(again.x, made.x)
    assert (tmp_path / 'again' / 'rded.json').read_bytes() == (tmp_path / 'set' / 'rded.json').read_bytes()
    assert verify(tmp_path / 'again')['ok']
    text = (tmp_path / 'set' / 'rded.json').read_text()
    assert str(tmp_path) not in text and str(folder) not in text


def test_a_moved_tree_is_found(tmp_path, folder):
    made = make(datasets.load(folder, 'train'))
    moved = shutil.move(folder, tmp_path / 'elsewhere')
    for path in (tmp_path / 'elsewhere').rglob('*.png'): path.rename(path.with_name(f'img-{path.name}'))
    again = rebuild(made.manifest, datasets.load(moved, 'train'))
    assert torch.equal(again.x, made.x) and len(again.moved) == 20 and again.differing == []
    assert all(p['source'].split('/')[-1].startswith('img-') for p in again.patches)


def test_renamed_class_folders_are_found(tmp_path, folder):
    made = make(datasets.load(folder, 'train'))
    for path in sorted((folder / 'train').iterdir()): path.rename(path.with_name(f'digit {9 - int(path.name)}'))     # another order, too
    again = rebuild(made.manifest, datasets.load(folder, 'train'))
    assert torch.equal(again.x, made.x) and len(again.moved) == 20 and again.y.tolist() == made.y.tolist()
    assert again.moved[made.patches[6]['source']] == made.patches[6]['source'].replace('train/3/', 'train/digit 6/')
    for path in (folder / 'train').rglob('*.png'): path.rename(path.with_name(f'{path.parent.name}-{path.stem}.bmp'))   # and every file
    assert torch.equal(rebuild(made.manifest, datasets.load(folder, 'train'), workers=2).x, made.x)


def test_no_image_is_read_twice_in_the_search(folder):
    made = make(datasets.load(folder, 'train'))
    os.unlink(folder / made.patches[0]['source'])
    images, read = datasets.load(folder, 'train'), []
    content = images.content
    images.content = lambda i: (read.append(i), content(i))[1]
    with pytest.raises(ValueError, match='1 of 20 source images .* 1 missing'): rebuild(made.manifest, images)
    assert max(read.count(i) for i in read) == 2 and len(set(read)) == len(images)      # in its place, and once in the search
    read.clear()
    rebuild(make(images).manifest, images)
    assert read.count(0) <= 2                                                           # made, checked: no search where nothing is lost


def test_photographs_moved_elsewhere(tmp_path, imagenette_root):
    "Six JPEG files of each of three classes."
    for key in sorted(os.listdir(imagenette_root / 'train'))[:3]:
        (tmp_path / 'data' / 'train' / key).mkdir(parents=True)
        for path in sorted((imagenette_root / 'train' / key).iterdir())[:6]: shutil.copy(path, tmp_path / 'data' / 'train' / key)
    made = baselines.random_mosaics(datasets.load(tmp_path / 'data', 'train'), 1, 64, 2)
    made.save(tmp_path / 'set')
    assert 'terms of access' in (tmp_path / 'set' / 'CARD.md').read_text()
    (tmp_path / 'data').rename(tmp_path / 'photos')
    for k, path in enumerate(sorted((tmp_path / 'photos' / 'train').iterdir())): path.rename(path.with_name('xyz'[k]))
    again = rebuild(tmp_path / 'set' / 'rded.json', datasets.load(tmp_path / 'photos', 'train'), workers=2)
    assert torch.equal(again.x, made.x) and len(again.moved) == 12 and again.classes == made.classes and again.changes == {}


def test_swapped_files_are_found_within_the_class(folder):
    made = make(datasets.load(folder, 'train'))
    a, b = (folder / p['source'] for p in made.patches[:2])
    a.rename(folder / 'aside'), b.rename(a), (folder / 'aside').rename(b)
    again = rebuild(made.manifest, datasets.load(folder, 'train'))
    assert torch.equal(again.x, made.x) and again.moved == {a.relative_to(folder).as_posix(): b.relative_to(folder).as_posix(), b.relative_to(folder).as_posix(): a.relative_to(folder).as_posix()}


def test_a_changed_source_is_named(folder, digits):
    made = make(datasets.load(folder, 'train'))
    changed, missing = made.patches[3]['source'], made.patches[5]['source']
    digits.image(0).rotate(90).save(folder / changed)
    os.unlink(folder / missing)
    with pytest.raises(ValueError, match='2 of 20') as error: rebuild(made.manifest, datasets.load(folder, 'train'))
    was, now = (p['content'] for p in made.patches if p['source'] == changed), distilled.digest64((folder / changed).read_bytes())
    assert f'1 changed: {changed} ({next(was)} in the manifest, {now} here)' in str(error.value) and f'1 missing: {missing}' in str(error.value)


def test_another_data_set_is_refused(digits):
    made = make(digits)
    with pytest.raises(ValueError, match='not what they were'): rebuild(made.manifest, datasets.load('digits', 'val'))
    with pytest.raises(ValueError, match="no class '7'"): rebuild(made.manifest, renamed(datasets.load('digits', 'val'), [*'0123456abc']))


def older(resize, versions):
    "A context in which this package is another: another way to resize, other versions of libraries."
    @contextmanager
    def context():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(distilled, 'crop_resize', resize)
            patch.setattr(distilled, 'versions', lambda: versions)
            yield
    return context()


def bicubic(img, box, size):
    top, left, height, width = map(int, box)
    return img.crop((left, top, left + width, top + height)).resize((size, size), Image.BICUBIC)


def test_across_versions_the_difference_is_counted_and_measured(tmp_path, folder):
    with older(bicubic, {**distilled.versions(), 'pillow': '9.0.0', 'numpy': None}):
        made = make(datasets.load(folder, 'train'), factor=2)
        made.save(tmp_path / 'set')
        assert rebuild(tmp_path / 'set' / 'rded.json', datasets.load(folder, 'train')).differing == []
    again = rebuild(tmp_path / 'set' / 'rded.json', datasets.load(folder, 'train'))
    found = distilled.compare(again, made)
    assert again.difference == dict(images=20, differing=found['differing'], compared=found['differing'], largest=found['largest'])
    assert found['differing'] > 10 and found['largest'] > 5 and len(again.differing) == found['differing']
    assert again.changes == {'pillow': ('9.0.0', distilled.versions()['pillow']), 'numpy': (None, distilled.versions()['numpy'])}
    again.save(tmp_path / 'again')
    assert verify(tmp_path / 'again')['ok'] and again.manifest['versions'] == distilled.versions()
    (tmp_path / 'alone').mkdir()
    shutil.copy(tmp_path / 'set' / 'rded.json', tmp_path / 'alone')
    alone = lambda **more: rebuild(tmp_path / 'alone' / 'rded.json', datasets.load(folder, 'train'), **more).difference
    assert alone() == dict(images=20, differing=found['differing'], compared=0, largest=None)          # no old pixels: counted, not measured
    assert alone(against=tmp_path / 'set')['largest'] == found['largest']
    shutil.rmtree(tmp_path / 'set' / 'images' / '0')
    assert alone(against=tmp_path / 'set')['compared'] == sum(not f.startswith('images/0/') for f in again.differing)


def test_a_box_outside_its_source_names_it(digits):
    made = make(digits)
    made.manifest['images'][3]['patches'][0]['box'] = [9, 9, 16, 16]
    with pytest.raises(ValueError, match=f"{made.patches[3]['source']}: box .* is not inside"): rebuild(made.manifest, digits)


def test_a_manifest_that_is_wrong_about_its_images_is_found(tmp_path, digits, capsys):
    make(digits).save(tmp_path / 'set')
    file = tmp_path / 'set' / 'rded.json'
    told = json.loads(file.read_text())
    assert verify(tmp_path / 'set', images=digits)['ok']
    file.write_text(json.dumps({**told, 'settings': {**told['settings'], 'size': 18}}))
    with pytest.raises(ValueError, match=r'rded.json: its settings tell of 18 pixels a side, images/0/00000.png has 16'): DistilledSet.load(tmp_path / 'set')
    assert len(verify(tmp_path / 'set')['changed']) == 20 and main(['verify', str(tmp_path / 'set')]) == 2
    again = rebuild(file, digits)
    assert again.size == 18 and again.difference == dict(images=20, differing=20, compared=0, largest=None)
    told['images'][0]['patches'][0]['box'] = [0, 0, 300, 300]
    file.write_text(json.dumps(told))
    assert verify(tmp_path / 'set', images=digits)['wrong_boxes'] == ['images/0/00000.png']
    assert main(['verify', str(tmp_path / 'set'), '--data', 'digits']) == 2 and '1 wrong boxes (images/0/00000.png): fetch the manifest again' in capsys.readouterr().err


def test_one_edited_pixel_is_found(tmp_path, digits):
    make(digits).save(tmp_path / 'set')
    path = tmp_path / 'set' / 'images' / '4' / '00001.png'
    x = to_tensor(Image.open(path))
    x[2, 15, 15] ^= 1
    to_image(x).save(path)
    report = verify(tmp_path / 'set')
    assert not report['ok'] and report['changed'] == ['images/4/00001.png'] and report['missing'] == report['unexpected'] == report['misplaced'] == []


def test_a_torn_file_and_a_wrong_label_are_found(tmp_path, digits):
    make(digits).save(tmp_path / 'set')
    path = tmp_path / 'set' / 'images' / '4' / '00001.png'
    path.write_bytes(path.read_bytes()[:50])
    manifest = json.loads((tmp_path / 'set' / 'rded.json').read_text())
    manifest['images'][0]['label'] = 3
    (tmp_path / 'set' / 'rded.json').write_text(json.dumps(manifest))
    report = verify(tmp_path / 'set')
    assert report['changed'] == ['images/4/00001.png'] and report['misplaced'] == ['images/0/00000.png']


def test_what_lies_elsewhere_or_does_not_belong_is_found(tmp_path, digits):
    make(digits).save(tmp_path / 'set')
    images = tmp_path / 'set' / 'images'
    (images / '4' / '00001.png').rename(images / '7' / '00005.png')
    a, b = images / '1' / '00000.png', images / '2' / '00000.png'
    a.rename(images / 'aside'), b.rename(a), (images / 'aside').rename(b)
    shutil.copy(images / '9' / '00000.png', images / '9' / '00009.png')
    (images / '3' / '.DS_Store').write_bytes(b'x'), (images / '3' / '._00000.png').write_bytes(b'x'), (images / 'empty').mkdir()
    report = verify(tmp_path / 'set', workers=2)
    assert report['missing'] == ['images/4/00001.png'] and report['changed'] == ['images/1/00000.png', 'images/2/00000.png']
    assert report['misplaced'] == ['images/1/00000.png', 'images/2/00000.png', 'images/7/00005.png']
    assert report['unexpected'] == ['images/3/._00000.png', 'images/9/00009.png', 'images/empty/']


def test_no_folder_that_would_pass_for_a_class_is_overlooked(tmp_path, digits):
    "torchvision's ImageFolder takes every folder for a class, hidden and linked ones, too."
    make(digits).save(tmp_path / 'set')
    images = tmp_path / 'set' / 'images'
    (images / '5').rename(images / '.five'), (images / '5').symlink_to('.five', target_is_directory=True), (images / '4-more').symlink_to('4', target_is_directory=True)
    for name in ('.ipynb_checkpoints', '0-more'): (images / name).mkdir(), (images / name / '.gitkeep').write_bytes(b'')
    report = verify(tmp_path / 'set')
    assert not report['ok'] and [file for file in report['unexpected'] if file.endswith('/')] == ['images/.five/', 'images/.ipynb_checkpoints/', 'images/0-more/', 'images/4-more/', 'images/5/']


def test_verify_looks_at_the_sources_when_it_has_them(tmp_path, folder, digits):
    made = make(datasets.load(folder, 'train'))
    made.save(tmp_path / 'set')
    whole = verify(tmp_path / 'set', images=datasets.load(folder, 'train'))
    assert whole['ok'] and whole['changed_sources'] == whole['missing_sources'] == [] and whole['moved_sources'] == 0
    changed, missing, moved = made.patches['source'][:3]
    digits.image(0).rotate(90).save(folder / changed), os.unlink(folder / missing)
    (folder / moved).rename((folder / moved).with_name('moved.png'))
    report = verify(tmp_path / 'set', images=datasets.load(folder, 'train'))
    assert not report['ok'] and (report['changed_sources'], report['missing_sources'], report['moved_sources']) == ([changed], [missing], 1)


def test_saving_is_all_or_nothing(tmp_path, digits, monkeypatch):
    made = make(digits)
    def full(*_): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(distilled, 'card', full)
    with pytest.raises(ValueError, match='the disk is full'): made.save(tmp_path / 'set')
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    made.save(tmp_path / 'set')
    with pytest.raises(ValueError, match='exists and is not empty'): made.save(tmp_path / 'set')
    (tmp_path / 'empty').mkdir()
    made.save(tmp_path / 'empty')
    assert verify(tmp_path / 'empty')['ok']


def test_a_manifest_that_leads_outside_is_refused(tmp_path, digits):
    made = make(digits)
    made.save(tmp_path / 'set')
    manifest = json.loads((tmp_path / 'set' / 'rded.json').read_text())
    manifest['images'][0]['file'] = '../../secret.png'
    (tmp_path / 'set' / 'rded.json').write_text(json.dumps(manifest))
    for look in (verify, DistilledSet.load):
        with pytest.raises(ValueError, match='leads out of the folder'): look(tmp_path / 'set')


def invented(classes, seed=0):
    "A manifest of ten images of every class, four patches each, with names, boxes and scores like ImageNet's and random digests."
    rng, ids = random.Random(seed), [f'n{1440764 + 13171 * c:08d}' for c in range(classes)]
    def patch(key):
        height, width = rng.choice([(375, 500), (500, 375), (333, 500), (500, 500), (480, 640)])
        side = min(int((rng.uniform(0.08, 1) * height * width) ** 0.5), height, width)
        return dict(source=f'train/{key}/{key}_{rng.randrange(1, 20000)}.JPEG', content=f'{rng.getrandbits(64):016x}',
                    box=[rng.randrange(height - side + 1), rng.randrange(width - side + 1), side, side], score=float(f'{-10 ** rng.uniform(-5, -1):.4g}'))
    images = [dict(file=f'images/{key}/{j:05d}.png', label=c, hash=f'{rng.getrandbits(64):016x}', patches=[patch(key) for _ in range(4)])
              for c, key in enumerate(ids) for j in range(10)]
    return dict(format=distilled.FORMAT, method='rded', data=dict(name='imagenet', split='train', images=1281167), classes=ids, wnids=ids, names=None, seed=0,
                settings=dict(size=224, factor=2, ipc=10), observer=None, broken=[], versions=distilled.versions(), environment={}, images=images)


def test_the_manifest_of_imagenet_is_about_a_megabyte_and_quick_to_read(tmp_path):
    manifest = invented(1000)
    assert sum(len(image['patches']) for image in manifest['images']) == 40_000
    sizes, seconds = {}, {}
    for ending in distilled.PACKED:
        distilled.write_manifest(manifest, tmp_path / f'rded{ending}')
        sizes[ending] = (tmp_path / f'rded{ending}').stat().st_size
        start = time.perf_counter()
        assert distilled.read_manifest(tmp_path / f'rded{ending}') == manifest
        seconds[ending] = time.perf_counter() - start
    assert sizes['.json.xz'] < 1.1e6 and sizes['.json.gz'] < 1.35e6 and max(seconds.values()) < 3      # a fifth of a second on an idle core
    distilled.write_manifest(invented(500), tmp_path / 'half.json.xz')
    assert 1.9 < sizes['.json.xz'] / (tmp_path / 'half.json.xz').stat().st_size < 2.1                  # it grows with the images, no faster
    assert gzip.decompress((tmp_path / 'rded.json.gz').read_bytes()) == lzma.decompress((tmp_path / 'rded.json.xz').read_bytes()) == (tmp_path / 'rded.json').read_bytes()


def test_a_manifest_travels_alone(tmp_path, folder):
    made = make(datasets.load(folder, 'train'))
    for ending in distilled.PACKED:
        distilled.write_manifest(made.manifest, tmp_path / f'sent{ending}')
        again = rebuild(tmp_path / f'sent{ending}', datasets.load(folder, 'train'))
        again.save(tmp_path / ending)
        assert torch.equal(again.x, made.x) and json.loads((tmp_path / ending / 'rded.json').read_text()) == made.manifest
    for name in ('sent.txt', 'sent.gz', 'sent.xz'):
        with pytest.raises(ValueError, match='should end in'): distilled.write_manifest(made.manifest, tmp_path / name)


def test_patches_are_a_table(digits):
    pandas, made = pytest.importorskip('pandas'), make(digits, factor=2)
    frame = pandas.DataFrame(made.patches)
    assert list(frame.columns) == ['image', 'cell', 'label', 'source', 'content', 'box', 'score'] == made.patches.columns and len(frame) == 80
    assert frame['score'].tolist() == made.patches['score'] and frame.iloc[7].to_dict() == made.patches[7]
    assert frame.groupby('label').size().tolist() == [8] * 10
    assert repr(made.patches).count('\n') == 7 and repr(made.patches).endswith('80 rows')


def lines_of_training(text):
    "The Python of a card that trains a student."
    return next(code for code in re.findall('```python\n(.*?)```', text, re.S) if 'train_student' in code)


@pytest.mark.parametrize('method', ['rded', 'random'])
def test_the_cards_lines_train_a_student(tmp_path, digits, monkeypatch, capsys, method):
    from dataclasses import replace
    from rded import models, observer, recipes
    if method == 'rded':
        models.save(models.build('conv3', 10, 16, digits.classes, seed=0), tmp_path / 'eye.safetensors')
        eye = observer.get_observer(str(tmp_path / 'eye.safetensors'), digits)
        found = score.score_images(digits, eye, size=16, factor=1, preselect=5)
        made = distilled.build(digits, found, score.choose(found, digits, 2, 1), 16, 1, observer=eye)
    else: made = baselines.random_images(digits, 2, 16)
    made.save(tmp_path / 'set')
    if method == 'rded': shutil.copy(tmp_path / 'eye.safetensors', tmp_path / 'set')
    monkeypatch.chdir(tmp_path / 'set')
    paper = recipes.paper_training
    monkeypatch.setattr(recipes, 'paper_training', lambda *args, **more: replace(paper(*args, **more), epochs=2))    # 300 in the card
    code = lines_of_training((tmp_path / 'set' / 'CARD.md').read_text())
    assert len(code.strip().splitlines()) == 7 and ('LiveLabels' in code) == (method == 'rded')
    exec(code, {})
    assert "'top1'" in capsys.readouterr().out


def test_the_cards_commands_are_understood(tmp_path, digits):
    import shlex
    from rded import cli
    made = make(digits)
    made.manifest['data']['name'], made.manifest['observer'] = "my photo's", dict(name='a b.safetensors', arch='conv3', sha256='0' * 64, top1=50.0)
    text = distilled.card(made)
    lines = re.findall(r'^rded .*$|(?<=`)rded train [^`]*(?=`)', text.replace('rded train … --json FILE', ''), re.M)
    assert len(lines) == 2
    for line in lines: cli.parser().parse_args(shlex.split(line)[1:])


def test_the_cards_lines_open_the_folder(tmp_path, digits, monkeypatch):
    made = make(digits)
    made.save(tmp_path / 'set')
    monkeypatch.chdir(tmp_path / 'set')
    (code,) = [c for c in re.findall('```python\n(.*?)```', (tmp_path / 'set' / 'CARD.md').read_text(), re.S) if 'ImageFolder' in c]
    names = {}
    exec(re.sub(r'from datasets import.*\nimages = load_dataset.*\n', '', code), names)        # tests/test_export.py opens it with `datasets`
    assert names['images'].targets == names['small'].y.tolist() == made.y.tolist()


def test_the_card_tells_results_that_belong_to_it(digits):
    made = make(digits)
    result = dict(student='conv3', method='rded', ipc=2, data='digits', training='paper', top1=41.236, n=355, seed=1, set=made.digest, observer={'name': 'eye'})
    text = distilled.card(made, results=[result, {**result, 'observer': None, 'top1': 20.0}])
    assert '| conv3 | region labels | paper | 41.24 % of 355 | 1 |' in text and '| conv3 | class labels | paper | 20.00 % of 355 | 1 |' in text
    assert ' %' not in distilled.card(made).split('## What to expect')[1].split('##')[0]               # no number without a result
    with pytest.raises(ValueError, match='random-images at 2 a class of digits: it is not of this set'): distilled.card(made, results=[{**result, 'method': 'random-images'}])


@pytest.mark.parametrize('content, message', [('{"format": "rded-2"}', "'rded-2'"), ('[1, 2]', "'list'"), ('{"format": ', 'line 1'), ('{"format": "rded-1"}', 'lacks')])
def test_what_is_no_manifest_is_refused(tmp_path, content, message):
    (tmp_path / 'rded.json').write_text(content)
    for look in (verify, DistilledSet.load):
        with pytest.raises(ValueError, match=message): look(tmp_path)
    with pytest.raises(ValueError, match='is a folder: give a file'): distilled.read_manifest(tmp_path)


def test_anyones_folder(tmp_path, digits):
    for c in ('b', 'a'):
        (tmp_path / 'plain' / c).mkdir(parents=True)
        digits.image(3 if c == 'a' else 5).save(tmp_path / 'plain' / c / 'x.jpg')
    plain = DistilledSet.load(tmp_path / 'plain')
    assert plain.classes == ['a', 'b'] and plain.y.tolist() == [0, 1] and plain.manifest is None and plain.factor == 1 and plain.ipc == 1
    digits.image(0).resize((20, 20)).save(tmp_path / 'plain' / 'b' / 'y.png')
    with pytest.raises(ValueError, match='b/y.png is 20×20'): DistilledSet.load(tmp_path / 'plain')
    assert DistilledSet.load(tmp_path / 'plain', size=16).x.shape == (3, 3, 16, 16)


def test_anyones_images_of_the_asked_size_stay_as_they_are(tmp_path):
    pixels = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for c in range(2):
        (tmp_path / str(c)).mkdir()
        to_image(pixels[c]).save(tmp_path / str(c) / '0.png')
    assert torch.equal(DistilledSet.load(tmp_path, size=64).x, pixels)
    to_image(pixels[0, :, :, :48]).save(tmp_path / '0' / 'tall.png')
    middle = to_image(pixels[0, :, 8:56, :48]).resize((48, 48))
    assert torch.equal(DistilledSet.load(tmp_path, size=48).x[1], to_tensor(middle))                 # nothing of the square is lost


def test_a_manifests_rows_keep_their_files(tmp_path, digits):
    "Rebuilt from some of a manifest's images in another order, a set is written under the names that its manifest says."
    made = make(digits)
    some = {**made.manifest, 'images': [made.manifest['images'][k] for k in (7, 1, 6)]}
    again = rebuild(some, digits)
    assert again.files == [image['file'] for image in some['images']]
    again.save(tmp_path / 'some')
    assert verify(tmp_path / 'some')['ok'] and torch.equal(DistilledSet.load(tmp_path / 'some').x, made.x[[7, 1, 6]])
    again.manifest['images'][1]['file'] = '../outside.png'
    with pytest.raises(ValueError, match='leads out of the folder'): again.save(tmp_path / 'other')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['some']


def test_changed_and_swapped_images_are_not_loaded(tmp_path, digits, capsys):
    made = make(digits)
    made.save(tmp_path / 'set')
    first, other = (tmp_path / 'set' / made.files[k] for k in (3, 12))
    first.rename(tmp_path / 'kept'), other.rename(first), (tmp_path / 'kept').rename(other)
    with pytest.raises(ValueError, match=f'{re.escape(made.files[3])} is not what the manifest says.*rded verify'): DistilledSet.load(tmp_path / 'set', workers=2)
    assert torch.equal(DistilledSet.load(tmp_path / 'set', check=False).x[3], made.x[12])
    assert main(['info', str(tmp_path / 'set')]) == 0 and main(['verify', str(tmp_path / 'set')]) == 2


def test_the_card_takes_no_result_of_another_set_or_observer_or_of_held_out_images(digits):
    made = make(digits)
    made.manifest['observer'] = dict(name='eye', arch='conv3', sha256='a' * 64, top1=90.0)
    result = dict(student='conv3', method='rded', ipc=2, data='digits', split='val', training='paper', top1=41.236, n=355, seed=1, set=made.digest, observer=made.manifest['observer'])
    eye, other = result['observer'], {**result['observer'], 'name': 'other', 'sha256': 'b' * 64}
    for ours in (result, {**result, 'observer': None}, {**result, 'observer': other, 'scored_by': eye}): assert distilled.belongs(ours, made)
    for foreign, said in (({**result, 'split': 'held-out'}, 'held-out images of digits'), ({**result, 'observer': other}, r'another observer chose \(other, sha256 bbb'),
                          ({**result, 'scored_by': other}, 'another observer chose'), ({**result, 'set': make(digits, factor=2).digest}, f'this one is {made.digest}'), ({**result, 'set': None}, 'does not say of which set')):
        assert not distilled.belongs(foreign, made)
        with pytest.raises(ValueError, match=said): distilled.card(made, results=[result, foreign])


def test_limits_say_what_fits(digits):
    with pytest.raises(ValueError, match='10 are drawn of each class: ipc 2 at factor 2 or factor 1 at ipc 3 or preselect 12 would fit'): make(digits, ipc=3, factor=2)
    for ipc in (0, -1):
        with pytest.raises(ValueError, match=f'ipc {ipc}'): make(digits, ipc=ipc)
        with pytest.raises(ValueError, match=f'ipc {ipc}'): baselines.random_images(digits, ipc, 16)
    with pytest.raises(ValueError, match='would fit'): baselines.random_images(digits, 200, 16)
