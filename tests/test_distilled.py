"""A distilled set on disk: folders in label order, nothing half-written, and from manifest and originals the same pixels again."""
import json
import os
import shutil

import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

import naive
from rded import baselines, datasets, distilled, score
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
    assert f'{changed} (changed)' in str(error.value) and f'{missing} (missing)' in str(error.value)


def test_another_data_set_is_refused(digits):
    made = make(digits)
    with pytest.raises(ValueError, match='not what they were'): rebuild(made.manifest, datasets.load('digits', 'val'))
    with pytest.raises(ValueError, match="no class '7'"): rebuild(made.manifest, renamed(datasets.load('digits', 'val'), [*'0123456abc']))


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


@pytest.mark.parametrize('content, message', [('{"format": "rded-2"}', "'rded-2'"), ('[1, 2]', "'list'"), ('{"format": ', 'line 1'), ('{"format": "rded-1"}', 'lacks')])
def test_what_is_no_manifest_is_refused(tmp_path, content, message):
    (tmp_path / 'rded.json').write_text(content)
    for look in (verify, DistilledSet.load):
        with pytest.raises(ValueError, match=message): look(tmp_path)


def test_anyones_folder(tmp_path, digits):
    for c in ('b', 'a'):
        (tmp_path / 'plain' / c).mkdir(parents=True)
        digits.image(3 if c == 'a' else 5).save(tmp_path / 'plain' / c / 'x.jpg')
    plain = DistilledSet.load(tmp_path / 'plain')
    assert plain.classes == ['a', 'b'] and plain.y.tolist() == [0, 1] and plain.manifest is None and plain.factor == 1 and plain.ipc == 1
    digits.image(0).resize((20, 20)).save(tmp_path / 'plain' / 'b' / 'y.png')
    with pytest.raises(ValueError, match='b/y.png is 20×20'): DistilledSet.load(tmp_path / 'plain')
    assert DistilledSet.load(tmp_path / 'plain', size=16).x.shape == (3, 3, 16, 16)


def test_limits_say_what_fits(digits):
    with pytest.raises(ValueError, match='10 are drawn of each class: ipc 2 at factor 2 or factor 1 at ipc 3 or preselect 12 would fit'): make(digits, ipc=3, factor=2)
    for ipc in (0, -1):
        with pytest.raises(ValueError, match=f'ipc {ipc}'): make(digits, ipc=ipc)
        with pytest.raises(ValueError, match=f'ipc {ipc}'): baselines.random_images(digits, ipc, 16)
    with pytest.raises(ValueError, match='would fit'): baselines.random_images(digits, 200, 16)
