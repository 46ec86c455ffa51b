"""sentence-transformers: its trainer is a Hugging Face Trainer."""

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.losses import CoSENTLoss
from tiny import quiet

import stabwatch  # stabwatch


class Characters(torch.nn.Module):
    """Embeds a text as the mean of its characters."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(128, 16, padding_idx=0)
        self.output = torch.nn.Linear(16, 16)

    def preprocess(self, inputs, **kwargs):
        return self.tokenize(inputs)

    def tokenize(self, texts, **kwargs):
        rows = [torch.tensor([ord(c) % 128 for c in text]) for text in texts]
        return {"input_ids": torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)}

    def forward(self, features, **kwargs):
        return {**features, "sentence_embedding": self.output(self.embedding(features["input_ids"]).mean(1))}

    def save(self, *args, **kwargs):
        pass


torch.manual_seed(0)
model = SentenceTransformer(modules=[Characters()], device="cpu")
pairs = [{"sentence1": f"text {i}", "sentence2": f"text {i % 5}", "score": (i % 5) / 4} for i in range(32)]
arguments = SentenceTransformerTrainingArguments(**quiet("out"))
trainer = SentenceTransformerTrainer(model, arguments, Dataset.from_list(pairs), loss=CoSENTLoss(model))
stabwatch.attach(trainer)  # stabwatch
trainer.train()
