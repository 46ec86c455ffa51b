"""Hugging Face Trainer, with the callback in its list of callbacks."""

from tiny import llama, quiet, sequences
from transformers import Trainer, TrainingArguments

from stabwatch.integrations.transformers import StabwatchCallback  # stabwatch

arguments = TrainingArguments(**quiet("out"))
callbacks = [StabwatchCallback()]  # stabwatch
trainer = Trainer(llama(), arguments, train_dataset=sequences(), callbacks=callbacks)
trainer.train()
