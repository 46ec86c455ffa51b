"""`attach`, and the `Watch` that it returns: all that a training script calls."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from html import escape
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from stabwatch import plugins
from stabwatch.alerts.preflight import Preflight, preflight
from stabwatch.config import Config
from stabwatch.errors import ConfigError
from stabwatch.integrations.environment import PREFLIGHT
from stabwatch.runtime import arguments
from stabwatch.runtime.notices import say
from stabwatch.runtime.resume import has_run, read_state
from stabwatch.runtime.session import Session

if TYPE_CHECKING:
    from stabwatch.alerts import Alert

PREFLIGHT_SECONDS = 5.0


def attach(
    model: nn.Module,
    optimizer: Any = None,
    *,
    loss_fn: Any = None,
    run_dir: str | Path | None = None,
    config: Config | Mapping[str, Any] | str | Path | None = None,
    on_alert: Callable[[Alert], object] | None = None,
    first_step: int = 0,
    resume: str | Path | None = None,
    **overrides: Any,
) -> Watch:
    """Watch a training run from the inside; one line before the loop.

    Args:
        model: any module, also one wrapped in DistributedDataParallel or torch.compile (not yet called). Or a trainer
            of a library in docs/trainers.md: its model is watched from the moment that training begins. Of several
            models that are trained together (GAN, actor and critic), attach each; of several stages of a pipeline on
            one rank, attach `nn.ModuleList(stages)`.
        optimizer: the optimizer, or several of them; found by itself when left out. A step of the run ends
            when all of them have stepped.
        loss_fn: a loss module to read the loss from where no backward pass is seen (a step that is compiled as a
            whole). Otherwise the loss is what the backward passes of the step start from, see docs/trained-loss.md.
        run_dir: folder for the run log; a new one below `stabwatch-runs` by default. Or the address of one in an object
            store (`s3://bucket/runs/name`): it is written below `stabwatch-runs` and copied there (docs/stores.md).
        config: a Config, a mapping, or a YAML file; single settings may follow as keywords (see `Config`), such as
            `name=`, `tags=` and `notes=`, by which people find the run again (`stabwatch tag` changes them later).
        on_alert: called with each `stabwatch.alerts.Alert` that fires or resolves, between two steps (on rank 0). What
            it raises is logged, and training goes on; a TrainingUnstableError is let through.
        first_step: number of the first step, for a run that goes on from a checkpoint.
        resume: folder of the run that goes on, or 'auto': the newest run below `root` with the same `run` (or, where
            that is not set, of the same model) whose process is gone and that has not finished. `run_dir` comes before
            it. Where a folder has no run, a new one begins there, and that is said. A checkpoint can keep folder and
            step instead: see `Watch.state_dict`.

    Returns a Watch, or for a trainer a `stabwatch.integrations.TrainerWatch`, which has the methods of a Watch once
    training has begun. Values, gradients and random numbers of the training are the same with it as without it.

    Raises ConfigError if a keyword is unknown or out of range, if `model` is neither a module nor a known trainer, or
    if another argument is nothing of its kind. What is wrong in an environment variable or in a settings file is logged
    as an error and left out. Nothing else is raised, now or later (but for TrainingUnstableError, for who asks for
    `guard="raise"`): when attaching fails, that is logged with its traceback, and the watch that comes back is detached
    already.
    """
    given: dict[str, Any] = {"loss_fn": loss_fn, "run_dir": run_dir, "on_alert": on_alert, "resume": resume}
    arguments.check(model, optimizer, first_step, given)
    settings = Config.for_training(config, **overrides)
    if folder := os.environ.get(PREFLIGHT):
        settings = replace(settings, agent=False, verbose=False, every_step=True)
        given |= {"run_dir": folder, "resume": None}
    given["config"] = settings
    if not isinstance(model, nn.Module):
        from stabwatch.integrations import attach_to_trainer

        if optimizer is not None or first_step:
            raise ConfigError("A trainer has its own optimizers and step numbers: give `attach` none with it.")
        return attach_to_trainer(model, given)
    plugins.load()
    make = partial(Session, model, optimizer, **given)
    return Watch(make(first_step=first_step), make)


class Watch:
    """A watched run; `attach` makes it.

    A context manager: leaving the block ends the run. `detach` ends it too, and so does the end of the process, or that
    of the model, when nobody holds it any more.
    """

    def __init__(self, session: Session, make: Callable[..., Session]) -> None:
        self._session = session
        self._make = make

    @property
    def run(self) -> str:
        """Name of the run."""
        return self._session.run

    @property
    def run_dir(self) -> Path:
        """Folder of the run log on this machine."""
        return self._session.run_dir

    @property
    def config(self) -> Config:
        """The settings in force."""
        return self._session.config

    @property
    def step(self) -> int:
        """Number of the step that is open now, from 0."""
        return self._session.step

    @property
    def url(self) -> str | None:
        """Address of the live page, or None while no agent serves it."""
        return self._session.url()

    def wait_for_agent(self, timeout: float = 10.0) -> str | None:
        """Address of the live page, or None if no agent serves it within `timeout` seconds."""
        return self._session.url(timeout)

    def coverage(self) -> dict[str, Any]:
        """What has been measured so far, and what has not.

        Returns a dict: `taps` (names of the taps that have measured something), `fired` (how many accumulators have),
        `missing` (list of {tap, site, reason}: should have been measured), `unmeasured` (the same, for what this model
        cannot show), `notes` (list of {tap, reason}: what else is to be known about the measurements).
        """
        return self._session.coverage()

    def preflight(self) -> Preflight:
        """Print what the steps so far show of the set-up, and return it. One batch is enough.

        Judged are losses that are not given what they expect (probabilities, shapes that broadcast, targets out of
        range or ignored), the first loss against a uniform guess, inputs that are not scaled, parts without gradient
        or optimizer, modes, dead units, and steps that are far too large or too small. The first step must have ended:
        call it after `optimizer.step()`. Waits for the log, at most five seconds.
        """
        self._session.settle(PREFLIGHT_SECONDS)
        found = preflight(self.run_dir)
        print(found)
        return found

    def log(self, **scalars: float | Tensor) -> None:
        """Record numbers of this step, one scalar each.

        `loss` takes the place of the loss that the hooks see. Every other name becomes a series of its own. What is no
        single number is left out, which is said once for each name.
        """
        if inputs := self._session.inputs:
            inputs.log(scalars)

    def log_policy(
        self,
        logp: Tensor,
        old_logp: Tensor | None = None,
        ref_logp: Tensor | None = None,
        rollout_logp: Tensor | None = None,
        advantage: Tensor | None = None,
        mask: Tensor | None = None,
        clip: float | tuple[float, float] = 0.2,
    ) -> None:
        """Record what tells whether a policy that is trained by its own samples is still well: reinforcement learning.

        Divergences (k1 and k3) from the reference, from the policy before the update and from the one that sampled,
        the entropy that the samples show, importance ratios, the share that is clipped, and the scale of advantages.
        Call it once for each micro-batch; of several calls in a step the numbers are those of all samples.

        Args:
            logp: log-probability of each sample (token, action) under the policy that is trained, any shape.
            old_logp, ref_logp, rollout_logp: of the same samples under the policy before the update, under the
                reference, and as the sampler (an inference engine, say) returned them. The same shape.
            advantage: of each sample, or of each sequence, (batch,).
            mask: which samples count; by default all. The same shape as logp.
            clip: the importance ratio is clipped to 1 - clip ... 1 + clip; or the two distances.

        Nothing of it waits for the device.
        """
        given = {"old_logp": old_logp, "ref_logp": ref_logp, "rollout_logp": rollout_logp, "advantage": advantage}
        if inputs := self._session.inputs:
            inputs.log_policy(logp, given | {"mask": mask, "clip": clip})

    def log_batch(self, indices: Any = None, **facts: Any) -> None:
        """Say which batch this step (or micro-batch) is trained on, so that an alert can name it.

        Args:
            indices: of its samples in the dataset: a list, an array or a tensor.
            facts: anything else that names it, such as `epoch=3, shard="00031"`.

        Kept for the last steps and written with an alert, beside a fingerprint and the first token ids of the model's
        first input (`stabwatch.fingerprint` computes the same of a batch).
        """
        if inputs := self._session.inputs:
            inputs.log_batch(indices, facts)

    def begin_step(self, number: int) -> None:
        """Say that a step of the training loop begins, and which number the loop gives it.

        Call it before each step's first forward, on every rank. What is logged until the next call belongs to this
        step, also after `optimizer.step()`. Without these calls steps are counted from `first_step`, and a step ends
        when its optimizers have stepped. It may be called before each micro-batch: the step ends with the micro-batch
        after which an optimizer steps, and has that one's number.
        """
        self._session.begin_step(number)

    def announce(self, what: str) -> None:
        """Say that the data or the loss change from this step on, and that the change is intended.

        Another task, a new mixture, a longer context, another weight of a loss term. Rules that compare the loss and
        the gradient norm with their own past start again, so that they do not fire for it; all others go on. Call it
        between two steps, on every rank or on rank 0. `what` is shown beside the curves.
        """
        self._session.announce(what)

    def probe(self, *args: Any, **kwargs: Any) -> None:
        """Track how far the representations of one batch move, e.g. geometry_drift.

        The arguments are those of one call of the model. The model is called on them now, for the reference, and then
        once in a round of deep steps; at most 128 tokens are compared, so a few samples are enough. Values, gradients
        and random numbers of the training stay the same, but other people's hooks see these calls. A new batch is a
        new reference.
        """
        if inputs := self._session.inputs:
            inputs.probe(args, kwargs)

    def token_groups(self, **masks: Tensor) -> None:
        """Say which tokens of the next batch are of one kind: `text=..., image=...`, bool (batch, tokens) each.

        token_similarity, token_mean_to_centred_ratio and the mean-mode signals average each kind apart; a token of no
        kind is padding. Not needed where the model is called with `attention_mask` or a key padding mask by name.
        """
        if inputs := self._session.inputs:
            inputs.token_groups(masks)

    def quantised(
        self,
        weight: nn.Parameter,
        scale: Tensor | float | Callable[[Tensor], Tensor],
        low: int,
        high: int,
        zero_point: Tensor | float = 0,
        axis: int = 0,
    ) -> None:
        """Describe a quantiser of your own, so that the flips of a weight's integers are measured while it is trained.

        The integers are clamp(round(weight / scale + zero_point), low, high). Quantisers of torch.ao, torchao and those
        that look like LSQ's are found without it. Call it before the first step, on every rank.

        Args:
            weight: a parameter of the model, before it is quantised.
            scale: a tensor that training changes in place, or a function that gets the weight and returns one, such as
                `lambda w: w.abs().mean()`; called on deep steps, without gradients. One number, one for each channel,
                or one for each block: of as many dimensions as the weight.
            low, high: the smallest and the largest integer, of 16 bits at most: -1 and 1 for ternary weights.
            zero_point: one number, or as many as the scale has. scale and zero_point lie on the weight's device.
            axis: of the channels.
        """
        given = {"scale": scale, "low": low, "high": high, "zero_point": zero_point, "axis": axis}
        if inputs := self._session.inputs:
            inputs.quantised(weight, given)

    def state_dict(self) -> dict[str, Any]:
        """Where the run is now, to be saved in a checkpoint: its name, its folder and the number of its next step."""
        return self._session.checkpoint()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the run that has saved this state: in its folder, from its next step.

        Call it after `attach` and before the first step, on every rank. The folder that `attach` has made stays without
        records; its run ends as 'replaced'. Where the folder of the state is not there, the run stays in its own, and
        its steps are numbered from that of the state. After the first step nothing changes; both are said on standard
        error. Steps after the checkpoint that the log has already are left out by all that reads it. Rules that are
        evaluated in the training process (`on_alert`, guards) take their baselines from the log, as the agent does.

        Raises ConfigError if `state` is not what `state_dict` returned.
        """
        folder, step = read_state(state)
        session = self._session
        if session.copied:
            return
        if session.begun:
            say("load_state_dict is ignored: it comes after the first step of the run.")
            return
        there = has_run(folder)
        if session.writes and not there:
            say(f"there is no run in {folder}; the log is in {session.run_dir}.")
        if session.alone and (not there or folder.resolve() == session.run_dir.resolve()):
            session.number_from(step)
            return
        session.detach("replaced")  # on every rank alike
        where: dict[str, Any] = {"run_dir": None, "resume": folder} if there else {}
        self._session = self._make(first_step=step, **where)

    def restore(self, timeout: float = 60.0) -> int | None:
        """Go on from the newest snapshot that every rank of an earlier attempt has left with its peers.

        For `guard="snapshot"` with `snapshot_peers="copy"` or `"parity"` (docs/guards.md). Call it after `attach`,
        which must be given the optimizers, and before the first step, on every rank. Parameters, buffers, optimizer
        state and random states are then those at the end of a step, bit for bit, and the number of the next step comes
        back: set the data and the learning-rate schedule to it. None if not all ranks can go back to the same step:
        then nothing has changed, and you load a checkpoint. What was done, or why not, is said on standard error.

        Args:
            timeout: seconds to wait for the other ranks.
        """
        return self._session.restore(timeout)

    def detach(self) -> None:
        """End the run: remove every hook, write what is left, close the run log. Safe to call twice."""
        self._session.detach()

    def __deepcopy__(self, memo: dict[int, Any]) -> Watch:
        """The watch itself: a copy of what holds it (a model that keeps it as an attribute) is not watched."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """In a checkpoint, and in another process, it is a watch that has ended."""
        return _ended, (self.run, self.run_dir)

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.ended(error)

    def __repr__(self) -> str:
        return f"<stabwatch.Watch {', '.join(f'{name}={value}' for name, value in self._facts())}>"

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{escape(name)}</th><td>{_linked(value)}</td></tr>" for name, value in self._facts())
        return f"<table><caption>stabwatch</caption>{rows}</table>"

    def _facts(self) -> list[tuple[str, str]]:
        """Run, state, step, folder, page and active alerts, as `repr` shows them."""
        alerts = [f"{alert.severity} {alert.rule}" + f" ({alert.layer})" * bool(alert.layer)
                  for alert in self._session.active_alerts]  # fmt: skip
        return [
            ("run", self.run or "none"),
            ("state", self._session.state),
            ("step", str(self.step)),
            ("folder", str(self.run_dir)),
            ("page", self.url or "none"),
            ("alerts", "; ".join(alerts) or "none"),
        ]


def _ended(run: str, run_dir: Path) -> Watch:
    return Watch(Session.ended_elsewhere(run, run_dir), Session)


def _linked(value: str) -> str:
    text = escape(value)
    return f'<a href="{text}">{text}</a>' if value.startswith("http") else text
