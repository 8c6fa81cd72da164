"""What holds for images of any size and mode, any factor, number of images and classes: the line from a folder to labels, back and forth."""
import io
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings, strategies as st
from PIL import Image

from rded import baselines, datasets, distilled, export, labels, models, patches, score, views
from rded.images import crop_resize, read_image, to_image, to_rgb, to_tensor, whole
from rded.observer import Observer
from rded.recipes import paper_training
from rded.select import check_fits

settings.register_profile('any', deadline=None, derandomize=True, database=None)
settings.load_profile('any')

MODES = ['1', 'L', 'LA', 'La', 'P', 'PA', 'RGB', 'RGBA', 'RGBa', 'RGBX', 'CMYK', 'YCbCr', 'LAB', 'HSV', 'I;16', 'I', 'F']
FILES = {'PNG': ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'I;16'], 'JPEG': ['L', 'RGB', 'CMYK'], 'WEBP': ['RGB', 'RGBA'], 'TIFF': ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK', 'YCbCr', 'LAB', 'I;16', 'F'], 'GIF': ['L', 'P'], 'BMP': ['1', 'L', 'P', 'RGB']}
sides = st.one_of(st.integers(1, 40), st.sampled_from([1, 2, 3, 97, 300]))


def picture(width, height, mode, seed):
    "Random pixels in a mode."
    rng = np.random.default_rng(seed)
    if mode == 'I;16': return Image.fromarray(rng.integers(0, 65536, (height, width), np.uint16))
    if mode in ('I', 'F'): return Image.fromarray(rng.integers(0, 256, (height, width)).astype(np.int32 if mode == 'I' else np.float32))
    plain = Image.fromarray(rng.integers(0, 256, (height, width, 4), np.uint8), 'RGBA' if mode.startswith(('RGBA', 'LA', 'La', 'PA')) else 'RGBX')
    if mode == 'La': return plain.convert('LA').convert('La')
    if mode == 'LAB':
        from PIL import ImageCms
        return ImageCms.applyTransform(plain.convert('RGB'), ImageCms.buildTransform(ImageCms.createProfile('sRGB'), ImageCms.createProfile('LAB'), 'RGB', 'LAB'))
    if mode == 'PA': return plain.convert('LA').convert('PA')
    return plain if plain.mode == mode else plain.convert('RGB').convert(mode) if mode not in ('LA', 'RGBA', 'RGBa') else plain.convert(mode)


def read_or_named(read):
    "The image, or None where a ValueError names it."
    try: return read()
    except ValueError as error: assert str(error).startswith('it: ') or 'mode' in str(error)


@settings(max_examples=120)
@given(st.sampled_from(MODES), sides, sides, st.integers(0, 99), st.booleans())
def test_any_mode_becomes_rgb_of_its_size(mode, width, height, seed, named):
    img = picture(width, height, mode, seed)
    if named and mode in ('P', 'RGB', 'L'): img.info['transparency'] = 0 if mode != 'RGB' else (0, 0, 0)
    before = img.tobytes()
    found = read_or_named(lambda: to_rgb(img))
    assert img.tobytes() == before and img.mode == mode
    if found is None: return
    assert found.mode == 'RGB' and found.size == (width, height) and found.info == {}
    x = to_tensor(found)
    assert x.dtype == torch.uint8 and x.shape == (3, height, width) and to_image(x) == found


@settings(max_examples=120)
@given(st.sampled_from([(f, m) for f, modes in FILES.items() for m in modes]), sides, sides, st.integers(0, 99), st.integers(0, 9))
def test_any_file_is_read_upright(kind, width, height, seed, orientation):
    format, mode = kind
    file, note = io.BytesIO(), Image.Exif()
    note[0x0112] = orientation
    picture(width, height, mode, seed).save(file, format, **({'exif': note} if format in ('JPEG', 'PNG', 'WEBP') else {}))
    found = read_image(file.getvalue(), 'it')
    turned = format in ('JPEG', 'PNG', 'WEBP') and orientation in (5, 6, 7, 8)
    assert found.mode == 'RGB' and found.size == ((height, width) if turned else (width, height))


@settings(max_examples=80)
@given(sides, sides, st.integers(1, 70), st.integers(0, 2 ** 32), st.integers(1, 6))
def test_crops_and_whole_images_have_the_size_that_was_asked_for(width, height, size, key, count):
    img = picture(width, height, 'RGB', key)
    assert whole(img, size).size == (size, size)
    for top, left, h, w in patches.sample_boxes([key], height, width, count)[0].tolist():
        assert 0 <= top <= top + h <= height and 0 <= left <= left + w <= width and h >= 1 and w >= 1
        assert crop_resize(img, (top, left, h, w), size).size == (size, size)
    for box in ((-1, 0, 1, 1), (0, 0, height + 1, 1), (0, 0, 0, 1), (height, 0, 1, 1)):
        with pytest.raises(ValueError, match='not inside'): crop_resize(img, box, size)


def folder(root, classes, each, seed):
    "A folder of class folders, images of any size, mode and format."
    rng = np.random.default_rng(seed)
    for c in range(classes):
        (Path(root) / 'train' / f'c{c:03d}').mkdir(parents=True)
        for k in range(each):
            format = str(rng.choice(['PNG', 'JPEG', 'WEBP', 'BMP']))
            img = picture(*map(int, rng.integers(1, 50, 2)), str(rng.choice(FILES[format])), int(rng.integers(10 ** 6)))
            img.save(Path(root) / 'train' / f'c{c:03d}' / f'{k}.{format.lower()}', format)
    return datasets.load(root)


def eye(classes, size, seed):
    net = models.build('conv2', max(2, len(classes)), size, seed=seed)
    return Observer([net], [torch.arange(len(classes))], classes)


@settings(max_examples=14)
@given(st.integers(1, 5), st.integers(1, 7), st.integers(1, 3), st.integers(1, 4), st.integers(1, 12), st.integers(1, 3), st.sampled_from([8, 9, 16, 21]), st.integers(0, 999), st.sampled_from(['mean', 'enlarge']))
@example(1, 1, 1, 1, 1, 1, 8, 0, 'mean')
@example(40, 2, 1, 1, 300, 1, 8, 0, 'mean')
@example(2, 9, 1, 3, 300, 2, 21, 5, 'enlarge')
def test_the_whole_line(classes, each, ipc, factor, preselect, crops, size, seed, canvas):
    with tempfile.TemporaryDirectory() as root:
        images = folder(Path(root, 'data'), classes, each, seed)
        fits = ipc * factor ** 2 <= min(each, preselect)
        try: check_fits(images.counts(), ipc, factor, images.classes, preselect)
        except ValueError: assert not fits
        else: assert fits
        observer = eye(images.classes, size, seed)
        found = score.score_images(images, observer, preselect=preselect, crops=crops, factor=factor, size=size, canvas=canvas, seed=seed)
        assert len(found.index) == classes * min(each, preselect) and found.score.isfinite().all()
        if not fits:
            with pytest.raises(ValueError, match='would fit|drawn'): score.choose(found, images, ipc, factor)
            return
        made = distilled.build(images, found, score.choose(found, images, ipc, factor), size, factor, observer=observer)
        assert made.x.shape == (classes * ipc, 3, size, size) and made.ipc == ipc and len({(p['source'], tuple(p['box'])) for p in made.patches}) == len(made.patches) == classes * ipc * factor ** 2
        for p in made.patches:
            img = read_image(Path(root, 'data', p['source']))
            assert p['box'][0] + p['box'][2] <= img.height and p['box'][1] + p['box'][3] <= img.width
        made.save(Path(root, 'set'))
        again = distilled.DistilledSet.load(Path(root, 'set'))
        assert torch.equal(again.x, made.x) and torch.equal(again.y, made.y) and again.manifest == json.loads(distilled.manifest_text(made.manifest))
        assert distilled.verify(Path(root, 'set'), images=images)['ok']
        rebuilt = distilled.rebuild(Path(root, 'set', 'rded.json'), images)
        assert torch.equal(rebuilt.x, made.x) and rebuilt.difference['differing'] == 0
        export.webdataset(again, Path(root, 'tars'), each=3)
        assert export.load(Path(root, 'tars')).digest == made.digest
        recorded(again, observer, Path(root, 'labels'), seed)


def recorded(made, observer, place, seed):
    "Labels of two epochs, as they come back."
    training = SimpleNamespace(**{**vars(paper_training('conv3', made.ipc, max(2, len(made.classes)))), 'batch_size': 3, 'epochs': 2})
    stored = labels.relabel(made, observer, training, 2, seed, place)
    stored.check(made, training, seed)
    for epoch in range(2):
        seen = 0
        for indices, drawn, answer in stored.epoch(epoch):
            fresh = observer.logits(views.apply_views(made.x[indices], drawn))
            assert torch.allclose(answer, fresh, atol=1e-2, rtol=1e-2) and answer.shape == (len(indices), len(made.classes))
            seen += len(indices)
        assert seen == len(made)


@settings(max_examples=25)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 6), st.integers(1, 4), st.sampled_from([1, 5, 16, 30]), st.integers(0, 99), st.sampled_from(['images', 'crops', 'mosaics']))
def test_random_sets_of_any_size(classes, each, ipc, factor, size, seed, kind):
    x = torch.randint(0, 256, (classes * each, 3, 12, 12), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    y = torch.arange(classes).repeat_interleave(each)
    images = datasets.ImageSet('own', 'train', [f'c{c}' for c in range(classes)], y, [f'train/{i}' for i in range(len(y))], [f'train/{i}' for i in range(len(y))], datasets.Numbered(lambda i: to_image(x[i])), x)
    make = {'images': lambda: baselines.random_images(images, ipc, size, seed), 'crops': lambda: baselines.random_crops(images, ipc, size, seed), 'mosaics': lambda: baselines.random_mosaics(images, ipc, size, factor, seed)}[kind]
    needed = ipc * (factor ** 2 if kind == 'mosaics' else 1)
    if needed > each:
        with pytest.raises(ValueError, match='would fit'): make()
        return
    made = make()
    assert made.x.shape == (classes * ipc, 3, size, size) and torch.equal(made.y, torch.arange(classes).repeat_interleave(ipc)) and torch.equal(make().x, made.x)
    assert torch.equal(images.x, x) and torch.equal(distilled.rebuild(made.manifest, images).x, made.x)
