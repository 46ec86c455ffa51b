"""Hugging Face Trainer and TRL: steps, losses, evaluation, ends, and going on from a checkpoint."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stabwatch
from stabwatch.errors import ConfigError
from stabwatch.runlog import Run, read_run

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate", reason="the Hugging Face Trainer needs accelerate")

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def make(tiny, tmp_path: Path):
    def make(model: Any = None, callbacks: Any = None, kind: Any = None, **arguments: Any) -> Any:
        given = transformers.TrainingArguments(**tiny.quiet(str(tmp_path / "out"), **arguments))
        data = {"train_dataset": tiny.sequences(), "eval_dataset": tiny.sequences(8)}
        trainer = (kind or transformers.Trainer)(model or tiny.llama(), given, callbacks=callbacks, **data)
        trainer.remove_callback(transformers.PrinterCallback)
        return trainer

    return make


def trained(trainer: Any, name: str = "loss") -> list[tuple[int, float]]:
    """(step, value) of what the trainer has logged."""
    return [(entry["step"], entry[name]) for entry in trainer.state.log_history if name in entry]


def recorded(run: Run, *series: str) -> list[tuple[int, float]]:
    steps, values = run.series(*series)
    return list(zip(map(int, steps), values, strict=True))


def assert_same(found: list[tuple[int, float]], truth: list[tuple[int, float]], tolerance: float = 1e-5) -> None:
    assert [step for step, _ in found] == [step for step, _ in truth]
    np.testing.assert_allclose([v for _, v in found], [v for _, v in truth], rtol=tolerance)


def end(run: Run) -> list[dict[str, Any]]:
    return [e.data for e in run.events if e.kind == "end"]


def test_steps_losses_and_metrics_are_the_trainers(make, settings) -> None:
    trainer = make(gradient_accumulation_steps=2, eval_strategy="steps", eval_steps=2, max_grad_norm=0.5)
    watch = stabwatch.attach(trainer, **settings)
    trainer.train()
    run = read_run(watch.run_dir)
    assert list(run.steps) == list(range(1, trainer.state.global_step + 1))
    assert_same(recorded(run, "loss"), trained(trainer))
    assert_same(recorded(run, "gradient_norm_before_clip"), trained(trainer, "grad_norm"))
    assert_same(recorded(run, "logged_value", "trainer_loss"), trained(trainer))
    assert_same(recorded(run, "logged_value", "grad_norm"), trained(trainer, "grad_norm"))
    assert_same(recorded(run, "logged_value", "eval_loss"), trained(trainer, "eval_loss"))
    assert_same(recorded(run, "logged_value", "train_runtime"), trained(trainer, "train_runtime"), 1e-3)
    assert [d["reason"] for d in end(run)] == ["finished"]
    assert not [e for e in run.events if e.kind == "error"]


def test_training_is_the_same_as_unwatched(make, settings) -> None:
    unwatched, watched = make(), make()
    unwatched.train()
    stabwatch.attach(watched, **settings)
    watched.train()
    assert trained(unwatched) == trained(watched)
    theirs, ours = unwatched.model.state_dict(), watched.model.state_dict()
    assert all(theirs[name].equal(ours[name]) for name in theirs)


def test_a_callback_made_by_hand_does_the_same(make, settings) -> None:
    from stabwatch.integrations.transformers import StabwatchCallback

    callback = StabwatchCallback(**settings)
    trainer = make(callbacks=[callback])
    with pytest.raises(AttributeError, match="begins when its training begins"):
        _ = callback.watch.run_dir
    trainer.train()
    run = read_run(callback.watch.run_dir)
    assert_same(recorded(run, "loss"), trained(trainer))
    assert [d["reason"] for d in end(run)] == ["finished"]


def test_a_logged_mean_over_steps_is_no_loss_of_a_step(make, settings) -> None:
    trainer = make(logging_steps=3)
    watch = stabwatch.attach(trainer, **settings)
    trainer.train()
    run = read_run(watch.run_dir)
    losses = dict(recorded(run, "loss"))
    assert sorted(losses) == [1, 2, 3, 4, 5, 6]
    means = [(3, np.mean([losses[s] for s in (1, 2, 3)])), (6, np.mean([losses[s] for s in (4, 5, 6)]))]
    assert_same(recorded(run, "logged_value", "trainer_loss"), means)


def test_a_model_that_peft_wraps_after_the_trainer_was_made(make, settings, tiny) -> None:
    peft = pytest.importorskip("peft")

    class Wraps(transformers.Trainer):
        def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
            lora = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], r=2)
            self.model = self.model_wrapped = peft.get_peft_model(self.model, lora)
            self.callback_handler.model = self.model
            return super()._inner_training_loop(*args, **kwargs)

    trainer = make(kind=Wraps)
    watch = stabwatch.attach(trainer, **settings)
    trainer.train()
    run = read_run(watch.run_dir)
    assert_same(recorded(run, "loss"), trained(trainer))
    layers = run.meta.model["layers"]
    assert "model.layers.0.self_attn.q_proj" in layers, "wrappers leave no trace in the names"
    assert not any(layer.startswith("base_model") for layer in layers), layers
    measured = {key.layer for key in run.keys if key.signal == "layer_gradient_norm"}
    assert measured and all(layer.startswith("model.layers.") for layer in measured), "the adapters are trained"


def stop_at(step: int, error: BaseException) -> Any:
    class Stops(transformers.TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step:
                raise error

    return Stops()


@pytest.mark.parametrize(
    ("error", "reason", "said"),
    [(ValueError("broken"), "exception", "ValueError: broken"), (KeyboardInterrupt(), "interrupted", None)],
    ids=["exception", "interrupted"],
)
def test_an_exception_ends_the_run_and_goes_on(make, settings, error, reason, said) -> None:
    trainer = make(callbacks=[stop_at(3, error)])
    watch = stabwatch.attach(trainer, **settings)
    with pytest.raises(type(error)):
        trainer.train()
    run = read_run(watch.run_dir)
    assert list(run.steps) == [1, 2, 3]
    ((found),) = end(run)
    assert (found["reason"], found.get("error")) == (reason, said)


def test_a_training_that_stopped_without_a_word_is_no_finished_one(make, settings) -> None:
    from stabwatch.integrations.transformers import StabwatchCallback

    del settings["run_dir"]
    settings["root"] = str(Path(make().args.output_dir) / "runs")
    callback, stop = StabwatchCallback(**settings, run="first"), stop_at(3, ValueError("broken"))
    trainer = make(callbacks=[callback, stop])
    with pytest.raises(ValueError, match="broken"):
        trainer.train()
    first = callback.watch.run_dir
    trainer.remove_callback(stop)
    callback.watch.settings["run"] = "second"
    trainer.train()
    assert callback.watch.run_dir != first
    assert [d["reason"] for d in end(read_run(first))] == ["exception"]
    assert [d["reason"] for d in end(read_run(callback.watch.run_dir))] == ["finished"]


def test_a_training_goes_on_from_a_checkpoint_in_its_run_folder(make, settings) -> None:
    del settings["run_dir"]
    settings["root"] = str(Path(make().args.output_dir) / "runs")
    arguments = {"save_strategy": "steps", "save_steps": 3, "lr_scheduler_type": "constant"}
    first = make(**arguments, max_steps=3)
    watch = stabwatch.attach(first, **settings)
    first.train()
    second = make(**arguments, max_steps=6)
    again = stabwatch.attach(second, **settings)
    second.train(resume_from_checkpoint=True)
    assert again.run_dir == watch.run_dir
    run = read_run(watch.run_dir)
    assert list(run.steps) == [1, 2, 3, 4, 5, 6]
    assert_same(recorded(run, "loss"), [*trained(first), *[x for x in trained(second) if x[0] > 3]])


def test_settings_of_a_callback_are_checked_when_it_is_made() -> None:
    from stabwatch.integrations.transformers import StabwatchCallback

    with pytest.raises(ConfigError, match="no setting `every_stp`"):
        StabwatchCallback(every_stp=True)


def test_a_copied_callback_watches_nothing(make, settings) -> None:
    trainer = make()
    watch = stabwatch.attach(trainer, **settings)
    trainer.train()
    assert copy.deepcopy(watch).watch is None
    assert copy.deepcopy(watch).settings == watch.settings


def trl_trainer(kind: str, tiny: Any, folder: Path, **arguments: Any) -> Any:
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    common = tiny.quiet(str(folder), bf16=False, gradient_checkpointing=False, max_steps=4, **arguments)
    tokenizer = {"processing_class": tiny.tokenizer()}
    if kind == "sft":
        texts = datasets.Dataset.from_list([{"text": "a" * 14 if i % 4 else "xy"} for i in range(64)])
        return trl.SFTTrainer(tiny.llama(), trl.SFTConfig(**common, max_length=16), train_dataset=texts, **tokenizer)
    if kind == "dpo":
        pairs = [{"prompt": f"{i}+1=", "chosen": f"{i + 1}", "rejected": f"{i + 7}"} for i in range(64)]
        given = {"args": trl.DPOConfig(**common, max_length=16), "train_dataset": datasets.Dataset.from_list(pairs)}
        return trl.DPOTrainer(tiny.llama(), tiny.llama(), **given, **tokenizer)
    prompts = datasets.Dataset.from_list([{"prompt": f"{i}+1="} for i in range(64)])
    sizes = {"num_generations": 4, "max_completion_length": 6}
    given = {"args": trl.GRPOConfig(**common, **sizes), "train_dataset": prompts}
    return trl.GRPOTrainer(tiny.llama(), lambda completions, **_: [float(len(set(c))) for c in completions], **given,
                           **tokenizer)  # fmt: skip


METRICS = {"sft": "mean_token_accuracy", "dpo": "logps/chosen", "grpo": "reward"}


@pytest.mark.parametrize("kind", ["sft", "dpo", "grpo"])
def test_trl_steps_and_metrics(kind, tiny, settings, tmp_path) -> None:
    trainer = trl_trainer(kind, tiny, tmp_path / "out", gradient_accumulation_steps=2)
    watch = stabwatch.attach(trainer, **settings)
    trainer.train()
    run = read_run(watch.run_dir)
    assert list(run.steps) == [1, 2, 3, 4]
    assert_same(recorded(run, "logged_value", METRICS[kind]), trained(trainer, METRICS[kind]))
    assert [d["reason"] for d in end(run)] == ["finished"]


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("sft", {"per_device_train_batch_size": 8}),
        ("sft", {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}),
        ("dpo", {}),
        ("grpo", {}),
    ],
)  # fmt: skip
def test_trl_loss_is_the_trained_one(kind, arguments, tiny, settings, tmp_path) -> None:
    trainer = trl_trainer(kind, tiny, tmp_path / "out", learning_rate=3e-2, **arguments)
    watch = stabwatch.attach(trainer, **settings)
    trainer.train()
    (steps, losses), truth = read_run(watch.run_dir).series("loss"), trained(trainer)
    assert list(steps) == [step for step, _ in truth]
    np.testing.assert_allclose(losses, [loss for _, loss in truth], rtol=1e-4, atol=1e-4)


def test_sentence_transformers_is_known(settings) -> None:
    package = pytest.importorskip("sentence_transformers")
    assert issubclass(package.SentenceTransformerTrainer, transformers.Trainer)
