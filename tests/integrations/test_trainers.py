"""Lightning, Ignite, fastai and Accelerate: steps, losses, evaluation, ends; what `attach` says of other objects."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import stabwatch
from stabwatch.errors import ConfigError
from stabwatch.integrations import TRAINERS, TrainerWatch
from stabwatch.runlog import Run, read_run

pytestmark = pytest.mark.filterwarnings("default")


def ends(run: Run) -> list[tuple[str, str | None]]:
    return [(e.data["reason"], e.data.get("error")) for e in run.events if e.kind == "end"]


def logged(run: Run, name: str) -> dict[int, float]:
    return dict(zip(*run.series("logged_value", name), strict=True))


class Losses:
    """The true losses of the steps, by number."""

    def __init__(self) -> None:
        self.parts: dict[int, list[float]] = {}

    def note(self, step: int, loss: torch.Tensor) -> torch.Tensor:
        self.parts.setdefault(step, []).append(loss.item())
        return loss

    def check(self, run: Run) -> None:
        steps, values = run.series("loss")
        assert list(run.steps) == list(steps) == sorted(self.parts)
        np.testing.assert_allclose(values, [np.mean(self.parts[s]) for s in steps], rtol=1e-5)
        assert not [e.data for e in run.events if e.kind == "error"]


# -- Lightning ------------------------------------------------------------------------------------------


@pytest.fixture
def lightning(tiny, tmp_path):
    return _lightning(pytest.importorskip("lightning"), tiny, tmp_path)


def _lightning(package, tiny, tmp_path):
    class Module(package.LightningModule):
        def __init__(self, fail: BaseException | None = None, manual: bool = False) -> None:
            super().__init__()
            self.net, self.losses, self.fail = tiny.classifier(), Losses(), fail
            self.automatic_optimization = not manual

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            if self.fail is not None and self.global_step == 3:
                raise self.fail
            loss = self.losses.note(self.global_step, nn.functional.cross_entropy(self.net(batch[0]), batch[1]))
            self.log("batch_loss", loss)
            if not self.automatic_optimization:
                self.optimizers().zero_grad()
                self.manual_backward(loss)
                self.optimizers().step()
            return loss

        def validation_step(self, batch: Any, index: int) -> None:
            self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    def make(**arguments: Any) -> Any:
        off = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        return package.Trainer(**{**off, "enable_checkpointing": False, "default_root_dir": tmp_path, **arguments})

    return Module, make


@pytest.mark.parametrize("arguments", [{}, {"accumulate_grad_batches": 2}], ids=["plain", "accumulated"])
def test_lightning_steps_and_losses_are_the_trainers(lightning, tiny, settings, arguments) -> None:
    module, trainer = lightning[0](), lightning[1](max_epochs=2, val_check_interval=4, **arguments)
    watch = stabwatch.attach(trainer, **settings)
    trainer.fit(module, tiny.batches(), tiny.batches(count=32))
    run = read_run(watch.run_dir)
    module.losses.check(run)
    assert len(run.steps) == trainer.global_step
    assert len(logged(run, "val_loss")) == 4
    found = logged(run, "batch_loss")
    assert sorted(found) == list(run.steps)
    np.testing.assert_allclose(list(found.values()), [np.mean(p) for p in module.losses.parts.values()], rtol=1e-5)
    assert ends(run) == [("finished", None)]


def test_the_older_package_of_lightning_is_known_too(tiny, settings, tmp_path) -> None:
    package = pytest.importorskip("pytorch_lightning")
    kind, make = _lightning(package, tiny, tmp_path)
    module, trainer = kind(), make(max_steps=6)
    watch = stabwatch.attach(trainer, **settings)
    assert isinstance(trainer.callbacks[-1], package.Callback)
    trainer.fit(module, tiny.batches())
    run = read_run(watch.run_dir)
    module.losses.check(run)
    assert list(run.steps) == list(range(6))
    assert ends(run) == [("finished", None)]


def test_lightning_with_manual_optimization(lightning, tiny, settings) -> None:
    module, trainer = lightning[0](manual=True), lightning[1](max_steps=6)
    watch = stabwatch.attach(trainer, **settings)
    trainer.fit(module, tiny.batches())
    module.losses.check(read_run(watch.run_dir))


def test_lightning_goes_on_from_a_checkpoint(lightning, tiny, settings) -> None:
    first, second = lightning[0](), lightning[0]()
    trainer = lightning[1](max_steps=4)
    stabwatch.attach(trainer, **settings)
    trainer.fit(first, tiny.batches())
    path = trainer.default_root_dir + "/last.ckpt"
    trainer.save_checkpoint(path)
    trainer = lightning[1](max_steps=8)
    watch = stabwatch.attach(trainer, **settings)
    trainer.fit(second, tiny.batches(), ckpt_path=path)
    first.losses.parts.update(second.losses.parts)
    first.losses.check(read_run(watch.run_dir))


def test_lightning_ends_with_the_exception(lightning, tiny, settings) -> None:
    trainer = lightning[1](max_steps=6)
    watch = stabwatch.attach(trainer, **settings)
    with pytest.raises(ValueError, match="broken"):
        trainer.fit(lightning[0](fail=ValueError("broken")), tiny.batches())
    run = read_run(watch.run_dir)
    assert list(run.steps) == [0, 1, 2]
    assert ends(run) == [("exception", "ValueError: broken")]


# -- Ignite ---------------------------------------------------------------------------------------------


@pytest.fixture
def ignite(tiny):
    engine = pytest.importorskip("ignite.engine")
    model, losses = tiny.classifier(), Losses()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def loss_of(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return losses.note(trainer.state.iteration, nn.functional.cross_entropy(output, target))

    trainer = engine.create_supervised_trainer(model, optimizer, loss_of)
    return engine, trainer, losses, model


def test_ignite_steps_are_its_iterations(ignite, tiny, settings) -> None:
    engine, trainer, losses, model = ignite
    evaluator = engine.create_supervised_evaluator(model)
    trainer.add_event_handler(engine.Events.EPOCH_COMPLETED, lambda _: evaluator.run(tiny.batches(count=32)))
    watch = stabwatch.attach(trainer, **settings)
    trainer.run(tiny.batches(), max_epochs=2)
    run = read_run(watch.run_dir)
    losses.check(run)
    assert list(run.steps) == list(range(1, trainer.state.iteration + 1))
    assert ends(run) == [("finished", None)]


def test_ignite_ends_with_the_exception(ignite, tiny, settings) -> None:
    engine, trainer, _, _ = ignite

    def fail(engine: Any) -> None:
        raise ValueError("broken")

    trainer.add_event_handler(engine.Events.ITERATION_COMPLETED(once=3), fail)
    watch = stabwatch.attach(trainer, **settings)
    with pytest.raises(ValueError, match="broken"):
        trainer.run(tiny.batches())
    assert ends(read_run(watch.run_dir)) == [("exception", "ValueError: broken")]


def test_ignite_terminated_early_is_finished(ignite, tiny, settings) -> None:
    engine, trainer, losses, _ = ignite
    trainer.add_event_handler(engine.Events.ITERATION_COMPLETED(once=3), lambda e: e.terminate())
    watch = stabwatch.attach(trainer, **settings)
    trainer.run(tiny.batches())
    run = read_run(watch.run_dir)
    losses.check(run)
    assert ends(run) == [("finished", None)]


def test_an_ignite_engine_that_hides_its_model_is_refused(ignite, settings) -> None:
    with pytest.raises(ConfigError, match=r"StabwatchHandler\(model, optimizer\)"):
        stabwatch.attach(ignite[0].Engine(lambda engine, batch: None), **settings)


# -- fastai ---------------------------------------------------------------------------------------------


@pytest.fixture
def learner(tiny):
    basics = pytest.importorskip("fastai.basics")
    losses = Losses()

    def loss_of(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        loss = nn.functional.cross_entropy(output, target)
        return losses.note(made.train_iter, loss) if made.training else loss

    loaders = basics.DataLoaders.from_dsets(tiny.points(), tiny.points(32), bs=16, device="cpu", num_workers=0)
    adamw = partial(basics.OptimWrapper, opt=torch.optim.AdamW)
    made = basics.Learner(loaders, tiny.classifier(), loss_func=loss_of, opt_func=adamw)
    made.losses = losses
    return made


def test_fastai_steps_are_its_training_batches(learner, settings) -> None:
    watch = stabwatch.attach(learner, **settings)
    with learner.no_logging():
        learner.fit(2, 1e-2)
    run = read_run(watch.run_dir)
    learner.losses.check(run)
    assert len(run.steps) == 16
    assert sorted(logged(run, "valid_loss")) == [7, 15]
    assert ends(run) == [("finished", None)]


def test_predictions_with_fastai_are_no_training(learner, settings) -> None:
    watch = stabwatch.attach(learner, **settings)
    with learner.no_logging():
        learner.get_preds()
    assert watch.watch is None


def test_fastai_with_its_own_optimizer(learner, settings) -> None:
    from fastai.optimizer import Adam

    learner.opt_func = Adam
    watch = stabwatch.attach(learner, **settings)
    with learner.no_logging():
        learner.fit(1, 1e-2)
    assert len(read_run(watch.run_dir).steps) == 8


# -- Accelerate -----------------------------------------------------------------------------------------


@pytest.fixture
def accelerate():
    return pytest.importorskip("accelerate")


def test_accelerate(accelerate, tiny, settings) -> None:
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, losses = tiny.classifier(), Losses()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model, optimizer, loader = accelerator.prepare(model, optimizer, tiny.batches())
    watch = stabwatch.attach(accelerator, **settings)
    for index, (x, y) in enumerate(loader):
        with accelerator.accumulate(model):
            loss = losses.note(index // 2, nn.functional.cross_entropy(model(x), y))
            accelerator.log({"noted": loss.item(), "text": "no number"})
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
    accelerator.end_training()
    run = read_run(watch.run_dir)
    losses.check(run)
    assert sorted(logged(run, "noted")) == [0, 1, 2, 3]
    assert "text" not in {key.layer for key in run.keys}
    assert ends(run) == [("finished", None)]


def test_accelerate_before_prepare_is_refused(accelerate, settings) -> None:
    with pytest.raises(ConfigError, match=r"call `attach` after `accelerator.prepare`"):
        stabwatch.attach(accelerate.Accelerator(cpu=True), **settings)


# -- all ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("thing", [None, "model", object(), ["model"]], ids=lambda x: type(x).__name__)
def test_attach_says_what_it_takes(thing) -> None:
    with pytest.raises(ConfigError, match=r"takes a torch.nn.Module or a trainer of transformers, lightning, ignite"):
        stabwatch.attach(thing, agent=False)


def test_a_trainer_has_its_own_optimizer(ignite, settings) -> None:
    _, trainer, _, model = ignite
    for more in ({"optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}, {"first_step": 3}):
        with pytest.raises(ConfigError, match="its own optimizers and step numbers"):
            stabwatch.attach(trainer, **more, **settings)


def test_settings_are_checked_before_the_training_begins(settings) -> None:
    with pytest.raises(ConfigError, match="no setting `every_stp`"):
        stabwatch.attach(object(), every_stp=True)


def test_each_declared_class_is_there() -> None:
    """A trainer whose class has moved would not be known any more."""
    missing = []
    for path, name in TRAINERS.items():
        module, _, kind = path.rpartition(".")
        if name in ("transformers", "accelerate", "lightning", "pytorch_lightning", "ignite", "fastai"):
            found = pytest.importorskip(module)
            if f"{getattr(found, kind).__module__}.{getattr(found, kind).__qualname__}" != path:
                missing.append(path)
    assert missing == []


@pytest.mark.parametrize("guarded", [True, False])
def test_a_training_that_begins_again_by_itself_is_replaced(guarded, tiny, settings) -> None:
    """Smaller batches, where the first did not fit. Where `train` has ended in between, the first one has stopped."""
    watch, model = TrainerWatch(settings), tiny.classifier()

    def train() -> None:
        for _ in range(2):
            watch.begin(model)
        watch.end()

    (watch.guard(train) if guarded else train)()
    stopped = ("replaced", None) if guarded else ("exception", "RuntimeError: the training stopped before its end")
    assert ends(read_run(watch.run_dir)) == [stopped, ("finished", None)]


def test_a_trainer_watch_forwards_to_the_watch(tiny, settings) -> None:
    watch = TrainerWatch(settings)
    assert "not begun" in repr(watch)
    watch.metrics({"ignored": 1.0})
    watch.step(3)
    watch.end()
    watch.begin(tiny.classifier())
    assert watch.run_dir == settings["run_dir"]
    with pytest.raises(AttributeError, match="a watch has no attribute `nothing`|no attribute 'nothing'"):
        _ = watch.nothing
    watch.detach()
    assert "detached" in repr(watch)
