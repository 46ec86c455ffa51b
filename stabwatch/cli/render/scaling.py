"""What smaller runs say of a larger one, as text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from stabwatch.cli.render.text import clean, number

if TYPE_CHECKING:
    from rich.console import RenderableType

    from stabwatch.analysis.compare.scaling import Ladder, LossLaw, Scaling, Transfer


def rendered(found: Scaling) -> Iterator[RenderableType]:
    """The law of the loss, the transfer of the learning rate, the ladder; the last two only where there are runs."""
    yield Text("Loss over the model size", style="title") + Text("  (best learning rate of each size)", style="faint")
    yield _indented(_law(found.loss))
    if found.transfer is not None:
        yield Text("Transfer of the learning rate", style="title")
        yield _indented(_rungs(found.transfer))
        yield _indented(_fast(found.transfer))
    if found.ladder is not None:
        yield Text("The largest run and its ladder", style="title")
        yield _indented(_ladder(found.ladder))
    yield Text()


def _indented(part: RenderableType) -> RenderableType:
    return Padding(part, (0, 0, 0, 2), expand=False)


def _law(law: LossLaw) -> RenderableType:
    if law.refused:
        return Text(f"No law: {law.refused}.", style="warning")
    text = (
        f"{number(law.scale)} × parameters^{law.exponent:.3g} + {law.floor:.3g}  (95 %: exponent "
        f"{_range(law.exponents)}, floor {_range(law.floors)}). The law without the largest size misses it by "
        f"{abs(math.expm1(law.held_out)):.1%}"
    )
    text += f" ({'too low' if law.held_out > 0 else 'too high'})." if law.held_out else "."
    if law.prediction is not None:
        value, low, high = law.prediction
        text += f" Predicted: {number(value)} (95 %: {number(low)} to {number(high)})."
    return Text(text)


def _range(ends: tuple[float, float]) -> str:
    return f"{ends[0]:.3g} to {ends[1]:.3g}"


def _rungs(found: Transfer) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="faint")
    for heading in ("parameters", "best learning rate", "loss there", "loss more at the next size", "gap to it"):
        table.add_column(heading, justify="right")
    for rung in found.rungs[:-1]:
        table.add_row(*(number(v) for v in (rung.parameters, rung.rate, rung.loss, rung.excess, rung.gap)))
    last = found.rungs[-1]
    table.add_row(number(last.parameters), number(last.rate), number(last.loss), "-", "-")
    return table


def _fast(found: Transfer) -> RenderableType:
    drift = f"The best rate changes as parameters^{found.drift:.2g}. " if math.isfinite(found.drift) else ""
    if found.fast is None:
        return Text(f"{drift}Too few sizes to say whether transfer is fast.", style="faint")
    said = "faster" if found.fast else "not faster"
    return Text(
        f"{drift}With the size, what the next size loses at this rate falls {said} (exponent {found.excess:.2g}) than "
        f"the gap between the sizes ({found.gap:.2g}): transfer is {'fast' if found.fast else 'not fast'}."
    )


def _ladder(found: Ladder) -> RenderableType:
    expected = f"{number(found.low)} to {number(found.high)} by {found.smaller} smaller runs (95 %)"
    at = f"loss {number(found.value)}, {expected}"
    if found.left is None:
        return Text(f"{clean(found.run)} is on its ladder at step {found.step}: {at}.")
    side = "above" if found.value > found.high else "below"
    return Text(f"{clean(found.run)} is {side} its ladder from step {found.left} on: {at}.", style="warning")
