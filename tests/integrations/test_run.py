"""`stabwatch run`: the program is what it was, and it is watched."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import stabwatch
from stabwatch.cli.commands.run import full_command, ignores_environment
from stabwatch.integrations import environment
from stabwatch.integrations.first_step import find_model, is_compiled
from stabwatch.runlog import Run, read_run
from tests.processes import run_python
from tests.sampling import sample

ROOT = Path(stabwatch.__file__).parents[1]

TRAIN = """
import os, sys, torch
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
for step in range(6):
    x = torch.randn(16, 4)
    loss = torch.nn.functional.cross_entropy(model(x), x[:, :2].argmax(1))
    optimizer.zero_grad(); loss.backward(); optimizer.step()
    print(step, loss.item().hex(), flush=True)
"""
SHOW = "print(os.environ.get('PYTHONPATH'), [n for n in os.environ if n.startswith('STABWATCH_')])\n"
PROGRAM = TRAIN + SHOW + "print(sys.argv[1:], sys.stdin.read(), sys.flags.isolated)\nsys.exit(7)\n"


ONE_STEP = """
import torch, warnings
model = torch.nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(STEPS):
    warnings.warn("said once", UserWarning)
    model(torch.ones(3, 4)).square().sum().backward()
    optimizer.step()
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text(PROGRAM)
    return tmp_path


def environ(**more: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    quiet = {"STABWATCH_AGENT": "0", "STABWATCH_EVERY_STEP": "1", "PYTHONPATH": path}
    return {**os.environ, **quiet, **more}


def launch(*words: Any, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(list(map(str, words)), capture_output=True, timeout=120, check=False, **options)


def run(place: Path, *words: Any, **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = (sys.executable, "-m", "stabwatch", "run", *words)
    return launch(*command, cwd=place, env=options.pop("env", environ()), **options)


def runs(place: Path) -> list[Run]:
    return [read_run(meta.parent) for meta in sorted(place.glob("stabwatch-runs/*/meta.json"))]


def losses(output: bytes) -> dict[int, float]:
    """What a program printed of its steps."""
    lines = [line.split() for line in output.decode().splitlines()]
    return {int(a): float.fromhex(b) for a, b, *_ in (x for x in lines if len(x) == 2 and x[1].startswith("0x"))}


def test_output_exit_code_arguments_and_stdin_are_the_programs_own(place: Path) -> None:
    words = ("train.py", "--lr", "3", "--config", "x")
    bare = run_python(*words, cwd=place, env=environ(), input="hello")
    watched = run(place, "--", sys.executable, *words, input=b"hello")
    assert watched.stdout == bare.stdout.encode()
    assert watched.returncode == bare.returncode == 7
    assert b"hello" in watched.stdout
    assert watched.stderr.decode().splitlines() == [
        line for line in watched.stderr.decode().splitlines() if line.startswith("stabwatch: watching Sequential")
    ]
    (found,) = runs(place)
    steps, values = found.series("loss")
    assert list(steps) == [1, 2, 3, 4, 5]
    assert {s: v for s, v in losses(watched.stdout).items() if s} == pytest.approx(
        dict(zip(steps, values, strict=True))
    )
    assert [e.data["reason"] for e in found.events if e.kind == "end"] == ["exception"]
    assert not [e for e in found.events if e.kind == "error"]


WAYS = [("train.py", "a"), ("-m", "train", "a"), ("--", "python", "-", "a")]


@pytest.mark.parametrize("words", sample(WAYS, ("-m", "train", "a")), ids=str)
def test_other_ways_to_start_a_program(place: Path, words: tuple[str, ...]) -> None:
    folder = os.path.dirname(sys.executable)
    options: dict[str, Any] = {"env": environ(PATH=os.pathsep.join([folder, os.environ["PATH"]]))}
    text = PROGRAM.encode() if "-" in words else b""
    done = run(place, "--run-dir", "log", *words, input=text, **options)
    assert done.returncode == 7, done.stderr
    assert b"['a']" in done.stdout
    assert list(read_run(place / "log").steps) == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_settings_come_from_the_file(place: Path) -> None:
    (place / "settings.yaml").write_text("run: named\nverbose: false\n")
    done = run(place, "--config", "settings.yaml", "--", sys.executable, "train.py", input=b"")
    assert done.returncode == 7
    assert done.stderr == b""
    assert [r.meta.run for r in runs(place)] == ["named"]


def test_a_mistake_in_the_settings_is_said_before_the_program_starts(place: Path) -> None:
    (place / "settings.yaml").write_text("every_stp: true\n")
    done = run(place, "--config", "settings.yaml", "--", sys.executable, "train.py")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"every_stp" in done.stderr


def test_a_command_that_is_not_there(place: Path) -> None:
    done = run(place, "--", "no-such-command")
    assert (done.returncode, done.stdout) == (2, b"")


def signalled(place: Path, number: signal.Signals, *words: str) -> tuple[int, bytes]:
    """Exit code and standard error of a program that gets a signal once it is ready."""
    started = subprocess.Popen(
        words, cwd=place, env=environ(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in background jobs
    )  # fmt: skip
    assert started.stdout is not None
    while started.stdout.readline().strip() != b"ready":
        assert started.poll() is None
    started.send_signal(number)
    _, errors = started.communicate(timeout=60)
    return started.returncode, errors


@pytest.mark.parametrize("number", sample([signal.SIGINT, signal.SIGTERM, signal.SIGUSR1], signal.SIGINT))
def test_signals_reach_the_program(place: Path, number: signal.Signals) -> None:
    (place / "wait.py").write_text(TRAIN + "import time\nprint('ready', flush=True)\ntime.sleep(60)\n")
    plain, _ = signalled(place, number, sys.executable, "wait.py")
    watched, errors = signalled(
        place, number, sys.executable, "-m", "stabwatch", "run", "--", sys.executable, "wait.py"
    )
    assert watched == plain != 0
    (found,) = runs(place)
    ends = [e.data for e in found.events if e.kind == "end"]
    if number == signal.SIGINT:
        assert list(found.steps) == [1, 2, 3, 4, 5]
        assert b"KeyboardInterrupt" in errors
        assert [d["reason"] for d in ends] == ["interrupted"]
    else:
        assert ends == []  # it was killed, and nothing of it could say so


@pytest.mark.slow
def test_an_exception_ends_the_run(place: Path) -> None:
    (place / "fails.py").write_text(TRAIN + "raise ValueError('broken')\n")
    done = run(place, "fails.py")
    assert done.returncode == 1
    (found,) = runs(place)
    assert [e.data["error"] for e in found.events if e.kind == "end"] == ["ValueError: broken"]


@pytest.mark.slow
def test_a_warning_is_said_as_often_as_without_a_watch(place: Path) -> None:
    (place / "warns.py").write_text(ONE_STEP.replace("STEPS", "4"))
    bare = launch(sys.executable, "-W", "default", "warns.py", cwd=place, env=environ())
    watched = run(place, sys.executable, "-W", "default", "warns.py")
    assert bare.stderr.count(b"said once") == watched.stderr.count(b"said once") > 0
    assert len(runs(place)[0].steps) == 3


@pytest.mark.slow
def test_a_program_of_one_step_is_not_told_that_it_trains_nothing(place: Path) -> None:
    (place / "one.py").write_text(ONE_STEP.replace("STEPS", "1"))
    watched = run(place, sys.executable, "one.py")
    assert watched.returncode == 0 and b"not trained" not in watched.stderr
    assert b"no optimizer step was seen after the watch began, which was before step 1" in watched.stderr


@pytest.mark.slow
def test_programs_that_the_training_starts_are_left_alone(place: Path) -> None:
    nested = "import subprocess\nsubprocess.run([sys.executable, '-c', PROGRAM])\n"
    (place / "outer.py").write_text(f"PROGRAM = {TRAIN!r}\n{TRAIN}{SHOW}{nested}")
    bare = launch(sys.executable, "outer.py", cwd=place, env=environ())
    watched = run(place, "outer.py")
    assert watched.stdout == bare.stdout
    assert len(runs(place)) == 1


@pytest.mark.slow
def test_a_program_that_starts_the_training_is_not_it(place: Path) -> None:
    (place / "outer.py").write_text(f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {TRAIN!r}])\n")
    done = run(place, "outer.py")
    assert done.returncode == 0
    (found,) = runs(place)
    assert list(found.steps) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("start", sample(["fork", "spawn"], "fork"))
def test_workers_of_a_data_loader_are_left_alone(place: Path, start: str) -> None:
    text = """
import torch
if __name__ == "__main__":
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = torch.utils.data.TensorDataset(torch.randn(64, 4, generator=torch.Generator().manual_seed(0)))
    loader = torch.utils.data.DataLoader(data, 8, num_workers=2, multiprocessing_context="START")
    for epoch in range(2):
        for (x,) in loader:
            model(x).square().mean().backward()
            optimizer.step(); optimizer.zero_grad()
    print("done")
"""
    (place / "loader.py").write_text(text.replace("START", start))
    done = run(place, "loader.py")
    assert done.stdout == b"done\n", done.stderr
    (found,) = runs(place)
    assert list(found.steps) == list(range(1, 16))
    assert done.stderr.decode().count("stabwatch: watching") == 1


def test_a_program_that_attaches_itself_is_watched_once(place: Path) -> None:
    attach = "import stabwatch\nwatch = stabwatch.attach(model, optimizer)\nfor step"
    (place / "own.py").write_text(TRAIN.replace("for step", attach, 1))
    done = run(place, "own.py")
    assert done.returncode == 0
    (found,) = runs(place)
    assert list(found.steps) == [0, 1, 2, 3, 4, 5]


@pytest.mark.slow
def test_a_second_model_is_said_not_to_be_watched(place: Path) -> None:
    second = """
other = torch.nn.Linear(4, 2)
second = torch.optim.SGD(other.parameters(), lr=0.1)
other(torch.randn(3, 4)).sum().backward(); second.step(); second.step()
"""
    (place / "two.py").write_text(TRAIN + second)
    done = run(place, "two.py")
    assert done.returncode == 0
    assert done.stderr.decode().count("SGD trains parameters outside of the model that is watched") == 1


def test_a_program_without_torch_loads_nothing(place: Path) -> None:
    (place / "plain.py").write_text("import sys, json\nprint(json.dumps(sorted(sys.modules)))\n")
    bare = launch(sys.executable, "plain.py", cwd=place, env=environ())
    watched = run(place, "plain.py")
    new = set(json.loads(watched.stdout)) - set(json.loads(bare.stdout))
    assert not {name for name in new if name.startswith(("stabwatch", "torch", "typing"))}
    assert len(new) < 12, new
    assert runs(place) == []


def test_another_sitecustomize_is_run_too(place: Path) -> None:
    other = place / "other"
    other.mkdir()
    (other / "sitecustomize.py").write_text("import builtins\nbuiltins.customized = __file__\n")
    (place / "plain.py").write_text("import sys\nprint(customized, sys.modules['sitecustomize'].__file__, sys.path)\n")
    path = environ(PYTHONPATH=os.pathsep.join([str(other), str(ROOT)]))
    bare = launch(sys.executable, "plain.py", cwd=place, env=path)
    watched = run(place, "plain.py", env=path)
    assert watched.stdout == bare.stdout
    assert str(other).encode() in watched.stdout


@pytest.mark.slow
def test_a_python_without_stabwatch_says_so(place: Path) -> None:
    path = environ(PYTHONPATH=environment.STARTUP)
    hide = "import sys\nsys.modules['stabwatch'] = None\n"
    (place / "hidden.py").write_text(hide + PROGRAM)
    done = launch(sys.executable, "hidden.py", cwd=place, env=path, input=b"")
    assert done.returncode == 7
    assert done.stderr.decode().count("the training is not watched: stabwatch cannot be loaded") == 1


@pytest.mark.slow
def test_each_job_of_torchrun_is_one_run(place: Path) -> None:
    head = "import torch.distributed as dist\ndist.init_process_group('gloo')\n"
    wrap = "model = torch.nn.parallel.DistributedDataParallel(model)\nfor step"
    text = TRAIN.replace("torch.manual_seed(0)", head + "torch.manual_seed(0)").replace("for step", wrap, 1)
    (place / "ddp.py").write_text(text + "dist.destroy_process_group()\n")
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "ddp.py"]
    done = run(place, "--", *words)
    assert done.returncode == 0, done.stderr
    (found,) = runs(place)
    assert found.meta.world_size == 2
    assert list(found.steps) == [1, 2, 3, 4, 5]


def test_the_launcher_does_not_wait(place: Path) -> None:
    """It becomes the program: one process, whose id is the one that was started."""
    (place / "pid.py").write_text("import os\nprint(os.getpid())\n")
    words = [sys.executable, "-m", "stabwatch", "run", "pid.py"]
    started = subprocess.Popen(words, cwd=place, env=environ(), stdout=subprocess.PIPE)
    output, _ = started.communicate(timeout=60)
    assert int(output) == started.pid


# -- which model ----------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Wrapper(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def sgd(*parts: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for part in parts for p in part.parameters()], lr=0.1)


def found(optimizer: torch.optim.Optimizer, *modules: nn.Module, others: tuple[Any, ...] = ()) -> Any:
    return find_model(optimizer, (optimizer, *others), [m for module in modules for m in module.modules()])


def test_the_model_is_the_smallest_with_all_parameters() -> None:
    net, other = Net(), Net()
    assert found(sgd(net), other, Wrapper(net)) is net
    assert found(sgd(net.blocks), net) is net, "a list of modules is never called"
    assert found(sgd(net.head), Wrapper(net)) is net.head
    assert found(sgd(net.blocks), Wrapper(net), others=(sgd(net.head),)) is net, "two optimizers of one model"
    assert found(sgd(net), Wrapper(net), other, others=(sgd(other),)) is net, "two models"


def test_a_model_whose_parts_alone_are_called_is_watched_where_no_other_fits() -> None:
    class Agent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.actor, self.critic = Net(), Net()

    class Trainer(Agent):
        def training_step(self) -> None: ...

    agent = Agent()
    assert found(sgd(agent), agent) is agent
    assert found(sgd(agent.actor), agent) is agent.actor
    assert found(sgd(agent.actor), agent, others=(sgd(agent.critic),)) is agent.actor, "one that is called comes first"
    assert found(sgd(trainer := Trainer()), trainer) is trainer.actor, "it has a callback of its own"


def test_a_model_of_one_layer_has_a_parent() -> None:
    wrapper = Wrapper(nn.Linear(4, 2))
    assert found(sgd(wrapper), wrapper) is wrapper


def test_of_models_that_nothing_holds_together_the_largest_is_watched() -> None:
    one, two, small = Net(), Wrapper(Net()), nn.Linear(4, 2)
    two.net.blocks.append(nn.Linear(4, 4))
    assert found(sgd(one, two, small), small, one, two) is two.net
    assert found(sgd(one, small), small, one, Net()) is one
    temperature = nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([*one.parameters(), temperature], lr=0.1)
    assert found(optimizer, small, one) is one


def test_parameters_without_a_module_have_no_model() -> None:
    free = nn.Parameter(torch.zeros(3))
    assert find_model(torch.optim.SGD([free], lr=0.1), [], [Net()]) is None


def test_compiled_models_are_known() -> None:
    net, other = Net(), Net()
    compiled = torch.compile(net)
    assert is_compiled(net, [compiled, net])
    assert is_compiled(Wrapper(net), [compiled])
    assert not is_compiled(other, [compiled])
    other.head.compile()
    assert is_compiled(other, [])


# -- the command ----------------------------------------------------------------------------------------


def test_the_command_is_completed() -> None:
    assert full_command(["train.py", "-x"]) == [sys.executable, "train.py", "-x"]
    assert full_command(["-m", "train"]) == [sys.executable, "-m", "train"]
    assert full_command(["torchrun", "train.py"]) == ["torchrun", "train.py"]


@pytest.mark.parametrize(
    ("words", "ignored"),
    [
        ("python -I train.py", True),
        ("/usr/bin/python3 -uE -m train", True),
        ("python -u train.py -I", False),
        ("python -W ignore::SyntaxWarning x.py", False),
        ("python -c pass -S", False),
        ("torchrun -S x", False),
    ],
)
def test_options_that_keep_stabwatch_out(words: str, ignored: bool) -> None:
    assert ignores_environment(words.split()) is ignored


def test_the_environment_is_restored() -> None:
    for before in ({}, {"PYTHONPATH": "/a:/b"}, {"PYTHONPATH": "/a", "STABWATCH_AGENT": "0"}):
        now = dict(before)
        environment.add_to(now, Path("settings.yaml"), "/log")
        assert now != before
        environment.take_from(now)
        assert now == before


def test_the_start_is_cheap(place: Path) -> None:
    """The folder on the path costs a start of Python no more than a few milliseconds."""

    def fastest(**more: str) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            launch(sys.executable, "-c", "pass", env=environ(**more))
            times.append(time.perf_counter() - start)
        return min(times)

    with_it = fastest(PYTHONPATH=os.pathsep.join([environment.STARTUP, str(ROOT)]))
    assert with_it - fastest(PYTHONPATH=str(ROOT)) < 0.1
