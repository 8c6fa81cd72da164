"""A training that is killed goes on where it stood, to the same bits: students, observers, and the commands that call them."""
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from rded import cli, datasets, labels, models, observer, pipeline, recipes, resume, score, student
from rded.images import to_image

RECIPE = recipes.get('digits-conv3-ipc10')


class Killed(BaseException): "Not an error that anybody catches."


@pytest.fixture(scope='module')
def digits(): return datasets.load('digits', 'train'), datasets.load('digits', 'val')


@pytest.fixture(scope='module')
def made(digits): return pipeline.make_set('random-images', replace(RECIPE, ipc=2), digits[0], None, 0)


@pytest.fixture
def every_epoch(monkeypatch): monkeypatch.setattr(resume, 'EVERY', 0)


def bits(net): return [(k, v.clone()) for k, v in net.state_dict().items()]


def same(a, b): return all(k == m and torch.equal(v, w) for (k, v), (m, w) in zip(a, b, strict=True))


def a_student(made, arch='conv3', keep=None, stop=None, seed=3, **change):
    "Weights and history of a student; killed after some epochs."
    training = replace(RECIPE.training, epochs=6, batch_size=8, **change)
    net, seen = models.build(arch, 10, RECIPE.size, seed=0), []
    def log(row):
        seen.append(row)
        if len(seen) == stop: raise Killed
    try: history = student.train_student(net, made, labels.HardLabels(10), training, seed=seed, keep=keep, log=log)
    except Killed: return None, seen
    return bits(net), history


@pytest.mark.parametrize('change', [{}, {'optimizer': 'muon', 'randaugment': 1}, {'optimizer': 'sgd', 'lr': 0.05, 'average': 0.9}, {'arch': 'vgg8_modified', 'seen_at': 8, 'average': 0.9}])
def test_a_student_goes_on_where_it_was_killed(made, change, every_epoch, tmp_path):
    whole, history = a_student(made, **change)
    keep = tmp_path / 'x.safetensors'
    for stop, left in ((3, 3), (2, 2)): assert len(a_student(made, keep=keep, stop=stop, **change)[1]) == left      # the epoch it dies in is lost
    again, later = a_student(made, keep=keep, **change)
    assert same(again, whole) and [{**r} for r in later.rows] == history.rows and (later.updates, later.images_seen) == (history.updates, history.images_seen)
    assert later.rows[0]['epoch'] == 1 and len(later.rows) == 6


@pytest.mark.parametrize('other', [{'seed': 4}, {'lr': 2e-3}, {'arch': 'timm:test_resnet'}])
def test_another_training_takes_nothing(made, other, every_epoch, tmp_path):
    keep = tmp_path / 'x.safetensors'
    a_student(made, keep=keep, stop=4)
    assert keep.exists() and same(a_student(made, keep=keep, **other)[0], a_student(made, **other)[0])


def test_other_images_and_other_labels_take_nothing(digits, made, every_epoch, tmp_path):
    keep, told = tmp_path / 'x.safetensors', []
    others = pipeline.make_set('random-images', replace(RECIPE, ipc=2), digits[0], None, 1)
    nets = [observer.get_observer(models.build('conv3', 10, RECIPE.size, seed=s), by_position=True, images=digits[0]) for s in (1, 2)]
    for its, by in ((made, labels.LiveLabels(nets[0])), (made, labels.LiveLabels(nets[1])), (others, labels.LiveLabels(nets[1]))):
        rows = student.train_student(models.build('conv3', 10, RECIPE.size), its, by, replace(RECIPE.training, epochs=2, batch_size=8), keep=keep, log=told.append).rows
        assert len(rows) == 2
    assert [r['epoch'] for r in told] == [1, 2] * 3


def test_an_observer_goes_on_where_it_was_killed(digits, every_epoch, tmp_path):
    def trained(keep=None, stop=None):
        said = []
        def log(text):
            said.append(text)
            if len(said) == stop: raise Killed
        training = replace(RECIPE.observer_training, epochs=4, images_per_class=20)
        try: return bits(net := observer.train_observer(*digits, 'conv3', RECIPE.size, training, seed=2, keep=keep, log=log)), net.info, said
        except Killed: return None, None, said
    whole, info, _ = trained()
    keep = tmp_path / 'x.safetensors'
    trained(keep, stop=3)
    again, told, said = trained(keep)
    assert same(again, whole) and told == info and [s.split(':')[0] for s in said] == ['epoch 3 of 4', 'epoch 4 of 4']


def test_an_observer_of_other_betas_begins_anew(digits, every_epoch, tmp_path):
    keep, said = tmp_path / 'x.safetensors', []
    training = replace(RECIPE.observer_training, epochs=2, images_per_class=20, optimizer='adamw', lr=1e-3)
    for betas in ((0.9, 0.999), (0.5, 0.5)): observer.train_observer(*digits, 'conv3', RECIPE.size, replace(training, betas=betas), seed=2, keep=keep, log=said.append)
    assert [s.split(':')[0] for s in said] == ['epoch 1 of 2', 'epoch 2 of 2'] * 2


def test_an_observer_of_mended_images_begins_anew(digits, every_epoch, tmp_path):
    keep, said = tmp_path / 'x.safetensors', []
    training = replace(RECIPE.observer_training, epochs=2, images_per_class=20)
    mended = digits[0].subset(range(len(digits[0])))
    mended.x[datasets.draw_order(mended, 0, 2)[0]] ^= 1
    for images in (digits[0], digits[0], mended): observer.train_observer(images, digits[1], 'conv3', RECIPE.size, training, seed=2, keep=keep, log=said.append)
    assert [s.split(':')[0] for s in said] == ['epoch 1 of 2', 'epoch 2 of 2'] * 2      # the second time nothing is left to do


def test_a_student_judged_by_other_images_begins_anew(digits, made, every_epoch, tmp_path):
    keep, told = tmp_path / 'x.safetensors', []
    def by(images):
        look = lambda net: {'top1': float(len(images)), 'top5': 0.0}
        look.data = images.digest
        return look
    for val in (digits[1], digits[1], digits[1].subset(range(9))):
        history = student.train_student(models.build('conv3', 10, RECIPE.size), made, labels.HardLabels(10), replace(RECIPE.training, epochs=2, batch_size=8), evaluate=by(val), keep=keep, log=told.append)
    assert [r['epoch'] for r in told] == [1, 2] * 2 and history.best_top1 == 9


def test_a_training_of_other_settings_is_set_aside_with_a_word(made, every_epoch, tmp_path):
    keep = tmp_path / 'x.safetensors'
    a_student(made, keep=keep, stop=2)
    with pytest.warns(UserWarning, match='other settings .training, seed.'): other, _ = a_student(made, keep=keep, seed=4, lr=2e-3)
    assert same(other, a_student(made, seed=4, lr=2e-3)[0])


def test_mended_files_are_scored_again(every_epoch, tmp_path, monkeypatch):
    for k in range(8):
        (tmp_path / 'data' / 'train' / 'ab'[k % 2]).mkdir(parents=True, exist_ok=True)
        to_image(torch.full((3, 20, 20), 9 * k, dtype=torch.uint8)).save(tmp_path / 'data' / 'train' / 'ab'[k % 2] / f'{k}.png')
    eye = observer.get_observer(models.build('conv3', 2, 16, ['a', 'b'], seed=0), datasets.load(tmp_path / 'data'))
    monkeypatch.setattr(score, 'EVERY', 0)
    def scored(keep=None): return score.score_images(datasets.load(tmp_path / 'data'), eye, size=16, preselect=4, crops=1, chunk=1, keep=keep).score
    first = scored(tmp_path / 'kept')
    torch.testing.assert_close(scored(tmp_path / 'kept'), first)
    to_image(torch.randint(0, 256, (3, 20, 20), dtype=torch.uint8)).save(tmp_path / 'data' / 'train' / 'a' / '0.png')
    again = scored(tmp_path / 'kept')
    assert torch.equal(again, scored()) and not torch.equal(again, first)


def test_scores_under_another_order_of_the_classes_are_not_taken(digits, monkeypatch, tmp_path):
    monkeypatch.setattr(score, 'EVERY', 0)
    images = digits[0]
    net = models.build('conv3', 10, 16, images.classes[::-1], seed=0)
    by_name, by_place = observer.get_observer(net, images), observer.get_observer(net, images, by_position=True)
    assert by_name.sha256 == by_place.sha256 and by_name.order == [list(range(10))[::-1]] and by_place.order is None
    assert net.training and all(p.requires_grad for p in net.parameters())     # whoever gave it may train it on
    def scored(eyes, keep=None): return score.score_images(images, eyes, size=16, preselect=4, crops=2, chunk=1, keep=keep).score
    first = scored(by_name, tmp_path / 'kept')
    assert [*(tmp_path / 'kept').iterdir()] and torch.equal(scored(by_place, tmp_path / 'kept'), scored(by_place)) and not torch.equal(first, scored(by_place))


SLOW = 'import sys; from rded import cli, resume; resume.EVERY = 0; sys.exit(cli.main(sys.argv[1:]))'


def killed_when(file, command, cwd):
    "Run a command in a process of its own and kill it, and what it started, once a file stands that it writes."
    process = subprocess.Popen([sys.executable, '-c', SLOW, *command], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, text=True)
    end = time.monotonic() + 120
    while not file.exists() and process.poll() is None and time.monotonic() < end: time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and file.exists(), process.stdout.read()


def test_a_run_that_was_killed_gives_the_same_number(digits, tmp_path):
    models.save(models.build('conv3', 10, RECIPE.size, digits[0].classes, seed=0), tmp_path / 'eye.safetensors')
    command = lambda out: ['run', 'digits-conv3-ipc10', '--data', 'digits', '--observer', str(tmp_path / 'eye.safetensors'), '--methods', 'random-images', '--out', str(out), '--no-check', '--device', 'cpu', '--quiet']
    name = 'digits-conv3-ipc10-random-images-seed0'
    killed_when(tmp_path / 'b' / 'results' / f'.{name}-training.safetensors', command(tmp_path / 'b'), tmp_path)
    for out in 'ab': assert cli.main(command(tmp_path / out)) == 0
    a, b = (json.loads((tmp_path / out / 'results' / f'{name}.json').read_text()) for out in 'ab')
    for told in (a, b): [told.pop(k) for k in ('seconds', 'peak_memory_mb', 'command')]
    assert a == b and [f.name for f in (tmp_path / 'b' / 'results').iterdir()] == [f'{name}.json']


def test_an_observer_that_was_killed_is_the_same_file(tmp_path):
    command = lambda out: ['observer', '--data', 'digits', '--arch', 'conv3', '--size', '16', '--epochs', '6', '--out', str(out), '--device', 'cpu', '--quiet']
    killed_when(tmp_path / '.b-training.safetensors', command(tmp_path / 'b.safetensors'), tmp_path)
    for out in 'ab': assert cli.main(command(tmp_path / f'{out}.safetensors')) == 0
    assert (tmp_path / 'a.safetensors').read_bytes() == (tmp_path / 'b.safetensors').read_bytes() and not list(tmp_path.glob('.*'))


def test_a_damaged_file_is_refused_in_one_line(tmp_path, capsys):
    (tmp_path / '.eye-training.safetensors').write_bytes(b'no tensors')
    assert cli.main(['observer', '--data', 'digits', '--arch', 'conv3', '--size', '16', '--epochs', '1', '--out', str(tmp_path / 'eye.safetensors'), '--quiet']) == 2
    [said] = capsys.readouterr().err.splitlines()
    assert 'damaged' in said and 'remove it' in said and not (tmp_path / 'eye.safetensors').exists()


def test_a_changed_mark_of_the_optimiser_is_refused(made, every_epoch, tmp_path):
    keep = tmp_path / 'x.safetensors'
    a_student(made, keep=keep, stop=3, optimizer='muon')
    written = keep.read_bytes()
    assert written.count(mark := b'use_muon\\": true') > 1
    keep.write_bytes(written.replace(mark, b'use_muon\\": null', 1))
    with pytest.raises(ValueError, match='damaged'): a_student(made, keep=keep, optimizer='muon')
