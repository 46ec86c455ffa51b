"""What `attach` is given by mistake is said in one sentence; what works is not complained about."""

from __future__ import annotations

import functools
import re

import pytest
import torch
from torch import nn

import stabwatch
from stabwatch.errors import ConfigError


class Stepper:
    """No optimizer of torch's."""

    def step(self):
        raise NotImplementedError


class Shy:
    def __getattr__(self, name):
        raise RuntimeError("do not ask")


def model():
    return nn.Linear(2, 2)


AN_OPTIMIZER = "an optimizer (an object with a method `step`) or a list of them"
WRONG = [
    ({"optimizer": "adam"}, f"`optimizer` must be {AN_OPTIMIZER}, and is 'adam'."),
    ({"optimizer": 1e-3}, f"`optimizer` must be {AN_OPTIMIZER}, and is 0.001."),
    ({"optimizer": torch.optim.SGD}, f"`optimizer` must be {AN_OPTIMIZER}, and is <class 'torch.optim.sgd.SGD'>."),
    ({"optimizer": functools.partial(torch.optim.SGD, lr=1)}, "is an object of functools.partial."),
    ({"optimizer": model().parameters()}, "is an object of builtins.generator."),
    ({"optimizer": list(model().parameters())}, "is an object of torch.nn.parameter.Parameter."),
    ({"optimizer": model()}, "is an object of torch.nn.modules.linear.Linear."),
    ({"optimizer": {"all": torch.optim.SGD(model().parameters(), 1)}}, "is an object of builtins.dict."),
    ({"optimizer": Shy()}, "is an object of tests.runtime.test_arguments.Shy."),
    ({"on_alert": "mail"}, "`on_alert` must be a function, and is 'mail'."),
    ({"loss_fn": 3}, "`loss_fn` must be a function or a module, and is 3."),
    ({"run_dir": ""}, "`run_dir` must be the path of a folder, and is ''."),
    ({"run_dir": 3}, "`run_dir` must be the path of a folder, and is 3."),
    ({"resume": True}, "`resume` must be the path of a folder, and is True."),
    ({"first_step": "100"}, "`first_step` must be a whole number from 0, and is '100'."),
    ({"first_step": -1}, "`first_step` must be a whole number from 0, and is -1."),
]


@pytest.mark.parametrize(("given", "said"), WRONG)
def test_what_is_wrong_is_said_and_nothing_is_written(given, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(said)):
        stabwatch.attach(model(), **given)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("optimizer", [None, [], (), Stepper(), [Stepper(), Stepper()]])
def test_what_may_be_an_optimizer_is_taken(optimizer, attach):
    watch = attach(model(), optimizer)
    assert watch._session.state == "watching"
    attach.finish()
