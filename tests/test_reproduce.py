"""The runner of the tables: what stands is not done again, what fails is kept and said, and SIGKILL loses no finished result."""
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from rded import reproduce
from rded.cli import main
from rded.reproduce import TABLES, Job, Runner, parameters_of, recipe_of

NOTEBOOKS = sorted((Path(__file__).parents[1] / 'nbs' / 'reproduce').glob('*.ipynb'))
SHARED = {'seeds', 'methods', 'tiny', 'epochs', 'observer_epochs', 'data', 'download', 'observer', 'labeller', 'observers', 'device', 'precision', 'workers', 'note', 'out'}

# A notebook that takes no time to import and writes results of the right form; what it is told to do wrong stands in `note`.
CODE = '''
import json, os, time
from pathlib import Path
(Path(out) / 'seen').mkdir(parents=True, exist_ok=True)
from rded.reproduce import recipe_of
recipe = recipe_of('main_table', training=training, dataset=dataset, network=network, ipc=ipc)
if note == 'fail' and ipc == 10: raise RuntimeError('the disk\\nis full of eels')
for seed in seeds:
    for method in methods:
        file = Path(out, 'results', f'{recipe.name}-{method}-seed{seed}.json')
        if file.exists(): continue
        start = time.time()
        for k in range(6):
            time.sleep(0.05)
            (Path(out) / 'seen' / 'beat').write_text(str(time.time()))
        with open(Path(out) / 'seen' / 'done.txt', 'a') as f: f.write(json.dumps([file.name, os.environ.get('CUDA_VISIBLE_DEVICES'), start, time.time()]) + '\\n')
        file.parent.mkdir(exist_ok=True)
        file.with_suffix('.part').write_text(json.dumps({
            'format': 'rded-result-1', 'recipe': recipe.name, 'dataset': dataset, 'split': 'val', 'n': 10, 'ipc': ipc, 'method': method, 'observer': None, 'student': recipe.student,
            'training': recipe.training.name, 'seed': seed, 'top1': 50.0 + seed, 'top5': 90.0, 'best_top1': 51.0 + seed, 'updates': 1, 'images_seen': 1, 'seconds': 1.0, 'peak_memory_mb': None,
            'bytes': {'images': 1, 'labels': 0, 'observer': 0}, 'curve': [{'epoch': 300, 'top1': 50.0}], 'command': 'x', 'environment': {}, 'commit': None}))
        os.replace(file.with_suffix('.part'), file)
'''
PARAMETERS = ("dataset = 'CIFAR-10'\ntraining = 'paper'\nnetwork = 'convnet'\nipc = 1\nseeds = [0]\nmethods = ['rded']\ntiny = True\nepochs = 0\ndata = ''\ndownload = False\n"
              "observer = ''\nobservers = ''\ndevice = 'auto'\nnote = ''\nout = ''\n")
RUN = '''
import sys, json
from pathlib import Path
from rded import reproduce
reproduce.notebook_of = lambda table: Path(sys.argv[1]) / 'fake.ipynb'
reproduce._silent, told = None, json.loads(sys.argv[2])
said = reproduce.reproduce(told.pop('table', 'main_table'), sys.argv[1] + '/data', sys.argv[1] + '/out', told.pop('only'), **told, log=lambda t: print(t, flush=True))
print('END ' + json.dumps(said), flush=True)
'''


@pytest.fixture
def fake(tmp_path):
    "A folder with the light notebook and two data sets."
    import nbformat
    cells = [nbformat.v4.new_code_cell(PARAMETERS, metadata={'tags': ['parameters']}), nbformat.v4.new_code_cell(CODE)]
    spec = {'kernelspec': {'name': 'python3', 'display_name': 'python3', 'language': 'python'}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=spec), tmp_path / 'fake.ipynb')
    for name in ('cifar10', 'cifar100'): (tmp_path / 'data' / name / 'train').mkdir(parents=True)
    return tmp_path


def start(fake, **told):
    told = told if 'table' in told else {'only': {'dataset': ['CIFAR-10'], 'network': ['convnet'], 'ipc': [1, 10]}, 'seeds': [0, 1], 'methods': ['rded'], **told}
    return subprocess.Popen([sys.executable, '-c', RUN, str(fake), json.dumps(told)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(fake, **told):
    out, err = start(fake, **told).communicate(timeout=240)
    assert 'END ' in out, out + err
    return json.loads(out.split('END ')[1]), out


def done(fake):
    file = fake / 'out' / 'seen' / 'done.txt'
    return [json.loads(l) for l in file.read_text().splitlines()] if file.exists() else []


def results(fake): return {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in (fake / 'out' / 'results').glob('*.json')}


def wait_for(test, seconds=90):
    end = time.time() + seconds
    while not test():
        assert time.time() < end
        time.sleep(0.02)


# the runner

def test_a_table_is_run_and_not_run_again(fake):
    said, out = finish(fake)
    assert (said['cells'], said['stood'], len(said['done']), said['failed']) == (2, 0, 2, [])
    assert len(results(fake)) == 4 and '[1 of 2] cifar10-conv3-ipc1: done in' in out and 'left' in out
    assert sorted(p.name for p in (fake / 'out' / 'notebooks').iterdir()) == [f'cifar10-conv3-ipc{i}.ipynb' for i in (1, 10)]
    page = (fake / 'out' / 'main_table.md').read_text()
    assert '| CIFAR-10 | convnet | 10 | 50.50 ± 0.71 (2) | 50.2 ± 0.3 |' in page and 'reproduced' in page
    before = results(fake)
    again, _ = finish(fake)
    assert (again["stood"], again["done"]) == (2, []) and results(fake) == before and len(done(fake)) == 4
    more, _ = finish(fake, seeds=[0, 1, 2])                            # one seed more: only that
    assert len(more['done']) == 2 and len(done(fake)) == 6


@pytest.mark.parametrize('finished', [0, 1, 2])
def test_killed_between_and_inside_cells_nothing_finished_is_lost(fake, finished):
    process = start(fake)
    wait_for(lambda: len(done(fake)) >= finished and (fake / 'out' / 'seen' / 'beat').exists())
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = results(fake)
    time.sleep(1.0)                                                    # its worker and kernel end with it
    beat = (fake / 'out' / 'seen' / 'beat').read_text()
    time.sleep(0.7)
    assert (fake / 'out' / 'seen' / 'beat').read_text() == beat
    kept = results(fake)
    assert before.items() <= kept.items()
    said, _ = finish(fake)
    assert said['failed'] == [] and len(results(fake)) == 4 and kept.items() <= results(fake).items()
    names = [name for name, *_ in done(fake)]
    assert len(names) <= len(set(names)) + 1                           # at most the one that was cut is done twice
    assert not list((fake / 'out' / 'notebooks').glob('.running-*'))


def test_a_failed_cell_is_kept_and_the_rest_goes_on(fake):
    said, out = finish(fake, settings={'note': 'fail'})
    assert [f['cell'] for f in said['failed']] == ['cifar10-conv3-ipc10'] and len(said['done']) == 1
    assert said['failed'][0]['error'] == 'RuntimeError: the disk is full of eels' and 'FAILED: RuntimeError' in out
    kept = json.loads(Path(said['failed'][0]['notebook']).read_text())
    assert kept and Path(said['failed'][0]['notebook']).name == 'cifar10-conv3-ipc10.failed.ipynb'
    again, _ = finish(fake)
    assert again['failed'] == [] and again['stood'] == 1 and not (fake / 'out' / 'notebooks' / 'cifar10-conv3-ipc10.failed.ipynb').exists()


def test_devices_side_by_side(fake):
    said, _ = finish(fake, devices=['0', '1'], only={'network': ['convnet'], 'dataset': ['CIFAR-10', 'CIFAR-100'], 'ipc': [1]}, seeds=[0, 1, 2, 3])
    assert said['failed'] == []
    rows = done(fake)
    assert {device for _, device, *_ in rows} == {'0', '1'}
    first, second = ([(a, b) for _, d, a, b in rows if d == device] for device in '01')
    assert max(first[0][0], second[0][0]) < min(first[-1][1], second[-1][1])      # at the same time


def test_two_runners_on_one_folder_do_no_cell_twice(fake):
    one, two = start(fake), start(fake)
    for process in (one, two):
        out, err = process.communicate(timeout=240)
        assert 'END ' in out and json.loads(out.split('END ')[1])['failed'] == [], out + err
    names = [name for name, *_ in done(fake)]
    assert len(names) == len(set(names)) == 4


def test_no_cell_is_started_after_the_minutes(fake):
    said, _ = finish(fake, minutes=1e-9)
    assert said['done'] == [] and len(said['left']) == 2


def test_workers_that_want_the_same_things_wait(tmp_path):
    values = [dict(dataset='CIFAR-10', network=n, ipc=i) for n, i in (('convnet', 1), ('convnet', 10), ('resnet18', 1))]
    jobs = [Job('main_table', v, recipe_of('main_table', **v), ('rded',), (0,), str(tmp_path)) for v in values]
    runner = Runner(jobs, tmp_path, ['cpu', 'cpu'], {})
    (first, _), (second, _) = runner.take(), runner.take()
    assert (first.name, second.name) == ('cifar10-conv3-ipc1', 'cifar10-resnet18-ipc1')
    runner = Runner(jobs, tmp_path, ['cpu', 'cpu'], {})
    runner.observers.mkdir()
    reproduce.observer_file(runner.observers, jobs[0].recipe, str(tmp_path)).touch()      # there already: no need to wait
    assert [runner.take()[0].name for _ in range(2)] == ['cifar10-conv3-ipc1', 'cifar10-conv3-ipc10']
    labels = [dict(dataset='CIFAR-10', network='convnet', ipc=10, axis='labels', value=v) for v in ('region', 'hard')]
    jobs = [Job('ablations', v, recipe_of('ablations', **v), ('rded',), (0,), str(tmp_path)) for v in labels]
    assert [j.name for j in jobs] == ['cifar10-conv3-ipc10', 'cifar10-conv3-ipc10-hard']
    runner = Runner(jobs, tmp_path, ['cpu', 'cpu'], {}, deadline=time.time() + 1.5)
    assert runner.take()[0] == jobs[0] and runner.take() is None      # they share their distilled sets


def test_two_processes_train_an_observer_once(tmp_path):
    code = '''
import sys, time
from rded import models, observer, reproduce
def slow(images, val, arch, size, *args, **how):
    print('trained', flush=True)
    time.sleep(1)
    return models.build(arch, 10, size, images.classes)
observer.train_observer = slow
print(reproduce.shared_observer(reproduce.recipe_of('main_table', True, dataset='CIFAR-10', network='convnet', ipc=1), 'digits', sys.argv[1]))
'''
    both = [subprocess.Popen([sys.executable, '-c', code, str(tmp_path)], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [p.communicate(timeout=120)[0].splitlines() for p in both]
    assert sum('trained' in s for s in said) == 1 and said[0][-1] == said[1][-1] and Path(said[0][-1]).is_file()


# the essentials

def test_the_essentials_come_in_order_of_worth_and_none_twice():
    jobs = reproduce.essentials()
    names, wanted = [j.name for j in jobs], [f.name for j in jobs for f in j.files('')]
    assert len(wanted) == len(set(wanted)) and {m for j in jobs for m in j.methods} == {'rded', 'random-images', 'sre2l'}
    assert names[:4] == ['cifar10-resnet18-ipc10', 'cifar10-resnet18-ipc50', 'cifar10-resnet18-ipc1', 'cifar10-resnet18-ipc10-sre2l']
    assert names[4:7] == [f'cifar10-resnet18-ipc{i}-plus' for i in (10, 1, 50)]
    assert names[7:19] == [f'imagenette-{n}-ipc{i}{p}' for p in ('', '-plus') for n in ('resnet18', 'conv5') for i in (10, 1, 50)]
    cross = [j for j in jobs if j.table == 'cross_architecture']
    assert len(cross) == 15 and names[19:34] == [j.name for j in cross] and len({j.recipe.observer for j in cross}) == len({j.recipe.student for j in cross}) == 4   # the sixteenth is the main table's
    assert {j.seeds for j in jobs[:34]} == {(0,)} and [(j.name, j.seeds) for j in jobs[34:53]] == [(n, (1, 2)) for n in names[:19]]
    assert names[53:] == [f'{c}-ipc{i}' for c in ('cifar10-conv3', 'cifar10-resnet101', 'imagenette-resnet101') for i in (10, 1, 50)] and {j.seeds for j in jobs[53:]} == {(0, 1, 2)}
    for job in jobs: reproduce.check_parameters(reproduce.notebook_of(job.table), {**job.values, **job.settings})
    assert [j.recipe for j in jobs if j.settings] == [reproduce.stated(reproduce.plus(recipe_of(j.table, **j.values))) for j in jobs if j.settings]


def test_only_leaves_cells_that_have_what_it_names():
    of = lambda **only: {j.name for j in reproduce.essentials(only={k: [v] for k, v in only.items()})}
    assert {n.split('-ipc')[0] for n in of(dataset='CIFAR-10')} == {'cifar10-resnet18', 'cifar10-conv3', 'cifar10-resnet101'}
    assert of(teacher='vgg11', student='vgg11') == {'imagenette-vgg11-to-vgg11-ipc10'} and not [n for n in of(network='resnet18') if 'vgg' in n]


def test_parts_are_run_in_order_and_not_run_again(fake):
    only = {'dataset': ['CIFAR-10'], 'network': ['resnet18'], 'ipc': [10]}
    said, out = finish(fake, table='essentials', only=only)
    name, both = 'cifar10-resnet18-ipc10', ('rded', 'random-images')
    assert (said['cells'], said['stood'], said['failed']) == (6, 0, []) and said['done'] == [name, f'{name}-sre2l', f'{name}-plus'] * 2
    assert [n for n, *_ in done(fake)] == [f'{n}-{m}-seed{s}.json' for seeds in ((0,), (1, 2)) for n, methods in ((name, both), (name, ('sre2l',)), (f'{name}-plus', ('rded',))) for s in seeds for m in methods]
    assert {p.name for p in (fake / 'out' / 'notebooks').iterdir()} == {f'{n}.ipynb' for n in said['done']}
    page = (fake / 'out' / 'essentials.md').read_text()
    assert f'## main_table: CIFAR-10; resnet18; 10; sre2l\n\n' in page and '| CIFAR-10 | resnet18 | 10 | 51.00 ± 1.00 (3) | 29.3 ± 0.5 |' in page
    plus = page.split('training plus')[1].split('##')[0]
    assert '| CIFAR-10 | resnet18 | 10 | 51.00 ± 1.00 (3) | – | – |' in plus and 'Published' not in plus
    assert page.count('## ') == 3 and '- main_table: CIFAR-10; convnet; 10, 1, 50\n' in page.split('Not run yet:')[1]
    again, _ = finish(fake, table='essentials', only=only)
    assert (again['stood'], again['done']) == (6, []) and len(done(fake)) == 12


def test_a_result_of_another_training_blocks_its_cell_alone(fake, capsys):
    only, file = {'dataset': ['CIFAR-10'], 'network': ['resnet18'], 'ipc': [10]}, fake / 'out' / 'results' / 'cifar10-resnet18-ipc10-plus-rded-seed0.json'
    file.parent.mkdir(parents=True)
    measured = json.loads((Path(__file__).parents[1] / 'reports' / 'results' / file.name).read_text())
    file.write_text(json.dumps({**measured, 'training': 'plus, epochs 100'}))
    assert main(['reproduce', 'essentials', '--data', str(fake / 'data'), '--only', 'network=resnet18,ipc=10,dataset=CIFAR-10', '--out', str(fake / 'out'), '--devices', 'cpu', '--dry-run']) == 0
    assert 'cannot be run' in capsys.readouterr().out
    said, out = finish(fake, table='essentials', only=only)
    assert [f['cell'] for f in said['failed']] == ['cifar10-resnet18-ipc10-plus'] and 'training plus, epochs 100, now plus' in said['failed'][0]['error']
    assert len(said['done']) == 5 and said['stood'] == 0


def test_a_result_by_a_labeller_of_other_epochs_does_not_stand(tmp_path):
    job, = reproduce.plan('main_table', None, {'dataset': ['CIFAR-10'], 'network': ['resnet18'], 'ipc': [10]}, (0,), ('rded',), training='plus')
    file, its = job.files(tmp_path)[0], {'recipe': job.recipe.name, 'training': 'plus', 'ipc': 10, 'student': job.recipe.student}
    file.parent.mkdir(parents=True)
    for name, verdict in ((job.labelled_by, None), (job.labelled_by.replace('epochs', '0epochs'), 'holds the result of another run (observer'), ('my-own-eye.safetensors', None)):
        file.write_text(json.dumps({**its, 'observer': {'name': name}}))
        why = reproduce.another(job, tmp_path)
        assert why is None if verdict is None else verdict in why


def test_seeds_come_later_and_the_blocked_part_is_said(fake):
    first, _ = finish(fake, only={'dataset': ['CIFAR-10'], 'network': ['convnet'], 'ipc': [1]}, seeds=[1])      # the table's own run, before
    assert first['failed'] == [] and len(done(fake)) == 1
    said, out = finish(fake, table='essentials', only={'network': ['convnet'], 'ipc': [1]})
    assert said['done'] == ['cifar10-conv3-ipc1'] and [n for n, *_ in done(fake)][1:] == [f'cifar10-conv3-ipc1-{m}-seed{s}.json' for s, m in ((0, 'rded'), (0, 'random-images'), (1, 'random-images'), (2, 'rded'), (2, 'random-images'))]
    assert {f['cell'] for f in said['failed']} == {'imagenette-conv5-ipc1', 'imagenette-conv5-ipc1-plus'} and all('ImageNette was not found under --data' in f['error'] for f in said['failed'])
    assert 'imagenette-conv5-ipc1-plus: cannot be run: ImageNette was not found' in out


def test_a_cut_part_is_not_begun_twice(fake):
    jobs = reproduce.essentials(fake / 'data', {'dataset': ['CIFAR-10'], 'network': ['resnet18'], 'ipc': [1]})[::2]         # seed 0; seeds 1, 2
    for f in jobs[0].files(fake / 'out'):
        f.parent.mkdir(parents=True, exist_ok=True)
        f.write_text(json.dumps({'recipe': jobs[0].recipe.name, 'training': 'paper', 'ipc': 1, 'student': 'resnet18_modified'}))
    cut = reproduce._running(jobs[1].notebook(fake / 'out'))
    cut.parent.mkdir(parents=True)
    cut.touch()
    assert reproduce._unfinished(jobs, fake / 'out', print) == ([jobs[1]], [])           # its own notebook is the other's, too
    assert reproduce._unfinished(jobs[:1], fake / 'out', print) == ([jobs[0]], [])


def test_the_essentials_dry_run(fake, capsys):
    argv = ['reproduce', 'essentials', '--data', str(fake / 'data'), '--only', 'network=resnet18,ipc=10', '--out', str(fake / 'out'), '--devices', 'cpu', '--dry-run']
    assert main([*argv, '--json', str(fake / 'plan.json')]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [' '.join(l.split()[:3]) for l in lines[:3]] == ['cifar10-resnet18-ipc10, seed 0', 'cifar10-resnet18-ipc10-sre2l, seed 0', 'cifar10-resnet18-ipc10-plus, seed 0']
    assert 'its observer' in lines[0] and '1 of 1 to do' in lines[1] and 'of it its observer)' in lines[2] and 'observer' not in lines[5]     # the scoring one was counted
    assert lines[3].startswith('imagenette-resnet18-ipc10, seed 0') and 'cannot be run: ImageNette was not found under --data' in lines[3]
    assert '10 cells; time left about' in lines[-1] and len(json.loads((fake / 'plan.json').read_text())['cells']) == 10 and not (fake / 'out').exists()


def test_labellers_are_shared_and_waited_for(tmp_path):
    made = [recipe_of('main_table', True, 0, 3, 'plus', dataset='CIFAR-10', network='convnet', ipc=i) for i in (1, 10, 50)]
    made[2] = replace(made[2], labeller_epochs=2)
    jobs = [Job('main_table', {}, r, ('rded',), (0,), 'digits', {'training': 'plus'}) for r in made]
    runner = Runner(jobs, tmp_path, ['cpu', 'cpu'], {})
    assert runner.parameters(jobs[0], 'cpu')['training'] == 'plus'
    (scoring, brief), (_, same), (_, longer) = (reproduce.missing_observers(job, runner.observers) for job in jobs)
    assert brief == same != longer and len({scoring, brief, longer}) == 3
    runner.observers.mkdir()
    scoring.touch()
    assert [runner.take()[0].name for _ in range(2)] == [jobs[0].name, jobs[2].name]      # the second waits for the first one's labeller
    scoring.unlink()
    found = [reproduce.run_recipe(r, 'digits', tmp_path, methods=['rded'])[0] for r in made[:2]]
    assert {*runner.observers.glob('*.safetensors')} == {scoring, brief} and {r['observer']['name'] for r in found} == {brief.name}
    assert {json.loads(p.read_text())['observer']['name'] for p in (tmp_path / 'sets').glob('*/rded.json')} == {scoring.name}       # another one scores


@pytest.mark.slow
def test_plus_from_the_command_line(tmp_path, capsys):
    argv = ['reproduce', 'main_table', '--tiny', '--only', 'dataset=CIFAR-10,network=convnet,ipc=1', '--seeds', '0', '--out', str(tmp_path / 'out'), '--devices', 'cpu', '--set', 'training=plus']
    assert main(argv) == 0
    assert (tmp_path / 'out' / 'main_table-plus.md').read_text() == capsys.readouterr().out[:-1]
    results = [json.loads(p.read_text()) for p in sorted((tmp_path / 'out' / 'results').iterdir())]
    assert [(r['recipe'], r['method'], r['training']) for r in results] == [('cifar10-conv3-ipc1-tiny-plus', m, 'plus-tiny') for m in ('random-images', 'rded')]
    assert '--set training=plus' in results[0]['command']
    assert main(argv) == 0 and '1 stand, 0 to do' in capsys.readouterr().err


def test_a_named_labeller_labels_in_place_of_the_recipes_own(tmp_path):
    r = recipe_of('main_table', True, 0, 3, 'plus', dataset='CIFAR-10', network='convnet', ipc=1)
    mine = tmp_path / 'mine.safetensors'
    Path(reproduce.shared_observer(reproduce.labeller_of(r), 'digits', tmp_path / 'eyes')).rename(mine)
    job = Job('main_table', {}, r, ('rded',), (0,), 'digits', labeller=str(mine))
    assert len(reproduce.missing_observers(job, tmp_path)) == 1 < len(reproduce.missing_observers(replace(job, labeller=''), tmp_path))
    assert Runner([job], tmp_path, ['cpu'], {'labeller': os.path.relpath(mine)}).parameters(job, 'cpu')['labeller'] == str(mine.resolve())      # a worker has a folder of its own
    found = reproduce.run_recipe(r, 'digits', tmp_path / 'out', methods=['rded'], labeller=str(mine))[0]
    assert found['observer']['name'] == 'mine.safetensors' != found['scored_by']['name'] and [p.name for p in (tmp_path / 'out' / 'observers').glob('*.safetensors')] == [found['scored_by']['name']]
    assert job.left(tmp_path / 'out') == [] == replace(job, labeller='').left(tmp_path / 'out')          # a labeller of somebody's own may stand for ours
    with pytest.raises(ValueError, match='other.safetensors'): replace(job, labeller='other.safetensors').left(tmp_path / 'out')


# what is refused, in one line and before anything runs

@pytest.mark.parametrize('argv, words', [
    (['main_tabel', '--tiny'], 'did you mean main_table'),
    (['main_table'], '--data ROOT is needed'),
    (['main_table', '--tiny', '--set', 'epoch=3'], "main_table.ipynb has no parameter 'epoch': did you mean epochs?"),
    (['main_table', '--tiny', '--set', 'epochs=three'], "epochs is 'three': give a int"),
    (['main_table', '--tiny', '--set', 'observer=no.safetensors'], '--set observer=no.safetensors: no such file'),
    (['main_table', '--tiny', '--set', 'labeller=no.pth'], '--set labeller=no.pth: no such file'),
    (['main_table', '--tiny', '--set', 'seeds=1'], 'give it as --seeds'),
    (['main_table', '--tiny', '--set', 'ipc=1'], 'give it as --only'),
    (['main_table', '--tiny', '--only', 'ipc'], 'give key=value'),
    (['main_table', '--tiny', '--seed', '3'], '--seed does nothing here'),
    (['main_table', '--tiny', '--only', 'ipc=3'], '--only ipc=3: choose from 1, 10, 50'),
    (['main_table', '--tiny', '--only', 'net=conv3'], 'main_table has dataset, network, ipc'),
    (['main_table', '--data', 'nowhere'], 'no such folder'),
    (['main_table', '--tiny', '--devices', 'gpu0'], 'give GPU numbers or cpu'),
    (['main_table', '--tiny', '--seeds', '0,0'], 'different values'),
    (['main_table', '--tiny', '--set', 'training=best'], "training 'best': choose from paper, plus"),
    (['large_ipc', '--tiny', '--set', 'training=plus'], "large_ipc.ipynb has no parameter 'training'"),
    (['essential', '--tiny'], 'did you mean essentials'),
    (['essentials'], '--data ROOT is needed'),
    (['essentials', '--tiny', '--only', 'net=conv3'], '--only net=…: essentials has dataset, network, ipc, teacher, student'),
    (['essentials', '--tiny', '--only', 'dataset=CIFAR-100'], '--only dataset=CIFAR-100: choose from CIFAR-10, ImageNette'),
    (['essentials', '--tiny', '--seeds', '0'], '--seeds: essentials has its own: leave it out, choose cells by --only, or run a table'),
    (['essentials', '--tiny', '--methods', 'rded'], '--methods: essentials has its own'),
    (['essentials', '--tiny', '--set', 'training=plus'], '--set training=…: essentials has its own'),
    (['essentials', '--tiny', '--set', 'labeller=resnet18'], '--set labeller=…: essentials has its own'),
    (['essentials', '--tiny', '--set', 'epoch=1'], "has no parameter 'epoch': did you mean epochs?")])
def test_one_line_for_what_is_refused(argv, words, tmp_path, capsys):
    out = ['--out', str(tmp_path / 'out'), '--devices', 'cpu'] if '--devices' not in argv else ['--out', str(tmp_path / 'out')]
    assert main(['reproduce', *argv, *out]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count('\n') == 1, err
    assert not (tmp_path / 'out').exists()


def test_without_papermill_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(reproduce.importlib.util, 'find_spec', lambda name: None)
    assert main(['reproduce', 'main_table', '--tiny', '--out', str(tmp_path / 'out')]) == 2
    assert capsys.readouterr().err == "rded: `rded reproduce` needs papermill: pip install 'rded[notebooks]'\n"


def test_a_result_of_other_settings_is_not_taken_for_ours(fake):
    cell = {'dataset': ['CIFAR-10'], 'network': ['convnet'], 'ipc': [1]}
    finish(fake, only=cell, seeds=[0])
    ours, longer = (reproduce.plan('main_table', fake / 'data', cell, [0], ['rded'], **more)[0] for more in ({}, {'epochs': 7}))
    (there,) = (fake / 'out' / 'results').glob('*-rded-seed0.json')
    assert not ours.missing(fake / 'out') and longer.missing(fake / 'out') == [there.with_name('cifar10-conv3-ipc1-epochs-7-rded-seed0.json')]
    there.rename(longer.missing(fake / 'out')[0])
    with pytest.raises(ValueError, match='holds the result of another run .training paper, now paper, epochs 7.: choose another --out'): longer.missing(fake / 'out')


@pytest.mark.parametrize('told, change, words', [
    ({}, {'observer': 'cifar10-conv3-32px-1epochs-seed0.safetensors'}, 'observer cifar10-conv3-32px-1epochs-seed0.safetensors, now cifar10-conv3-32px-18epochs-seed0.safetensors'),
    ({'observer_epochs': 4}, {'observer': 'cifar10-conv3-32px-18epochs-seed0.safetensors'}, 'now cifar10-conv3-32px-4epochs-seed0.safetensors'),
    ({'observer': 'mine.safetensors'}, {'observer': 'yours.safetensors'}, 'observer yours.safetensors, now mine.safetensors'),
    ({'observer': 'resnet18'}, {'observer': 'resnet18@IMAGENET1K_V1'}, None),
    ({'observer': 'mine.safetensors', 'labeller': 'third.safetensors'}, {'observer': 'mine.safetensors'}, 'observer mine.safetensors, now third.safetensors'),
    ({'training': 'plus', 'labeller': 'third.pth'}, {'observer': 'third.pth'}, None), ({'labeller': 'a.pth,b.pth'}, {'observer': 'both'}, None),
    ({}, {'data': 'cifar10-noisy'}, 'data cifar10-noisy, now cifar10'),
    ({}, {'observer': 'yours.safetensors'}, None), ({'training': 'plus'}, {'observer': 'cifar10-conv3-32px-1epochs-seed0.safetensors'}, 'now cifar10-conv3-32px-2epochs-seed0.safetensors')])
def test_a_result_of_another_observer_or_other_data_is_not_taken_for_ours(fake, told, change, words):
    [job] = reproduce.jobs_of('main_table', fake / 'data', {'dataset': ['CIFAR-10'], 'network': ['convnet'], 'ipc': [1]}, [0], ['rded'], settings=told)
    name = change.get('observer', 'cifar10-conv3-32px-18epochs-seed0.safetensors')
    found = {'recipe': job.recipe.name, 'training': job.recipe.training.name, 'ipc': 1, 'student': 'conv3', 'data': change.get('data', 'cifar10'), 'observer': {'name': name, 'sha256': 'a' * 64}}
    reproduce.write_json(job.files(fake)[0], found)
    if words is None: assert job.missing(fake) == []
    else:
        with pytest.raises(ValueError, match=re.escape(words)): job.missing(fake)


def test_random_images_in_a_row_were_labelled_by_the_same_observer(tmp_path):
    (tmp_path / 'results').mkdir()
    recipe = reproduce.recipe_of('main_table', dataset='CIFAR-10', network='convnet', ipc=10)
    for method, observer, seeds, top1 in (('rded', 'weak', (0,), 40.0), ('rded', 'strong', (1, 2), 55.0), ('random-images', 'weak', (0,), 39.0)):
        for seed in seeds:
            told = {'format': 'rded-result-1', 'recipe': recipe.name, 'dataset': 'CIFAR-10', 'split': 'val', 'n': 10, 'ipc': 10, 'method': method, 'observer': {'name': observer, 'sha256': observer[0] * 64, 'top1': 80.0}, 'student': recipe.student,
                    'training': 'paper', 'seed': seed, 'top1': top1, 'top5': 90.0, 'best_top1': top1, 'updates': 1, 'images_seen': 1, 'seconds': 1.0, 'peak_memory_mb': None, 'bytes': {'images': 1, 'labels': 0, 'observer': 0},
                    'curve': [{'epoch': 300, 'top1': top1}], 'command': 'x', 'environment': {}, 'commit': None}
            reproduce.write_json(tmp_path / 'results' / f'{method}-{seed}.json', told)
    [row] = reproduce.rows('main_table', tmp_path, only={'dataset': ['CIFAR-10'], 'network': ['convnet'], 'ipc': [10]})
    assert (row['ours, last epoch'].mean, row['ours, last epoch'].n, row['random images']) == (55.0, 2, None)


def test_a_log_that_cannot_be_written_costs_no_cell(fake):
    (fake / 'out').mkdir()
    (fake / 'out' / 'runs.jsonl').mkdir()
    said, out = finish(fake, seeds=[0])
    assert len(said['done']) == 2 and said['failed'] == [] and out.count('is not noted') == 2


def test_dry_run_says_the_plan_and_makes_nothing(fake, capsys):
    argv = ['reproduce', 'main_table', '--data', str(fake / 'data'), '--only', 'network=convnet,dataset=CIFAR-10,dataset=Tiny-ImageNet', '--out', str(fake / 'out'), '--devices', 'cpu', '--dry-run']
    assert main([*argv, '--json', str(fake / 'plan.json')]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7 and 'cifar10-conv3-ipc1 ' in lines[0] and '6 of 6 to do' in lines[0] and 'its observer' in lines[0] and 'its observer' not in lines[1]
    assert 'cannot be run: Tiny-ImageNet was not found under --data' in lines[3]
    assert 'a guess of 100 GMAC/s for cpu' in lines[-1] and 'disk' in lines[-1] and 'downloads: none' in lines[-1]
    assert len(json.loads((fake / 'plan.json').read_text())['cells']) == 6 and not (fake / 'out').exists()
    assert main([*argv, '--download']) == 0 and 'downloads: none' in capsys.readouterr().out


def test_the_estimate_learns(tmp_path):
    log = reproduce.Log(tmp_path / 'runs.jsonl')
    assert reproduce.rate_of(log, 'cpu') == (100.0, 0)
    for seconds in (10, 20, 40): log.append({'device': 'cpu', 'ok': True, 'work': 1000.0, 'seconds': seconds})
    log.append({'device': 'cpu', 'ok': False, 'work': 1000.0, 'seconds': 1})
    assert reproduce.rate_of(log, 'cpu') == (3000 / 70, 3) and reproduce.rate_of(log, 'cuda')[1] == 0


# notebooks, parameters and recipes

@pytest.mark.parametrize('path', [p for p in NOTEBOOKS if p.stem in TABLES], ids=lambda p: p.stem)
def test_parameters_and_recipes_agree(path):
    found, cells = parameters_of(path), TABLES[path.stem].cells
    assert set(found) - {'training'} == SHARED | set(cells[0]) and found.get('training', 'paper') == 'paper'
    assert found['tiny'] is True and found['device'] == 'auto' and found['out'] == '' and found['seeds'] == [0]
    assert {k: found[k] for k in cells[0]} in cells
    for values in cells:
        r, s = recipe_of(path.stem, **values), recipe_of(path.stem, True, **values)
        assert r.dataset == values['dataset'] and s.data == 'digits' and s.training.epochs == 2
        assert s.factor ** 2 * s.ipc <= s.preselect


@pytest.mark.parametrize('path', [p for p in NOTEBOOKS if p.stem in TABLES], ids=lambda p: p.stem)
def test_papermill_reads_the_same_parameters(path):
    import papermill
    told = papermill.inspect_notebook(str(path))
    assert {k: eval(v['default']) for k, v in told.items()} == parameters_of(path)
    assert all(v['help'] for v in told.values()), 'a trailing comment for each'


@pytest.mark.parametrize('table', TABLES)
def test_names_of_cells_are_unique_or_the_same_recipe(table):
    made = {}
    for values in TABLES[table].cells:
        job = Job(table, values, recipe_of(table, **values), (), ())
        assert made.setdefault(job.name, job.recipe) == job.recipe


def test_every_table_has_its_notebook(): assert {p.stem for p in NOTEBOOKS} >= set(TABLES)


@pytest.mark.slow
def test_a_cell_from_the_command_line(tmp_path, capsys):
    argv = ['reproduce', 'main_table', '--tiny', '--only', 'dataset=CIFAR-10,network=convnet,ipc=1', '--seeds', '0', '--out', str(tmp_path / 'out'), '--devices', 'cpu']
    assert main(argv) == 0
    said = capsys.readouterr()
    assert 'digits for CIFAR-10' in said.out and '[1 of 1]' in said.err
    names = sorted(p.name for p in (tmp_path / 'out' / 'results').iterdir())
    assert names == ['cifar10-conv3-ipc1-tiny-random-images-seed0.json', 'cifar10-conv3-ipc1-tiny-rded-seed0.json']
    assert main(argv) == 0 and '1 stand, 0 to do' in capsys.readouterr().err


# other people's sets

def test_a_set_from_elsewhere_gets_a_row_beside_ours(tmp_path, capsys):
    "A plain folder of class folders, under the protocol of a recipe: `rded train --recipe … --method-name …`."
    from rded import datasets
    digits, run = datasets.load('digits'), lambda *argv: main([*map(str, argv), '--quiet', '--device', 'cpu'])
    for c in range(10):
        (tmp_path / 'theirs' / str(c)).mkdir(parents=True)
        for k, i in enumerate(digits.of_class(c)[5:7].tolist()): digits.image(i).save(tmp_path / 'theirs' / str(c) / f'{k}.png')
    recipe, results = 'imagenette-conv5-ipc10-tiny', tmp_path / 'ours' / 'results'
    assert run('run', recipe, '--data', 'digits', '--out', tmp_path / 'ours') == 0
    train = ['train', '--distilled', tmp_path / 'theirs', '--observer', tmp_path / 'ours' / 'observer.safetensors', '--recipe', recipe, '--val', 'digits', '--out', tmp_path / 's.safetensors']
    assert run(*train, '--method-name', 'SRe2L', '--json', results / 'sre2l-seed0.json') == 0
    theirs, ours = (json.loads((results / f).read_text()) for f in ('sre2l-seed0.json', f'{recipe}-random-images-seed0.json'))
    same = ('recipe', 'dataset', 'ipc', 'student', 'training', 'updates', 'images_seen', 'n', 'seed')
    assert {k: theirs[k] for k in same} == {k: ours[k] for k in same} and theirs['method'] == 'SRe2L'
    assert run('report', '--results', results, '--out', tmp_path / 'report') == 0
    row = next(l for l in (tmp_path / 'report' / 'README.md').read_text().splitlines() if '| SRe2L |' in l)
    assert f"| {theirs['top1']:.2f} (1) | – | – | – | {ours['top1']:.2f} (1) |" in row      # nothing published, the random baseline beside it
    capsys.readouterr()
    (tmp_path / 's.safetensors').unlink()
    for more, words in ((['--method-name', 'rded'], 'the name of a method of ours'), (['--recipe', 'cifar10-conv3-ipc1-tiny'], 'is for 1 images a class, the set has 2')):
        assert run(*train, *more) == 2 and words in capsys.readouterr().err
    without = [a for a in train if a not in ('--recipe', recipe)]
    assert run(*without) == 2 and 'give --student, a network, or --recipe' in capsys.readouterr().err


def test_whole_images_are_cropped_as_stitched_ones(tmp_path, monkeypatch):
    "Within a cell every set is seen through the same views, though whole images have no factor."
    from rded import pipeline
    seen, train = [], pipeline.train_student
    monkeypatch.setattr(pipeline, 'train_student', lambda net, distilled, labels, training, *more, **how: seen.append((distilled.factor, training.min_scale)) or train(net, distilled, labels, training, *more, **how))
    pipeline.run('imagenette-conv5-ipc1-tiny', 'digits', out=tmp_path, log=lambda text: None)
    assert seen == [(2, 0.5), (1, 0.5)]


@pytest.mark.parametrize('changes, top1', [
    (dict(recipe='imagenet10-resnet18-ipc10', dataset='ImageNet-10', student='resnet18', arch='resnet18'), 53.3),
    (dict(recipe='imagenet1k-mobilenet_v2-to-swin_v2_t-ipc10', dataset='ImageNet-1K', student='swin_v2_t', arch='torchvision:mobilenet_v2'), 11.8),
    (dict(recipe='tinyimagenet-resnet18-ipc100', dataset='Tiny-ImageNet', ipc=100, student='resnet18_modified', arch='resnet18_modified'), 59.9),
    (dict(recipe='imagenet10-resnet18-ipc10', dataset='ImageNet-10', student='resnet18', arch='resnet18', training='paper, epochs 3'), None),
    (dict(recipe='imagenet10-resnet18-ipc10', dataset='ImageNet-10', student='resnet18', arch='resnet18', method='SRe2L'), None),
    (dict(recipe='imagenet10-resnet18-ipc10-crops1', dataset='ImageNet-10', student='resnet18', arch='resnet18'), None)])
def test_the_report_knows_the_other_tables_numbers(changes, top1):
    from rded.report import cells
    base = {'file': 'x', 'method': 'rded', 'training': 'paper', 'ipc': 10, 'updates': 1, 'images_seen': 1, 'split': 'val', 'n': 1, 'seed': 0, 'top1': 1.0}
    result = {**base, **{k: v for k, v in changes.items() if k != 'arch'}, 'observer': {'name': 'o', 'sha256': None, 'top1': None, 'arch': changes['arch']}}
    found = cells([result])[0].published
    assert (found and found.top1) == top1


def test_a_worker_sees_one_of_the_gpus_that_we_may_see(monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '3,GPU-0123')
    assert [reproduce.visible(d) for d in ('0', '1', 'cpu')] == ['3', 'GPU-0123', '']
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES')
    assert reproduce.visible('2') == '2'


def test_results_of_held_out_images_and_of_other_observers(tmp_path):
    (job,) = reproduce.jobs_of('main_table', None, {'dataset': ['CIFAR-10'], 'network': ['convnet'], 'ipc': [1]}, [0, 1], ['rded'], True)
    for seed, change in ((0, {'observer': {'name': "somebody's.safetensors"}}), (1, {'split': 'held-out'})):
        file = reproduce.result_file(tmp_path, job.recipe, 'rded', seed)
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({'recipe': job.recipe.name, 'training': job.recipe.training.name, 'ipc': 1, 'student': job.recipe.student, 'observer': {'name': job.labelled_by}, 'split': 'val', **change}))
    assert job.seeds_here(tmp_path) == [1]      # whoever labelled seed 0, it stands
    with pytest.raises(ValueError, match='another run .split held-out, now val'): job.missing(tmp_path)
