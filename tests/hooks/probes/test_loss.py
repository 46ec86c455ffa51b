"""The loss is what is trained on; the token loss is that of the valid targets, whichever way it was reduced."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

from tests.sampling import sample

SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, vocab_size=64)


class WithLoss(nn.Module):
    """A model that computes its own loss, from targets where it is given some."""

    def __init__(self, reduction="mean"):
        super().__init__()
        self.inner = nn.Linear(6, 5)
        self.reduction = reduction

    def forward(self, x, target=None):
        z = self.inner(x)
        if target is None:
            return {"loss": z.square().mean()}
        return {"loss": 3 * F.cross_entropy(z, target, reduction=self.reduction)}


class Masked(nn.Module):
    """A classifier that never gives class 0."""

    def __init__(self, ignored):
        super().__init__()
        self.inner, self.ignored = nn.Linear(6, 5), ignored

    def logits(self, x):
        return self.inner(x).masked_fill(torch.arange(5) == 0, -torch.inf)

    def forward(self, x, target):
        return F.cross_entropy(self.logits(x), target, ignore_index=self.ignored)


def _train(attach, model, batches, loss):
    """One step over micro-batches; gives its log, in which the loss is the sum of what `backward` was called on."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    attach(model, optimizer)
    trained = 0.0
    for batch in batches:
        part = loss(*batch)
        trained += part.item()
        part.backward()
    optimizer.step()
    log = attach.finish()
    assert log.series("loss")[1].tolist() == pytest.approx([trained], rel=1e-5)
    return log


def _uneven(rows=(3, 20)):
    """Micro-batches of classes, the first of a kind quite other than the second; some targets to be ignored."""
    torch.manual_seed(0)
    parts = [(torch.randn(n, 6) * n, torch.randint(0, 5, (n,))) for n in rows]
    parts[1][1][:9] = -100
    return parts


def _language(rows, length=12):
    ids = torch.randint(64, (rows, length))
    labels = ids.clone()
    labels[0, : length // 2] = -100
    return ids, labels


def _token_loss(model, batches):
    """Mean over the valid targets of all micro-batches, in float64."""
    with torch.no_grad():
        logits = [model(input_ids=ids).logits[:, :-1].flatten(0, 1).double() for ids, _ in batches]
    return F.cross_entropy(torch.cat(logits), torch.cat([labels[:, 1:].flatten() for _, labels in batches])).item()


def test_a_loss_divided_by_the_items_of_the_step_is_shown_by_token(attach):
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=32, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
        )
    )
    batches = [_language(1), _language(5)]
    truth = _token_loss(model, batches)
    items = torch.tensor(sum(int((labels[:, 1:] != -100).sum()) for _, labels in batches))
    log = _train(attach, model, batches, lambda x, y: model(input_ids=x, labels=y, num_items_in_batch=items).loss)
    assert log.series("token_loss")[1].tolist() == pytest.approx([truth], rel=1e-5)


@pytest.mark.parametrize("items", [False, True])
def test_a_mixture_of_experts_shows_the_loss_of_its_tokens_alone(items, attach):
    torch.manual_seed(0)
    model = transformers.MixtralForCausalLM(
        transformers.MixtralConfig(
            **SMALL, num_local_experts=4, num_experts_per_tok=2, num_key_value_heads=2,
            output_router_logits=True, router_aux_loss_coef=1.0,
        )
    )  # fmt: skip
    batch = _language(4)
    truth, given = _token_loss(model, [batch]), []
    count = {"num_items_in_batch": (batch[1][:, 1:] != -100).sum()} if items else {}

    def loss(x, y):
        given.append(model(input_ids=x, labels=y, **count).loss)
        return given[-1]

    log = _train(attach, model, [batch], loss)
    assert log.series("token_loss")[1].tolist() == pytest.approx([truth], rel=1e-5)
    assert given[0].item() > truth + 0.5


@pytest.mark.parametrize("weight", [None, torch.tensor([9.0, 1.0, 0.1, 2.0, 0.0])])
@pytest.mark.parametrize("reduction", sample(["mean", "sum", "none"], "mean", "none"))
def test_uneven_micro_batches_are_one_mean_over_valid_targets(reduction, weight, attach):
    model, batches = nn.Linear(6, 5), _uneven()
    with torch.no_grad():
        z = torch.cat([model(x) for x, _ in batches]).double()
    double = None if weight is None else weight.double()
    truth = F.cross_entropy(z, torch.cat([y for _, y in batches]), weight=double).item()
    log = _train(
        attach, model, batches, lambda x, y: F.cross_entropy(model(x), y, weight=weight, reduction=reduction).mean()
    )
    assert log.series("token_loss")[1].tolist() == pytest.approx([truth], rel=1e-5)
    assert log.series("loss_nonfinite_total")[1].sum() == 0


def test_probabilities_as_targets_count_by_row(attach):
    torch.manual_seed(0)
    model = nn.Linear(6, 5)
    batches = [(torch.randn(n, 6), torch.rand(n, 5) * n) for n in (2, 9)]
    with torch.no_grad():
        z = torch.cat([model(x) for x, _ in batches]).double()
    truth = F.cross_entropy(z, torch.cat([y for _, y in batches]).double()).item()
    log = _train(attach, model, batches, lambda x, y: F.cross_entropy(model(x), y))
    assert log.series("token_loss")[1].tolist() == pytest.approx([truth], rel=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("reduction", sample(["mean", "sum"], "mean"))
def test_cross_entropy_inside_the_model_and_the_trained_loss_are_told_apart(reduction, compiled, attach):
    model, batches = WithLoss(reduction), _uneven()
    with torch.no_grad():
        z = torch.cat([model.inner(x) for x, _ in batches]).double()
    truth = F.cross_entropy(z, torch.cat([y for _, y in batches])).item()
    called = torch.compile(model, backend="aot_eager") if compiled else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    attach(called, optimizer)
    trained = 0.0
    for x, y in batches:
        loss = called(x, y)["loss"]
        trained += loss.item()
        loss.backward()
    optimizer.step()
    log = attach.finish()
    assert log.series("token_loss")[1].tolist() == pytest.approx([truth], rel=1e-5)
    assert log.series("loss")[1].tolist() == pytest.approx([trained], rel=1e-5)


def test_functions_that_a_compiler_looks_up_while_they_are_replaced(attach):
    """It does so once in a process, at the first compilation: that may be in the middle of a forward."""
    look_up = torch._dynamo.trace_rules.get_torch_obj_rule_map
    original = F.cross_entropy
    model, (batch, *_) = WithLoss(), _uneven()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    attach(model, optimizer)
    look_up.cache_clear()
    assert F.cross_entropy in look_up() and original not in look_up()
    torch.compile(model, backend="aot_eager")(*batch)["loss"].backward()
    optimizer.step()
    log = attach.finish()
    assert len(log.series("token_loss")[1]) == 1
    assert original is F.cross_entropy and original in look_up(), "it is as in an unwatched process"


def test_the_loss_of_the_output_is_summed_over_micro_batches(attach):
    model, batches = WithLoss(), _uneven()
    with torch.no_grad():
        truth = sum(model(x)["loss"].item() for x, _ in batches)
    log = _train(attach, model, batches, lambda x, _: model(x)["loss"])
    assert log.series("loss")[1].tolist() == pytest.approx([truth], rel=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("ignored", [-100, 0])
def test_rows_to_be_ignored_have_no_part_in_the_output_logits(ignored, compiled, attach):
    torch.manual_seed(0)
    model = Masked(ignored)
    called = torch.compile(model, backend="aot_eager") if compiled else model
    x, y = torch.randn(8, 6), torch.tensor([1, 2, ignored, 3, 4, ignored, ignored, 1])
    with torch.no_grad():
        lse = model.logits(x).double().logsumexp(1)[y != ignored]
    log = _train(attach, called, [(x, y)], called)
    assert log.series("output_logit_nonfinite_total")[1].sum() == 0
    assert log.series("output_logit_logsumexp")[1].tolist() == pytest.approx([lse.mean().item()], rel=1e-5)
    assert log.series("output_logit_z")[1].tolist() == pytest.approx([lse.square().mean().item()], rel=1e-5)


def test_a_step_with_all_rows_ignored_shows_no_output_logits(attach):
    model = nn.Linear(6, 5)
    y = torch.full((8,), -100)
    log = _train(attach, model, [(torch.randn(8, 6), y)], lambda x, y: F.cross_entropy(model(x), y, reduction="sum"))
    assert len(log.series("output_logit_logsumexp")[0]) == 0
