"""torch.compile: the taps are traced, cost nothing when they are off, and are never silently missing."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import checkpoint

from stabwatch.demo import GPT, DemoConfig
from stabwatch.hooks.base.flags import PHASES
from stabwatch.hooks.base.probe import PROBES
from stabwatch.hooks.compiled import observe
from stabwatch.hooks.functions import CLIPPED_IN_GRAPH
from stabwatch.runlog import Accumulator
from stabwatch.runtime.coverage import IN_CHECKPOINT, not_in_graph
from stabwatch.runtime.governor import Plan
from tests.models import Mixture
from tests.sampling import sample

CONFIG = DemoConfig(width=32, layers=2, heads=2, context=16)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _train(compile_model, attach, steps=4, when="before", **settings):
    torch.manual_seed(0)
    model = GPT(CONFIG)
    data = torch.randint(0, 256, (4, 17))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def step(call):
        loss = F.cross_entropy(call(data[:, :-1]).flatten(0, 1), data[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    if when == "after":
        call = compile_model(model)
        step(call)
    watch = attach(model, optimizer, **settings)
    if when == "before":
        call = compile_model(model)
    for _ in range(steps):
        step(call)
    return watch, attach.finish(), [p.detach().clone() for p in model.parameters()]


def _same(a, b, signals):
    for key in a.keys:
        if key.signal in signals:
            mine, theirs = a.series(key.signal, key.layer), b.series(key.signal, key.layer)
            assert len(mine[1]) > 0, key
            np.testing.assert_array_equal(mine[0], theirs[0])
            np.testing.assert_allclose(theirs[1], mine[1], rtol=1e-4, atol=1e-5, err_msg=str(key))


SIGNALS = {
    "loss", "gradient_norm", "layer_gradient_norm", "output_rms", "activation_abs_max", "attention_logit_max",
    "attention_logit_head", "output_logit_logsumexp", "output_logit_z", "update_to_weight_ratio",
    "residual_growth", "activation_gradient_rms", "backward_growth",
    "geometry_stability", "token_similarity", "token_mean_to_centred_ratio", "activation_kurtosis",
    "activation_outlier_ratio", "activation_zero_ratio", "activation_exponent_spread", "activation_saturated_ratio",
    "attention_entropy", "attention_entropy_min", "attention_contraction", "attention_sink_ratio",
    "attention_sink_heads_ratio",
    "mean_mode_energy_ratio", "mean_mode_to_centred_ratio", "writer_amplification", "dead_units_ratio",
}  # fmt: skip


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_fullgraph_gives_the_same_statistics_without_a_graph_break(backend, attach):
    counter = CompileCounterWithBackend(backend)
    _, eager, _ = _train(lambda m: m, attach, steps=PHASES)
    _, compiled, _ = _train(lambda m: torch.compile(m, fullgraph=True, backend=counter), attach, steps=PHASES)
    assert counter.frame_count == 1, "the sites that take turns share one graph"
    _same(eager, compiled, SIGNALS)
    coverage = [e for e in compiled.events if e.kind == "coverage"][-1]
    assert not coverage.data["missing"]
    assert "attention_bracket" in {m["tap"] for m in coverage.data["unmeasured"]}
    told = {m["tap"]: m["reason"] for m in coverage.data["unmeasured"]}
    assert "exact value is on cadence" in told["attention_bracket"]
    assert [e["reason"] for e in coverage.data["unmeasured"] if e["tap"] != "attention_bracket"] == [
        not_in_graph(PROBES)
    ]


def test_a_compiled_run_is_bit_identical_with_and_without_a_watch(attach):
    def plain(model, optimizer, **settings):
        return None

    plain.finish = lambda: None
    compile_model = lambda m: torch.compile(m, fullgraph=True, backend="aot_eager")  # noqa: E731
    _, _, without = _train(compile_model, plain)
    torch._dynamo.reset()
    _, _, watched = _train(compile_model, attach)
    assert all(torch.equal(a, b) for a, b in zip(without, watched, strict=True))


def test_off_steps_run_a_graph_without_statistics(attach):
    """Two graphs, one with and one without: switching compiles nothing, nor does the tier of every step."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.manual_seed(0)
    model = GPT(CONFIG)
    watch = attach(model, every_step=True)
    call = torch.compile(model, fullgraph=True, backend=backend)
    tokens = torch.randint(0, 256, (2, 8))
    sizes = []
    flags = watch._session.flags
    for flags.open, flags.sampled in ((True, True), (False, False), (True, False), (True, True), (False, False)):
        call(tokens).sum().backward()
        sizes.append(len(graphs))
    assert sizes == [1, 2, 2, 2, 2]
    names = ["".join(str(n.target) for n in g.graph.nodes) for g in graphs]
    assert "observe" in names[0] and "observe_attention" in names[0]
    assert "observe" not in names[1] and "isfinite" not in names[1]


@pytest.mark.slow
def test_blocks_compiled_one_by_one_share_their_graph(attach):
    def regional(counter):
        def compile_model(model):
            for block in model.blocks:
                block.compile(fullgraph=True, backend=counter)
            return model

        return compile_model

    bare = CompileCounterWithBackend("aot_eager")
    torch.manual_seed(0)
    model = regional(bare)(GPT(CONFIG))
    model(torch.randint(0, 256, (4, 16))).sum().backward()
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    _, eager, _ = _train(lambda m: m, attach, steps=PHASES)
    _, compiled, _ = _train(regional(counter), attach, steps=PHASES)
    _same(eager, compiled, SIGNALS | {"attention_causal_ratio"})
    assert counter.frame_count <= bare.frame_count + 1


@pytest.mark.slow
def test_a_router_and_its_loads_are_seen_inside_a_graph(attach):
    def train(compile_model):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), Mixture())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        attach(model, optimizer)
        call = compile_model(model)
        for _ in range(PHASES):
            optimizer.zero_grad()
            call(torch.randn(30, 8)).square().mean().backward()
            optimizer.step()
        return attach.finish()

    eager, compiled = train(lambda m: m), train(lambda m: torch.compile(m, fullgraph=True, backend="aot_eager"))
    _same(
        eager, compiled, {"router_entropy", "router_dropped_ratio", "expert_load_ratio", "activation_saturated_ratio"}
    )


class WithLoss(nn.Module):
    """A model that computes its loss itself, as those of transformers do."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 5)

    def forward(self, x, y):
        return {"loss": F.cross_entropy(self.inner(x), y, label_smoothing=0.1)}


def _train_with_loss(attach, compile_model, steps=3, plan=None):
    torch.manual_seed(0)
    model = WithLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = attach(model, optimizer)
    if plan is not None:
        watch._session._pace.governor.plan = plan
    call = compile_model(model)
    for _ in range(steps):
        optimizer.zero_grad()
        call(torch.randn(30, 8), torch.randint(5, (30,)))["loss"].backward()
        optimizer.step()
    return attach.finish()


def test_a_loss_inside_a_graph_is_in_every_record_and_needs_two_graphs(attach):
    """Whatever the governor plans: the graph would be another one for each tier that it looks at."""
    counter = CompileCounterWithBackend("aot_eager")
    plans = (Plan(True, True, True), Plan(False, False, False), Plan(True, False, False))
    log = _train_with_loss(
        attach, lambda m: torch.compile(m, fullgraph=True, backend=counter), 9, lambda step: plans[step % 3]
    )
    assert counter.frame_count == 2
    for signal in ("token_loss", "loss"):
        assert len(log.series(signal)[1]) == 9
    np.testing.assert_allclose(log.series("token_loss")[1], log.series("loss")[1], rtol=1e-6)


def test_the_logits_of_a_loss_inside_a_graph_are_looked_at(attach):
    eager = _train_with_loss(attach, lambda m: m)
    compiled = _train_with_loss(attach, lambda m: torch.compile(m, fullgraph=True, backend="aot_eager"))
    _same(eager, compiled, {"loss", "output_entropy", "output_logit_max", "logit_scaling_cosine"})


def test_what_was_traced_is_measured_deeply_only_with_the_sampled_tier(attach):
    model = GPT(CONFIG)
    watch = attach(model, every_step=False)
    watch._session._pace.governor.plan = lambda step: Plan(True, False, True)
    watch._session._plan_next()
    assert not watch._session.flags.sampled
    watch._session.flags.traced = True
    watch._session._plan_next()
    assert watch._session.flags.sampled and watch._session.flags.deep


def test_recomputation_is_not_seen_twice_and_an_ended_watch_sees_nothing(attach):
    model = GPT(CONFIG)
    attach(model)
    site = model.blocks[0]._stabwatch
    site.flags.deep, site.flags.phase = True, site.index
    row = site.context.accumulators._rows[Accumulator("residual", "blocks.0", "shape")]
    observe(site.graph_handle, [torch.ones(2, 3, 32)])
    assert row[0] == 2 * 3 * 32
    x = torch.ones(2, requires_grad=True)
    x.register_hook(lambda grad: observe(site.graph_handle, [torch.ones(2, 3, 32)]))
    x.sum().backward()
    assert row[0] == 2 * 3 * 32
    observe(torch.tensor([-1, 0]), [torch.ones(2, 3, 32)])
    assert row[0] == 2 * 3 * 32


def test_attached_after_the_first_compiled_call_it_works_or_says_so(attach, caplog):
    with caplog.at_level(logging.WARNING, logger="stabwatch"):
        watch, log, _ = _train(
            lambda m: torch.compile(m, fullgraph=True, backend="aot_eager"), attach, steps=10, when="after"
        )
    missing = watch.coverage()["missing"]
    if any(m["tap"] == "activation" for m in missing):
        assert any("before `attach`" in m["reason"] for m in missing)
        assert "compiled and called before `attach`" in caplog.text
        assert log.series("taps_missing")[1][-1] > 0
    else:
        assert len(log.series("output_rms", "blocks.0")[1]) == 10
    # what needs no hook inside the compiled graph goes on
    assert len(log.series("gradient_norm")[1]) == 10
    assert len(log.series("loss")[1]) == 10


class Checkpointed(nn.Module):
    """As `checkpoint` is used: around blocks within a compiled model, or around the parts that are compiled."""

    def __init__(self, around):
        super().__init__()
        blocks = [nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8)) for _ in range(2)]
        self.blocks = nn.ModuleList(map(checkpoint_wrapper, blocks) if around else blocks)
        self.around, self.head = around, nn.Linear(8, 4)

    def forward(self, x):
        for block in self.blocks:
            x = block(x) if self.around else checkpoint(block, x, use_reentrant=False)
        return self.head(x)


@pytest.mark.parametrize("around", sample([False, True], False), ids=["within", "wrapper"])
def test_a_checkpoint_inside_a_graph_compiles_as_without_a_watch_and_is_told(around, attach):
    def train(watched):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        torch.manual_seed(0)
        model = Checkpointed(around)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        watch = attach(model, optimizer) if watched else None
        if around:
            for block in model.blocks:
                block.compile(backend=counter, fullgraph=True)
        call = model if around else torch.compile(model, backend=counter, fullgraph=True)
        for _ in range(10):
            call(torch.randn(4, 8)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        return [p.detach() for p in model.parameters()], counter.frame_count, watch

    plain, graphs, _ = train(False)
    watched, more, watch = train(True)
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
    if around:
        assert more == graphs
    attach.finish()
    missing = {m["site"]: m["reason"] for m in watch.coverage()["missing"] if m["tap"] == "activation"}
    assert missing == {"blocks.0": IN_CHECKPOINT, "blocks.1": IN_CHECKPOINT}


@pytest.mark.parametrize("clipped", [False, True])
def test_a_compiled_loop_with_compiled_autograd_breaks_where_it_did(attach, clipped):
    """Nothing of ours is compiled between the graphs of the user's step: `backward` is not a graph of its own."""

    def broken(watched):
        torch._dynamo.reset()
        counters.clear()
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if watched:
            attach(model, optimizer, every_step=True)

        @torch.compile(backend="aot_eager")
        def forward_and_backward(x, target):
            F.cross_entropy(model(x), target).backward()
            if clipped:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)

        with torch._dynamo.config.patch(compiled_autograd=True):
            for _ in range(3):
                optimizer.zero_grad()
                forward_and_backward(torch.randn(6, 8), torch.randint(4, (6,)))
                optimizer.step()
        return dict(counters["graph_break"]), [p.detach().clone() for p in model.parameters()]

    (bare, weights), (breaks, watched) = broken(False), broken(True)
    assert breaks == bare
    assert all(torch.equal(a, b) for a, b in zip(weights, watched, strict=True))
    log = attach.finish()
    assert len(log.series("loss")[1]) == 3
    notes = {note["tap"]: note["reason"] for e in log.events if e.kind == "coverage" for note in e.data["notes"]}
    assert notes.get("clip_grad_norm_") == (CLIPPED_IN_GRAPH if clipped else None)
