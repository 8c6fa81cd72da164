"""The README's commands are understood, its Python runs; its links and those of FINDINGS.md lead somewhere."""
import re
import shlex
from pathlib import Path

import pytest

from rded import cli

ROOT = Path(__file__).parents[1]
TEXT, FINDINGS = ((ROOT / page).read_text(encoding='utf-8') for page in ('README.md', 'FINDINGS.md'))


def blocks(language): return re.findall(rf'```{language}\n(.*?)```', TEXT, re.S)


def test_its_commands_are_understood():
    lines = [l.split('  #')[0] for b in blocks('sh') for l in b.splitlines() if l.startswith('rded ')]
    assert len(lines) > 8
    for line in lines: cli.parser().parse_args(shlex.split(line)[1:])


def test_its_targets_exist():
    makefile = (ROOT / 'Makefile').read_text(encoding='utf-8')
    for target in re.findall(r'make (\w+)', TEXT) + re.findall(r'`make (\w+)', FINDINGS): assert re.search(rf'^{target}:', makefile, re.M), target


def test_its_python_runs_as_it_stands_on_a_smaller_recipe(tmp_path, monkeypatch, capsys):
    (code,) = blocks('python')
    assert len(code.splitlines()) <= 30
    monkeypatch.chdir(tmp_path)
    exec(code.replace('digits-conv3-ipc10', 'cifar10-conv3-ipc10-tiny'), {})
    assert "'top1'" in capsys.readouterr().out and (tmp_path / 'from-python' / 'rded.json').is_file()


def test_its_accuracies_are_those_of_the_findings():
    rows = [l for l in TEXT[TEXT.index('## Results'):].splitlines() if l.startswith('|')]
    told = {number for row in rows for number in re.findall(r'\d+\.\d+(?: ± \d+\.\d+)?', row)}
    assert len(told) > 30 and not [number for number in told if not re.search(rf'(?<![\d.]){re.escape(number)}(?!\d)', FINDINGS)]


def anchors(text): return {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in re.findall(r'^#+ (.*)', text, re.M)}


@pytest.mark.parametrize('link', sorted(set(re.findall(r'\]\((?!http)([^)]+)\)', TEXT + FINDINGS))))
def test_its_links_lead_somewhere(link):
    if link.startswith('reports/') and not list((ROOT / 'reports' / 'results').glob('*.json')): pytest.skip('no results recorded yet')
    page, _, title = link.partition('#')
    assert (ROOT / page).exists()
    if title: assert title in anchors((ROOT / page).read_text(encoding='utf-8'))
