"""The public surface, frozen: what users import, and how it is called."""

from __future__ import annotations

import importlib.metadata
import inspect
import re
from pathlib import Path

import pytest

import stabwatch
from stabwatch import errors

ON_PURPOSE = "is what users build on. If you change it on purpose, change it here and in CHANGELOG.md."


def test_public_names_are_frozen() -> None:
    assert ", ".join(stabwatch.__all__) == (
        "Config, RecordedRun, TaylorGuard, TrainingUnstableError, Watch, __version__, attach, fingerprint, open_run, "
        "runs, signal"
    ), f"The list of names {ON_PURPOSE}"
    for name in stabwatch.__all__:
        assert getattr(stabwatch, name) is not None


def test_the_signature_of_attach_is_frozen() -> None:
    parameters = [p.replace(annotation=inspect.Parameter.empty) for p in _parameters(stabwatch.attach)]
    assert ", ".join(map(str, parameters)) == (
        "model, optimizer=None, loss_fn=None, run_dir=None, config=None, on_alert=None, first_step=0, "
        "resume=None, **overrides"
    ), f"The signature of attach {ON_PURPOSE}"
    keyword_only = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    assert keyword_only == ["loss_fn", "run_dir", "config", "on_alert", "first_step", "resume"]


def test_the_signatures_of_queries_are_frozen() -> None:
    assert _described(stabwatch.open_run) == "path"
    assert _described(stabwatch.runs) == "*roots, verdict=True, arrow=False"
    public = {name: _described(value) for name, value in vars(stabwatch.RecordedRun).items() if name[0] != "_"}
    assert public == {
        "name": "property",
        "signals": "property",
        "series": "self, signal, layer=None, head=None, rank=None, arrow=False",
        "summary": "self, arrow=False",
        "events": "self, kind=None, arrow=False",
    }, f"What a RecordedRun offers {ON_PURPOSE}"


def test_what_a_watch_offers_is_frozen() -> None:
    public = {name: _described(value) for name, value in vars(stabwatch.Watch).items() if not name.startswith("_")}
    assert public == {
        "run": "property",
        "run_dir": "property",
        "config": "property",
        "step": "property",
        "url": "property",
        "wait_for_agent": "self, timeout=10.0",
        "coverage": "self",
        "preflight": "self",
        "log": "self, **scalars",
        "log_policy": "self, logp, old_logp=None, ref_logp=None, rollout_logp=None, advantage=None, mask=None, "
        "clip=0.2",
        "log_batch": "self, indices=None, **facts",
        "announce": "self, what",
        "probe": "self, *args, **kwargs",
        "token_groups": "self, **masks",
        "quantised": "self, weight, scale, low, high, zero_point=0, axis=0",
        "begin_step": "self, number",
        "state_dict": "self",
        "load_state_dict": "self, state",
        "restore": "self, timeout=60.0",
        "detach": "self",
    }, f"What a Watch offers {ON_PURPOSE}"
    dunders = {
        name for name in vars(stabwatch.Watch) if name.startswith("__") and callable(vars(stabwatch.Watch)[name])
    }
    assert dunders >= {"__enter__", "__exit__", "__repr__"}
    assert callable(stabwatch.Watch._repr_html_)


def test_a_watch_has_no_public_attribute_beside_those(attach) -> None:
    import torch

    model = torch.nn.Linear(3, 2)
    watch = attach(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert [name for name in vars(watch) if not name.startswith("_")] == []


def test_a_watch_says_what_it_is(attach) -> None:
    import torch

    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = attach(model, optimizer, run="a-run")
    for _ in range(2):
        model(torch.ones(4, 3)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    model(torch.ones(4, 3))
    expected = f"<stabwatch.Watch run=a-run, state=watching, step=2, folder={watch.run_dir}, page=none, alerts=none>"
    assert repr(watch) == expected
    html = watch._repr_html_()
    assert "<td>a-run</td>" in html and "<td>2</td>" in html
    watch.detach()
    assert "state=detached" in repr(watch)


def _described(value: object) -> str:
    if isinstance(value, property):
        return "property"
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in _parameters(value)]
    return ", ".join(map(str, bare))


def _parameters(function) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'stabwatch' has no attribute 'atach'"):
        stabwatch.atach  # noqa: B018


def test_the_version_is_a_version_and_the_packages_own() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", stabwatch.__version__)
    try:
        installed = importlib.metadata.version("stabwatch")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("stabwatch is not installed here, only on the path")
    assert installed == stabwatch.__version__


def test_the_tree_of_errors_is_as_drawn() -> None:
    classes = [c for c in vars(errors).values() if inspect.isclass(c) and c.__module__ == errors.__name__]
    assert {c.__name__ for c in classes} == {
        "StabwatchError",
        "ConfigError",
        "RunLogError",
        "SeriesError",
        "LogError",
        "RuleError",
        "GrafanaError",
        "AgentError",
        "SinkError",
        "TrainingUnstableError",
        "MissingExtraError",
    }, f"The tree of errors {ON_PURPOSE}"
    for error in classes:
        assert issubclass(error, errors.StabwatchError)
        assert error.__name__ in (errors.__doc__ or ""), "the drawing at the top of errors.py"
        for base in error.__bases__:
            assert base.__name__ in ("Exception", "StabwatchError") or f"({base.__name__})" in (errors.__doc__ or "")


def test_the_package_is_marked_as_typed() -> None:
    assert (Path(stabwatch.__file__).parent / "py.typed").exists()
