"""The `rded` command: what it does, and one line and status 2 for every bad input, with nothing half-written."""
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from rded import cli
from rded.cli import main

NAMES = [f'digit{c}' for c in range(10)]


@pytest.fixture(scope='session')
def made(tmp_path_factory):
    "A folder of digits as files (12 a class to train, 3 to validate), an observer of digits, a distilled set."
    from rded import datasets
    root = tmp_path_factory.mktemp('made')
    for split, count in (('train', 12), ('val', 3)):
        digits = datasets.load('digits', split)
        for c, name in enumerate(NAMES):
            (root / 'data' / split / name).mkdir(parents=True)
            for i in digits.of_class(c)[:count].tolist(): digits.image(i).save(root / 'data' / split / name / f'{i}.png')
    assert main(['observer', '--data', 'digits', '--arch', 'conv3', '--size', '16', '--epochs', '2', '--out', str(root / 'observer.safetensors')]) == 0
    assert main(['distill', '--data', 'digits', '--observer', str(root / 'observer.safetensors'), '--ipc', '2', '--preselect', '6', '--crops', '2',
                 '--out', str(root / 'set'), '--json', str(root / 'set.json')]) == 0
    return root


@pytest.fixture
def data(made, tmp_path):
    "A copy of the folder of digits that a test may spoil."
    shutil.copytree(made / 'data', tmp_path / 'data')
    return tmp_path / 'data'


def everything(folder): return sorted(str(p.relative_to(folder)) for p in folder.rglob('*'))


def refused(capsys, folder, *argv):
    "The one line with which a command that must fail does fail, having left the folder as it was."
    before = everything(folder)
    capsys.readouterr()
    code, (out, err) = main([*(str(a) for a in argv), '--quiet']), capsys.readouterr()
    lines = [l for l in err.splitlines() if not l.startswith(('rded: note:', 'rded: warning:'))]
    assert code == 2, err
    assert len(lines) == 1 and lines[0].startswith('rded: ') and 'Traceback' not in err and (out == '' or argv[0] == 'run'), err + out
    assert everything(folder) == before
    return lines[0]


def observer_of(classes, path, seed=0, size=16):
    "An untrained observer of these classes, saved."
    from rded import models
    models.save(models.build('conv3', len(classes), size, classes, seed=seed), path)
    return path


# the line

def test_every_command_in_turn(made, tmp_path, capsys):
    o, d = made / 'observer.safetensors', made / 'set'
    run = lambda *argv: (main([str(a) for a in argv]), capsys.readouterr())[0]
    assert json.loads((made / 'set.json').read_text())['images'] == 20
    assert run('info', d, '--json', tmp_path / 'info.json') == 0 and json.loads((tmp_path / 'info.json').read_text())['method'] == 'rded'
    assert run('verify', d) == 0
    assert run('rebuild', '--manifest', d / 'rded.json', '--data', 'digits', '--out', tmp_path / 'again', '--json', tmp_path / 'r.json') == 0
    assert json.loads((tmp_path / 'r.json').read_text())['largest'] == 0
    assert [(p.name, p.read_bytes()) for p in sorted(d.rglob('*.png'))] == [(p.name, p.read_bytes()) for p in sorted((tmp_path / 'again').rglob('*.png'))]
    assert run('train', '--distilled', d, '--observer', o, '--student', 'conv3', '--val', 'digits', '--epochs', '2', '--out', tmp_path / 's.safetensors',
               '--json', tmp_path / 'results' / 'a.json') == 0
    result = json.loads((tmp_path / 'results' / 'a.json').read_text())
    assert (result['n'], result['training'], result['method'], result['ipc'], result['images_seen']) == (355, 'paper, epochs 2', 'rded', 2, 40)
    assert result['command'].startswith('rded train --distilled') and result['format'] == 'rded-result-1'
    assert run('evaluate', '--model', tmp_path / 's.safetensors', '--data', 'digits', '--json', tmp_path / 'e.json') == 0
    assert json.loads((tmp_path / 'e.json').read_text())['top1'] == result['top1']
    assert run('report', '--results', tmp_path / 'results', '--out', tmp_path / 'report') == 0
    assert f"{result['top1']:.2f} (1)" in (tmp_path / 'report' / 'README.md').read_text()


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_a_kept_student_has_the_number_of_its_result(precision, made, tmp_path, monkeypatch, capsys):
    "However it was trained: bfloat16 alone answers otherwise to some of the images."
    from rded import evaluate, pipeline
    seen, right = [], evaluate.evaluate
    def coarse(*args, precision='float32', **how):
        seen.append(precision)
        found = right(*args, precision=precision, **how)
        return found if precision == 'float32' else {**found, 'top1': found['top1'] + 1}
    monkeypatch.setattr(pipeline, 'evaluate', coarse)
    assert main(['train', '--distilled', str(made / 'set'), '--hard', '--student', 'conv3', '--val', 'digits', '--epochs', '3', '--precision', precision, '--out', str(tmp_path / 's.safetensors'), '--json', str(tmp_path / 'a.json')]) == 0
    assert main(['evaluate', '--model', str(tmp_path / 's.safetensors'), '--data', 'digits', '--json', str(tmp_path / 'e.json')]) == 0
    result, again = (json.loads((tmp_path / f'{name}.json').read_text()) for name in 'ae')
    assert (result['top1'], result['top5']) == (again['top1'], again['top5']) and result['curve'][-1]['top1'] == again['top1']
    assert precision in seen and result['environment']['precision'] == precision


def test_hard_labels_and_a_plain_folder(made, tmp_path, capsys):
    argv = ['train', '--distilled', str(made / 'set' / 'images'), '--hard', '--student', 'conv3', '--val', 'digits', '--epochs', '1', '--batch-size', '5']
    assert main([*argv, '--out', str(tmp_path / 's.safetensors'), '--json', str(tmp_path / 'a.json')]) == 0
    result = json.loads((tmp_path / 'a.json').read_text())
    assert (result['observer'], result['method'], result['training'], result['updates']) == (None, 'plain-folder', 'paper, epochs 1, batch size 5-hard', 4)


@pytest.mark.parametrize('method', ['random-images', 'random-crops', 'random-mosaics'])
def test_baselines_are_one_flag_away_and_need_no_observer(method, data, tmp_path, capsys):
    assert main(['distill', '--data', str(data), '--method', method, '--size', '16', '--factor', '2', '--ipc', '2', '--jpeg', '60', '--out', str(tmp_path / 'set')]) == 0
    manifest = json.loads((tmp_path / 'set' / 'rded.json').read_text())
    assert manifest['method'] == method and len(manifest['images']) == 20 and manifest['settings']['jpeg'] == 60


def test_methods_are_the_pipelines():
    from rded import pipeline
    assert set(cli.METHODS) == set(pipeline.METHODS)


def test_sets_of_one_size_are_cropped_alike_or_their_trainings_are_named(made, data, tmp_path, monkeypatch, capsys):
    "Without a recipe, too, a stitched set and whole images are shown the same; a set of an unusual factor is not, and its training says so."
    from rded import pipeline
    seen = []
    def caught(distilled, observer, val, student, training, *more, **how): seen.append((training.name, training.min_scale)); raise ValueError('caught')
    monkeypatch.setattr(pipeline, 'train_set', caught)
    for method, size, factor in (('random-mosaics', 128, None), ('random-images', 128, None), ('random-mosaics', 16, 2), ('random-images', 16, None)):
        out = tmp_path / f'{method}-{size}'
        assert main(['distill', '--data', str(data), '--method', method, '--size', str(size), '--ipc', '1', '--out', str(out), '--quiet', *(['--factor', str(factor)] if factor else [])]) == 0
        assert main(['train', '--distilled', str(out), '--hard', '--student', 'conv3', '--val', str(data), '--out', str(tmp_path / 's.safetensors')]) == 2
    assert main(['train', '--distilled', str(out), '--hard', '--student', 'conv3', '--min-scale', '0.5', '--val', str(data), '--out', str(tmp_path / 's.safetensors')]) == 2
    assert seen == [('paper', 0.5), ('paper', 0.5), ('paper, min scale 0.5', 0.5), ('paper', 1.0), ('paper, min scale 0.5', 0.5)]
    argv = ['relabel', '--distilled', tmp_path / 'random-mosaics-16', '--epochs', '1', '--observer', observer_of(NAMES, tmp_path / 'o.safetensors'), '--no-check', '--quiet']
    for k, (more, scale) in enumerate([([], 0.5), (['--min-scale', '1'], 1.0)]):
        assert main([str(a) for a in (*argv, *more, '--out', tmp_path / f'labels{k}')]) == 0
        assert json.loads((tmp_path / f'labels{k}' / 'labels.json').read_text())['training']['min_scale'] == scale


def test_batch_and_workers_change_no_byte(made, tmp_path, capsys):
    for name, more in (('a', ['--batch', '7', '--workers', '0']), ('b', ['--batch', '999', '--workers', '3'])):
        assert main(['distill', '--data', 'digits', '--observer', str(made / 'observer.safetensors'), '--ipc', '2', '--preselect', '6', '--crops', '2',
                     '--out', str(tmp_path / name), *more]) == 0
    told = [json.loads((tmp_path / n / 'rded.json').read_text()) for n in 'ab']
    for manifest in told: manifest.pop('environment')
    assert told[0] == told[1] == {k: v for k, v in json.loads((made / 'set' / 'rded.json').read_text()).items() if k != 'environment'}


def test_a_run_resumes(made, tmp_path, capsys):
    argv = ['run', 'cifar10-conv3-ipc1-tiny', '--observer', str(made / 'observer.safetensors'), '--seeds', '0,1', '--out', str(tmp_path)]
    assert main([*argv, '--methods', 'rded']) == 0
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / 'results').glob('*.json')}
    assert main([*argv, '--methods', 'rded,random-images']) == 0
    assert len(stamps) == 2 and all(p.stat().st_mtime_ns == t for p, t in stamps.items())
    assert len(list((tmp_path / 'results').glob('*.json'))) == 4
    result = tmp_path / 'results/cifar10-conv3-ipc1-tiny-rded-seed0.json'
    result.write_text(result.read_text().replace('"paper-tiny"', '"paper-tiny, epochs 3"'))
    assert 'result of another run (training paper-tiny, epochs 3, now paper-tiny)' in refused(capsys, tmp_path, *argv)


def test_changed_settings_have_results_of_their_own(made, tmp_path, capsys):
    argv = ['run', 'cifar10-conv3-ipc1-tiny', '--observer', str(made / 'observer.safetensors'), '--methods', 'rded', '--out', str(tmp_path / 'out')]
    assert main(argv) == main([*argv, '--set', 'temperature=4,min_scale=0.25', '--hard']) == main([*argv, '--set', 'optimizer=muon', '--epochs', '1']) == 0
    found = {p.name: json.loads(p.read_text())['training'] for p in (tmp_path / 'out/results').glob('*.json')}
    assert found == {'cifar10-conv3-ipc1-tiny-rded-seed0.json': 'paper-tiny',
                     'cifar10-conv3-ipc1-tiny-temperature-4-min-scale-0.25-hard-rded-seed0.json': 'paper-tiny, temperature 4, min scale 0.25-hard',
                     'cifar10-conv3-ipc1-tiny-epochs-1-optimizer-muon-rded-seed0.json': 'paper-tiny, epochs 1, optimizer muon'}
    assert len(list((tmp_path / 'out/sets').iterdir())) == 1        # one set, trained on in three ways
    train = ['train', '--distilled', str(made / 'set'), '--student', 'conv3', '--val', 'digits', '--epochs', '1', '--hard', '--set', 'average=0.5,flip=true']
    assert main([*train, '--out', str(tmp_path / 's.safetensors'), '--json', str(tmp_path / 's.json')]) == 0
    assert json.loads((tmp_path / 's.json').read_text())['training'] == 'paper, epochs 1, flip True, average 0.5-hard'


def test_evaluate_finds_the_classes_by_name(made, tmp_path, capsys):
    import torch
    from rded import models
    net, order = models.load(made / 'observer.safetensors'), [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    last = models.last_linear(net.body)
    with torch.no_grad():
        for p in last.parameters(): p.copy_(p[order].clone())
    net.classes = [net.classes[c] for c in order]
    models.save(net, tmp_path / 'turned.safetensors')
    told = []
    for file in (made / 'observer.safetensors', tmp_path / 'turned.safetensors'):
        assert main(['evaluate', '--model', str(file), '--data', 'digits', '--json', str(tmp_path / 'e.json')]) == 0
        told.append(json.loads((tmp_path / 'e.json').read_text())['top1'])
    assert told[0] == told[1] > 50


def test_broken_validation_images_are_left_out_and_counted_so(made, data, tmp_path, capsys):
    sorted((data / 'val' / 'digit3').iterdir())[0].write_text('not an image')
    n = len([*(data / 'val').rglob('*.png')])
    assert main(['observer', '--data', str(data), '--arch', 'conv3', '--size', '16', '--epochs', '1', '--out', str(tmp_path / 'o.safetensors'), '--quiet']) == 0
    assert f'% of {n - 1} validation images' in capsys.readouterr().out
    assert main(['evaluate', '--model', str(tmp_path / 'o.safetensors'), '--data', str(data), '--json', str(tmp_path / 'e.json'), '--quiet']) == 0
    assert json.loads((tmp_path / 'e.json').read_text())['n'] == n - 1


def test_evaluate_goes_by_position_where_asked(made, tmp_path, capsys):
    from rded import models
    net = models.load(made / 'observer.safetensors')
    net.classes = [f'number {c}' for c in range(10)]
    models.save(net, tmp_path / 'renamed.safetensors')
    argv = ['evaluate', '--data', 'digits', '--json', str(tmp_path / 'e.json'), '--model']
    top1 = lambda *more: (main([*argv, *map(str, more)]), json.loads((tmp_path / 'e.json').read_text())['top1'])
    assert '--no-check' in refused(capsys, tmp_path, *argv, tmp_path / 'renamed.safetensors')
    assert top1(tmp_path / 'renamed.safetensors', '--no-check') == top1(made / 'observer.safetensors') and top1(made / 'observer.safetensors')[0] == 0


def test_evaluate_looks_at_the_size_that_is_asked_for_or_refuses(made, tmp_path, capsys):
    from rded import models
    import torch
    net = models.load(made / 'observer.safetensors')
    torch.save(net.body.state_dict(), tmp_path / 'plain.pth')
    argv = ['evaluate', '--data', 'digits', '--json', str(tmp_path / 'e.json'), '--size']
    for size in (net.size, net.size + 1): assert main([*argv, str(size), '--model', str(tmp_path / 'plain.pth')]) == 0 and json.loads((tmp_path / 'e.json').read_text())['size'] == size
    for file in (tmp_path / 'plain.pth', made / 'observer.safetensors'): assert f'looks at {net.size} px images' in refused(capsys, tmp_path, *argv, '64', '--model', file)


def test_an_observers_data_set_is_known_however_it_is_written():
    assert [cli._citable(name) for name in ('cifar10', 'CIFAR-10', 'tiny-imagenet-200', 'Digits', 'ImageNet-10')] == ['CIFAR-10', 'CIFAR-10', 'Tiny-ImageNet', 'digits', 'ImageNet-10']


@pytest.mark.parametrize('choice', [['--selection', 'disagreement'], ['--method', 'disagreement'], ['--selection', 'predictive'], ['--method', 'predictive']])
def test_a_strategy_that_cannot_choose_is_refused_before_scoring(choice, made, tmp_path, monkeypatch, capsys):
    from rded import pipeline, select
    def worked(*_, **__): raise AssertionError('scored')
    monkeypatch.setattr(pipeline, 'make_and_save', worked)
    monkeypatch.setattr(select, 'TOGETHER_AT_MOST', 59)
    said = refused(capsys, tmp_path, 'distill', '--data', 'digits', '--observer', made / 'observer.safetensors', '--ipc', '1', '--preselect', '6', *choice, '--out', tmp_path / 'x')
    assert ('give two or more' if 'disagreement' in choice else 'all 60 candidates at once, 59 at most') in said


def test_recipes(capsys, tmp_path):
    assert main(['recipes', '--json', str(tmp_path / 'all.json')]) == 0 and len(capsys.readouterr().out.splitlines()) == 127
    assert main(['recipes', 'cifar10-conv3-ipc10', '--json', str(tmp_path / 'one.json')]) == 0
    one = json.loads((tmp_path / 'one.json').read_text())
    assert (one['training']['batch_size'], one['published']['top1']) == (50, 50.2) and len(json.loads((tmp_path / 'all.json').read_text())) == 127


def test_every_option_of_the_design_is_understood():
    lines = '''observer --data d --arch a --size 8 --epochs 1 --out f
        distill --data d --observer a,b --ipc 1 --factor 2 --crops 3 --preselect 4 --size 8 --selection top --out d
        verify d
        verify d --data d
        rebuild --manifest f --data d --out d
        rebuild --manifest f --data d --against d --out d
        export --distilled d --format webdataset --out d
        export --distilled d --format hf --each 500 --results d --license mit --out d
        export --distilled d --format manifest --out f
        info d
        relabel --distilled d --observer a,b --epochs 3 --training paper --batch-size 4 --keep top10+10% --out d
        train --distilled d --observer o --student s --training paper --epochs 1 --batch-size 2 --val d --out f
        train --distilled d --hard --student s --val d --out f
        train --distilled d --labels d --student s --val d --out f
        evaluate --model f --data d
        recipes
        recipes n
        run r --data d --observer o --out d
        report --results d --out d'''
    for line in lines.splitlines():
        args = cli.parser().parse_args([*line.split(), '--seed', '3', '--device', 'cpu', '--workers', '2', '--batch', '5', '--json', 'f', '--download', '--no-check'])
        assert (args.seed, args.device, args.workers, args.batch, args.json) == (3, 'cpu', 2, 5, 'f')


# bad input

def test_a_missing_folder(capsys, tmp_path, made):
    o = made / 'observer.safetensors'
    for argv in (['distill', '--data', tmp_path / 'none', '--observer', o, '--ipc', '1', '--out', tmp_path / 'x'],
                 ['observer', '--data', tmp_path / 'none', '--arch', 'conv3', '--out', tmp_path / 'x.safetensors'],
                 ['evaluate', '--model', o, '--data', tmp_path / 'none'], ['info', tmp_path / 'none'], ['verify', tmp_path / 'none'],
                 ['train', '--distilled', tmp_path / 'none', '--hard', '--student', 'conv3', '--val', 'digits', '--out', tmp_path / 's.safetensors'],
                 ['rebuild', '--manifest', tmp_path / 'none', '--data', 'digits', '--out', tmp_path / 'x'],
                 ['report', '--results', tmp_path / 'none', '--out', tmp_path / 'x']):
        assert str(tmp_path / 'none') in refused(capsys, tmp_path, *argv)


def test_a_folder_without_train(capsys, data, made):
    shutil.rmtree(data / 'train')
    assert 'has no train/' in refused(capsys, data.parent, 'distill', '--data', data, '--observer', made / 'observer.safetensors', '--ipc', '1', '--out', data.parent / 'x')


def test_a_split_in_place_of_the_data_set_and_a_data_set_in_place_of_a_distilled_one(capsys, data, made):
    o = made / 'observer.safetensors'
    assert f'give the folder above it, {data}' in refused(capsys, data.parent, 'distill', '--data', data / 'train', '--observer', o, '--ipc', '1', '--out', data.parent / 'x')
    assert f'give {data / "train"}' in refused(capsys, data.parent, 'train', '--distilled', data, '--observer', o, '--student', 'conv3', '--val', 'digits', '--out', data.parent / 's.safetensors')


def test_json_takes_no_file_that_is_something_else(capsys, made, tmp_path):
    mine = {'photo.jpg': b'\xff\xd8 a photograph', 'net.safetensors': (made / 'observer.safetensors').read_bytes(), 'rded.json': (made / 'set' / 'rded.json').read_bytes()}
    for name, held in mine.items():
        (tmp_path / name).write_bytes(held)
        assert f'--json {tmp_path / name} exists and holds no result' in refused(capsys, tmp_path, 'recipes', 'digits-conv3-ipc10', '--json', tmp_path / name)
    for _ in range(2): assert main(['recipes', 'digits-conv3-ipc10', '--json', str(tmp_path / 'told.json')]) == 0


def test_places_that_take_no_file_are_known_before_any_work(capsys, made, tmp_path, monkeypatch):
    from rded import observer
    monkeypatch.setattr(observer, 'train_observer', None)
    argv = ['observer', '--data', 'digits', '--arch', 'conv3', '--size', '16']
    assert '--out /proc/x.safetensors: /proc cannot be written to' in refused(capsys, tmp_path, *argv, '--out', '/proc/x.safetensors')
    assert '--json /proc/x.json: /proc cannot be written to' in refused(capsys, tmp_path, *argv, '--out', tmp_path / 'x.safetensors', '--json', '/proc/x.json')


def test_a_network_of_ones_own(made, tmp_path):
    import torch
    from rded import models
    from rded.datasets import load
    from rded.observer import get_observer
    images, body = load('digits', 'val'), torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 10))
    with pytest.raises(ValueError, match='give rded.models.Network'): get_observer(body, images)
    with pytest.raises(ValueError, match='no rded.models.Network'): models.save(body, tmp_path / 'own.safetensors')
    net = models.Network(body, 'own', 10, 16, images.classes)
    assert get_observer(net, images)(torch.rand(2, 3, 16, 16)).shape == (2, 10)
    with pytest.raises(ValueError, match="unknown model 'own'"): models.save(net, tmp_path / 'own.safetensors')
    from rded import baselines, recipes
    from rded.labels import relabel
    made_by_hand = baselines.random_images(load('digits', 'train'), 2, 16)
    made_by_hand.save(tmp_path / 'set')
    relabel(made_by_hand, get_observer(net, images), recipes.paper_training('conv3', 2, 10), 2, out=tmp_path / 'labels')
    assert main(['train', '--distilled', str(tmp_path / 'set'), '--labels', str(tmp_path / 'labels'), '--student', 'conv3', '--val', 'digits', '--epochs', '2', '--out', str(tmp_path / 's.safetensors'), '--json', str(tmp_path / 's.json')]) == 0
    told = json.loads((tmp_path / 's.json').read_text())
    assert told['observer']['arch'] == 'own' and told['training'].startswith('paper, ')      # mirrored, as the labels were recorded
    torch.save({'state_dict': {f'model.{k}': v for k, v in models.load(made / 'observer.safetensors').body.state_dict().items()}}, tmp_path / 'lightning.ckpt')
    assert models.load(tmp_path / 'lightning.ckpt').arch == 'conv3'


def test_a_size_that_is_not_the_sets_is_refused_and_a_network_says_what_it_is(capsys, made, tmp_path):
    argv = ['train', '--distilled', made / 'set', '--observer', made / 'observer.safetensors', '--student', 'conv3', '--val', 'digits', '--out', tmp_path / 's.safetensors', '--size', '64']
    assert 'leave out --size 64' in refused(capsys, tmp_path, *argv)
    assert 'no text, and so no JSON' in refused(capsys, tmp_path, 'info', next((made / 'data').rglob('*.png')))
    assert main(['info', str(made / 'observer.safetensors'), '--json', str(tmp_path / 'i.json')]) == 0
    assert json.loads((tmp_path / 'i.json').read_text())['arch'] == 'conv3' and 'a network' in capsys.readouterr().out


def test_devices_that_are_not_here_are_refused_at_once(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, '_cuda', lambda: False)
    assert '--devices 0,1: no CUDA device' in refused(capsys, tmp_path, 'reproduce', 'main_table', '--tiny', '--devices', '0,1', '--out', tmp_path / 'r')


def test_an_empty_class(capsys, data, made):
    for p in (data / 'train' / 'digit3').iterdir(): p.unlink()
    assert "class 'digit3'" in refused(capsys, data.parent, 'distill', '--data', data, '--observer', made / 'observer.safetensors', '--ipc', '1', '--out', data.parent / 'x')


def test_a_class_with_too_few_images(capsys, data):
    o = observer_of(NAMES, data.parent / 'o.safetensors')
    for p in sorted((data / 'train' / 'digit3').iterdir())[2:]: p.unlink()
    said = refused(capsys, data.parent, 'distill', '--data', data, '--observer', o, '--ipc', '3', '--out', data.parent / 'x')
    assert "class 'digit3'" in said and 'ipc 2 at factor 1 would fit' in said


def test_a_broken_image_and_a_text_file_named_jpg_are_named_and_replaced(capsys, data):
    o, files = observer_of(NAMES, data.parent / 'o.safetensors'), sorted((data / 'train' / 'digit3').iterdir())
    files[0].write_bytes(files[0].read_bytes()[:60])
    files[1].unlink(), files[1].with_suffix('.jpg').write_text('not an image')
    capsys.readouterr()
    assert main(['distill', '--data', str(data), '--observer', str(o), '--ipc', '10', '--out', str(data.parent / 'x')]) == 0
    err = capsys.readouterr().err
    assert f'train/digit3/{files[0].name}' in err and f"train/digit3/{files[1].with_suffix('.jpg').name}" in err
    assert len(list((data.parent / 'x' / 'images' / 'digit3').iterdir())) == 10
    said = refused(capsys, data.parent, 'distill', '--data', data, '--observer', o, '--ipc', '11', '--out', data.parent / 'y')
    assert "class 'digit3'" in said and 'ipc 10 at factor 1 would fit' in said


def test_a_class_of_text_files_only(capsys, data):
    o = observer_of(NAMES, data.parent / 'o.safetensors')
    for p in (data / 'train' / 'digit3').iterdir(): p.unlink()
    (data / 'train' / 'digit3' / 'a.jpg').write_text('not an image')
    refused(capsys, data.parent, 'distill', '--data', data, '--observer', o, '--ipc', '1', '--out', data.parent / 'x')


def test_a_broken_validation_image_is_named(capsys, data):
    (data / 'val' / 'digit3' / 'zz.png').write_text('not an image')
    o = observer_of(NAMES, data.parent / 'o.safetensors')
    assert main(['evaluate', '--model', str(o), '--data', str(data)]) == 0
    assert 'zz.png' in capsys.readouterr().err


def test_class_lists_that_disagree(capsys, data, made):
    (data / 'val' / 'digit3').rename(data / 'val' / 'three')
    assert 'digit3' in refused(capsys, data.parent, 'observer', '--data', data, '--arch', 'conv3', '--size', '16', '--out', data.parent / 'o.safetensors')
    said = refused(capsys, data.parent, 'train', '--distilled', made / 'set', '--hard', '--student', 'conv3', '--val', made / 'data', '--out', data.parent / 's.safetensors')
    assert "'0' is in one of them only" in said


def test_an_observer_for_other_classes_or_another_size(capsys, data, made):
    o = made / 'observer.safetensors'
    argv = lambda o, *more: ['distill', '--data', data, '--observer', o, '--ipc', '1', '--out', data.parent / 'x', *more]
    assert 'digit0' in refused(capsys, data.parent, *argv(o))
    assert '32 px' in refused(capsys, data.parent, *argv(observer_of(NAMES, data.parent / 'o.safetensors'), '--size', '32'))
    assert '10 of' in refused(capsys, data.parent, *argv(observer_of(['a', 'b'], data.parent / 'p.safetensors'))) 


def test_an_observer_of_another_class_order(capsys, made, tmp_path):
    from rded import models
    net = models.load(made / 'observer.safetensors')
    net.classes = net.classes[1:] + net.classes[:1]
    models.save(net, tmp_path / 'turned.safetensors')
    argv = ['--observer', tmp_path / 'turned.safetensors', '--out']
    said = refused(capsys, tmp_path, 'distill', '--data', 'digits', '--ipc', '1', *argv, tmp_path / 'x')
    assert "'1' looks like its" in said and '--no-check' in said
    refused(capsys, tmp_path, 'train', '--distilled', made / 'set', '--student', 'conv3', '--val', 'digits', *argv, tmp_path / 's.safetensors')
    assert main(['distill', '--data', 'digits', '--ipc', '1', '--preselect', '2', '--no-check', *map(str, argv), str(tmp_path / 'x')]) == 0


@pytest.mark.parametrize('argv, words', [
    (['observer', '--data', 'digits', '--arch', 'conv33', '--out', 'o.safetensors'], 'conv3'),
    (['observer', '--data', 'digits', '--arch', 'conv6', '--size', '16', '--out', 'o.safetensors'], 'at least 64'),
    (['train', '--distilled', 'SET', '--hard', '--student', 'resnet81', '--val', 'digits', '--out', 's.safetensors'], "'resnet81'"),
    (['evaluate', '--model', 'resnet81', '--data', 'digits'], "'resnet81'"),
    (['evaluate', '--model', 'none.safetensors', '--data', 'digits'], 'none.safetensors'),
    (['recipes', 'cifar10-conv4-ipc10'], 'did you mean cifar10-conv3-ipc10'),
    (['run', 'cifar10-conv3', '--out', 'x'], 'did you mean'),
    (['run', 'cifar10-conv3-ipc10', '--data', 'torchvision:CIFAR1O', '--out', 'x'], 'CIFAR10'),
    (['run', 'cifar100-conv3-ipc10', '--data', 'digits', '--out', 'x'], '100 classes'),
    (['run', 'digits-conv3-ipc10', '--set', 'colour=1', '--out', 'x'], "unknown setting 'colour': use one of epochs"),
    (['run', 'digits-conv3-ipc10', '--set', 'epochs=1', '--out', 'x'], 'give --epochs'),
    (['run', 'digits-conv3-ipc10', '--set', 'temperature', '--out', 'x'], 'give key=value'),
    (['run', 'digits-conv3-ipc10', '--set', 'evaluate_every=0', '--out', 'x'], 'evaluate_every is 0'),
    (['train', '--distilled', 'SET', '--hard', '--student', 'conv3', '--val', 'digits', '--set', 'lr=fast', '--out', 's.safetensors'], "lr is 'fast': give a number"),
    (['train', '--distilled', 'SET', '--hard', '--student', 'conv3', '--val', 'digits', '--set', 'min_scale=0.5', '--out', 's.safetensors'], 'give --min-scale'),
    (['distill', '--data', 'digitz', '--observer', 'OBS', '--ipc', '1', '--out', 'x'], 'did you mean digits'),
    (['distill', '--data', 'digits', '--observer', 'OBS', '--ipc', '0', '--out', 'x'], '0: give 1 or more'),
    (['distill', '--data', 'digits', '--observer', 'OBS', '--ipc', '-1', '--out', 'x'], '-1: give 1 or more'),
    (['distill', '--data', 'digits', '--observer', 'OBS', '--ipc', '1e1', '--out', 'x'], "'1e1': give a whole number"),
    (['distill', '--data', 'digits', '--observer', 'OBS', '--ipc', '141', '--out', 'x'], 'would fit'),
    (['distill', '--data', 'digits', '--observer', 'OBS', '--ipc', '36', '--factor', '2', '--out', 'x'], 'ipc 35 at factor 2'),
    (['distill', '--data', 'digits', '--observer', 'OBS', '--ipc', '1', '--factor', '17', '--out', 'x'], '17'),
    (['distill', '--data', 'digits', '--observer', 'OBS', '--ipc', '1', '--selection', 'best', '--out', 'x'], "'best': choose from"),
    (['distill', '--data', 'digits', '--observer', 'OBS', '--ipc', '1', '--method', 'herd', '--out', 'x'], 'choose from rded'),
    (['distill', '--data', 'digits', '--ipc', '1', '--out', 'x'], '--observer'),
    (['distill', '--data', 'digits', '--observer', 'OBS', '--ipc', '1', '--out', 'SET'], 'exists and is not empty'),
    (['distill', '--data', 'digits', '--observer', 'OBS', '--ipc', '1', '--out', 'OBS'], 'is a file'),
    (['rebuild', '--manifest', 'SET/rded.json', '--data', 'digits', '--out', 'SET'], 'exists and is not empty'),
    (['rebuild', '--manifest', 'SET/CARD.md', '--data', 'digits', '--out', 'x'], 'CARD.md'),
    (['rebuild', '--manifest', 'SET/rded.json', '--data', 'DATA', '--out', 'x'], "no class '0'"),
    (['verify', 'DATA'], 'rded.json'),
    (['observer', '--data', 'digits', '--arch', 'conv3', '--size', '16', '--out', 'OBS'], 'exists'),
    (['observer', '--data', 'digits', '--arch', 'conv3', '--size', '16', '--out', 'net.pth'], '.safetensors'),
    (['train', '--distilled', 'SET', '--student', 'conv3', '--val', 'digits', '--out', 's.safetensors'], '--hard'),
    (['train', '--distilled', 'SET', '--hard', '--observer', 'OBS', '--student', 'conv3', '--val', 'digits', '--out', 's.safetensors'], 'one of them'),
    (['train', '--distilled', 'SET', '--hard', '--student', 'conv3', '--val', 'digits', '--training', 'best', '--out', 's.safetensors'], "'best'"),
    (['train', '--distilled', 'SET', '--hard', '--student', 'resnet18', '--val', 'digits', '--batch-size', '1', '--out', 's.safetensors'], 'the BatchNorm of resnet18 needs two images at a time'),
    (['train', '--distilled', 'SET', '--hard', '--student', 'conv3', '--val', 'digits', '--min-scale', 'nan', '--out', 's.safetensors'], "'nan': give a number above 0"),
    (['distill', '--data', 'nowhere', '--observer', 'nobody', '--ipc', '1', '--out', 'SET'], 'exists and is not empty'),      # before any work
    (['train', '--distilled', 'nowhere', '--hard', '--student', 'conv3', '--val', 'nowhere', '--out', 'OBS'], 'exists'),
    (['distill', '--data', 'digits', '--method', 'sre2l', '--observer', 'OBS', '--ipc', '1', '--jpeg', '5', '--out', 'x'], '--jpeg 5: it is for images that are cut out'),
    (['train', '--recipe', 'digits-conv3-ipc10', '--training', 'plus', '--distilled', 'SET', '--hard', '--val', 'digits', '--out', 's.safetensors'], '--training plus: --recipe digits-conv3-ipc10 says'),
    (['relabel', '--recipe', 'digits-conv3-ipc10', '--training', 'plus', '--distilled', 'SET', '--observer', 'OBS', '--epochs', '1', '--out', 'l'], '--training plus: --recipe digits-conv3-ipc10 says'),
    (['observer', '--data', 'digits', '--dataset', 'cifar11', '--arch', 'conv3', '--size', '16', '--out', 'net.safetensors'], "'cifar11': choose from CIFAR-10"),
    (['reproduce', 'main_table', '--tiny', '--seed=1'], '--seed does nothing here'), (['reproduce', 'main_table', '--tiny', '--batch', '3'], '--batch does nothing here'),
    (['bench', 'scan', '--device', 'cuda', '--out', 'b'], '--device'),
    (['distill', '--data', 'digits', '--observer', 'OBS', '--ipc', '1', '--out', 'x', '--json', 'x/a.json'], '--json x/a.json would stand where --out x shall'),
    (['rebuild', '--manifest', 'SET/rded.json', '--data', 'digits', '--out', './x', '--json', 'x/sub/a.json'], 'would stand where --out ./x shall'),
    (['export', '--distilled', 'SET', '--format', 'webdataset', '--out', 'x', '--json', 'x/a.json'], 'would stand where --out x shall'),
    (['observer', '--data', 'digits', '--arch', 'conv3', '--out', 'x.safetensors', '--json', 'x.safetensors'], 'would stand where --out x.safetensors shall'),
    (['distill', '--data', 'digits', '--observer', 'OBS', '--ipc', '1', '--seed', '4294967296', '--out', 'x'], '4294967296: give 4294967295 at most'),
    (['run', 'digits-conv3-ipc10', '--seeds', '0,9223372036854775808', '--out', 'x'], '9223372036854775808: give 4294967295 at most'),
    (['recipes', '--device', 'tpu'], "'tpu'"), (['recipes', '--seed', '-1'], 'give 0 or more'), (['recipes', '--json', '.'], 'is a folder'),
    (['distil'], "'distil'"), (['report', '--results', 'DATA', '--out', 'x'], 'holds no result'), ([], 'COMMAND')])
def test_one_line(argv, words, capsys, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known = {'OBS': made / 'observer.safetensors', 'SET': made / 'set', 'DATA': made / 'data', 'SET/rded.json': made / 'set' / 'rded.json', 'SET/CARD.md': made / 'set' / 'CARD.md'}
    before = everything(made)
    assert words in refused(capsys, tmp_path, *(known.get(a, a) for a in argv))
    assert everything(made) == before


def test_a_disk_that_fills(capsys, made, tmp_path, monkeypatch):
    def full(handle): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr('rded.files.os.fsync', full)
    argv = ['distill', '--data', 'digits', '--observer', made / 'observer.safetensors', '--ipc', '1', '--preselect', '2', '--out', tmp_path / 'x']
    assert 'free some space' in refused(capsys, tmp_path, *argv)
    for more in (['train', '--distilled', made / 'set', '--hard', '--student', 'conv3', '--val', 'digits', '--epochs', '1', '--out', tmp_path / 's.safetensors'],
                 ['rebuild', '--manifest', made / 'set' / 'rded.json', '--data', 'digits', '--out', tmp_path / 'y']):
        assert 'free some space' in refused(capsys, tmp_path, *more)


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root may write anywhere')
def test_a_folder_that_cannot_be_written_to(capsys, made, tmp_path):
    (tmp_path / 'locked').mkdir(mode=0o555)
    assert 'permissions' in refused(capsys, tmp_path, 'distill', '--data', 'digits', '--observer', made / 'observer.safetensors', '--ipc', '1', '--out', tmp_path / 'locked' / 'x')


def test_a_changed_image_is_found_and_listed(capsys, made, tmp_path):
    shutil.copytree(made / 'set', tmp_path / 'set')
    files = sorted((tmp_path / 'set' / 'images').rglob('*.png'))
    shutil.copy(files[0], files[5]), files[1].unlink()
    capsys.readouterr()
    assert main(['verify', str(tmp_path / 'set'), '--json', str(tmp_path / 'v.json')]) == 2
    err, found = capsys.readouterr().err, json.loads((tmp_path / 'v.json').read_text())
    assert err.count('\n') == 1 and '1 missing' in err and '1 changed' in err and found['ok'] is False and len(found['changed']) == 1


# manners

def test_other_failures_have_status_1(capsys, monkeypatch):
    def broken(args, progress): raise RuntimeError('a bug\nin two lines')
    monkeypatch.setitem(cli.COMMANDS, 'info', (broken, *cli.COMMANDS['info'][1:]))
    assert main(['info', 'x']) == 1
    assert capsys.readouterr().err == 'rded: RuntimeError: a bug in two lines (RDED_DEBUG=1 shows where)\n'
    monkeypatch.setenv('RDED_DEBUG', '1')
    with pytest.raises(RuntimeError): main(['info', 'x'])


def test_an_interruption_has_status_130(capsys, monkeypatch, tmp_path):
    def stopped(args, progress): raise KeyboardInterrupt
    monkeypatch.setitem(cli.COMMANDS, 'info', (stopped, *cli.COMMANDS['info'][1:]))
    assert main(['info', 'x', '--json', str(tmp_path / 'a.json')]) == 130
    assert capsys.readouterr().err == 'rded: interrupted\n' and everything(tmp_path) == []


def test_help_and_version(capsys):
    from rded import __version__
    assert main(['--version']) == 0 and capsys.readouterr().out == f'rded {__version__}\n'
    for name in cli.COMMANDS:
        assert main([name, '--help']) == 0 and '--json' in capsys.readouterr().out


def test_warnings_are_single_lines(capsys):
    import warnings
    with cli.plain_warnings():
        warnings.warn_explicit('one\ntwo', UserWarning, 'x.py', 1, module='rded.images')
        warnings.warn_explicit('other', UserWarning, 'x.py', 1, module='torch.nn')
    assert capsys.readouterr().err == 'rded: warning: one two\n'


def rded(*argv, **how): return subprocess.run([sys.executable, '-m', 'rded', *argv], capture_output=True, text=True, **how)


def test_from_a_shell(tmp_path):
    for argv, words in ((['info', 'none'], 'none: no such folder'), (['distill', '--ipc', '0'], '0: give 1 or more'), (['recipes', 'x'], "recipe 'x' is unknown")):
        done = rded(*argv, cwd=tmp_path)
        assert done.returncode == 2 and done.stdout == '' and done.stderr.count('\n') == 1 and words in done.stderr
    assert rded('recipes', 'digits-conv3-ipc10').stdout.startswith('name                 digits-conv3-ipc10')


def test_a_reader_who_has_seen_enough():
    done = subprocess.run(f'"{sys.executable}" -m rded recipes | head -n 1', shell=True, capture_output=True, text=True)
    assert done.stdout.count('\n') == 1 and done.stderr == ''


def test_help_is_quick_and_brings_no_torch():
    done, start = rded('--help'), os.times()
    assert rded('--help').returncode == 0 == done.returncode
    assert os.times().children_user - start.children_user < 0.5            # seconds of CPU, the second time
    code = 'import sys; from rded.cli import main; main(["--help"]); main(["recipes"]); sys.stderr.write(str("torch" in sys.modules))'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stderr == 'False'


@pytest.mark.skipif(os.name == 'nt', reason='signals')
def test_ctrl_c(tmp_path):
    code = ('import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); '  # a job in the background starts with it ignored
            'from rded.cli import main; print("ready", flush=True); sys.exit(main(sys.argv[1:]))')
    work = subprocess.Popen([sys.executable, '-c', code, 'observer', '--data', 'digits', '--arch', 'conv3', '--size', '16', '--epochs', '10000',
                             '--out', str(tmp_path / 'o.safetensors')], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert work.stdout.readline() == 'ready\n'
    time.sleep(3)
    work.send_signal(signal.SIGINT)
    out, err = work.communicate(timeout=60)
    assert work.returncode == 130 and err.endswith('rded: interrupted\n') and 'Traceback' not in err and everything(tmp_path) == []
