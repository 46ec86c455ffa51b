"""Accelerate: after `prepare` (and `init_trackers`). What `accelerator.log` is given is recorded too."""

import torch
from accelerate import Accelerator
from tiny import batches, classifier

import stabwatch  # stabwatch

accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
model = classifier()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
model, optimizer, loader = accelerator.prepare(model, optimizer, batches())
stabwatch.attach(accelerator)  # stabwatch
for step, (x, y) in enumerate(loader):
    with accelerator.accumulate(model):
        out = model(x)
        loss = torch.nn.functional.cross_entropy(out, y)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        accelerator.log({"accuracy": (out.argmax(1) == y).float().mean()}, step)
accelerator.end_training()
