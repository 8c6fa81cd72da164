"""The arithmetic of a plan by hand, what it refuses, its files, and the command."""
import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace

import pytest

from rded.plan import AXES, Rates, Where, Work, cost, duration, growth, reading_rates, size_of, split, worst

RATES = Rates(start=3, list=1e-5, header=2e-5, draw=2e-6, look=1e-9, seek=1e-4, read=1e-3, decode=1e-4, decode_mpx=1e-2, box=1e-4, crop=1e-4, crop_mpx=1e-3, forward=4e-3, exact=1e-2,
              together=1.25, again=1.5, select=1e-5, stitch=1e-3, write=1e-3, write_mpx=0.1, flops=3.6e9, png=2.0, patch_bytes=120, entry_bytes=90, packed=0.25, memory_mb=600,
              listed_bytes=200, held_bytes=500, name_chars=30, image_bytes=110e3, image_mpx=0.2, size=224, factor=2, crops=5, threads=2, about={'hardware': 'imagined'})
WORK = Work(100_000, 100, 10)
rows = lambda plan: {r.stage: r for r in plan.rows}


def test_each_stage_by_hand():
    found = rows(cost(WORK, RATES))
    assert found['scan'].seconds == pytest.approx(1.0) and found['draw'].seconds == pytest.approx(2 * 0.2) and found['pick'].seconds == pytest.approx(2 * 0.01)      # once more for the check
    assert found['check'].seconds == pytest.approx(2000 * (2 * 0.0021 + 0.0125) / 2)
    assert found['read'].seconds == pytest.approx(30_000 * (1e-4 + 0.11e-3))
    assert found['decode'].seconds == pytest.approx(30_000 * 0.0021 * 1.25 / 2)
    assert found['crop'].seconds == pytest.approx(150_000 * (0.0003 + 0.00002) * 1.25 / 2)
    assert found['score'].seconds == pytest.approx(150_000 * 0.004 * 1.25 / 2)
    assert found['score again'].pieces == 6000 and found['stitch'].pieces == 4000 and found['write'].pieces == 1000


def test_the_disk_of_the_data_is_timed_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / 'data').mkdir(); (tmp_path / 'away').mkdir()
    files = [tmp_path / 'data' / f'{k}.jpg' for k in range(3)]
    for file in files: file.write_bytes(bytes(9000))
    written, make = [], tempfile.TemporaryDirectory
    monkeypatch.setattr(tempfile, 'TemporaryDirectory', lambda **how: written.append(how['dir']) or make(**how))
    monkeypatch.chdir(tmp_path / 'away'); (tmp_path / 'away').rmdir()      # nothing can be written here
    for allowed in (True, False):
        monkeypatch.setattr(os, 'access', lambda path, mode: allowed)
        assert set(reading_rates(files, tmp_path, megabytes=1)) == {'seek', 'read'}
    assert written == [tmp_path, None] and [p.name for p in tmp_path.iterdir()] == ['data']


def test_scoring_adds_up_on_cores_and_the_slowest_sets_the_pace_with_gpus():
    here, there = cost(WORK, RATES), cost(WORK, RATES, Where(gpus=4))
    f, g = rows(here), rows(there)
    assert here.scoring == pytest.approx(sum(f[s].seconds for s in ('decode', 'crop', 'score')) + f['read'].seconds / 2)
    assert there.scoring == pytest.approx(max(g['read'].seconds, g['decode'].seconds + g['crop'].seconds, g['score'].seconds))
    assert g['score'].each == pytest.approx(3.6e9 / (312e12 * 0.15)) and g['score'].hands == 4


@pytest.mark.parametrize('where', [Where(), Where(gpus=8), Where(network=1.0)])
def test_the_whole_is_the_sum_of_its_stages(where):
    found = cost(WORK, RATES, where)
    assert found.seconds == pytest.approx(sum(found.stages.values())) and json.loads(json.dumps(found.as_dict()))['seconds'] == found.seconds


@pytest.mark.parametrize('layout', ['folder', 'shards'])
@pytest.mark.parametrize('where', [Where(), Where(gpus=8)])
def test_more_of_anything_costs_not_less(layout, where):
    base = replace(WORK, layout=layout)
    for name, values in (('images', (10**5, 10**6, 10**8)), ('preselect', (100, 300, 900)), ('crops', (1, 5, 20)), ('ipc', (1, 10, 25)), ('image_mpx', (0.1, 0.2, 2)), ('image_bytes', (1e4, 1e5, 1e6))):
        seconds = [cost(replace(base, **{name: v}), RATES, where).seconds for v in values]
        assert seconds == sorted(seconds), name
    assert cost(base, RATES, Where(gpus=1)).scoring >= cost(base, RATES, Where(gpus=2)).scoring >= cost(base, RATES, Where(gpus=64)).scoring


def test_a_slow_network_binds_and_cached_images_are_not_read():
    slow = cost(WORK, RATES, Where(network=0.01))
    assert slow.bound == 'read' and slow.scoring >= 30_000 * 110e3 * 8 / 0.01e9 and rows(slow)['read'].basis == 'assumed'
    assert rows(cost(replace(WORK, cached=True), RATES))['read'].seconds == 0


def test_what_is_assumed_is_called_so():
    assert all(r.basis != 'assumed' for r in cost(WORK, RATES).rows) and cost(WORK, RATES).basis == 'computed'
    assert rows(cost(WORK, RATES, Where(gpus=1)))['score'].basis == 'assumed' and cost(WORK, RATES, Where(cores=64)).basis == 'assumed'
    assert rows(cost(WORK, RATES))['score'].basis == 'measured' and rows(cost(replace(WORK, size=112), RATES))['score'].basis == 'computed'
    assert worst('measured', 'computed') == 'computed' and worst('assumed', 'measured') == 'assumed'


def test_memory_is_bounded_with_shards_alone():
    large = replace(WORK, images=10**9)
    folder, shards = cost(large, RATES).memory, cost(replace(large, layout='shards'), RATES).memory
    assert folder['names of images'] == 10**9 * 200 and sum(shards.values()) < 1.2e9 and shards['kept while scanning'] == 2 * 100 * 330 * 500
    assert cost(replace(large, layout='shards'), RATES).memory == cost(replace(large, images=10**8, layout='shards'), RATES).memory


def test_units():
    assert [duration(s) for s in (0.5e-6, 0.002, 59, 119, 600, 7200, 3 * 86400)] == ['500 ns', '2 ms', '59 s', '119 s', '10 min', '2 h', '3 days']
    assert [size_of(n) for n in (12, 1500, 2e9, 3e13)] == ['12 B', '1.5 kB', '2 GB', '30 TB']
    assert split(1.0, 2.0, 0.25) == (0.5, 2.0) and split(1.0, 8.0, 0.25) == (0.0, 4.0) and split(1.0, -1.0, 0.25) == (1.0, 0.0)


def test_rates_return_from_their_file(tmp_path):
    RATES.save(tmp_path / 'r.json')
    assert Rates.load(tmp_path / 'r.json') == RATES


@pytest.mark.parametrize('name, value', [('forward', 0), ('forward', None), ('threads', 'two'), ('read', -1), ('about', 3), ('start', True), ('list', 'missing')])
def test_malformed_rates_are_named(tmp_path, name, value):
    found = {'format': 'rded-rates-1', **asdict(RATES), name: value}
    if value == 'missing': del found[name]
    (tmp_path / 'r.json').write_text(json.dumps(found))
    with pytest.raises(ValueError, match=rf'r\.json: {name} is'): Rates.load(tmp_path / 'r.json')


@pytest.mark.parametrize('change, text', [(dict(classes=0), 'classes 0'), (dict(images=float('nan')), 'images nan'), (dict(images=1.5), 'images 1.5'), (dict(images=50), 'fewer than the 100'),
                                          (dict(ipc=76), 'at most ipc 75'), (dict(image_bytes=float('inf')), 'image_bytes inf'), (dict(layout='zip'), "layout 'zip'")])
def test_work_that_cannot_be(change, text):
    with pytest.raises(ValueError, match=text): replace(WORK, **change)


@pytest.mark.parametrize('change', [dict(gpus=-1), dict(network=0.0), dict(reached=1.5), dict(cores=0), dict(peak=math.nan)])
def test_machines_that_cannot_be(change):
    with pytest.raises(ValueError): Where(**change)


def test_growth_has_every_axis(): assert set(growth(WORK, RATES)) == set(AXES)


def rded(*words): return subprocess.run([sys.executable, '-m', 'rded', 'plan', *words], capture_output=True, text=True)


def test_the_command_with_stored_rates(tmp_path):
    RATES.save(tmp_path / 'r.json')
    done = rded('--images', '300e6', '--classes', '18291', '--ipc', '10', '--rates', str(tmp_path / 'r.json'), '--gpus', '64', '--layout', 'shards', '--json', str(tmp_path / 'p.json'))
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / 'p.json').read_text())
    assert told['work']['images'] == 300_000_000 and told['where']['machines'] == 8 and 'assumed' in done.stdout and told['bound'] in done.stdout


@pytest.mark.parametrize('measured, arch, same', [('resnet50', 'resnet50', True), ('wide_resnet50_2', 'resnet50', False), ('resnet18', 'resnet101', False)])
def test_stored_rates_are_of_their_own_network_alone(tmp_path, capsys, monkeypatch, measured, arch, same):
    from rded import cli, plan
    monkeypatch.setattr(plan, 'flops_of', lambda arch, size: 7 * RATES.flops)
    replace(RATES, about={'observer': f'{measured} {plan.RANDOM}'}).save(tmp_path / 'r.json')
    argv = ['plan', '--images', '1e6', '--classes', '10', '--ipc', '10', '--rates', str(tmp_path / 'r.json'), '--arch', arch]
    assert cli.main([*argv, '--json', str(tmp_path / 'p.json')]) == 0
    assert json.loads((tmp_path / 'p.json').read_text())['work']['flops'] == (None if same else 7 * RATES.flops)
    capsys.readouterr()
    assert cli.main([*argv, '--observer', 'nowhere.pth']) == 2 and '--observer nowhere.pth: the rates in' in capsys.readouterr().err


def test_the_command_measures_where_no_rates_are_given(tmp_path):
    file = tmp_path / 'r.json'
    done = rded('--images', '1e4', '--classes', '10', '--ipc', '1', '--arch', 'conv3', '--size', '32', '--factor', '1', '--rates', str(file))
    assert done.returncode == 0, done.stderr
    assert Rates.load(file).size == 32 and 'measured' in done.stdout


@pytest.mark.parametrize('words, text', [(('--classes', '0'), '--classes'), (('--images', 'nan'), '--images'), (('--ipc', '90'), 'at most ipc 75'), (('--network', 'nan'), 'network nan'), (('--gpu-share', '2'), 'at most 1')])
def test_the_command_refuses_in_one_line(words, text):
    usual = {'--images': '1e6', '--classes': '10', '--ipc': '10', **dict([words])}
    done = rded(*(w for pair in usual.items() for w in pair))
    assert done.returncode == 2 and text in done.stderr and done.stderr.count('\n') == 1


def test_the_command_refuses_a_malformed_file(tmp_path):
    (tmp_path / 'r.json').write_text('{"format": "rded-rates-1"}')
    done = rded('--images', '1e6', '--classes', '10', '--ipc', '10', '--rates', str(tmp_path / 'r.json'))
    assert done.returncode == 2 and 'start is None' in done.stderr and done.stderr.count('\n') == 1
