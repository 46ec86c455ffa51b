"""Models of `transformers` with random weights, attached without any configuration."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.sampling import sample

transformers = pytest.importorskip("transformers")


def _llama():
    config = transformers.LlamaConfig(
        vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    ids = torch.randint(0, 128, (2, 12))
    return transformers.LlamaForCausalLM(config), {"input_ids": ids, "labels": ids}


def _gpt2():
    config = transformers.GPT2Config(vocab_size=128, n_embd=32, n_layer=2, n_head=4, n_positions=32)
    ids = torch.randint(0, 128, (2, 12))
    return transformers.GPT2LMHeadModel(config), {"input_ids": ids, "labels": ids}


def _bert():
    config = transformers.BertConfig(
        vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    ids = torch.randint(0, 128, (2, 12))
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    return transformers.BertForMaskedLM(config), {"input_ids": ids, "attention_mask": mask, "labels": ids}


def _vit():
    config = transformers.ViTConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=4,
        num_labels=3,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config), {
        "pixel_values": torch.randn(2, 3, 16, 16),
        "labels": torch.tensor([0, 2]),
    }


def _t5():
    config = transformers.T5Config(
        vocab_size=128, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    ids = torch.randint(0, 128, (2, 12))
    return transformers.T5ForConditionalGeneration(config), {"input_ids": ids, "labels": ids}


@pytest.mark.parametrize("family", sample([_llama, _gpt2, _bert, _vit, _t5], _llama, _t5), ids=lambda f: f.__name__[1:])
def test_a_family_is_watched_without_configuration(family, attach):
    torch.manual_seed(0)
    model, batch = family()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    watch = attach(model)
    losses = []
    for _ in range(9):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    log = attach.finish()
    assert [e.data for e in log.events if e.kind == "error"] == []
    assert log.series("loss")[1] == pytest.approx(losses, rel=1e-5)
    assert len(log.series("gradient_norm")[1]) == 9
    attention = {k.layer for k in log.keys if k.signal == "attention_logit_max"}
    blocks = 6 if family is _t5 else 2  # T5: two encoder blocks, two decoder blocks with two attentions each
    assert len(attention) == blocks, attention
    for layer in attention:
        exact = log.series("attention_logit_max", layer)[1]
        assert np.isfinite(exact).all() and len(exact) == 9
        if log.series("attention_logit_upper", layer)[1].size:
            assert (log.series("attention_logit_upper", layer)[1] >= exact - 1e-4).all()
            assert (log.series("attention_logit_lower", layer)[1] <= exact + 1e-4).all()
    missing = [m for m in watch.coverage()["missing"] if m["tap"] == "attention"]
    assert missing == []
    layers = [k.layer for k in log.keys if k.signal == "output_rms"]
    assert len(layers) >= 6


def test_the_sites_of_the_study_of_maximum_activations(attach):
    """Embeddings, residual stream, attention and MLP out, gates, final norm; a gate's weights stay with their MLP."""
    torch.manual_seed(0)
    model, inputs = _llama()
    sites = ["embed_tokens", "norm", *(f"layers.1{part}" for part in ("", ".self_attn", ".mlp", ".mlp.gate_proj"))]
    peaks = {}

    def keep(name):
        def hook(module, args, out):
            peaks[name] = (out[0] if isinstance(out, tuple) else out).detach().abs().max().item()

        return hook

    for name in sites:
        model.get_submodule(f"model.{name}").register_forward_hook(keep(name))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    attach(model, optimizer)
    model(**inputs).loss.backward()
    optimizer.step()
    log = attach.finish()
    for name in sites:
        assert log.series("activation_abs_max", f"model.{name}")[1][0] == np.float32(peaks[name]), name
    assert not [key for key in log.keys if key.signal == "weight_rms" and "gate_proj" in key.layer]
