"""PyTorch-Ignite."""

import torch
from ignite.engine import create_supervised_trainer
from tiny import batches, classifier

import stabwatch  # stabwatch

model = classifier()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
trainer = create_supervised_trainer(model, optimizer, torch.nn.functional.cross_entropy)
stabwatch.attach(trainer)  # stabwatch
trainer.run(batches(), max_epochs=2)
