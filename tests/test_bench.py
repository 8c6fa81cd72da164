"""Measurements of speed: what the command refuses, what a run writes, and that the report shows nothing else."""
import json
import shutil
from pathlib import Path

import pytest

from rded import bench, cli, report

RESULTS = Path(__file__).parent / 'report' / 'results'


def test_the_command_says_what_it_cannot_measure(capsys, tmp_path):
    assert cli.main(['bench', 'everything', '--out', str(tmp_path)]) == 2
    assert cli.main(['bench', 'distill', '--observer', 'a.safetensors', '--out', str(tmp_path)]) == 2
    assert cli.main(['bench', 'distill', '--data', str(tmp_path / 'none'), '--out', str(tmp_path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and 'everything' in lines[0] and '--data' in lines[1] and 'none' in lines[2]
    assert not list(tmp_path.iterdir())


def test_the_stages_of_the_command_are_the_stages_there_are(): assert set(cli.BENCHES) == {*bench.STAGES, 'growth', 'ranks', 'gpu', 'scan', 'faults'}


@pytest.fixture(scope='module')
def measured(tmp_path_factory):
    out = tmp_path_factory.mktemp('bench')
    bench.run(['observer'], out, turns=2, images=26, log=lambda text: None)
    return out / 'bench-observer.json'


def test_a_run_tells_medians_memory_ratios_and_floors(measured):
    found = json.loads(measured.read_text())
    for allocator in report.ALLOCATORS:
        sides = found[allocator]
        assert set(sides) == {'published observer', 'our observer', 'ratios'}
        first = sides['published observer']['median']
        for side, ratio in sides['ratios'].items():
            assert len(sides[side]['seconds']) == 2 and sides[side]['peak_memory_mb'] > 100
            assert ratio == pytest.approx(first / sides[side]['median'], rel=1e-2)
    assert found['floors']['operations'] > 0 and found['environment']['threads'] >= 1 and found['observer'] == 'random weights'


def test_the_report_shows_what_was_measured_and_counts_results_apart(measured, tmp_path):
    results, out = tmp_path / 'results', tmp_path / 'out'
    shutil.copytree(RESULTS, results)
    plain = report.write_report(results, tmp_path / 'plain')
    shutil.copy(measured, results)
    found = report.write_report(results, out)
    assert found['results'] == plain['results'] and found['cells'] == plain['cells']
    assert set(found['files']) - set(plain['files']) == {'tables/speed.md', 'tables/speed.csv', 'figures/speed.png'}
    median = json.loads(measured.read_text())['as it stands']['our observer']['median']
    assert f'{median:.3f}'.rstrip('0') in (out / 'tables' / 'speed.csv').read_text() and '## Speed' in (out / 'README.md').read_text()
    assert '## Speed' not in (tmp_path / 'plain' / 'README.md').read_text()
