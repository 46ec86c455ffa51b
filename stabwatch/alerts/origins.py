"""Where the first value that is not finite was made, as a `nonfinite` event says it: parsed, and in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from stabwatch.alerts.templates import format_batch
from stabwatch.runlog import Event

MOST_BATCHES = 4
"""Most batches of a step that are listed."""


@dataclass(frozen=True)
class Origin:
    """What one `nonfinite` event says. See `stabwatch.hooks.nonfinite.Origin`.

    loss: a number, 'nan', 'inf' or '-inf', or None where it is not known.
    """

    place: str
    step: int
    since: int
    layers: tuple[str, ...] = ()
    after: str = ""
    loss: float | str | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, event: Event) -> Origin:
        """Read an event; fields that are missing are not known."""
        data = dict(event.data)
        step = event.step or 0
        since, layers, loss = data.pop("since", step), data.pop("layers", ()), data.pop("loss", None)
        return cls(
            place=str(data.pop("place", "unknown")),
            step=step,
            since=since if isinstance(since, int) else step,
            layers=tuple(map(str, layers)) if isinstance(layers, list | tuple) else (),
            after=str(data.pop("after", "")),
            loss=loss if isinstance(loss, int | float | str) else None,
            facts=data,
        )

    @property
    def signal(self) -> str:
        """The counter of what is not finite in the step in which it was seen: gradients, activations, or the loss."""
        if self.place == "buffer":
            return "activation_nonfinite_total"
        return f"{'gradient' if self.place == 'gradient' and self.since == self.step else 'loss'}_nonfinite_total"

    @property
    def layer(self) -> str:
        """The layer that this counter belongs to, '' for the loss, or where none is named."""
        return self.layers[0] if self.layers and not self.signal.startswith("loss") else ""

    @property
    def rank_sentence(self) -> str:
        """Which rank has seen it, '' where it is the one that writes the log, or the only one."""
        rank = self.facts.get("rank")
        return f"This was seen on rank {rank}." if isinstance(rank, int) else ""

    @property
    def grown(self) -> bool:
        """Numbers had grown until they were too large: what made them grow is the cause."""
        return bool(self.facts.get("grown"))

    @property
    def sentence(self) -> str:
        """What is known of it, and how."""
        return _SENTENCES.get(self.place, _unknown)(self)

    @property
    def summary(self) -> str:
        """The same without the step, and the loss of that step."""
        text = self.sentence.partition(": ")[2]
        return f"{text[:1].upper()}{text[1:]} {self.loss_sentence}".rstrip()

    @property
    def loss_sentence(self) -> str:
        """The loss of the step in which it was made; '' where `sentence` tells it."""
        if self.place in ("loss", "buffer"):
            return ""
        if self.loss is None:
            later = f" At step {self.step} it was not finite." if self.since < self.step else ""
            return f"The loss of step {self.since} is not known.{later}"
        if isinstance(self.loss, str):
            return f"The loss was {_number(self.loss)} in that step."
        more = f", and not finite at step {self.step}" if self.since < self.step else ""
        return f"The loss was {self.loss:.3g} in that step{more}."

    @property
    def batches(self) -> list[str]:
        """The batches of the step, as far as they are known."""
        known = self.facts.get("batches")
        mine = [b for b in known if isinstance(b, dict)] if isinstance(known, list) else []
        mine = [b for b in mine if b.get("step") == self.since]
        number = self.facts.get("passes")
        if self.place == "gradient" and isinstance(number, int) and number > 1:
            return [f"The step had {number} backward passes. In which of them it began is not known."]
        if self.since == self.step and isinstance(number, int) and number > 1:
            return [f"It was in backward pass number {number} of the step.", *map(_batch, mine[-1:])]
        return [_batch(b) for b in mine[:MOST_BATCHES]]


def _batch(entry: dict[str, Any]) -> str:
    return f"Batch of step {entry['step']}: {format_batch(entry)}."


def _number(loss: str) -> str:
    return {"nan": "NaN", "inf": "infinite", "-inf": "minus infinity"}.get(loss, loss)


def named(layers: Sequence[str], most: int = 3) -> str:
    """'a', 'a and b', 'a, b, c and 4 more'."""
    names = [layer or "the model" for layer in layers[:most]]
    if len(layers) > most:
        return f"{', '.join(names)} and {len(layers) - most} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _made(o: Origin) -> str:
    """How it was made, if that is known."""
    operation = o.facts.get("operation")
    if o.facts.get("outside"):
        return " The loss got it from outside of the graph: a constant, a target, a weight, an advantage."
    if operation:
        return f" It was made by {operation}."
    if o.grown:
        return f" Numbers had grown until {o.facts.get('dtype', 'their type')} could not hold them."
    return ""


def _data(o: Origin) -> str:
    if o.facts.get("target"):
        return f"Step {o.since}: the targets of the loss held NaN or infinity while the weights were finite."
    where = f" {o.layers[0]} was the first to get it." if o.layers and o.layers[0] else ""
    return f"Step {o.since}: the model's input held NaN or infinity while the weights were finite.{where}"


def _forward(o: Origin) -> str:
    text = f"Step {o.since}: a value that is not finite was made in the forward pass, from finite weights"
    where = o.layers[0] if o.layers else ""
    if where and o.after and o.after != where:
        text += f": in {where}, or just before it and after {o.after}"
    elif where:
        text += f": in {where}, or just before it"
    return f"{text}.{_made(o)}"


def _loss(o: Origin) -> str:
    loss = _number(o.loss) if isinstance(o.loss, str) else "not finite"
    finite = "the weights and all that the model returned were" if o.facts.get("outputs") else "the weights were"
    text = f"Step {o.since}: the loss was {loss} while {finite} finite"
    if o.facts.get("targets") == 0:
        return f"{text}. Every target had the label that is ignored: the mean over none is 0 / 0."
    where = f", after {o.after}" if o.after and not o.facts.get("outputs") else ""
    return f"{text}: the value was made in the loss{where}.{_made(o)}"


def _gradient(o: Origin) -> str:
    if o.since < o.step:
        how = (
            "what the optimizer remembers of their gradient was not finite"
            if o.facts.get("remembered")
            else "plain SGD makes such a value only from a gradient that is not finite, or from one that is too large"
        )
        text = (
            f"Step {o.since}: the weights of {named(o.layers)} were not finite after it"
            if o.layers
            else (f"Step {o.since}: the weights up to the last layer were not finite after it")
        )
        between = f" Those of {o.after}, which comes later, were finite." if o.after else ""
        return f"{text}, and {how}.{between}"
    if o.layers:
        return (
            f"Step {o.since}: the gradient of {o.layers[0]} was not finite while that of {o.after}, which comes after "
            "it, was: the value was made in the backward pass between the two."
        )
    return (
        f"Step {o.since}: the gradients were not finite up to the last layer: the value was made in the backward pass "
        "of the loss, or after the last layer."
    )


def _update(o: Origin) -> str:
    text = (
        f"Step {o.since}: the weights of {named(o.layers)} were not finite after the step of {o.facts.get('optimizer')}"
    )
    if "epsilon" in o.facts:
        text += f", whose epsilon of {o.facts['epsilon']:g} is 0 in {o.facts.get('dtype')}"
    how = (
        "what the optimizer remembers of their gradient was"
        if o.facts.get("remembered")
        else "the gradients that were looked at were"
    )
    return f"{text}; {how} finite. Nothing else wrote into them since, as far as autograd counts it."


def _weights(o: Origin) -> str:
    text = f"Step {o.since}: the weights of {named(o.layers)} were not finite in the forward pass"
    if o.facts.get("before") == "first step":
        return f"{text}, before any step was taken."
    return f"{text}: something wrote into them after the optimizer's last step."


def _buffer(o: Origin) -> str:
    return (
        f"Step {o.since}: the running statistics of {named(o.layers)} were not finite while training went on: a batch "
        "had NaN or infinity, and in evaluation mode the model gives NaN."
    )


def _unknown(o: Origin) -> str:
    if o.facts.get("before") == "ranks":
        return (
            f"Step {o.since}: the weights of {named(o.layers)} were not finite. On which rank that began is not known."
        )
    return (
        f"Step {o.since}: the loss was not finite while the weights were. Whether the value was made in the forward "
        f"pass or in the loss is not known.{_made(o)}"
    )


_SENTENCES = {
    "data": _data, "forward": _forward, "loss": _loss, "gradient": _gradient, "update": _update, "weights": _weights,
    "buffer": _buffer,
}  # fmt: skip
