"""Images as they come: real photographs, damaged files, many threads."""
import io
import os
import random
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from rded import images
from rded.images import crop_resize, read_image, show_images, to_image, to_rgb, to_tensor, whole


@pytest.fixture(scope='module')
def photo():
    from sklearn.datasets import load_sample_images
    return Image.fromarray(load_sample_images().images[0]).resize((150, 100))


def saved(img, format, **options):
    file = io.BytesIO()
    img.save(file, format, **options)
    return file.getvalue()


def damaged(data, rng):
    "Some bytes changed, cut off, doubled or put elsewhere."
    data, kind = bytearray(data), rng.randrange(4)
    if kind == 0:
        for _ in range(rng.choice([1, 5, 50])): data[rng.randrange(len(data))] = rng.randrange(256)
    if kind == 1: del data[rng.randrange(len(data)):]
    if kind == 2:
        start = rng.randrange(len(data))
        del data[start:start + rng.randrange(1, 200)]
    if kind == 3:
        start = rng.randrange(len(data))
        data[start:start] = rng.randbytes(rng.randrange(1, 200))
    return bytes(data)


@pytest.mark.parametrize('format', ['JPEG', 'PNG', 'WEBP', 'GIF', 'TIFF', 'BMP'])
def test_a_damaged_file_is_read_or_reported(photo, format):
    note = Image.Exif()
    note[0x0112] = 6
    whole_file = saved(photo.resize((30, 20)), format, **({'exif': note} if format in ('JPEG', 'PNG', 'WEBP', 'TIFF') else {}))
    rng, read = random.Random(format), 0
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for _ in range(150):
            try: img = read_image(damaged(whole_file, rng), 'bad.file')
            except ValueError as error: assert str(error).startswith('bad.file: ') and '\n' not in str(error) and ' at 0x' not in str(error)
            else:
                read += 1
                assert img.mode == 'RGB' and to_tensor(img).shape == (3, img.height, img.width)
    assert 0 < read < 150


def test_paths_bytes_and_open_files_give_the_same_image(photo, tmp_path):
    data = saved(photo, 'PNG')
    (tmp_path / 'a.png').write_bytes(data)
    with open(tmp_path / 'a.png', 'rb') as file:
        assert read_image(file) == read_image(data) == read_image(tmp_path / 'a.png') == read_image(str(tmp_path / 'a.png')) == photo
        assert not file.closed
    (tmp_path / 'b.png').write_bytes(data[:999])
    with pytest.raises(ValueError, match='b.png: '): read_image(tmp_path / 'b.png')
    with open(tmp_path / 'b.png', 'rb') as file, pytest.raises(ValueError, match='b.png: '): read_image(file)


@pytest.mark.skipif(not os.path.isdir('/proc/self/fd'), reason='needs /proc')
def test_no_file_stays_open(photo, tmp_path):
    data = saved(photo, 'JPEG')
    for name, content in {'good': data, 'half': data[:len(data) // 2], 'text': b'text'}.items(): (tmp_path / name).write_bytes(content)
    before = len(os.listdir('/proc/self/fd'))
    for name in ['good', 'half', 'text'] * 5:
        try: read_image(tmp_path / name)
        except ValueError: pass
    assert len(os.listdir('/proc/self/fd')) == before


def test_a_note_that_cannot_be_parsed_does_not_cost_the_image(photo, monkeypatch):
    monkeypatch.setattr(ImageOps, 'exif_transpose', lambda img: 1 / 0)
    assert read_image(saved(photo, 'PNG')) == photo


def test_the_pixel_limit_holds_even_where_pillow_has_none(photo, monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', None)
    monkeypatch.setattr(images, 'MAX_PIXELS', 150 * 100 - 1)
    with pytest.raises(ValueError, match='large.png: more than 14999 pixels'): read_image(saved(photo, 'PNG'), 'large.png')
    monkeypatch.setattr(images, 'MAX_PIXELS', 150 * 100)
    assert read_image(saved(photo, 'PNG')) == photo


def test_running_out_of_memory_is_not_a_broken_image(photo, monkeypatch):
    def hungry(img): raise MemoryError
    monkeypatch.setattr(images, 'to_rgb', hungry)
    with pytest.raises(MemoryError): read_image(saved(photo, 'PNG'))


def test_threads_read_what_one_reads(photo):
    files = [saved(photo.rotate(k), format) for k in range(0, 40, 10) for format in ('JPEG', 'PNG', 'WEBP')] + [b'broken'] * 3
    def outcome(data):
        try: return whole(read_image(data, 'x'), 32).tobytes()
        except ValueError as error: return str(error)
    serial = [outcome(data) for data in files * 4]
    with ThreadPoolExecutor(8) as pool: assert list(pool.map(outcome, files * 4)) == serial


def test_nothing_changes_its_inputs(photo):
    clear = photo.convert('RGBA')
    clear.putalpha(128)
    clear.info['note'] = 'kept'
    x, before, alpha = torch.rand(2, 3, 8, 8), photo.copy(), clear.copy()
    copy = x.clone()
    to_rgb(clear), to_rgb(photo), crop_resize(photo, (1, 2, 30, 40), 7), whole(photo, 20), show_images(x), show_images([photo, clear]), to_tensor(photo)
    assert photo == before and clear == alpha and clear.info == {'note': 'kept'} and torch.equal(x, copy)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        to_tensor(Image.new('RGB', (1, 1))).zero_()
    made = to_rgb(photo)
    made.putpixel((0, 0), (1, 2, 3))
    assert photo == before


@pytest.mark.parametrize('n, size, title', [(1, 16, None), (3, 8, 'above'), (16, 16, 'two\nlines'), (9, 32, 'above')])
def test_the_viewer_shows_small_images_pixel_by_pixel(n, size, title):
    "Each pixel is a square block of its own colour, to the screen pixel, as saved and as a notebook shows it."
    colours = np.random.default_rng(size).choice(2**24, n * size * size, replace=False)
    x = torch.from_numpy(np.stack([colours % 256, colours // 256 % 256, colours // 65536])).to(torch.uint8).reshape(3, n, size, size).transpose(0, 1)
    for box in (None, 'tight'):
        page = io.BytesIO()
        show_images(x, titles=range(n) if title else None, title=title).savefig(page, dpi=70, bbox_inches=box)
        counts = {colour: count for count, colour in Image.open(page).convert('RGB').getcolors(10**7)}
        seen = [counts.get(tuple(colour), 0) for colour in x.permute(0, 2, 3, 1).reshape(-1, 3).tolist()]
        assert np.mean(np.array(seen) == (70 // size)**2) > 0.99  # all but those that occur in the letters too


def test_real_photographs_go_through_torchvisions_path(imagenette_root):
    from torchvision import transforms as T
    from torchvision.transforms import functional as TF
    for path in sorted(imagenette_root.glob('val/*/*.JPEG'))[::301]:
        img = read_image(path)
        with Image.open(path) as theirs: assert to_tensor(img).tolist() == to_tensor(theirs.convert('RGB')).tolist()
        assert whole(img, 128) == T.CenterCrop(128)(T.Resize(144)(img)) and whole(img, 64) == T.CenterCrop(64)(T.Resize(72)(img))
        assert crop_resize(img, (3, 10, 100, 90), 64) == TF.resized_crop(img, 3, 10, 100, 90, [64, 64])


def test_cifar_images_are_not_touched(cifar10_root):
    for path in sorted(cifar10_root.glob('test/cat/*.jpg'))[:20]:
        img = read_image(path)
        assert img.size == (32, 32) and whole(img, 32) == img and to_image(to_tensor(img)) == img


def test_a_name_stands_left_of_each_row():
    fig = images.show_images(torch.zeros(6, 3, 8, 8, dtype=torch.uint8), columns=3, rows=['first', 'the second'])
    said = [t.get_text() for ax in fig.axes for t in ax.texts]
    assert said == ['first', 'the second'] and len(fig.axes) == 6
