"""The recipes in hooks/: which steps each of them records, and what it needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HOOKS = Path(__file__).parents[2] / "hooks"
MARK = "  # stabwatch"
"""Ends the lines of a recipe that a user adds."""


@dataclass(frozen=True)
class Recipe:
    """One file in hooks/."""

    file: str
    title: str
    """As docs/trainers.md names it."""
    steps: tuple[int, ...]
    """Numbers of the records that a run has."""
    needs: tuple[str, ...] = ()
    """Packages beside torch."""
    logged: tuple[str, ...] = ()
    """Some of what the trainer logs."""
    ranks: int = 0
    """Processes that torchrun starts; 0 for plain Python."""
    note: str = ""
    """What the page says beside the lines."""

    @property
    def path(self) -> Path:
        return HOOKS / self.file

    def lines(self) -> list[str]:
        """What a user adds."""
        text = self.path.read_text(encoding="utf-8")
        if self.path.suffix == ".ipynb":
            text = text.replace("\\n", "\n").replace('"', "\n")
        return [line.removesuffix(MARK).strip() for line in text.splitlines() if line.endswith(MARK)]


HF = ("transformers", "accelerate")
TRL = (*HF, "trl", "peft", "datasets")
HF_STEPS = "The numbers under which the trainer logs, from 1."

RECIPES = (
    Recipe("plain_loop.py", "A loop of your own", tuple(range(8)), note="From 0, or from `first_step`."),
    Recipe("notebook.ipynb", "A notebook", tuple(range(8)), ("nbclient", "nbformat", "ipykernel"), note="From 0."),
    Recipe("transformers_trainer.py", "Hugging Face Trainer", tuple(range(1, 7)), HF,
           ("trainer_loss", "grad_norm", "eval_loss"), note=HF_STEPS),
    Recipe("transformers_callback.py", "Hugging Face Trainer, as a callback", tuple(range(1, 7)), HF, ("grad_norm",),
           note=HF_STEPS),
    Recipe("trl_sft.py", "TRL: SFT with LoRA", tuple(range(1, 7)), TRL, ("mean_token_accuracy",), note=HF_STEPS),
    Recipe("trl_dpo.py", "TRL: DPO", tuple(range(1, 7)), TRL, ("rewards/margins", "logps/chosen"), note=HF_STEPS),
    Recipe("trl_grpo.py", "TRL: GRPO", tuple(range(1, 5)), TRL, ("reward", "entropy", "clip_ratio/low_mean"),
           note=HF_STEPS),
    Recipe("sentence_transformers_trainer.py", "sentence-transformers", tuple(range(1, 7)),
           (*HF, "sentence_transformers", "datasets"), ("grad_norm",), note=HF_STEPS),
    Recipe("accelerate_loop.py", "Accelerate", tuple(range(4)), ("accelerate",), ("accuracy",),
           note="Optimizer steps, from 0."),
    Recipe("lightning_trainer.py", "Lightning", tuple(range(8)), ("lightning",), ("accuracy", "val_loss"),
           note="`trainer.global_step` during the step, from 0."),
    Recipe("fabric_loop.py", "Lightning Fabric", tuple(range(8)), ("lightning",), note="From 0, or from `first_step`."),
    Recipe("ignite_engine.py", "PyTorch-Ignite", tuple(range(1, 17)), ("ignite",),
           note="`engine.state.iteration`, from 1."),
    Recipe("ignite_handler.py", "PyTorch-Ignite, a function of your own", tuple(range(2, 17, 2)), ("ignite",),
           note="The iteration in which the optimizer steps."),
    Recipe("fastai_learner.py", "fastai", tuple(range(16)), ("fastai",), ("train_loss", "valid_loss"),
           note="`learn.train_iter`, from 0. fastai's own optimizers are no `torch.optim.Optimizer`: their steps"
           " are seen at the parameters, and their learning rate is not known. `OptimWrapper` makes it use one of"
           " torch."),
    Recipe("torchtune_loop.py", "torchtune and the like", tuple(range(100, 104)), note="From `first_step`."),
    Recipe("torchtitan_loop.py", "torchtitan and the like (FSDP2)", tuple(range(8)), ranks=2, note="From 0."),
    Recipe("torchrun_ddp.py", "torchrun, DDP", tuple(range(8)), ranks=2, note="From 0. One run log, of rank 0."),
    Recipe("deepspeed_engine.py", "DeepSpeed", tuple(range(8)), ("deepspeed",), ranks=1,
           note="From 0. The loss is right in each stage of ZeRO. From stage 1 on ZeRO's optimizer steps flat copies:"
           " steps are seen at the parameters, the rate is not known, and with several ranks gradients are those of one"
           " rank. In stage 3 weights and gradients are not measured."),
)  # fmt: skip
