"""DeepSpeed. Run it with torchrun or `deepspeed`."""

import deepspeed
import torch
from tiny import batches, classifier

import stabwatch  # stabwatch

model = classifier()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
config = {"train_micro_batch_size_per_gpu": 16, "zero_optimization": {"stage": 1}}
engine, _, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
watch = stabwatch.attach(engine.module, engine.optimizer)  # stabwatch
for x, y in batches():
    loss = torch.nn.functional.cross_entropy(engine(x), y)
    engine.backward(loss)
    engine.step()
