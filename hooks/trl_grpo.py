"""TRL: group relative policy optimization. Rewards, entropy and clip ratios are recorded too."""

from datasets import Dataset
from tiny import llama, quiet, tokenizer
from trl import GRPOConfig, GRPOTrainer

import stabwatch  # stabwatch


def digits(completions, **kwargs):
    return [float(sum(c.isdigit() for c in text)) for text in completions]


prompts = Dataset.from_list([{"prompt": f"{i}+1="} for i in range(32)])
sizes = {"num_generations": 4, "max_completion_length": 6, "max_steps": 4}
arguments = GRPOConfig(**quiet("out", bf16=False, gradient_checkpointing=False, **sizes))
trainer = GRPOTrainer(llama(), digits, args=arguments, train_dataset=prompts, processing_class=tokenizer())
stabwatch.attach(trainer)  # stabwatch
trainer.train()
