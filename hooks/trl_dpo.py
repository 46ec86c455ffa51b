"""TRL: direct preference optimization."""

from datasets import Dataset
from tiny import llama, quiet, tokenizer
from trl import DPOConfig, DPOTrainer

import stabwatch  # stabwatch

pairs = [{"prompt": f"{i}+1=", "chosen": f"{i + 1}", "rejected": f"{i + 7}"} for i in range(32)]
arguments = DPOConfig(**quiet("out", max_length=16, bf16=False, gradient_checkpointing=False))
trainer = DPOTrainer(
    llama(), llama(), args=arguments, train_dataset=Dataset.from_list(pairs), processing_class=tokenizer()
)
stabwatch.attach(trainer)  # stabwatch
trainer.train()
