"""A small fixed set of results, and the whole report it makes."""
import json
import shutil
from pathlib import Path

import pytest

from rded import report

HERE = Path(__file__).parent / 'report'        # results/ and the expected page and tables
RESULT = json.loads((HERE / 'results' / 'cifar10-conv3-ipc10-rded-0.json').read_text(encoding='utf-8'))


def files(folder): return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


def test_the_whole_report(tmp_path):
    made = report.write_report(HERE / 'results', tmp_path)
    expected, texts = files(HERE / 'expected'), {n: b for n, b in files(tmp_path).items() if not n.endswith('.png')}
    assert set(texts) == set(expected)
    for name in expected: assert texts[name].decode() == expected[name].decode(), name
    assert made['files'] == [n for n in made['files'] if (tmp_path / n).is_file()] and made['results'] == 9
    assert sorted(n for n in made['files'] if n.endswith('.png')) == ['figures/cifar-10.png', 'figures/my-own-photos.png']


def test_the_same_bytes_whatever_the_order_of_the_files(tmp_path):
    shutil.copytree(HERE / 'results', tmp_path / 'results')
    report.write_report(HERE / 'results', tmp_path / 'a')
    report.write_report(tmp_path / 'results', tmp_path / 'b')
    assert files(tmp_path / 'a') == files(tmp_path / 'b')


def test_every_number_of_the_page_comes_from_a_file():
    import re
    source = ' '.join(p.read_text(encoding='utf-8') for p in (HERE / 'results').glob('*.json'))
    page = (HERE / 'expected' / 'tables' / 'runs.md').read_text(encoding='utf-8')
    for number in re.findall(r'\b\d+\.\d+\b', page): assert f'{float(number):g}' in source


@pytest.mark.parametrize('field', [f for f in report.FIELDS])
def test_a_missing_field_is_named(field, tmp_path):
    r = json.loads(json.dumps(RESULT))
    parent, _, name = field.rpartition('.')
    del (r[parent] if parent else r)[name]
    (tmp_path / 'bad.json').write_text(json.dumps(r))
    with pytest.raises(ValueError, match=rf'bad\.json: the field {field} is missing'): report.read_results(tmp_path)


@pytest.mark.parametrize('field, value', [('top1', -1), ('top1', 100.1), ('top1', None), ('top5', '90'), ('n', 0), ('ipc', 1.5), ('seed', -1),
                                          ('seed', False), ('recipe', ''), ('recipe', 3), ('observer', 'conv3'), ('bytes', []), ('seconds', -1), ('set', 7), ('scored_by', [])])
def test_a_wrong_value_is_named(field, value, tmp_path):
    (tmp_path / 'bad.json').write_text(json.dumps({**RESULT, field: value}))
    with pytest.raises(ValueError, match=rf'bad\.json: {field} is .*it should be'): report.write_report(tmp_path, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_not_json_is_named(tmp_path):
    (tmp_path / 'bad.json').write_text('{"top1": NaN}')
    with pytest.raises(ValueError, match=r'bad\.json'): report.read_results(tmp_path)
    (tmp_path / 'bad.json').write_text('[1, 2]')
    with pytest.raises(ValueError, match=r'bad\.json: not a result'): report.read_results(tmp_path)


def test_no_results(tmp_path):
    with pytest.raises(ValueError, match='holds no result'): report.read_results(tmp_path)
    with pytest.raises(ValueError, match='no such folder'): report.read_results(tmp_path / 'none')


def test_means_are_over_seeds_of_the_last_epoch():
    values = [50.0, 53.0, 51.5]
    group = [{**RESULT, 'seed': s, 'top1': v, 'best_top1': v + 1, 'file': f'{s}.json'} for s, v in enumerate(values)]
    (cell,) = report.cells(group)
    assert cell.top1.mean == 51.5 and cell.top1.std == 1.5 and cell.top1.n == 3
    row = report.accuracy_row(cell, [cell])
    assert row['top-1, last epoch'].mean == 51.5 and row['top-1, best epoch'].mean == 52.5 and row['random images'] is None


@pytest.mark.parametrize('change', [dict(training='plus'), dict(updates=1), dict(student='conv4'), dict(method='random-images'), dict(n=5),
                                    dict(observer={**RESULT['observer'], 'sha256': 'f' * 64}), dict(recipe='other')])
def test_results_that_differ_are_not_averaged(change):
    a, b = {**RESULT, 'file': 'a.json'}, {**RESULT, 'file': 'b.json', 'seed': 1, **change}
    assert [c.top1.n for c in report.cells([a, b])] == [1, 1]


def test_a_seed_counts_once():
    with pytest.raises(ValueError, match='a.json and b.json: the same cell and seed 0 twice'):
        report.cells([{**RESULT, 'file': 'a.json'}, {**RESULT, 'file': 'b.json'}])


def test_cells_are_told_apart_by_who_chose_and_older_results_join_the_only_one():
    by = lambda seed, who: {**RESULT, 'file': f'{seed}{who}.json', 'seed': seed, **({'scored_by': {**RESULT['observer'], 'sha256': who * 64}} if who else {})}
    seeds = lambda *results: sorted([r['seed'] for r in c.results] for c in report.cells(list(results)))
    assert seeds(by(0, 'a'), by(1, 'a'), by(2, 'b')) == [[0, 1], [2]]
    assert seeds(by(0, ''), by(1, 'a'), by(2, 'a')) == [[0, 1, 2]] and seeds(by(0, ''), by(1, 'a'), by(2, 'b')) == [[0], [1], [2]] and seeds(by(0, ''), by(0, 'a')) == [[0], [0]]
    assert report.cells([by(0, 'a')])[0].published is None      # another network chose than the one that labels


def test_the_published_number_stands_beside_rded_on_its_own_data_only():
    own = lambda **change: report.cells([{**RESULT, 'file': 'a.json', **change}])[0].published
    assert own().top1 == 50.2
    assert own(method='random-images') is own(dataset='my photos') is own(recipe='mine') is own(ipc=9) is own(student='conv4') is own(observer=None) is None


def its(**change): return {**RESULT, **change, 'file': str(sorted(change.items()))}


def test_the_papers_table_has_the_observer_with_the_most_seeds():
    eye = lambda name: {**RESULT['observer'], 'name': name, 'sha256': name * 64}
    found = report.cells([its(seed=0, top1=30.0, observer=eye('a'))] + [its(seed=s, top1=50.0 + s, observer=eye('b')) for s in range(3)])
    row = next(r for r in report.paper_rows(found) if (r['data set'], r['IPC']) == ('CIFAR-10', 10))
    assert any('51.00 ± 1.00 (3)' in str(v) for v in row.values()) and not any('30.00' in str(v) for v in row.values())


def test_of_observers_with_as_many_seeds_each_is_named_and_the_best_is_what_a_gain_is_on():
    eye = lambda name: {**RESULT['observer'], 'name': f'{name}.safetensors', 'sha256': name * 64}
    found = report.cells([its(seed=s, top1=top1 + s, observer=eye(name)) for name, top1 in (('a', 30.0), ('b', 50.0)) for s in range(2)] + [its(recipe='cifar10-conv3-ipc10-plus', training='plus', seed=0, top1=78.0)])
    told = next(r for r in report.paper_rows(found) if (r['data set'], r['IPC']) == ('CIFAR-10', 10))['ConvNet']
    assert told.startswith('30.50 ± 0.71 (2), below (by a), 50.50 ± 0.71 (2), reproduced (by b); 50.2')
    assert [r["the paper's training, here"].mean for r in report.beyond_rows(report.beyond(found))] == [50.5]


def test_a_training_cut_short_stands_beside_the_whole_one():
    found = report.cells([its(recipe='cifar10-conv3-ipc10-plus', training='plus, epochs 100', seed=s, top1=60.0) for s in range(3)] + [its(recipe='cifar10-conv3-ipc10-plus', training='plus', seed=0, top1=78.0)])
    assert [(r['training'], r['top-1, last epoch'].mean) for r in report.beyond_rows(report.beyond(found))] == [('plus', 78.0), ('plus, epochs 100', 60.0)]


def test_class_labels_do_not_stand_among_what_observers_label_whole_or_cut_short():
    hard = lambda training: its(recipe='cifar10-conv3-ipc10-plus', training=training, labels='hard', observer=None, seed=0, top1=40.0)
    found = report.cells([hard('plus-hard'), hard('plus, epochs 100-hard'), its(recipe='cifar10-conv3-ipc10-plus', training='plus', seed=0, top1=78.0)])
    assert [(r['training'], r['top-1, last epoch'].mean) for r in report.beyond_rows(report.beyond(found))] == [('plus', 78.0)]


def test_what_the_choice_is_worth_mixes_no_validation_images():
    both = lambda gap, **more: [its(method=m, seed=s, top1=50.0 + gap * (m == 'rded'), training=t, **more, **({'observer': None} if t.endswith('hard') else {}))
                                for t in ('paper', 'paper-hard') for s in range(3) for m in ('rded', 'random-images')]
    (gaps,) = report.choice_gaps(report.cells(both(5.0, n=10000) + both(-9.0, n=500))).values()
    assert len({gap for gap, *_ in gaps.values()}) == 1
    views = lambda count, gap, seeds: [i for i in both(gap) if i['seed'] < seeds and i['training'] == 'paper']
    seen = [{**i, 'training': f'paper, labels full, {v} fixed views', 'file': f'{v} {i["file"]}'} for v, gap, seeds in ((1, 7.0, 3), (30, 1.0, 2)) for i in views(v, gap, seeds)]
    (gaps,) = report.choice_gaps(report.cells(both(5.0) + seen)).values()
    assert gaps[10, 'random-images', 'recorded views'][0] == 7.0        # of two lengths the one with more seeds


def test_a_gpus_measurements_make_no_empty_chart(tmp_path):
    (tmp_path / 'r.json').write_text(json.dumps(RESULT))
    (tmp_path / 'bench-gpu.json').write_text(json.dumps({'format': 'rded-bench-1', 'stage': 'gpu', 'recorded training': [], 'training': {}, 'training, compiled': {}, 'scoring': {}, 'environment': {}, 'commit': 'x', 'data': 'd', 'observer': 'o'}))
    report.write_report(tmp_path, tmp_path / 'out')
    assert '## Speed' not in (tmp_path / 'out' / 'README.md').read_text(encoding='utf-8') and not (tmp_path / 'out' / 'tables' / 'speed.csv').exists()


@pytest.mark.parametrize('student, top1', [('swin_t', 29.2), ('convnext_tiny', 48.3), ('shufflenet_v2_x0_5', 19.4), ('timm:deit_tiny_patch16_224', 14.0)])
def test_a_report_knows_the_published_numbers_that_a_table_does(student, top1):
    from rded import reproduce
    recipe = reproduce.recipe_of('cross_architecture', dataset='ImageNet-1K', teacher='resnet18', student=student, ipc=10)
    cell, = report.cells([its(recipe=recipe.name, dataset='ImageNet-1K', student=student, observer={**RESULT['observer'], 'arch': 'resnet18'})])
    assert cell.published.top1 == top1 == reproduce.published_for('cross_architecture', recipe).top1


def test_nothing_is_changed():
    before = json.dumps(RESULT)
    report.cells([{**RESULT, 'file': 'a.json'}]), report.check_result(RESULT), report.check_result({**RESULT, 'set': '0' * 16})
    assert json.dumps(RESULT) == before


def test_names_from_data_cannot_make_markup():
    assert report.markdown([{'a': '| x |\n# <b>*_`'}]).splitlines()[2] == r'| \| x \| \# &lt;b&gt;\*\_\` |'


def test_figures_of_data_sets_with_like_names_do_not_overwrite_each_other(tmp_path):
    for k, name in enumerate(('a b', 'a-b', '§')): (tmp_path / f'{k}.json').write_text(json.dumps({**RESULT, 'dataset': name}))
    made = report.write_report(tmp_path, tmp_path / 'out')['files']
    assert sorted(n for n in made if n.endswith('.png')) == ['figures/a-b-2.png', 'figures/a-b.png', 'figures/data.png']


def test_somebody_elses_readme_stays(tmp_path):
    (tmp_path / 'README.md').write_text('# My project\n')
    with pytest.raises(ValueError, match='not a report of rded'): report.write_report(HERE / 'results', tmp_path)
    assert files(tmp_path) == {'README.md': b'# My project\n'}


def test_a_panel_for_each_variant_and_every_cell_in_one():
    group = [{**RESULT, 'ipc': i, 'recipe': f'cifar10-conv3-ipc{i}{v}', 'training': t, 'file': f'{i}{v}{t}'}
             for i in (1, 10) for v, t in (('', 'paper'), ('-canvas', 'paper'), ('', 'plus'), ('-jpeg', 'paper'))]
    fig = report.draw(report.cells(group))
    shown = [ax for ax in fig.axes if ax.axison]
    assert len(shown) == len(fig.axes) == 4     # two rows of two
    assert all([t.get_text() for t in ax.get_xticklabels()] == ['1', '10'] for ax in shown)
    assert sum('-canvas' in ax.get_title() for ax in shown) == 1


FINDING = {'format': report.EFFICIENCY, 'dataset': 'CIFAR-10', 'recipe': 'cifar10-conv3-ipc10', 'command': 'x', 'environment': {'device': 'cpu'},
           'points': [{'method': m, 'ipc': 10, 'classes': 10, 'size': 32, 'seconds': [s], 'host_mb': [700.0]} for m, s in (('rded', 4.0), ('sre2l', 200.0))]}


def test_findings_become_chapters_and_figures(tmp_path):
    shutil.copytree(HERE / 'results', tmp_path / 'results')
    (tmp_path / 'results' / 'efficiency.json').write_text(json.dumps(FINDING))
    made = report.write_report(tmp_path / 'results', tmp_path / 'out')
    page = (tmp_path / 'out' / 'README.md').read_text(encoding='utf-8')
    assert made['results'] == 9 and {'figures/synthesis.png', 'tables/efficiency.md'} <= set(made['files'])
    assert '## What distillation costs' in page and '| 50.00 | 1 |' in page and 'CIM' in page


@pytest.mark.parametrize('change', [{'points': 3}, {'points': [{**FINDING['points'][0], 'seconds': ['4']}]}, {'points': [{**FINDING['points'][0], 'ipc': 0}]}, {'points': FINDING['points'][:1]}, {'command': None}])
def test_a_malformed_finding_is_named_and_nothing_is_written(change, tmp_path):
    shutil.copytree(HERE / 'results', tmp_path / 'results')
    (tmp_path / 'results' / 'bad.json').write_text(json.dumps({**FINDING, **change}))
    with pytest.raises(ValueError, match=r'bad\.json'): report.write_report(tmp_path / 'results', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_our_sre2l_is_called_not_reproduced():
    (row,) = [report.accuracy_row(c, ()) for c in report.cells([{**RESULT, 'method': 'sre2l', 'file': 'a.json'}])]
    assert row['method'] == 'sre2l (ours, not reproduced)' and row['published'] is None


@pytest.mark.parametrize('ipc, top1, change, told', [(1, 19.5, {}, 'reproduced'), (1, 19.7, {}, 'not reproduced'), (10, 26.4, {}, 'reproduced'), (10, 22.1, {}, 'not reproduced'),      # published: 16.6 and 29.3
                                                     (1, 16.6, {'training': 'plus'}, 'not reproduced'), (1, 16.6, {'observer': None}, 'not reproduced'), (1, 16.6, {'student': 'conv3'}, 'not reproduced'), (1, 16.6, {'observer': {**RESULT['observer'], 'arch': 'conv3'}}, 'not reproduced')])
def test_our_sre2l_is_reproduced_cell_by_cell(ipc, top1, change, told):
    cell = {'method': 'sre2l', 'recipe': f'cifar10-resnet18-ipc{ipc}', 'dataset': 'CIFAR-10', 'student': 'resnet18_modified', 'training': 'paper', 'ipc': ipc, 'top1': top1, 'observer': {**RESULT['observer'], 'arch': 'resnet18_modified'}, **change}
    [found] = report.cells([{**RESULT, **cell, 'file': 'a.json'}])
    assert found.told == f'sre2l (ours, {told})' and report.run_row(found.results[0])['method'] == 'sre2l (ours)'


def test_a_number_was_published_for_one_observer():
    told = {**RESULT, 'recipe': 'cifar10-conv3-ipc10', 'dataset': 'CIFAR-10', 'ipc': 10, 'student': 'conv3', 'training': 'paper', 'method': 'rded', 'file': 'a.json'}
    by = lambda arch: report.cells([{**told, 'observer': {**RESULT['observer'], 'arch': arch}}])[0].published
    assert by('conv3').top1 == 50.2 and by('resnet18_modified') is None


def test_a_cell_with_changed_training_is_not_the_papers_cell():
    rows = lambda **change: report.paper_rows(report.cells([{**RESULT, 'file': 'a.json', **change}]))
    assert rows()[1]['ConvNet'].startswith('51.00 (1), reproduced') and rows(training='paper, epochs 30') == []
