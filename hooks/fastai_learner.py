"""fastai, with an optimizer of torch."""

from functools import partial

import torch
from fastai.basics import DataLoaders, Learner, OptimWrapper
from tiny import classifier, points

import stabwatch  # stabwatch

loaders = DataLoaders.from_dsets(points(), points(32), bs=16, device="cpu", num_workers=0)
adamw = partial(OptimWrapper, opt=torch.optim.AdamW)
learner = Learner(loaders, classifier(), loss_func=torch.nn.CrossEntropyLoss(), opt_func=adamw)
stabwatch.attach(learner)  # stabwatch
with learner.no_logging():
    learner.fit(2, 1e-2)
