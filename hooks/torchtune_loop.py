"""A recipe in the manner of torchtune: setup and train, gradient accumulation, going on from a checkpoint."""

import torch
from tiny import batches, classifier

import stabwatch  # stabwatch


class Recipe:
    def setup(self, resumed_at: int) -> None:
        self.global_step = resumed_at
        self.model = classifier()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.watch = stabwatch.attach(self.model, self.optimizer, first_step=self.global_step)  # stabwatch

    def train(self, accumulate: int = 2) -> None:
        for index, (x, y) in enumerate(batches()):
            loss = torch.nn.functional.cross_entropy(self.model(x), y)
            (loss / accumulate).backward()
            if (index + 1) % accumulate == 0:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
                self.global_step += 1


recipe = Recipe()
recipe.setup(resumed_at=100)
recipe.train()
