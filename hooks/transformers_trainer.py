"""Hugging Face Trainer, with gradient accumulation and evaluation."""

from tiny import llama, quiet, sequences
from transformers import Trainer, TrainingArguments

import stabwatch  # stabwatch

arguments = TrainingArguments(**quiet("out", gradient_accumulation_steps=2, eval_strategy="steps", eval_steps=3))
trainer = Trainer(llama(), arguments, train_dataset=sequences(), eval_dataset=sequences(8))
stabwatch.attach(trainer)  # stabwatch
trainer.train()
