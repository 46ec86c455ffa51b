"""PyTorch-Ignite, with a training function of one's own."""

import torch
from ignite.engine import Engine
from tiny import batches, classifier

from stabwatch.integrations.ignite import StabwatchHandler  # stabwatch

model = classifier()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)


def train(engine, batch):
    loss = torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
    (loss / 2).backward()
    if engine.state.iteration % 2 == 0:
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


trainer = Engine(train)
StabwatchHandler(model, optimizer).attach(trainer)  # stabwatch
trainer.run(batches(), max_epochs=2)
