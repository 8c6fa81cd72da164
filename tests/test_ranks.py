"""One rank, two and four distil the same bytes, killed or not; they train one student; and when one fails, one line says why."""
import json
import os
import socket
import subprocess
import sys
import textwrap

import pytest
import torch

from rded import cli, datasets, files, models, observer, ranks, score

ENOUGH = 120  # seconds; every one of these commands is done in ten on an idle machine


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A folder with `data`, digits as files of which three are torn and two of these follow each other in the draw, and with an observer."
    root = tmp_path_factory.mktemp('ranks')
    digits = datasets.load('digits', 'train')
    for c in range(10):
        for split, rows in (('train', digits.of_class(c)[:40]), ('val', digits.of_class(c)[40:44])):
            folder = root / 'data' / split / str(c)
            folder.mkdir(parents=True)
            for i in rows.tolist(): digits.image(i).save(folder / f'{i}.png')
    images = datasets.load(root / 'data', 'train')
    for c, k in ((3, 0), (3, 1), (7, 20)):
        torn = root / 'data' / images.sources[datasets.draw_order(images, c, 0)[k]]
        torn.write_bytes(torn.read_bytes()[:60])
    models.save(models.build('conv3', 10, 16, images.classes), root / 'eyes.safetensors')
    return root


def distil(place, out, *more):
    return ['distill', '--data', str(place / 'data'), '--observer', str(place / 'eyes.safetensors'), '--no-check', '--ipc', '2', '--factor', '2', '--preselect', '24',
            '--device', 'cpu', '--out', str(place / out), *more]


@pytest.fixture(scope='module')
def alone(place):
    "The set that one process makes, as its files."
    assert cli.main(distil(place, 'alone')) == 0
    return written(place / 'alone')


def written(folder):
    "{file: bytes}, the manifest without the line that says how the work was split."
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if p.is_file()}
    found['rded.json'] = b'\n'.join(line for line in found['rded.json'].splitlines() if not line.startswith(b'"environment":'))
    return found


def started(count, *what, restarts=0, meet=('--standalone',)):
    "A torchrun that is at work."
    return subprocess.Popen([sys.executable, '-m', 'torch.distributed.run', *meet, f'--nproc-per-node={count}', f'--max-restarts={restarts}', *what],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})


def ended(process):
    "(status, what it printed, lines of ours on stderr) of a torchrun."
    try: told, said = process.communicate(timeout=ENOUGH)
    except subprocess.TimeoutExpired:
        process.terminate()  # it then ends its ranks
        pytest.fail(f'still at work after {ENOUGH} s: {process.communicate()}')
    return process.returncode, told, [line for line in said.splitlines() if line.startswith('rded: ') or 'Error' in line and 'ChildFailedError' not in line]


def torchrun(count, *what, restarts=0): return ended(started(count, *what, restarts=restarts))


def same(place, out, alone, told, said, count):
    "Whether a set is the one that was made alone; rank 0 alone spoke."
    assert written(place / out) == alone
    assert told.count('opens with') == 1 and sum('cannot be read' in line for line in said) == 3
    assert json.loads((place / f'{out}.json').read_text())['images'] == 20
    where = json.loads((place / out / 'rded.json').read_text())['environment']
    assert where.get('ranks', 1) == count and not (place / f'.{out}-scores').exists()


@pytest.mark.parametrize('count, how', [(1, ()), (2, ('--batch', '7', '--workers', '0'))])
def test_any_number_of_ranks_makes_the_same_set(place, alone, count, how):
    out = f'of-{count}'
    status, told, said = torchrun(count, '-m', 'rded', *distil(place, out, *how, '--json', str(place / f'{out}.json')))
    assert status == 0, said
    same(place, out, alone, told, said, count)


def test_so_do_four_ranks_on_two_nodes(place, alone):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    meet = ('--nnodes=2', '--rdzv-backend=c10d', '--rdzv-id=two', f'--rdzv-endpoint=127.0.0.1:{port}', '--local-addr=127.0.0.1')
    nodes = [started(2, '-m', 'rded', *distil(place, 'of-4', '--batch', '5000', '--workers', '3', '--json', str(place / 'of-4.json')), meet=meet) for _ in range(2)]
    (first, told, said), (second, more, errors) = map(ended, nodes)
    assert first == second == 0, said + errors
    same(place, 'of-4', alone, told + more, said + errors, 4)


def script(place, name, body, end='sys.exit(cli.main())'):
    "The path of a script: it changes something, and then it is the `rded` command."
    path = place / f'{name}.py'
    path.write_text('\n'.join(['import json, os, signal, sys', 'import torch', 'from rded import cli, ranks, score', textwrap.dedent(body), end, '']))
    return str(path)


DIES = """
stream, add, attempt = score._stream, score.Kept.add, int(os.environ['TORCHELASTIC_RESTART_COUNT'])
score.EVERY, writes = 0.0, 0
def told(draw, cutting, judge, columns, kept, numbers, *rest):
    with open(__file__ + f'.{attempt}-{ranks.rank()}', 'w') as file: json.dump(numbers, file)
    return stream(draw, cutting, judge, columns, kept, numbers, *rest)
def dying(self, columns):
    global writes
    self.start = self.last = 0.0    # every part is due to be put aside, however soon it follows the one before
    add(self, columns)
    writes += 1
    if ranks.rank() == 1 and attempt == 0 and writes == 2: os.kill(os.getpid(), signal.SIGKILL)
score._stream, score.Kept.add = told, dying
"""


def test_a_killed_rank_is_started_again_and_what_was_scored_is_not_scored_again(place, alone):
    dies = script(place, 'dies', DIES)
    status, _, said = torchrun(2, dies, *distil(place, 'killed'), restarts=2)
    assert status == 0, said
    assert written(place / 'killed') == alone and not (place / '.killed-scores').exists()
    before, after = ([files.read_json(f'{dies}.{attempt}-{rank}') for rank in (0, 1)] for attempt in (0, 1))
    assert before == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]
    left = sorted(sum(after, []))
    assert {3, 7} <= set(left) <= set(range(10)) - {1, 5} and abs(len(after[0]) - len(after[1])) <= 1, after  # 3 and 7 hold torn images: they come last


def test_what_fails_on_one_rank_ends_all_with_one_line(place):
    fails = script(place, 'fails', """
        stream = score._stream
        def failing(*arguments):
            if ranks.rank() == 1: raise ValueError('this rank cannot see its part: mount it')
            return stream(*arguments)
        score._stream = failing""")
    status, told, said = torchrun(2, fails, *distil(place, 'failed'))
    assert (status, told, said) == (1, '', ['rded: this rank cannot see its part: mount it'])
    assert not (place / 'failed').exists()


def test_what_fails_on_all_ranks_is_said_once(place):
    mute = models.build('conv3', 10, 16, [str(c) for c in range(10)])
    mute.body.classifier.bias.data[:] = torch.nan
    models.save(mute, place / 'mute.safetensors')
    status, told, said = torchrun(2, '-m', 'rded', *distil(place, 'mute', '--observer', str(place / 'mute.safetensors')))
    assert (status, told) == (1, '') and len(said) == 1 and 'is not a number; are its weights whole?' in said[0]


def test_commands_that_cannot_share_their_work_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(ranks, 'world', lambda: 2)
    assert cli.main(['recipes']) == 2
    assert capsys.readouterr().err == 'rded: recipes under torchrun: every rank would do the same work; run it alone (torchrun is for distill, train, run)\n'


def test_too_few_gpus_for_the_ranks_of_a_machine(monkeypatch):
    monkeypatch.setattr(ranks, 'world', lambda: 3)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    for name, value in (('LOCAL_RANK', '2'), ('LOCAL_WORLD_SIZE', '3')): monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match='3 ranks on a machine with 2 GPUs: use torchrun --nproc-per-node=2'): ranks.check_gpus()
    monkeypatch.setenv('LOCAL_RANK', '1')
    ranks.check_gpus()


STUDENTS = """
from types import SimpleNamespace
from torch import nn
from rded import datasets, distilled, labels, models, recipes, student

def plain():
    "A network without BatchNorm."
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 10))
    return models.Network(body, 'plain', 10, 16)

digits = datasets.load('digits', 'train')
few = distilled.DistilledSet(digits.x[:50], digits.y[:50], digits.classes, manifest={'settings': {'factor': 2}})   # three batches of 16, and one of 2, too few to share
eyes = SimpleNamespace(logits=lambda x: x.flatten(1)[:, :10] * 8)
training = recipes.changed(recipes.paper_training('conv3', 5, 10), epochs=2, batch_size=16)

def trained(kind):
    "(weights after training, loss of the last epoch) with live, hard or fixed labels."
    answers = {'live': lambda: labels.LiveLabels(eyes), 'hard': lambda: labels.HardLabels(10), 'fixed': lambda: labels.FixedLabels(few, eyes)}[kind]()
    net = plain()
    history = student.train_student(net, few, answers, training, seed=3)
    assert history.updates == 8 and history.images_seen == 100
    return torch.cat([p.detach().flatten() for p in net.parameters()]), history.rows[-1]['loss']
"""


@pytest.fixture(scope='module')
def by_two_ranks(place, alone):
    "(path of what two ranks trained without BatchNorm, what the `train` command printed) from one torchrun."
    path = script(place, 'students', STUDENTS, textwrap.dedent("""
        with ranks.started():
            found = {kind: trained(kind) for kind in ('live', 'hard', 'fixed')}
            if not ranks.rank(): torch.save({k: (w, torch.tensor(loss)) for k, (w, loss) in found.items()}, __file__ + '.pt')
        sys.exit(cli.main())"""))
    argv = ['train', '--distilled', str(place / 'alone'), '--observer', str(place / 'eyes.safetensors'), '--no-check', '--student', 'conv3', '--val', str(place / 'data'),
            '--epochs', '2', '--batch-size', '10', '--device', 'cpu', '--out', str(place / 'student.safetensors'), '--json', str(place / 'student.json')]
    status, told, said = torchrun(2, path, *argv)
    assert status == 0, said
    return path + '.pt', told


def test_two_ranks_train_the_student_that_one_trains(by_two_ranks):
    here = {}
    exec(compile('import torch\n' + STUDENTS, 'students', 'exec'), here)
    for kind, (weights, loss) in torch.load(by_two_ranks[0], weights_only=True).items():
        expected, expected_loss = here['trained'](kind)
        assert torch.allclose(weights, expected, atol=2e-5) and abs(loss.item() - expected_loss) < 1e-5, kind
        assert not torch.allclose(weights, torch.cat([p.detach().flatten() for p in here['plain']().parameters()]), atol=1e-3)


def test_the_command_trains_with_all_ranks_and_says_so(place, by_two_ranks):
    result = files.read_json(place / 'student.json')
    assert (result['environment']['ranks'], result['environment']['batchnorm']) == (2, 'rank by rank')
    assert (result['updates'], result['images_seen'], result['n']) == (4, 40, 40) and by_two_ranks[1].count('top-1, top-5') == 1
    assert models.load(str(place / 'student.safetensors')).info['top1'] == result['top1']


MORTAL = """
from rded import resume, student
epoch_of, resume.EVERY, begun = student.train_epoch, 0, []
def mortal(net, x, y, factor, labels, training, optimizer, epoch, *rest):
    if not begun: print('begins with epoch', epoch, flush=True)
    begun.append(epoch)
    if os.environ['TORCHELASTIC_RESTART_COUNT'] == '0' and ranks.rank() == DIES and epoch == 2: os.kill(os.getpid(), signal.SIGKILL)
    return epoch_of(net, x, y, factor, labels, training, optimizer, epoch, *rest)
student.train_epoch = mortal
"""


def test_ranks_that_train_go_on_where_one_was_killed(place, alone, tmp_path):
    def trained(name, dies):
        path = script(tmp_path, name, MORTAL.replace('DIES', str(dies)))
        status, told, said = torchrun(2, path, 'train', '--distilled', str(place / 'alone'), '--observer', str(place / 'eyes.safetensors'), '--no-check', '--student', 'conv3', '--val', str(place / 'data'),
                                      '--epochs', '4', '--batch-size', '10', '--device', 'cpu', '--out', str(tmp_path / f'{name}.safetensors'), restarts=1)
        assert status == 0, said
        return (tmp_path / f'{name}.safetensors').read_bytes(), [int(line.split()[-1]) for line in told.splitlines() if line.startswith('begins')]
    whole, starts = trained('whole', -1)
    again, later = trained('killed', 1)
    assert starts == [0] and later == [0, 2] and again == whole and not list(tmp_path.glob('.*'))


def test_real_images_too(tmp_path, cifar10_root):
    models.save(models.build('conv3', 10, 32, datasets.load(cifar10_root, 'train').classes), tmp_path / 'eyes.safetensors')
    argv = ['distill', '--data', str(cifar10_root), '--observer', str(tmp_path / 'eyes.safetensors'), '--no-check', '--ipc', '1', '--preselect', '70', '--device', 'cpu', '--out']
    assert cli.main([*argv, str(tmp_path / 'alone')]) == 0
    status, _, said = torchrun(2, '-m', 'rded', *argv, str(tmp_path / 'of-2'))
    assert status == 0 and written(tmp_path / 'of-2') == written(tmp_path / 'alone'), said


def scored(place, keep, eyes=None, **how):
    images = datasets.load(place / 'data', 'train')
    return score.score_images(images, observer.get_observer(eyes or str(place / 'eyes.safetensors'), images), size=16, preselect=24, keep=keep, **how)


def test_where_nothing_can_be_put_aside_work_goes_on(place, tmp_path, monkeypatch):
    monkeypatch.setattr(score, 'EVERY', 0.0)
    (tmp_path / 'file').write_text('in the way')
    with pytest.warns(UserWarning, match='cannot be put aside, so a run that is stopped would begin anew'): found = scored(place, tmp_path / 'file' / 'scores')
    assert torch.equal(found.scores, scored(place, None).scores)


def test_what_others_put_aside_is_not_taken(place, tmp_path, monkeypatch):
    add = score.Kept.add
    def due(self, columns):         # every part, however soon it follows the one before
        self.start = self.last = 0.0
        add(self, columns)
    monkeypatch.setattr(score, 'EVERY', 0.0), monkeypatch.setattr(score.Kept, 'add', due)
    expected = scored(place, tmp_path / 'scores')
    files_of = lambda: {p.name: p.read_bytes() for p in (tmp_path / 'scores').iterdir()}
    kept = files_of()
    assert kept and torch.equal(scored(place, tmp_path / 'scores').scores, expected.scores) and files_of() == kept
    torn = next((tmp_path / 'scores').iterdir())
    torn.write_bytes(torn.read_bytes()[:-20])
    assert torch.equal(scored(place, tmp_path / 'scores').scores, expected.scores)
    other = models.build('conv3', 10, 16, [str(c) for c in range(10)], seed=1)
    assert torch.equal(scored(place, tmp_path / 'scores', other).scores, scored(place, None, other).scores) and not set(files_of()) & set(kept)
