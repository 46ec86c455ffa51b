"""A loop in the manner of torchtitan: each block sharded with FSDP2. Run it with torchrun."""

import torch
import torch.distributed as dist
from tiny import batches, classifier
from torch.distributed.fsdp import fully_shard

import stabwatch  # stabwatch

dist.init_process_group("gloo")
mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
model = classifier()
for layer in (0, 2, 4):
    fully_shard(model[layer], mesh=mesh)
fully_shard(model, mesh=mesh)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
watch = stabwatch.attach(model, optimizer)  # stabwatch
for x, y in batches():
    loss = torch.nn.functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
watch.detach()
dist.destroy_process_group()
