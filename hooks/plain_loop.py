"""A training loop of one's own."""

import torch
from tiny import batches, classifier

import stabwatch  # stabwatch

model = classifier()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
watch = stabwatch.attach(model, optimizer)  # stabwatch
for x, y in batches():
    loss = torch.nn.functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
