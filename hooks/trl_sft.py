"""TRL: supervised fine-tuning with LoRA."""

from datasets import Dataset
from peft import LoraConfig
from tiny import llama, quiet, tokenizer
from trl import SFTConfig, SFTTrainer

import stabwatch  # stabwatch

texts = Dataset.from_list([{"text": f"{i}+{i}={2 * i}."} for i in range(32)])
lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], r=4)
arguments = SFTConfig(**quiet("out", max_length=16, bf16=False, gradient_checkpointing=False))
trainer = SFTTrainer(llama(), arguments, train_dataset=texts, processing_class=tokenizer(), peft_config=lora)
stabwatch.attach(trainer)  # stabwatch
trainer.train()
