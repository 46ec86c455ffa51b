"""What runs by default is a sample of everything: no family, no file and no kind of test leaves it unnoticed."""

from __future__ import annotations

from collections import defaultdict

import pytest

from tests.conftest import COLLECTED
from tests.processes import ROOT
from tests.sampling import sample

SLOW_FILES = {
    "tests/agent/test_grafana_queries.py",
    "tests/benchmarks/test_overhead.py",
    "tests/benchmarks/test_told_overhead.py",
    "tests/kernels/test_compile.py",
}
"""Files without a default test: long measurements, the compiler for GPUs, and four trainings behind Prometheus."""

KINDS = (
    "tests/runtime/test_no_harm.py::test_training_is_bit_identical",
    "tests/hooks/test_entry_points.py::test_a_sample_of_faults_changes_nothing",
    "tests/hooks/test_compiled.py::test_a_compiled_run_is_bit_identical_with_and_without_a_watch",
    "tests/distributed/test_placements.py::test_the_values_are_those_of_one_process",
    "tests/distributed/test_faults.py::test_the_others_train_on_and_the_log_says_who_is_missing",
    "tests/distributed/test_hang.py::test_the_rank_that_does_not_come_is_named_with_its_line",
    "tests/distributed/test_blame.py::test_the_rank_with_the_fault_is_named",
    "tests/integrations/test_recipes.py::test_a_recipe_runs",
    "tests/integrations/test_run.py::test_output_exit_code_arguments_and_stdin_are_the_programs_own",
    "tests/agent/test_page.py::test_the_page_shows_what_is_wrong_and_where",
    "tests/agent/test_prometheus_server.py::test_a_run_is_found_scraped_and_its_end_is_seen",
    "tests/alerts/test_promql.py::test_prometheus_says_what_the_engine_says",
    "tests/cli/commands/test_demo.py::test_a_short_demo_without_an_agent",
    "tests/test_readme.py::test_the_example_runs_and_leaves_a_run_log",
)
"""Promises of the project, each with the test that holds it by default."""


def test_a_sample_keeps_every_member_in_order_and_marks_the_others() -> None:
    values = ["a", "b", "c", "d", "e"]
    found = sample(values, "d", every=3)
    assert [value if isinstance(value, str) else value.values[0] for value in found] == values
    assert [value for value in found if isinstance(value, str)] == ["a", "d"]
    assert all([mark.name for mark in value.marks] == ["slow"] for value in found if not isinstance(value, str))


def test_a_family_cannot_be_dropped() -> None:
    with pytest.raises(ValueError, match="no member of the family: \\['z'\\]"):
        sample(["a", "b"], "z")
    with pytest.raises(ValueError, match="keeps at least one"):
        sample(["a", "b"])


def test_every_family_and_every_file_has_a_default_test(request: pytest.FixtureRequest) -> None:
    """Of what is collected: all of it under `make test`."""
    families, files = defaultdict(set), defaultdict(set)
    for name, slow, whole in request.config.stash[COLLECTED]:
        files[name.partition("::")[0]].add(slow)
        if not whole:
            families[name.partition("[")[0]].add(slow)
    assert not [family for family, states in families.items() if states == {True}]
    assert {file for file, states in files.items() if states == {True}} <= SLOW_FILES


@pytest.mark.parametrize("kind", KINDS)
def test_a_promise_is_held_by_default(kind: str, request: pytest.FixtureRequest) -> None:
    file, _, name = kind.partition("::")
    assert f"def {name}(" in (ROOT / file).read_text()
    found = [slow for node, slow, _ in request.config.stash[COLLECTED] if node.partition("[")[0] == kind]
    collected = {node.partition("::")[0] for node, *_ in request.config.stash[COLLECTED]}
    assert file not in collected or False in found
