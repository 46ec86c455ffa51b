"""Lightning Fabric: after `setup`."""

import torch
from lightning.fabric import Fabric
from tiny import batches, classifier

import stabwatch  # stabwatch

fabric = Fabric(accelerator="cpu")
model = classifier()
model, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
watch = stabwatch.attach(model, optimizer)  # stabwatch
for x, y in fabric.setup_dataloaders(batches()):
    loss = torch.nn.functional.cross_entropy(model(x), y)
    fabric.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
