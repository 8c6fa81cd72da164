"""Commands that are killed, interrupted, short of room, or given what is broken: a few of each here, many in `rded bench faults`."""
import multiprocessing
import os
import re
import signal
import time

import pytest
import torch

from rded import cli, datasets, faults, models, observer, score

pytestmark = pytest.mark.skipif(not hasattr(os, 'fork') or not os.path.isdir('/proc/self'), reason='needs fork and /proc')


@pytest.fixture(scope='module')
def found():
    return faults.own_process(commands=['distill', 'relabel', 'train', 'export manifest', 'prepare', 'report', 'info'], times=2)


def test_every_fault_is_survived(found):
    wrong = [(r['fault'], r['command'], r['examples']) for r in found['rows'] if r['wrong']]
    assert not wrong
    tried = {r['fault'] for r in found['rows']}
    assert tried | set(found['left_out']) == {*faults.FAULTS, faults.SMALL_DISK, 'one image in twenty broken', 'an observer that answers NaN'}
    assert sum(r['disturbed'] for r in found['rows'] if 'SIGKILL' in r['fault']) > 8
    assert {name for r in found['rows'] if r['fault'] in (*faults.FAULTS, faults.SMALL_DISK) for name in r['loose']} == set()    # every file is compared byte for byte, or as JSON


def test_what_goes_wrong_would_be_seen(tmp_path):
    "A torn file, a file of other content, a stray one, and half-written work left over."
    whole = {'a.png': b'picture', 'b.json': {'top1': 5}}
    (tmp_path / 'a.png').write_bytes(b'pict')
    (tmp_path / 'b.json').write_text('{"top1": 5, "seconds": 3}')
    assert faults.torn(tmp_path, whole, {}) == ['a.png'] and faults.torn(tmp_path, whole, {'a.png': b'pict'}) == []
    (tmp_path / 'b.json').write_text('{"top1": ')
    (tmp_path / '.part-1').mkdir()
    assert faults.torn(tmp_path, whole, {}) == ['a.png', 'b.json'] and faults.leftovers(tmp_path) == ['.part-1']
    ended = faults.Ended(2, 1.0, 'Traceback (most recent call last):\nOSError: full\n', 0)
    assert faults.acceptable('a limit on the size of files', ended) and faults.acceptable('Ctrl-C at a random moment', faults.Ended(130, 1.0, '', 0))
    assert faults.acceptable('SIGKILL at a random moment', faults.Ended(-signal.SIGKILL, 1.0, '', 1)) == '1 processes are left'


def test_every_break_breaks(tmp_path):
    from rded.images import read_image
    faults.digit_files(tmp_path, 2, 20)
    broken = faults.break_images(tmp_path)
    assert set(broken.values()) == set(faults.BREAKS)
    for name in broken:
        if 'last bytes' not in broken[name] or (tmp_path / name).is_symlink():
            with pytest.raises(ValueError, match=re.escape(name.rpartition('/')[2])): read_image(tmp_path / name)


class Elsewhere(str):
    "A CPU that denies being one: processes decode, as they do for a GPU."
    def __eq__(self, other): return False
    __hash__ = str.__hash__


def test_a_killed_worker_is_one_line_with_a_remedy(tmp_path, monkeypatch):
    faults.digit_files(tmp_path, 3)
    images, before = datasets.load(tmp_path, 'train'), torch.get_num_threads()
    eyes = observer.get_observer(models.build('conv3', 3, 16, images.classes, seed=0), images)
    look = lambda: score.score_images(images, eyes, size=16, factor=1, preselect=20, crops=2, workers=2, device=Elsewhere('cpu'))
    torch.set_num_threads(1)
    try:
        expected, read = look(), datasets.Files.image
        def fatal(self, source):
            if multiprocessing.parent_process() and source.startswith('train/digit1'): os.kill(os.getpid(), signal.SIGKILL)
            return read(self, source)
        monkeypatch.setattr(datasets.Files, 'image', fatal)
        with pytest.raises(RuntimeError) as error: look()
        assert 'use fewer --workers' in cli.line(error.value) and '\n' not in cli.line(error.value) and cli.status(error.value) == 1
        monkeypatch.setattr(datasets.Files, 'image', read)
        assert torch.equal(look().scores, expected.scores)
    finally: torch.set_num_threads(before)


def test_an_interrupt_that_a_library_swallows_is_heard(capsys, monkeypatch):
    "Some turn it into an error of their own; in a finaliser nobody can catch it."
    class Finalised:
        def __del__(self): signal.raise_signal(signal.SIGINT)
    def turned(args, progress):
        try: signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt: raise ValueError('a damaged file') from None
    def lost(args, progress):
        Finalised()
        time.sleep(5)
        raise AssertionError('went on')
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for command in (turned, lost):
            monkeypatch.setitem(cli.COMMANDS, 'info', (command, *cli.COMMANDS['info'][1:]))
            assert cli.main(['info', 'x']) == 130 and capsys.readouterr().err == 'rded: interrupted\n'
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally: signal.signal(signal.SIGINT, before)


def test_an_interrupt_outside_the_command_is_no_traceback(capsys, monkeypatch):
    "One that comes before the command listens is told of when it does; one that comes when it is done changes nothing."
    monkeypatch.setitem(cli.COMMANDS, 'info', (lambda args, progress: None, *cli.COMMANDS['info'][1:]))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with cli.heard():
            signal.raise_signal(signal.SIGINT)
            assert cli.main(['info', 'x']) == 130 and capsys.readouterr().err == 'rded: interrupted\n'
        with cli.heard():
            assert cli.main(['info', 'x']) == 0
            signal.raise_signal(signal.SIGINT)
        with cli.heard():
            monkeypatch.setattr(cli, 'status', lambda error: signal.raise_signal(signal.SIGINT) or 7)   # while an error is told of
            assert cli.main(['nothing']) == 7 and capsys.readouterr().err.startswith('rded: ')
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally: signal.signal(signal.SIGINT, before)
