"""Tiny random models and data for the recipes; nothing is downloaded, and the two lines of a recipe do not need it."""

from __future__ import annotations

import torch
from torch import nn

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789 +-=.,:;?!\n"


def classifier(features: int = 8, classes: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(features, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, classes))


def points(count: int = 128, features: int = 8, classes: int = 4) -> torch.utils.data.TensorDataset:
    """Points, labelled with the largest of their first coordinates."""
    x = torch.randn(count, features, generator=torch.Generator().manual_seed(1))
    return torch.utils.data.TensorDataset(x, x[:, :classes].argmax(1))


def batches(size: int = 16, count: int = 128) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(points(count), size)


def tokenizer():
    """One token a character."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {text: i for i, text in enumerate(["<pad>", "<s>", "</s>", "<unk>", *CHARACTERS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.decoder = decoders.Fuse()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


def llama(vocabulary: int = 64):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=vocabulary, num_key_value_heads=2, max_position_embeddings=64, **sizes, **special)
    )


def sequences(count: int = 64, length: int = 12, vocabulary: int = 64) -> list[dict[str, torch.Tensor]]:
    """Token sequences that count upwards."""
    ids = [4 + (torch.arange(length) + 3 * i) % (vocabulary - 4) for i in range(count)]
    return [{"input_ids": x, "labels": x.clone()} for x in ids]


def quiet(folder: str, **settings):
    """Arguments of a Hugging Face trainer that is small, on the CPU and silent."""
    common = {"max_steps": 6, "per_device_train_batch_size": 4, "logging_steps": 1, "save_strategy": "no", "seed": 7}
    return {"output_dir": folder, "use_cpu": True, "report_to": [], "disable_tqdm": True, **common, **settings}
