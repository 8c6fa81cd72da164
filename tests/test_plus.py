"""`plus` and what it needs: labellers apart from the observer that scores, and images held out to choose settings by."""
import copy
import json
import os
import shlex
import shutil
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rded import cli, datasets, models, optimizers, pipeline, recipes
from rded.files import locked, read_json
from rded.labels import FixedLabels, plan
from rded.observer import get_observer

TINY = 'cifar10-conv3-ipc1-tiny-plus'


@pytest.mark.parametrize('name', [n for n in recipes.RECIPES if not n.endswith('-tiny')])
@pytest.mark.parametrize('training', recipes.ROWS)
def test_every_recipe_has_a_variant_of_each_row(name, training):
    paper, plus = recipes.get(name), recipes.get(f'{name}-{training}')
    assert (plus.name, plus.training.name) == (f'{name}-{training}', training) and plus.labeller_epochs and paper.labeller_epochs == 0
    assert plus.training.batch_size <= paper.training.batch_size and plus.training.lr == paper.training.lr * recipes.ROWS[training][1].rate and (plus.training.notes == ()) == (paper.dataset == 'CIFAR-10' and paper.student == 'conv3')
    same = ('data', 'dataset', 'size', 'ipc', 'factor', 'observer', 'student', 'observer_training', 'observer_weights', 'preselect', 'crops')
    assert all(getattr(plus, k) == getattr(paper, k) for k in same)                       # the images are the paper's


@pytest.mark.parametrize('name', [TINY, 'imagenet1k-resnet18-ipc10-tiny-plus'])
def test_a_run_trains_its_labellers_once_and_labels_with_them(name, tmp_path, capsys):
    asked = ['run', name, '--methods', 'rded', '--seeds', '0,1', '--out', str(tmp_path / 'out'), '--quiet']
    assert cli.main(asked) == 0
    recipe = recipes.get(name)
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / 'out').glob('labeller-*.safetensors')}
    assert len(files) == recipe.labellers
    results = [read_json(p) for p in sorted((tmp_path / 'out' / 'results').glob('*.json'))]
    sets = [read_json(p) for p in (tmp_path / 'out' / 'sets').glob('*/rded.json')]
    assert len(results) == len(sets) == 2 and {r['training'] for r in results} == {recipe.training.name}
    assert all(r['observer']['name'].startswith('labeller-') for r in results) and {s['observer']['name'] for s in sets} == {'observer.safetensors'}
    assert cli.main(asked) == 0 and files == {p: p.stat().st_mtime_ns for p in files}     # found again
    assert cli.main([*asked[:-1], '--hard', '--quiet']) == 0                              # hard labels have no labeller
    hard = [read_json(p) for p in (tmp_path / 'out' / 'results').glob('*-hard-*.json')]
    assert len(hard) == 2 and all(r['observer'] is None for r in hard)


def test_sizes_between_the_rows_say_so():
    told = lambda ipc: recipes.TRAININGS['plus']('conv3', ipc, 10, 'CIFAR-10')
    assert told(10).notes == () and told(20).batch_size == 25 and '25, from IPC 10, is our choice' in told(20).notes[0]
    assert 'at 1, 10, 50 images a class: here they are an expectation' in told(5).notes[-1]


def test_hard_labels_train_no_labeller(tmp_path):
    pipeline.run(TINY, 'digits', out=tmp_path, methods=['rded'], labels='hard', log=lambda text: None)
    assert list(tmp_path.glob('labeller-*')) == []


def test_train_takes_the_named_settings(tmp_path, capsys):
    digits = ['--data', 'digits', '--quiet']
    assert cli.main(['observer', *digits, '--arch', 'conv3', '--epochs', '1', '--out', str(tmp_path / 'o.safetensors')]) == 0
    assert cli.main(['distill', *digits, '--observer', str(tmp_path / 'o.safetensors'), '--ipc', '1', '--preselect', '20', '--out', str(tmp_path / 'set')]) == 0
    assert cli.main(['train', '--distilled', str(tmp_path / 'set'), '--observer', str(tmp_path / 'o.safetensors'), '--val', 'digits', '--student', 'conv3', '--training', 'plus',
                     '--epochs', '2', '--json', str(tmp_path / 'r.json'), '--out', str(tmp_path / 's.safetensors'), '--quiet']) == 0
    assert json.loads((tmp_path / 'r.json').read_text())['training'] == 'plus, epochs 2'


def test_large_images_are_seen_at_fewer_pixels(tmp_path, capsys):
    "An observer that looks at 8 px chooses and labels images of 16 px; a student begins at 8 px; labels that were stored teach what live ones do."
    here = lambda name: str(tmp_path / name)
    def done(*argv): assert cli.main([*argv, '--quiet']) == 0, capsys.readouterr().err
    done('observer', '--data', 'digits', '--arch', 'vgg8_modified', '--size', '16', '--seen-at', '8', '--epochs', '1', '--out', here('o.safetensors'), '--json', here('o.json'))
    done('distill', '--data', 'digits', '--observer', here('o.safetensors'), '--ipc', '2', '--preselect', '20', '--out', here('set'))
    how = ['--distilled', here('set'), '--training', 'plus', '--epochs', '4', '--batch-size', '8']
    done('relabel', *how, '--observer', here('o.safetensors'), '--out', here('labels'))
    small = ['--student', 'vgg8_modified', '--set', 'seen_at=8,seen_until=0.5', '--precision', 'float32', '--val', 'digits']
    for kind, by in (('live', ['--observer', here('o.safetensors')]), ('stored', ['--labels', here('labels')])):
        done('train', *how, *small, *by, '--out', here(f'{kind}.safetensors'), '--json', here(f'{kind}.json'))
    told, live, stored = (read_json(tmp_path / f'{name}.json') for name in ('o', 'live', 'stored'))
    assert (told['size'], told['seen_at']) == (16, 8) and live['training'] == 'plus, epochs 4, batch size 8, seen at 8, seen until 0.5'
    nets = [models.load(tmp_path / f'{name}.safetensors') for name in ('o', 'live', 'stored')]
    assert [(net.size, net.seen_at) for net in nets] == [(16, 8), (16, None), (16, None)] and live['top1'] == stored['top1']
    assert all(torch.equal(a, b) for a, b in zip(*(net.body.state_dict().values() for net in nets[1:])))
    capsys.readouterr()
    assert cli.main(['info', here('o.safetensors')]) == 0 and ['seen_at', '8'] in [line.split() for line in capsys.readouterr().out.splitlines()]
    for value, why in (('8', "the student conv3 is built for images of 16 px alone"), ('16', 'give fewer'), ('-1', 'seen_at is -1'), ('8.5', 'seen_at is 8.5')):
        assert cli.main(['train', *how, '--observer', here('o.safetensors'), '--val', 'digits', '--student', 'conv3', '--set', f'seen_at={value}', '--out', here('no.safetensors'), '--quiet']) == 2
        assert why in capsys.readouterr().err and not (tmp_path / 'no.safetensors').exists()


def test_held_out_images_are_neither_seen_nor_cited(tmp_path, cifar10_root):
    data = f'held-out-20:{cifar10_root}'
    fit, held = datasets.load(data), datasets.load(data, 'val')
    whole = datasets.load(cifar10_root)
    assert held.counts() == [20] * 10 and {*fit.ids} | {*held.ids} == {*whole.ids} and not {*fit.ids} & {*held.ids}
    recipe = replace(recipes.get('cifar10-conv3-ipc1'), preselect=12, crops=2, observer_training=replace(recipes.OBSERVERS['CIFAR-10', 'conv3'], epochs=1, images_per_class=20))
    recipe = replace(recipe, training=replace(recipe.training, epochs=2))
    [found] = pipeline.run(recipe, data, out=tmp_path, methods=['rded'], check=False, log=lambda text: None)
    assert (found['split'], found['n'], found['dataset'] == 'CIFAR-10') == ('held-out', 200, False)
    made = read_json(next((tmp_path / 'sets').glob('*/rded.json')))
    assert made['data']['images'] == len(fit) and not {p['source'] for image in made['images'] for p in image['patches']} & {*held.sources}


@pytest.mark.parametrize('optimizer', recipes.OPTIMIZERS)
def test_a_student_learns_with_every_optimiser(optimizer):
    from rded import student
    from rded.distilled import DistilledSet
    from rded.evaluate import evaluate
    from rded.labels import HardLabels
    from rded.models import build
    digits, val = (datasets.load('digits', s) for s in ('train', 'val'))
    made = pipeline.make_set('random-images', recipes.get('digits-conv3-ipc10'), digits, None, 0)
    training = replace(recipes.get('digits-conv3-ipc10').training, epochs=12, batch_size=20, optimizer=optimizer, lr=0.05 if optimizer == 'sgd' else 1e-3)
    net = build('conv3', 10, 16, seed=0)
    student.train_student(net, made, HardLabels(10), training, seed=0)
    assert evaluate(net, val)['top1'] > 60
    assert set(optimizers.OPTIMIZERS) == set(recipes.OPTIMIZERS)


def test_an_observer_is_trained_by_muon_where_it_is_asked_for(tmp_path):
    cli._call(['observer', '--data', 'digits', '--arch', 'conv3', '--size', '16', '--epochs', '2', '--optimizer', 'muon', '--label-smoothing', '0', '--out', str(tmp_path / 'eye.safetensors'), '--json', str(tmp_path / 'eye.json'), '--quiet'])
    told = read_json(tmp_path / 'eye.json')
    assert told['top1'] > 90 and {k: told['training'][k] for k in recipes.MUON} == recipes.MUON and told['training']['label_smoothing'] == 0
    assert get_observer(tmp_path / 'eye.safetensors').nets[0].info['training']['optimizer'] == 'muon'


def test_other_values_of_an_observers_training_are_set_and_checked(tmp_path, capsys):
    usual = ['observer', '--data', 'digits', '--arch', 'conv3', '--size', '16', '--epochs', '1', '--out', str(tmp_path / 'eye.safetensors'), '--quiet']
    cli._call([*usual, '--set', 'crop=resized,min_scale=0.25,batch_size=64', '--json', str(tmp_path / 'eye.json')])
    trained = read_json(tmp_path / 'eye.json')['training']
    assert (trained['crop'], trained['min_scale'], trained['batch_size'], trained['epochs'], trained['lr']) == ('resized', 0.25, 64, 1, 0.05)
    (tmp_path / 'eye.safetensors').unlink()
    for value, why in (('crop=round', "crop is 'round'"), ('mix=cutmix', "unknown setting 'mix'"), ('momentum=much', 'momentum'), ('lr=0', 'above 0')):
        assert cli.main([*usual, '--set', value]) == 2 and why in capsys.readouterr().err and not (tmp_path / 'eye.safetensors').exists()


@pytest.mark.parametrize('option, value', [('--lr', '0'), ('--lr', 'nan'), ('--label-smoothing', '1'), ('--label-smoothing', '-0.1'), ('--label-smoothing', 'some'), ('--optimizer', 'lion')])
def test_rates_and_smoothing_that_cannot_be_are_refused_in_a_line(tmp_path, capsys, option, value):
    assert cli.main(['observer', '--data', 'digits', '--arch', 'conv3', '--size', '16', option, value, '--out', str(tmp_path / 'eye.safetensors')]) == 2
    told = capsys.readouterr().err.strip()
    assert option in told and '\n' not in told and not list(tmp_path.iterdir())


def test_unknown_optimisers_and_impossible_checkpoints_are_refused():
    for training in (recipes.get('digits-conv3-ipc10').training, recipes.OBSERVERS['digits', None]):
        with pytest.raises(ValueError, match="optimizer is 'lion'.*muon"): replace(training, optimizer='lion')
    with pytest.raises(ValueError, match='stop is 7: give an epoch from 1 to 6'): replace(recipes.OBSERVERS['digits', None], stop=7)


def test_an_early_checkpoint_from_the_command_line(tmp_path, capsys):
    asked = ['observer', '--data', 'digits', '--arch', 'conv3', '--quiet', '--epochs', '4']
    assert cli.main([*asked, '--stop', '1', '--out', str(tmp_path / 'early.safetensors'), '--json', str(tmp_path / 'early.json')]) == 0
    found = json.loads((tmp_path / 'early.json').read_text())
    assert (found['epochs'], found['training']['epochs'], found['training']['stop']) == (1, 4, 1)
    assert cli.main([*asked, '--stop', '5', '--out', str(tmp_path / 'late.safetensors')]) == 2 and 'stop is 5' in capsys.readouterr().err
    assert not (tmp_path / 'late.safetensors').exists()


ROOT = Path(__file__).parents[1]


def bars_of(*variables):
    "What `make bars` would call where nothing stands: two lists of parsed commands, observers and cells."
    if not shutil.which('make'): pytest.skip('there is no make here')
    env = {k: v for k, v in os.environ.items() if not k.startswith('MAKE')}
    told = subprocess.run(['make', '-n', 'cells', 'DATA=data', 'METHOD=random-crops', *variables], cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout
    calls = [cli.parser().parse_args(shlex.split(line)[3:]) for line in told.splitlines() if ' -m rded ' in line]
    return [c for c in calls if c.command == 'observer'], [c for c in calls if c.command == 'run']


@pytest.fixture(scope='module')
def bars(): return bars_of()


CELLS = [f'{cell}-ipc{ipc}' for cell in ('cifar10-resnet18', 'imagenette-resnet18', 'imagenette-conv5') for ipc in (1, 10, 50)]
UNSEEN = [f'cifar10-resnet101-ipc{ipc}-plus' for ipc in (1, 10)]


def test_make_bars_asks_for_three_seeds_of_every_cell(bars):
    seeds, others = Counter((c.recipe, *c.seeds) for c in bars[1]), {'cifar10-resnet18-ipc10': 'long', 'cifar10-resnet18-ipc50': 'steady', 'imagenette-conv5-ipc50': 'steady', 'imagenette-resnet18-ipc50': 'steady'}
    beside = ['cifar10-resnet18-ipc10-plus', 'imagenette-conv5-ipc50-plus', 'imagenette-resnet18-ipc50-plus']     # they stand in a table beside what takes longer
    asked = [*(f"{cell}-{others.get(cell, 'plus')}" for cell in CELLS), *beside, *UNSEEN]
    assert seeds == {(cell, seed): 1 for cell in asked for seed in (0, 1, 2)}


def test_make_bars_with_class_labels_runs_plus_alone_and_no_labeller():
    trained, cells = bars_of('HARD=1')
    assert Counter((c.recipe, *c.seeds) for c in cells) == {(cell, seed): 1 for cell in [*(f'{cell}-plus' for cell in CELLS), *UNSEEN] for seed in (0, 1, 2)}
    assert all(c.hard and not c.labeller for c in cells) and {c.out for c in trained} == {c.observer for c in cells if c.observer.startswith('runs')}


def test_make_bars_trains_or_holds_the_observers_of_its_cells(bars):
    trained = {c.out: c for c in bars[0]}
    for cell in bars[1]:
        recipe = recipes.get(cell.recipe)
        assert recipes.dataset_of(Path(cell.data).name) in (recipe.dataset, None)
        for file in {cell.observer, cell.labeller}:
            if its := trained.get(file): assert (its.arch, its.size, its.data, its.dataset) == (recipe.observer, recipe.size, cell.data, recipe.dataset)
            else: assert ((eye := get_observer(ROOT / file)).size, len(eye.classes)) == (recipe.size, recipe.classes)


def test_a_run_keeps_its_students_where_it_is_asked_to(tmp_path):
    assert cli.main(['run', 'cifar10-conv3-ipc1-tiny-steady', '--data', 'digits', '--methods', 'rded,random-images', '--precision', 'float32', '--keep-students', '--out', str(tmp_path), '--quiet']) == 0
    for method in ('rded', 'random-images'):
        name = f'cifar10-conv3-ipc1-tiny-steady-{method}-seed0'
        assert cli.main(['evaluate', '--model', str(tmp_path / 'students' / f'{name}.safetensors'), '--data', 'digits', '--json', str(tmp_path / 'again.json'), '--quiet']) == 0
        again, told = (read_json(f) for f in (tmp_path / 'again.json', tmp_path / 'results' / f'{name}.json'))
        assert again['top1'] == pytest.approx(told['top1'], abs=0.3) and told['training'] == 'steady-tiny'
    assert cli.main(['run', 'cifar10-conv3-ipc1-tiny-steady', '--data', 'digits', '--seeds', '1', '--methods', 'rded', '--out', str(tmp_path), '--quiet']) == 0
    assert len([*(tmp_path / 'students').iterdir()]) == 2
    told = []
    pipeline.run(recipes.get('cifar10-conv3-ipc1-tiny-steady'), 'digits', '', tmp_path, (0, 1), ('rded',), students=True, log=told.append)
    assert [t.split('/')[-1] for t in told if 'not kept' in t] == ['cifar10-conv3-ipc1-tiny-steady-rded-seed1.json stood already, and its student was not kept: remove it, to train the student again']


def test_an_observer_that_saw_all_images_judges_no_held_out_ones(tmp_path, capsys):
    asked = ['run', 'cifar10-conv3-ipc1-tiny', '--methods', 'random-images', '--out', str(tmp_path), '--quiet']
    assert cli.main([*asked, '--seeds', '0']) == 0
    assert cli.main([*asked, '--seeds', '1', '--data', 'held-out-30:digits']) == 2
    assert 'observer.safetensors holds the result of another run (val_' in capsys.readouterr().err


def test_an_observer_trained_another_way_is_not_taken_for_the_recipes(tmp_path, capsys):
    asked = ['run', 'digits-conv3-ipc10', '--methods', 'random-images', '--seeds', '0', '--epochs', '1', '--out', str(tmp_path), '--quiet']
    assert cli.main(['observer', '--data', 'digits', '--arch', 'conv3', '--size', '16', '--label-smoothing', '0', '--out', str(tmp_path / 'observer.safetensors'), '--quiet']) == 0
    assert cli.main(asked) == 2
    assert 'observer.safetensors holds the result of another run (label_smoothing 0.0, now 0.1)' in capsys.readouterr().err


def test_what_was_made_by_other_settings_is_not_taken_for_the_recipes(tmp_path):
    recipe = replace(recipes.get('cifar10-conv3-ipc1-tiny'), data='digits')
    def again(**change): return pipeline.run(replace(recipe, **change), 'digits', out=tmp_path, seeds=(0,), methods=('rded',), log=str)
    [first] = again()
    assert again() == [first]
    with pytest.raises(ValueError, match='another run .student conv3, now resnet18_modified'): again(student='resnet18_modified')
    next((tmp_path / 'results').glob('*.json')).unlink()
    for change in (dict(crops=recipe.crops + 1), dict(preselect=recipe.preselect - 1), dict(selection='herding'), dict(scale=(0.5, 1.0)), dict(canvas='enlarge'), dict(jpeg=75)):
        with pytest.raises(ValueError, match=f'another run .{next(iter(change))} '): again(**change)
    eyes = replace(recipe.observer_training, padding=3)
    with pytest.raises(ValueError, match='observer.safetensors holds the result of another run .padding '): again(observer_training=eyes)


def released(lock, waiting, meanwhile):
    "What `waiting` comes to, begun while another process holds the lock and does `meanwhile`."
    with ThreadPoolExecutor(1) as pool:
        with locked(lock):
            late = pool.submit(waiting)
            time.sleep(1)
            assert not late.done()
            meanwhile()
        return late.result(60)


def test_two_runs_at_once_train_one_observer_and_make_one_set(tmp_path):
    recipe, told = recipes.get('cifar10-conv3-ipc1-tiny'), []
    first = lambda out, **how: pipeline.run(recipe, 'digits', '', out, (0,), ('random-images',), **how)
    first(tmp_path / 'first')
    copied = lambda what, to: (to.parent.mkdir(parents=True, exist_ok=True), (shutil.copytree if what.is_dir() else shutil.copy)(what, to))
    eye, here = 'observer.safetensors', tmp_path / 'here'
    name = f'{recipe.name}-random-images-seed0'
    released(here / '.locks' / 'observer', lambda: first(here, log=told.append), lambda: copied(tmp_path / 'first' / eye, here / eye))
    assert not any('training the observer' in t for t in told) and (here / eye).read_bytes() == (tmp_path / 'first' / eye).read_bytes()
    shutil.rmtree(here / 'sets'), shutil.rmtree(here / 'results')
    found, = released(here / '.locks' / f'set-{name}', lambda: first(here, labels='hard'), lambda: copied(tmp_path / 'first' / 'sets' / name, here / 'sets' / name))
    assert found['labels'] == 'hard'


def test_labels_of_classes_in_another_order_are_refused():
    images, val = datasets.load('digits', 'train'), datasets.load('digits', 'val')
    backwards = copy.copy(images)
    backwards.classes, backwards.y = images.classes[::-1], 9 - images.y
    recipe = recipes.get('digits-conv3-ipc10')
    eye = get_observer(models.build('conv3', 10, recipe.size, images.classes), images)
    made = pipeline.make_set('random-images', replace(recipe, ipc=1), backwards, None, 0)
    wanted = replace(recipe.training, epochs=1)
    for asked in (lambda: pipeline.train_set(made, eye, val, 'conv3', wanted), lambda: FixedLabels(made, eye), lambda: plan(made, eye, wanted, 1)):
        with pytest.raises(ValueError, match='in another order'): asked()
    other = get_observer(models.build('conv3', 10, 2 * recipe.size, images.classes), images)
    made = pipeline.make_set('random-images', replace(recipe, ipc=1), images, None, 0)
    with pytest.raises(ValueError, match=f'looks at {2 * recipe.size} px images'): FixedLabels(made, other)


def test_an_observer_in_bfloat16_takes_the_batchs_statistics_too():
    eye = get_observer(models.build('conv3', 10, 16, classes=[*'abcdefghij']))
    x = torch.rand(32, 3, 16, 16)
    exact, quick = (e.by_batch_statistics()(x) for e in (eye, eye.in_bfloat16()))
    assert (exact - eye(x)).abs().max() > 10 * (exact - quick).abs().max() > 0
