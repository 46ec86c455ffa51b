"""Which programs: folders are those of clones, named OWNER+NAME."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Program:
    """A script of a repository, the folder it runs in, its arguments, and the steps of optimizers after which it ends.

    true: conditions of which the program's own code or curve shows that they are there. kind: tells it apart from
    others of the same script.
    """

    repository: str
    folder: str
    script: str
    arguments: tuple[str, ...] = ()
    steps: int = 1000
    environment: dict[str, str] = field(default_factory=dict)
    true: tuple[str, ...] = ()
    kind: str = ""

    @property
    def name(self) -> str:
        """'NAME/folder/script', as a file name."""
        parts = (self.repository.partition("+")[2], *self.folder.split("/"), self.script.removesuffix(".py"), self.kind)
        return "-".join(part for part in parts if part).replace(" ", "_")


def _many(repository: str, scripts: dict[str, str], steps: int = 1000, **more: object) -> Iterator[Program]:
    for script, folder in scripts.items():
        yield Program(repository, folder, script, steps=steps, **more)  # type: ignore[arg-type]


def _tutorial(repository: str = "graykode+nlp-tutorial") -> Iterator[Program]:
    folders = ("1-1.NNLM", "2-1.TextCNN", "3-1.TextRNN", "3-2.TextLSTM", "3-3.Bi-LSTM", "4-1.Seq2Seq")
    yield from _many(repository, {f"{f.partition('.')[2]}.py": f for f in folders})
    for folder in ("4-2.Seq2Seq(Attention)", "4-3.Bi-LSTM(Attention)"):
        yield Program(repository, folder, f"{folder.partition('.')[2]}.py")
    yield Program(repository, "1-2.Word2Vec", "Word2Vec-Skipgram(Softmax).py")
    yield Program(repository, "5-2.BERT", "BERT.py", steps=40, true=("InitialLossTooHigh", "AttentionLogitGrowth"))


def _games(repository: str = "eriklindernoren+PyTorch-GAN") -> Iterator[Program]:
    small = ("--n_epochs", "40", "--img_size", "16", "--batch_size", "32")
    yield Program(repository, "implementations/lsgan", "lsgan.py", ("--n_epochs", "40"), 100)
    for kind in ("gan", "wgan", "wgan_gp", "wgan_div", "cgan", "aae"):
        yield Program(repository, f"implementations/{kind}", f"{kind}.py", ("--n_epochs", "40"), 600)
    # Their `BatchNorm2d(width, 0.8)` sets epsilon and no momentum: gradients of 1e-9, and losses that stay at ln 2.
    still = ("AdamEpsilonTooLarge", "LossConstant")
    true = {"acgan": ("DoubleSoftmax",), "sgan": ("DoubleSoftmax", *still), "dcgan": still, "relativistic_gan": still}
    for kind in ("acgan", "sgan", "infogan", "ebgan", "dcgan", "relativistic_gan"):
        yield Program(repository, f"implementations/{kind}", f"{kind}.py", small, 300, true=true.get(kind, ()))


def _policies() -> Iterator[Program]:
    names = ("ppo", "actor_critic", "acer", "ppo-lstm", "vtrace", "ppo-continuous", "sac", "ddpg")
    yield from _many("seungeunrho+minimalRL", {f"{name}.py": "" for name in names}, 3000)
    yield from _many("seungeunrho+minimalRL", {"REINFORCE.py": "", "dqn.py": ""}, 1000)
    swing, late = "env_id=Pendulum-v1 total_timesteps=", " learning_starts="
    arguments = {
        "ppo": "total_timesteps=40000",
        "dqn": f"total_timesteps=20000{late}1000",
        "c51": f"total_timesteps=20000{late}1000",
        "pqn": "total_timesteps=20000",
    }
    arguments |= dict.fromkeys(("ppo_continuous_action", "rpo_continuous_action"), f"{swing}40000")
    slow = ("sac_continuous_action", "td3_continuous_action", "ddpg_continuous_action")
    arguments |= dict.fromkeys(slow, f"{swing}8000{late}500")
    for name, given in arguments.items():
        yield Program("vwxyzjn+cleanrl", "cleanrl", f"{name}.py", steps=1500, environment={"TYRO": given})


def _lessons() -> Iterator[Program]:
    folder = "tutorial-contents"
    lessons = ("301_regression", "302_classification", "306_optimizer", "403_RNN_regressor", "404_autoencoder")
    yield from _many("MorvanZhou+PyTorch-Tutorial", {f"{name}.py": folder for name in lessons})
    yield Program("MorvanZhou+PyTorch-Tutorial", folder, "406_GAN.py")
    yield Program(
        "MorvanZhou+PyTorch-Tutorial", folder, "405_DQN_Reinforcement_learning.py", environment={"GYM": "old"}
    )
    yield Program("MorvanZhou+PyTorch-Tutorial", folder, "503_dropout.py", true=("LossSpike",))
    without = ("OutputsAlike", "OutputsCollapsed")  # the one of two nets that has no batch norm
    yield Program("MorvanZhou+PyTorch-Tutorial", folder, "504_batch_normalization.py", true=without)


def _examples(repository: str = "pytorch+examples") -> Iterator[Program]:
    yield Program(repository, "mnist", "main.py", ("--epochs", "8", "--no-accel", "--batch-size", "32"), 300)
    yield Program(repository, "mnist_rnn", "main.py", ("--epochs", "5", "--batch-size", "32"), 230)
    yield Program(repository, "vae", "main.py", ("--epochs", "30", "--no-accel", "--batch-size", "64"), 400)
    yield Program(repository, "reinforcement_learning", "reinforce.py", steps=250)
    yield Program(repository, "reinforcement_learning", "actor_critic.py", steps=300)
    for kind in ("transformer", "bigram", "mlp", "rnn", "gru", "bow"):
        size = ("--type", kind, "--n-layer", "2", "--n-embd", "32", "--n-embd2", "32", "-o", "out")
        yield Program("karpathy+makemore", "", "makemore.py", size, 800, kind=kind)


PROGRAMS = (*_tutorial(), *_games(), *_policies(), *_lessons(), *_examples())
