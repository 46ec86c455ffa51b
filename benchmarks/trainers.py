"""Every recipe of hooks/, 300 steps at default settings: healthy, and with a learning rate that is far too large.

python benchmarks/trainers.py [NAME ...] | tee found.jsonl; python benchmarks/trainers.py --table found.jsonl

A recipe runs as it is, with more data. The losses of the run log are compared with the tensors on which the trainer
called `backward`, summed over the micro-batches of a step and averaged over ranks, and with the losses that it logs, if
it keeps them. Prints a line of JSON for each run, and the table of docs/trainers.md from them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from stabwatch.analysis.analyze import analyze
from stabwatch.runlog import read_run
from tests.integrations.recipes import HOOKS, RECIPES, Recipe

STEPS = 300
TOO_LARGE = 300.0
"""Times the learning rate of a recipe."""
SETTINGS = {
    "STABWATCH_VERBOSE": "0",
    "STABWATCH_LINGER": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
}


def prepare(factor: float) -> tuple[list[float], list[float]]:
    """Recipes in this process train longer, at another rate. Gives the losses since the last step, and of each step."""
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    sys.path.insert(0, str(HOOKS))
    import tiny

    roots: list[float] = []
    trained: list[float] = []
    backward, adamw, quiet, points, sequences = (
        torch.Tensor.backward, torch.optim.AdamW.__init__, tiny.quiet, tiny.points, tiny.sequences)  # fmt: skip

    def heard(self: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        roots.append(float(self.detach()))
        backward(self, *args, **kwargs)

    def stepped(*_: Any) -> None:
        trained.append(sum(roots))
        roots.clear()

    def faster(self: Any, params: Any, lr: float = 1e-3, **kwargs: Any) -> None:
        adamw(self, params, lr=float(lr) * factor, **kwargs)

    def longer(folder: str, **settings: Any) -> dict[str, Any]:
        found = quiet(folder, **settings)
        return {**found, "max_steps": STEPS, "learning_rate": 1e-3 * factor, "lr_scheduler_type": "constant"}

    torch.Tensor.backward = heard
    register_optimizer_step_post_hook(stepped)
    torch.optim.AdamW.__init__ = faster
    tiny.quiet = longer
    tiny.points = lambda count=128, **sizes: points(count * 80, **sizes)
    tiny.batches = lambda size=16, count=128: torch.utils.data.DataLoader(tiny.points(count), size)
    tiny.sequences = lambda count=64, **sizes: sequences(count * 8, **sizes)
    return roots, trained


def child(path: str, out: str, factor: float) -> None:
    """Run one recipe in this process, with `STEPS` steps; what it trained goes to a file."""
    import runpy

    if path.endswith(".ipynb"):
        return notebook(path, out, factor)
    _, trained = prepare(factor)
    if "fastai" in Path(path).read_text():
        from fastai.basics import Learner

        fit = Learner.fit
        Learner.fit = lambda self, epochs, lr: fit(self, epochs, lr * factor)
    names = runpy.run_path(path, run_name="__main__")
    watch = names.get("watch") or getattr(names.get("recipe"), "watch", None)
    if watch is not None:
        watch.detach()
    state = getattr(names.get("trainer"), "state", None)
    logged = [(e["step"], e["loss"]) for e in getattr(state, "log_history", []) if "loss" in e]
    rank = os.environ.get("RANK", "0")
    Path(f"{out}.{rank}").write_text(json.dumps({"trained": trained, "logged": logged}))


def notebook(path: str, out: str, factor: float) -> None:
    """Run a notebook in a kernel of its own."""
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.read(path, as_version=4)
    places = [str(Path(__file__).parents[1]), str(HOOKS)]
    first = (
        f"import sys; sys.path[:0] = {places}\nfrom benchmarks.trainers import prepare\n_, trained = prepare({factor})"
    )
    last = f"import json\nopen({out + '.0'!r}, 'w').write(json.dumps(dict(trained=trained, logged=[])))"
    book.cells = [nbformat.v4.new_code_cell(first), *book.cells, nbformat.v4.new_code_cell(last)]
    NotebookClient(book, timeout=300, kernel_name="python3").execute()


def trial(recipe: Recipe, factor: float) -> dict[str, Any]:
    """One run of a recipe in a folder of its own: its losses, its alerts, its verdict."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "trained"
        launch = (
            ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={recipe.ranks}"] if recipe.ranks else []
        )
        command = [sys.executable, *launch, __file__, "--child", str(recipe.path), str(out), str(factor)]
        done = subprocess.run(command, cwd=folder, env={**os.environ, **SETTINGS}, capture_output=True, text=True)
        if done.returncode:
            return {"failed": done.stderr.strip().splitlines()[-1:]}
        (meta,) = Path(folder).glob("stabwatch-runs/*/meta.json")
        run, found = read_run(meta.parent), analyze(meta.parent)
        truth = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("trained.*"))]
        steps, losses = run.series("loss")
        start = recipe.steps[0] - (0 if recipe.file != "ignite_handler.py" else 1)
        pace = 2 if recipe.file == "ignite_handler.py" else 1
        mean = [sum(each) / len(each) for each in zip(*(t["trained"] for t in truth), strict=True)]
        pairs = [(float(v), mean[(int(s) - start) // pace]) for s, v in zip(steps, losses, strict=True)]
        logged = dict(map(tuple, truth[0]["logged"]))
        theirs = [(float(v), logged[int(s)]) for s, v in zip(steps, losses, strict=True) if int(s) in logged]
        return {
            "steps": len(mean), "recorded": len(run.steps), "compared": len(pairs),
            "apart": max(abs(a - b) / max(1e-3, abs(b)) for a, b in pairs if b == b),
            "logged_apart": max((abs(a - b) for a, b in theirs if b == b), default=None),
            "first": pairs[:2], "last": pairs[-1:],
            "alerts": [f"{e.data['rule']}@{e.data.get('onset', e.step)}" for e in run.events if e.kind == "alert"],
            "verdict": found.diagnosis.verdict, "causes": [cause.name for cause in found.diagnosis.causes],
            "errors": [e.data for e in run.events if e.kind == "error"],
        }  # fmt: skip


def table(path: Path) -> str:
    """The newest of each recipe as a table in Markdown."""
    found: dict[str, dict[str, Any]] = {}
    for line in path.read_text().splitlines():
        run = json.loads(line)
        found.setdefault(run["recipe"], {})[run["kind"]] = run
    lines = [
        "| recipe | steps | losses apart, relative | healthy: alerts | learning rate too large: first cause | since |",
        "|---|---|---|---|---|---|",
    ]
    for recipe in RECIPES:
        both = found.get(recipe.file, {})
        if len(both) < 2 or any("failed" in run for run in both.values()):
            continue
        well, ill = both["healthy"], both["unstable"]
        apart = max(well["apart"], ill["apart"])
        told = ", ".join(dict.fromkeys(well["alerts"])) or "none"
        cause, onset = (ill["causes"] or ["none"])[0], min(int(a.split("@")[1]) for a in ill["alerts"])
        lines.append(f"| {recipe.file} | {well['recorded']} | {apart:.1g} | {told} | {cause} | {onset} |")
    return "\n".join(lines)


def main() -> None:
    """A line of JSON for each recipe and each of its two runs."""
    wanted = sys.argv[1:]
    for recipe in RECIPES:
        if not wanted or recipe.path.stem in wanted:
            for name, factor in (("healthy", 1.0), ("unstable", TOO_LARGE)):
                print(json.dumps({"recipe": recipe.file, "kind": name, **trial(recipe, factor)}), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3], float(sys.argv[4]))
    elif sys.argv[1:2] == ["--table"]:
        print(table(Path(sys.argv[2])))
    else:
        main()
