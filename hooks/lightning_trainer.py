"""Lightning Trainer."""

import lightning
import torch
from tiny import batches, classifier

import stabwatch  # stabwatch


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = classifier()

    def training_step(self, batch, index):
        x, y = batch
        out = self.net(x)
        self.log("accuracy", (out.argmax(1) == y).float().mean())
        return torch.nn.functional.cross_entropy(out, y)

    def validation_step(self, batch, index):
        self.log("val_loss", torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


off = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", accumulate_grad_batches=2, **off)
stabwatch.attach(trainer)  # stabwatch
trainer.fit(Module(), batches(), batches(count=32))
