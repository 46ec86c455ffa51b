"""The validations: every one is complete, and the runner writes its section."""

from __future__ import annotations

import importlib
import types

import pytest
import torch

from benchmarks.validation import __main__ as runner


@pytest.mark.parametrize("name", runner.NAMES)
def test_each_has_a_claim_with_its_source_and_a_set_up(name):
    module = importlib.import_module(f"benchmarks.validation.{name}")
    assert module.TITLE and module.SETUP.endswith(".")
    assert "[abstract" in module.CLAIM or "arXiv" in module.CLAIM
    assert callable(module.main)


def test_a_section_has_the_claim_the_finding_and_its_command(monkeypatch):
    fake = types.SimpleNamespace(TITLE="T", CLAIM="C.", SETUP="S.", main=lambda: "found")
    monkeypatch.setattr(runner.importlib, "import_module", lambda name: fake)
    text = runner.section("ghosts")
    assert text.startswith("## T\n\n**Claim.** C.\n\n**Here.** S.\n\nfound\n")
    assert "`python -m benchmarks.validation ghosts`" in text


def test_an_unknown_name_lists_the_known_ones(capsys):
    with pytest.raises(SystemExit):
        runner.main(["nonsense"])
    assert "there is no nonsense; there are adamp, adapters, alignment" in capsys.readouterr().err


def test_the_page_has_a_head_and_every_section(monkeypatch, tmp_path):
    monkeypatch.setattr(runner, "section", lambda name: f"## {name}\n")
    monkeypatch.setattr(runner, "PAGE", tmp_path / "validation.md")
    monkeypatch.setattr(runner.torch, "set_num_threads", lambda count: None)
    assert runner.main(["--write"]) == 0
    text = runner.PAGE.read_text()
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == list(runner.NAMES)
    assert all(fact in text for fact in ("python -m benchmarks.validation --write", torch.__version__, "cores of"))


def test_a_part_takes_the_place_of_its_section(monkeypatch, tmp_path):
    monkeypatch.setattr(runner, "section", lambda name: f"## {name}\n\nnew\n")
    monkeypatch.setattr(runner, "PAGE", tmp_path / "validation.md")
    monkeypatch.setattr(runner.torch, "set_num_threads", lambda count: None)
    runner.PAGE.write_text("# Head\n\n## ghosts\n\nold\n\n## shesha\n\nold\n")
    assert runner.main(["ghosts", "--write"]) == 0
    assert runner.PAGE.read_text() == "# Head\n\n## ghosts\n\nnew\n\n## shesha\n\nold\n"
    assert runner.main(["shesha", "--write"]) == 0
    assert runner.PAGE.read_text() == "# Head\n\n## ghosts\n\nnew\n\n## shesha\n\nnew\n"
    with pytest.raises(SystemExit, match="no section 'spectra'"):
        runner.main(["spectra", "--write"])
