"""DistributedDataParallel: `torchrun --nproc-per-node 2 hooks/torchrun_ddp.py`. One run log, written by rank 0."""

import torch
import torch.distributed as dist
from tiny import classifier, points

import stabwatch  # stabwatch

dist.init_process_group("gloo")
dataset = points()
sampler = torch.utils.data.DistributedSampler(dataset)
model = torch.nn.parallel.DistributedDataParallel(classifier())
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
watch = stabwatch.attach(model, optimizer)  # stabwatch
for x, y in torch.utils.data.DataLoader(dataset, 8, sampler=sampler):
    loss = torch.nn.functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
dist.destroy_process_group()
