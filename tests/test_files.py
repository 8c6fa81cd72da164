"""Accidents that no single page can have: kills, full disks, several writers."""
import errno
import json
import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from rded import files
from rded.files import Log, atomic_dir, atomic_file, hash64, load_tensors, read_json, save_tensors, write_json

WRITER = '''
import sys
from pathlib import Path
from rded.files import Log, atomic_dir, write_json
top = Path(sys.argv[1])
log = Log(top / 'log.jsonl')
done = len(list(log))
for k in range(done, 10**6):
    write_json(top / 'state.json', {'k': k, 'body': [k] * 20_000})
    if not (top / f'set{k}').exists():
        with atomic_dir(top / f'set{k}') as folder:
            for i in range(5): (folder / f'{i}.txt').write_text(f'{k} ' * 5_000)
    log.append({'k': k, 'pad': 'x' * 5_000})
    print('one more', flush=True)
'''


def survivors(top):
    "What a killed writer has left; fails if any of it is torn."
    records = [record['k'] for record in Log(top / 'log.jsonl')]
    assert records == list(range(len(records)))
    if (top / 'state.json').exists():
        state = read_json(top / 'state.json')
        assert state['body'] == [state['k']] * 20_000 and len(records) in (state['k'], state['k'] + 1)
    for folder in top.glob('set*'):
        assert [(folder / f'{i}.txt').read_text() for i in range(5)] == [f'{folder.name[3:]} ' * 5_000] * 5
    assert all((top / f'set{k}').is_dir() for k in records)
    return len(records)


@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='needs SIGKILL')
def test_a_killed_writer_leaves_nothing_half_written_and_is_resumed(tmp_path):
    moments, counts = random.Random(0), []
    for _ in range(8):
        writer = subprocess.Popen([sys.executable, '-c', WRITER, str(tmp_path)], stdout=subprocess.PIPE)
        for _ in range(moments.randint(0, 3)): writer.stdout.readline()
        time.sleep(moments.uniform(0, 0.1))
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        counts.append(survivors(tmp_path))
    assert counts == sorted(counts) and counts[-1] > 0
    left = {p.name for p in tmp_path.iterdir() if not p.name.startswith('set')} - {'log.jsonl', 'state.json'}
    assert all(name.startswith('.part-') for name in left) and len(left) <= (1 if os.path.exists('/proc/self/stat') else 16)


@pytest.mark.parametrize('accident', [RuntimeError('a bug'), KeyboardInterrupt(), SystemExit(3), MemoryError()])
def test_any_exception_leaves_the_old_file_and_no_other(tmp_path, accident):
    write_json(tmp_path / 'a.json', 'old')
    with pytest.raises(type(accident)), atomic_file(tmp_path / 'a.json') as temporary:
        temporary.write_text('"ne')
        raise accident
    with pytest.raises(type(accident)), atomic_dir(tmp_path / 'set') as folder:
        (folder / 'deep').mkdir()
        (folder / 'deep' / '0.png').touch()
        raise accident
    assert os.listdir(tmp_path) == ['a.json'] and read_json(tmp_path / 'a.json') == 'old'


@pytest.fixture
def full_disk(monkeypatch):
    "Every temporary file is the device that is always full."
    if not os.path.exists('/dev/full'): pytest.skip('needs /dev/full')
    original = files._temporary
    def temporary(path):
        path = original(path)
        path.symlink_to('/dev/full')
        return path
    monkeypatch.setattr(files, '_temporary', temporary)


@pytest.mark.parametrize('write', [
    lambda path: write_json(path, {'a': 1}),
    lambda path: write_json(path, ['x' * 100] * 10_000),
])
def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path, full_disk, write):
    path = tmp_path / 'out'
    path.write_text('old')
    with pytest.raises(ValueError, match='^[^\n]*out: the disk is full; free some space[^\n]*$'): write(path)
    assert os.listdir(tmp_path) == ['out'] and path.read_text() == 'old'


SMALL = '''
import os, sys, torch
from rded.files import Log, atomic_dir, save_tensors, write_json
disk = sys.argv[1]
def folder():
    with atomic_dir(f'{disk}/set') as temporary:
        for i in range(100): (temporary / f'{i}.png').write_bytes(bytes(5_000))
def log():
    for i in range(10**6): Log(f'{disk}/log').append('x' * 5_000)
def tensors(): save_tensors(f'{disk}/net', {'w': torch.zeros(100_000)}, {})
def text(): write_json(f'{disk}/text', ['x' * 100] * 10_000)
for write in (tensors, text, folder, log):
    try: write()
    except ValueError as error: print(error, os.listdir(disk))
print(len(list(Log(f'{disk}/log'))) > 20)
'''


def test_a_small_file_system_that_really_fills_up(tmp_path):
    "200 kB of memory mounted as a disk, in a name space of its own."
    command = ['unshare', '-rm', 'sh', '-c', 'mount -t tmpfs -o size=200k tmpfs "$1" && exec "$2" -c "$3" "$1"', '_', str(tmp_path)]
    try: ran = subprocess.run([*command, sys.executable, SMALL], capture_output=True, text=True)
    except FileNotFoundError: pytest.skip('needs unshare')
    if 'unshare' in ran.stderr or 'mount' in ran.stderr: pytest.skip('may not mount a file system of its own')
    full = 'the disk is full; free some space or write elsewhere'
    assert ran.stdout.splitlines() == [*(f'{tmp_path}/{name}: {full} []' for name in ('net', 'text', 'set')),
                                       f"{tmp_path}/log: {full} ['log']", 'True'], ran.stderr


def test_a_full_disk_while_a_folder_is_written(tmp_path):
    if not os.path.exists('/dev/full'): pytest.skip('needs /dev/full')
    with pytest.raises(ValueError, match='set: the disk is full'), atomic_dir(tmp_path / 'set') as folder:
        (folder / '0.png').write_bytes(b'whole')
        (folder / '1.png').symlink_to('/dev/full')
        (folder / '1.png').write_bytes(b'not this one')
    assert os.listdir(tmp_path) == []


def test_a_full_disk_under_a_log():
    if not os.path.exists('/dev/full'): pytest.skip('needs /dev/full')
    with pytest.raises(ValueError, match='/dev/full: the disk is full'): Log('/dev/full').append(1)


def test_a_file_size_limit_is_no_silent_success(tmp_path):
    "A write cut short by a limit raises, whatever the library that writes; the old file stays."
    script = f'''
import resource, signal, torch
from rded.files import save_tensors
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
save_tensors({str(tmp_path / 'w')!r}, {{'w': torch.zeros(10)}}, {{'first': True}})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try: save_tensors({str(tmp_path / 'w')!r}, {{'w': torch.zeros(10**6)}}, {{}})
except Exception: print('refused')
'''
    pytest.importorskip('resource')
    assert subprocess.run([sys.executable, '-c', script], capture_output=True, text=True).stdout == 'refused\n'
    assert os.listdir(tmp_path) == ['w'] and load_tensors(tmp_path / 'w')[1] == {'first': True}


def test_readers_see_whole_files_while_several_write(tmp_path):
    path, stop, seen = tmp_path / 'a.json', threading.Event(), set()
    def write(k):
        while not stop.is_set(): write_json(path, [k] * 3_000)
    write_json(path, [9] * 3_000)
    writers = [threading.Thread(target=write, args=(k,)) for k in range(3)]
    for writer in writers: writer.start()
    end = time.time() + 0.6
    while time.time() < end:
        value = json.loads(path.read_bytes())
        assert len(value) == 3_000 and len(set(value)) == 1
        seen.add(value[0])
    stop.set()
    for writer in writers: writer.join()
    assert len(seen) > 1 and os.listdir(tmp_path) == ['a.json']


def test_files_get_the_permissions_that_the_user_has_asked_for(tmp_path):
    before = os.umask(0o027)
    try:
        write_json(tmp_path / 'file', 1)
        save_tensors(tmp_path / 'tensors', {'w': torch.zeros(1)}, {})
        with atomic_dir(tmp_path / 'folder') as folder: (folder / 'file').touch()
    finally: os.umask(before)
    modes = {str(p.relative_to(tmp_path)): p.stat().st_mode & 0o777 for p in tmp_path.rglob('*')}
    assert modes == {'file': 0o640, 'tensors': 0o640, 'folder': 0o750, 'folder/file': 0o640}


@pytest.mark.skipif(hasattr(os, 'geteuid') and os.geteuid() == 0, reason='root may write anywhere')
def test_a_place_without_permission_is_refused_in_one_line(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ValueError, match='cannot be written to: choose another place'): write_json(tmp_path / 'a.json', 1)
        with pytest.raises(ValueError, match='choose another place'): write_json(tmp_path / 'b' / 'a.json', 1)
    finally: tmp_path.chmod(0o700)


def test_the_bytes_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    "fsync of what is written, then the rename, then fsync of the folder; for a folder of all that is in it."
    steps, fsync, replace = [], os.fsync, os.replace
    def synced(handle):
        steps.append(os.path.basename(os.readlink(f'/proc/self/fd/{handle}')))
        fsync(handle)
    def renamed(old, new):
        steps.append(f'{Path(old).name} to {Path(new).name}')
        replace(old, new)
    if not os.path.isdir('/proc/self/fd'): pytest.skip('needs /proc')
    monkeypatch.setattr(os, 'fsync', synced)
    monkeypatch.setattr(os, 'replace', renamed)
    write_json(tmp_path / 'a.json', 1)
    assert len(steps) == 3 and steps == [steps[0], f'{steps[0]} to a.json', tmp_path.name]
    steps.clear()
    with atomic_dir(tmp_path / 'set') as folder:
        (folder / 'images').mkdir()
        (folder / 'images' / '0.png').touch()
    assert sorted(steps[:3]) == sorted([folder.name, 'images', '0.png']) and steps[3:] == [f'{folder.name} to set', tmp_path.name]
    steps.clear()
    Log(tmp_path / 'log').append(1)
    assert steps == ['log']


def test_writing_changes_nothing_it_was_given(tmp_path):
    weight, record = torch.arange(6.).reshape(2, 3).requires_grad_(), {'a': (1, 2), 'b': {'c': None}}
    tensors = {'w': weight, 't': weight.T}
    save_tensors(tmp_path / 'w', tensors, record)
    write_json(tmp_path / 'r', record)
    Log(tmp_path / 'l').append(record)
    assert record == {'a': (1, 2), 'b': {'c': None}} and list(tensors) == ['w', 't'] and tensors['w'] is weight and weight.requires_grad
    assert load_tensors(tmp_path / 'w')[0]['t'].tolist() == weight.T.tolist()


def test_loaded_tensors_are_ones_own(tmp_path):
    save_tensors(tmp_path / 'w', {'w': torch.zeros(5)}, {})
    load_tensors(tmp_path / 'w')[0]['w'].fill_(7)
    assert load_tensors(tmp_path / 'w')[0]['w'].sum() == 0


def test_a_hash_is_the_same_in_another_process():
    script = "from rded.files import hash64; print(hash64(3, 'train/cat/0001', 2))"
    environment = {**os.environ, 'PYTHONHASHSEED': '123', 'LC_ALL': 'C'}
    assert int(subprocess.run([sys.executable, '-c', script], capture_output=True, env=environment).stdout) == hash64(3, 'train/cat/0001', 2)


def test_a_disk_that_cannot_lock_or_wait_for_a_folder(tmp_path, monkeypatch):
    import fcntl
    lacking = lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, 'no locks here'))
    real, refused = os.fsync, []
    def fsync(handle):
        if not stat.S_ISDIR(os.fstat(handle).st_mode): return real(handle)
        refused.append(handle)
        raise OSError(errno.EINVAL, 'not for a folder')
    monkeypatch.setattr(fcntl, 'flock', lacking), monkeypatch.setattr(os, 'fsync', fsync)
    with files.locked(tmp_path / 'lock'): files.write_json(tmp_path / 'a.json', {'a': 1})
    assert files.read_json(tmp_path / 'a.json') == {'a': 1} and refused
    monkeypatch.setattr(os, 'fsync', lambda _: (_ for _ in ()).throw(OSError(errno.EIO, 'broken')))
    with pytest.raises(OSError): files.write_json(tmp_path / 'b.json', {})


def test_what_another_user_left_half_written_is_not_ours_to_remove(tmp_path, monkeypatch):
    left = tmp_path / f'.part-{files._here()}-999999999-1-x.json'
    left.touch()
    monkeypatch.setattr(os, 'getuid', lambda: left.stat().st_uid + 1)
    files.write_json(tmp_path / 'a.json', {})
    assert left.exists()
    monkeypatch.undo()
    files.write_json(tmp_path / 'a.json', {})
    assert not left.exists()
