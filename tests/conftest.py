"""Real images for the tests that want them.

They are looked for under the environment's RDED_TEST_DATA (a folder with `cifar10/` and `imagenette2-160/`), else unpacked
once per user, in part, from the archives in `../shared/data`, else the tests that ask for them are skipped.
"""
import getpass
import os
import shutil
import stat
import tarfile
import tempfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest

ARCHIVES = Path(__file__).resolve().parents[2] / 'shared' / 'data'


def pytest_collection_modifyitems(items):
    "A test that asks for real images carries the marker `data`."
    for item in items:
        if {'cifar10_root', 'imagenette_root'} & set(getattr(item, 'fixturenames', ())): item.add_marker(pytest.mark.data)


def cache():
    "A folder of this user's own among the temporary files."
    folder = Path(tempfile.gettempdir()) / f'rded-test-data-{getpass.getuser()}'
    folder.mkdir(mode=0o700, exist_ok=True)
    info = folder.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid(): pytest.skip(f'{folder} belongs to somebody else')
    return folder


@contextmanager
def locked(path):
    "One process at a time."
    import fcntl
    with open(path, 'w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def members(archive, wnids):
    "The first 300 files of each folder of a tar archive; only those of some classes where `wnids` are given."
    taken = Counter()
    for member in archive:
        parts = member.name.split('/')
        if not member.isfile() or (wnids and parts[2] not in wnids): continue
        taken[tuple(parts[:-1])] += 1
        if taken[tuple(parts[:-1])] <= 300: yield member


def unpacked(name, archives):
    "The folder `name` out of `archives`, unpacked once; the later archives keep to the classes of the first."
    folder, wnids = cache(), None
    with locked(folder / f'{name}.lock'):
        if not (folder / name).is_dir():
            part = folder / f'{name}.part'
            shutil.rmtree(part, ignore_errors=True)
            for path in archives:
                with tarfile.open(path) as archive: archive.extractall(part, members(archive, wnids), filter='data')
                wnids = set(os.listdir(part / name / 'train'))
            (part / name).rename(folder / name)
            part.rmdir()
    return folder / name


def found(name, archives):
    "The root of a real data set; the test is skipped where there is none."
    if 'RDED_TEST_DATA' in os.environ:
        root = Path(os.environ['RDED_TEST_DATA']).resolve() / name
        if root.is_dir(): return root
        pytest.skip(f'no {name}/ in RDED_TEST_DATA')
    paths = [ARCHIVES / archive for archive in archives]
    absent = [path.name for path in paths if not path.is_file()]
    if absent: pytest.skip(f'real images: set RDED_TEST_DATA to a folder with {name}/, or put {absent[0]} into ../shared/data')
    return unpacked(name, paths)


@pytest.fixture(scope='session')
def cifar10_root():
    "cifar10/{train,test}/<class>/*.jpg: 32×32, at least 300 a class in either split."
    return found('cifar10', ['cifar10-jpeg.tar.xz'])


@pytest.fixture(scope='session')
def imagenette_root():
    "imagenette2-160/{train,val}/<wnid>/*.JPEG: at least four classes, and 300 a class in either split."
    return found('imagenette2-160', ['imagenette2-160-train-0.tar.xz', 'imagenette2-160-val.tar.xz'])
