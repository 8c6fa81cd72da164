"""Damaged images are read or reported, malformed files are refused in one line: a part of what nbs/reproduce/bad_input.ipynb does in earnest."""
import json
import subprocess
import sys
import warnings
from dataclasses import fields

import numpy as np
import pytest
from PIL import Image

from rded import damage, recipes
from rded.cli import main
from rded.datasets import load
from rded.report import read_results


@pytest.fixture(scope='module')
def sound():
    from sklearn.datasets import load_sample_images
    return [Image.fromarray(img).resize((60, 40)) for img in load_sample_images().images] + [Image.fromarray(np.random.default_rng(k).integers(0, 256, (9, 14, 3), np.uint8)) for k in range(3)]


@pytest.fixture(scope='module')
def bad(sound, tmp_path_factory):
    "360 damaged files, ten of each format and kind, and what became of them in a process of their own."
    root = tmp_path_factory.mktemp('bad').resolve()
    made = damage.write_damaged(root, sound, 360, 'test')
    return root, made, *damage.read_apart([path for path, _, _ in made], limit=30)


def test_a_damaged_image_is_read_or_reported(bad):
    _, made, found, noise = bad
    assert not [(path.name, row) for (path, _, _), row in zip(made, found) if row['fate'] not in ('read', 'reported')]
    counts = damage.table(made, found)
    assert set(counts) == {'JPEG', 'PNG', 'WEBP'} and all(set(kinds) == set(damage.KINDS) for kinds in counts.values())
    assert 100 < sum(row['fate'] == 'read' for row in found) < 260
    assert all(counts[f]['data appended']['read'] == counts[f]['colour profile']['read'] == 10 for f in counts)      # what is beside the picture does not cost it
    assert max(row['peak'] for row in found) < 3e6 and len(noise.splitlines()) < 30


def test_a_data_set_leaves_out_what_is_reported(bad):
    root, made, found, _ = bad
    told = damage.as_data_set(root, made, found)
    assert told['disagreeing'] == [] and told['files'] == 360


def test_distilling_a_damaged_folder(bad, tmp_path, capsys):
    root, made, found, _ = bad
    reported = {path.relative_to(root).as_posix() for (path, _, _), row in zip(made, found) if row['fate'] != 'read'}
    assert main(['distill', '--method', 'random-images', '--data', str(root), '--size', '16', '--ipc', '10', '--out', str(tmp_path / 'set'), '--quiet']) == 0
    manifest = json.loads((tmp_path / 'set' / 'rded.json').read_text())
    assert manifest['broken'] and set(manifest['broken']) <= reported and not reported & {p['source'] for image in manifest['images'] for p in image['patches']}
    err = capsys.readouterr().err.splitlines()
    assert all(line.startswith(('rded: note: ', 'rded: warning: ')) for line in err) and len(err) == len(manifest['broken'])
    for path in root.rglob('train/PNG/*'): path.write_bytes(path.read_bytes()[:30])
    assert main(['distill', '--method', 'random-images', '--data', str(root), '--size', '16', '--ipc', '10', '--out', str(tmp_path / 'none'), '--quiet']) == 2
    assert 'PNG' in capsys.readouterr().err and not (tmp_path / 'none').exists()


def test_many_damaged_images_are_one_warning(bad):
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter('always')
        load(bad[0]).in_memory(8, workers=2)
    ours = [w for w in heard if 'cannot be read' in str(w.message)]
    assert len(ours) == 1 and len(heard) < 60


@pytest.fixture(scope='module')
def targets(tmp_path_factory): return damage.targets(damage.workshop(tmp_path_factory.mktemp('shop')))


@pytest.mark.parametrize('what, every', [('manifest of a set', 79), ('description of labels', 47), ('header of a network', 13), ('result', 23), ('measurement', 83)])
def test_a_malformed_file_is_refused_in_one_line(targets, what, every):
    counts, crashes = damage.try_commands(targets[what], every)
    assert not crashes, crashes[:5]
    assert counts['files'] >= 10 and counts['refused'] > counts['tried'] / 3 and counts['tried'] == counts['refused'] + counts['done']


def test_bad_results_are_named_whatever_they_are(tmp_path):
    for name, data in damage.MALFORMED.items():
        (tmp_path / 'bad.json').write_bytes(data)
        with pytest.raises(ValueError, match=r'bad\.json'): read_results(tmp_path)


@pytest.mark.parametrize('name', ['', ' ', 'cifar10-conv3-ipc1O', '../../etc/passwd', 'a\0b', '\x1b[31m', 'x' * 5000, 'cifar10-conv3-ipc10\n', '*', '{}', '%s', "'; drop table"])
@pytest.mark.parametrize('command', [['recipes'], ['run'], ['train', '--distilled', '.', '--hard', '--val', 'digits', '--out', 'x.safetensors', '--recipe']])
def test_recipes_that_are_none(name, command, tmp_path, monkeypatch):
    if command == ['recipes'] and name == '': return                    # nothing given: all are listed
    monkeypatch.chdir(tmp_path)
    argv = [*command, name, *(['--out', 'out'] if command == ['run'] else [])]
    fate, said = damage.through_command(argv)
    assert fate == 'refused', said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('field', ['--ipc', '--factor', '--crops', '--preselect', '--size', '--seed', '--workers', '--batch', '--jpeg'])
@pytest.mark.parametrize('value', ['0', '-1', '1.5', 'nan', '1e9', '', 'x', '9' * 30, '99999999', '٣x', '0x10', '[1]'])
def test_numbers_out_of_range(field, value, tmp_path):
    if field in ('--seed', '--workers') and value == '0' or field in ('--seed', '--batch', '--preselect', '--crops') and value == '99999999' or field in ('--batch', '--preselect', '--crops') and value == '9' * 30: return     # fine: as many as there are
    if field == '--workers' and value.startswith('99'): return
    argv = ['distill', '--method', 'random-mosaics', '--data', 'digits', '--ipc', '1', '--factor', '1', '--size', '16', '--out', tmp_path / 'out', f'{field}={value}']
    fate, said = damage.through_command(argv)
    assert fate == 'refused', said
    assert not (tmp_path / 'out').exists()


BESIDE = {    # the nearest value that is refused
    'training': dict(epochs=0, batch_size=0, optimizer='adam', lr=0, weight_decay=1.01, schedule='linear', stretch=0, temperature=0, decay_from=1.01, loss='l1', hard_weight=-0.01, tiles='row', one_tile=1.01, min_scale=1.01,
                     randaugment=-1, strength=31, seen_at=-1, seen_until=1.01, mix='cut', mix_alpha=0, bn_updates=0, average=1, normalisation='mean', evaluate_from=1.01, evaluate_every=0),
    'observer': dict(epochs=0, batch_size=0, optimizer='adam', lr=0, momentum=1.01, weight_decay=-0.01, warmup_epochs=-0.5, schedule='constant', label_smoothing=1.01, crop='centre', padding=-1, min_scale=1.01,
                     precision='float16', images_per_class=0, stop=91)}
MORE = {'training': dict(min_scale=0, weight_decay=-0.01, mix_alpha=-1, strength=-1, epochs=1.5), 'observer': dict(min_scale=0, momentum=-0.01, label_smoothing=-0.01, padding=0.5, images_per_class=-3, stop=-1, batch_size=True)}
USUAL = {'training': recipes.Training(), 'observer': recipes.ObserverTraining()}
NUMBERED = [(kind, field) for kind, values in BESIDE.items() for field in values]


def refused(kind, field, value):
    with pytest.raises(ValueError, match=rf'\b{field} ') as error: recipes.changed(USUAL[kind], **{field: value})
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('kind', BESIDE)
def test_every_setting_of_a_training_is_looked_at(kind):
    assert {f.name for f in fields(USUAL[kind]) if not isinstance(getattr(USUAL[kind], f.name), (bool, tuple)) and f.name != 'name'} == set(BESIDE[kind])


@pytest.mark.parametrize('kind, field', NUMBERED)
def test_trainings_out_of_range(kind, field):
    for value in (BESIDE[kind][field], *(v[field] for k, v in MORE.items() if k == kind and field in v), float('nan'), float('inf'), 'x', '', [], {}, '../x'): refused(kind, field, value)


def test_settings_of_an_observer_are_refused_in_one_line(tmp_path, capsys):
    argv = ['observer', '--data', 'digits', '--arch', 'conv3', '--size', '16', '--epochs', '1', '--out', str(tmp_path / 'o.safetensors'), '--set']
    for setting, words in (('label_smoothing=2', 'label_smoothing is 2'), ('padding=16', 'padding is 16 for images of 16 px'), ('crop=resized,min_scale=5', 'min_scale is 5'), ('precision=float8', "precision is 'float8'")):
        assert main([*argv, setting]) == 2
        err = capsys.readouterr().err
        assert words in err and err.count('\n') == 1


def test_the_fixed_damage_is_the_same_everywhere(sound):
    "The same seed, the same bytes, in another process too."
    code = 'import hashlib\nfrom rded import damage\ndata = bytes(range(256)) * 9\nprint(hashlib.sha256(b"".join(damage.damaged(data, "JPEG", k, 1, data[::-1]) for k in ("bits flipped", "bytes lost", "cut short", "two files spliced"))).hexdigest())'
    runs = {subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout for _ in range(2)}
    assert len(runs) == 1
