"""Names in training logs: roles of columns, keys that count steps, forms of numbers."""

from __future__ import annotations

import math
import re
from functools import lru_cache

from stabwatch.analysis.readers.log import Role

NUMBER = re.compile(
    r"""(?<![\w.])(?=[-+.\dnNiI])[-+]?(?:
        \d\.\#(?:IND|[QS]NAN|INF)\d*   # 1.#IND, as Microsoft's C library writes NaN
        | \d+(?:(?:,\d{3})+(?!\d|,\d))?(?:\.\d*)?(?:[eE][-+]?\d+)?   # 12, 1.5, 2e-4, 1,234,567.8
        | \.\d+(?:[eE][-+]?\d+)?
        | \.?[nN][aA][nN](?:xxx|\.0)?(?![A-Za-z_])
        | \.?[iI][nN][fF](?:inity)?(?![A-Za-z_])
        | [nN]/[aA](?![A-Za-z_])
    )""",
    re.VERBOSE,
)
"""A number in free text; not the digits of a name."""

_ODD_NAN = re.compile(r"[-+]?nan(?:xxx|\.0|\(\w*\))", re.IGNORECASE)
"""NaN as written by PaddleOCR, Lightning and C; names may begin with the same letters (`Nancy`, `Infantry`)."""
_WINDOWS = re.compile(r"([-+]?)\d\.#(IND|QNAN|SNAN|INF)\d*", re.IGNORECASE)
_WRAPPED = re.compile(r"(?:[\w.]+\()?[\[({*`<\s'\"]*([-+]?[\w.#+-]+)(?:, \w+=.*)?[\])}*`>\s'\"]*")
"""A number with its wrapping: `**nan**`, `[0.5]`, `tensor(0.5, device='cuda:0')`."""
_LONGEST_WRAPPED = 120
_UNITS = {"ms": 1e-3, "us": 1e-6, "µs": 1e-6, "s": 1.0, "sec": 1.0, "seconds": 1.0, "min": 60.0}
_SI = {"K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}

STEP_KEYS = (
    "iteration", "iterations", "global_step", "global_step/max_steps", "step/total_step",
    "iter/total_iter", "globalstep", "trainer/global_step",
    "global_iter", "global_iteration",
    "num_updates", "current_steps", "completed_step", "training_iteration", "step", "steps", "_step", "iter", "it",
    "up", "update", "s", "batch_idx", "batch", "batch_id", "n_iter",
    "iters", "itr", "itrs", "n_itr", "iter_num", "iter_idx", "niter", "train_step", "training_step", "train_iter",
    "training_iter", "global_steps", "gstep", "step_num", "optimizer_step", "opt_step", "update_step",
    "total_step", "current_step", "cur_step", "total_iter", "total_iters", "current_iter", "cur_iter", "n_step",
    "updates", "n_updates", "minibatch", "#", "训练次数", "迭代次数", "迭代", "步数",
    "total_timesteps", "time/total_timesteps", "timesteps", "env_steps",
    "env_step", "nimg", "kimg", "progress/kimg", "episode", "episodes", "generation",
)  # fmt: skip
"""Keys that count steps, the most trusted first."""
EPOCH_KEYS = (
    "epoch", "ep", "epo", "epochs", "轮数", "轮次", "训练轮数", "époque", "epoque", "época", "epoca", "epoche", "эпоха",
    "エポック", "에포크",
)  # fmt: skip
ENVIRONMENT = STEP_KEYS.index("total_timesteps")
"""The keys from this index count samples, not updates of the weights."""
_COUNTERS = ("iteration", "iterations", "global_step", "step", "num_updates")
"""Keys that count steps below any path, such as `train/global_step` and `Diagnostics/Iteration`."""
_ORDER = {key: i for i, key in enumerate(STEP_KEYS)}
_AT_EVALUATION = re.compile(r"(?:val|valid|validation|eval|test)_(?:num_updates|global_step)")
"""The step of a row of an evaluation, as fairseq writes it: `valid_num_updates`."""

_EVAL = re.compile(
    r"(^|[^a-z])(val|vali|valid|validate|validation|eval|evaluation|test|dev|cv|tel|holdout|predict)([^a-z]|$)"
    r"|(^|[^a-z])(val|valid|eval|test|dev)(loss|acc|ppl)([^a-z]|$)"
)
_TRAIN = re.compile(r"(^|[^a-z])(train|training|trl)([^a-z]|$)")
_LOSS = {
    "loss", "losses", "lm_loss", "train_loss", "training_loss", "total_loss", "trl", "cost", "train_cost",
    "total_cost", "objective",
    "crossentropyloss", "train_loss/train/total", "loss/train/total", "cross_entropy_loss", "ce_loss", "nll_loss",
    "loss_step", "train_loss_step", "average_loss", "step_loss", "tot_loss",
    "loss_train", "mlm_loss", "loss_avg", "batch_loss", "avg_loss", "main_loss", "train_main_loss", "loss_total",
    "loss_epoch", "train_loss_epoch", "ce", "xent", "nll", "train-loss", "train-cross-entropy", "train-crossentropy",
    "train-nll-loss", "train-smoothl1", "train-mse", "train-rmse", "loss_value", "loss_mean", "mean_loss", "trainloss",
    "running_loss", "final_loss", "negative_objective", "loss_all", "loss_sum", "neg_elbo", "train_nll", "train_ce",
    "cross_entropy", "crossentropy", "cross-entropy",
    "损失", "训练损失", "损失值", "训练集上的loss", "训练集损失", "平均损失",
}  # fmt: skip
_EVAL_LABEL = re.compile(r"^(?:val|valid|validation|eval|test|dev|cv)[-_/]")
_EVALUATED = {
    "l1",
    "l2",
    "binary_logloss",
    "multi_logloss",
    "nll",
    "rmse",
    "mse",
    "ce",
    "xent",
    "cross-entropy",
    "cross_entropy",
    "crossentropy",
    "logloss",
}
"""Names of losses if they follow `eval`."""
_BOOSTED = re.compile(
    r"(?:cv-)?(?:(train(?:ing)?)|(?:test|eval|valid(?:ation)?)(?:_\d+)?)(?:-|'s_)"
    r"(?:l1|l2|mae|mape|r?mse|rmsle|m?error|(?:m|binary_|multi_)?logloss|cross_?entropy|huber|quantile|poisson\w*|gamma\w*"
    r"|tweedie\w*)(?:-mean)?"
)
"""XGBoost's and LightGBM's metrics that fall: `train-error`, `valid_0's l2`."""
_LOSS_ORDER = (
    "loss", "train_loss", "training_loss", "trl", "lm_loss", "total_loss", "tot_loss", "loss_total", "crossentropyloss",
    "cross_entropy_loss", "main_loss", "loss_step", "train_loss_step", "step_loss", "batch_loss", "cost",
    "total_cost", "objective",
    "loss_train", "mlm_loss", "average_loss", "avg_loss", "loss_avg", "ce_loss", "nll_loss", "loss_epoch",
    "train_loss_epoch", "ce", "xent", "nll",
)  # fmt: skip
_GRAD = {
    "grad_norm", "gradnorm", "total_grad_norm", "gradient_norm", "gnorm", "norm", "grad", "global_grad_norm",
    "train_grad_norm", "grad_absmax", "grad_abs_max", "grdn", "grad_l2_norm", "grad_l2",
    "l2_norm/grad/global", "grad_norm_total", "total_norm", "grad_norm_before_clip", "gradnorm_total",
    "grad_2_0_norm_total", "grad_2_norm_total", "optimizer_norm", "g_norm",
}  # fmt: skip
_RATE = {
    "lr", "learning_rate", "learning-rate", "lr_0", "lr-adamw", "lr-adam", "train_lr", "learningrate", "lr/pg0",
    "x/lr0", "lr_group0", "lr-sgd", "optimizer/lr", "lrs", "cur_lr", "current_lr", "last_lr", "current_learning_rate",
    "lr-adamw/pg1", "lr-adam/pg1", "lr-sgd/pg1", "lr_1", "learning_rate_0", "group0_lr",
}  # fmt: skip
_RATE_OF_GROUP = re.compile(r"(?:optim(?:izer)?_?\d+_)?(?:lr|learning_rate)_?\d+")
_SCALE = {
    "loss_scale", "grad_scale", "scale", "amp_scale", "scaler", "lossscale", "loss_scaling", "loss_scaler",
    "dynamic_loss_scale", "cur_scale", "cur_loss_scale", "current_loss_scale", "grad_scaler", "grad_scaler_scale",
    "scaler_scale", "fp16_scale", "gradscale",
}  # fmt: skip
_SECONDS = {
    "dt", "step_time", "time_per_step", "iter_time", "time/iter", "seconds_per_step", "batch_time", "train_time_step",
    "elapsed_time_per_iteration", "elapsed_time_per_iteration_ms", "elapsed_time_per_iteration_s", "sec_per_step",
    "time_per_iteration", "step_seconds", "iteration_time", "seconds", "step_avg", "step_avg_ms", "updt_s",
}  # fmt: skip
_PACE = {
    "tps", "tok/sec", "tok/s", "tokens_per_sec", "tokens/s", "tokens_per_second", "wps", "throughput",
    "samples_per_second",
    "samples/sec", "it/s", "words/s", "tgs", "tokens_per_sec_per_gpu", "ips", "fps", "examples/s",
    "throughput/device/tokens_per_second", "time/fps", "steps_per_second", "runningavgsamplespersec",
}  # fmt: skip
_NOT_LOSS = re.compile(
    r"scale|__min|__max|loss[/_]?(?:std|stddev|min|max|median|var)$|perplexity|_q\d|coef|weight|ratio|target|lost|losses$|lossless|_num$|_count$|every|threshold"
    r"|(?<!cross_)entropy|multiplier|(?<![a-z])time|(?<![a-z])(?:best|min(?:imum)?|lowest|alpha|beta|gamma|num)(?![a-z])|[<\"]|http"
)
_FOREIGN_LOSS = re.compile(
    r"(?<![^\W_])(?:pertes?|verlust|trainingsverlust|p[ée]rdida|perda|perdita|потер[ия]|損失|誤差|손실)(?![^\W_])",
    re.IGNORECASE,
)
"""`loss` in other languages."""
_FOREIGN_EVAL = re.compile("验证|測試|测试|評価|検証|검증|оценк|валид")
"""`evaluation` and `test` in other languages."""
CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
"""The place for an underscore in `lossAverage`."""
_STATISTIC = re.compile(r"[/_](?:average|mean|avg)$")
_NORM = re.compile(
    r"(?:(?:total|global|overall|mean|avg|train|raw|model|world_model|actor|critic|policy|value|pi|vf|q|opt"
    r"|generator|discriminator|gen|disc|[gd])_)*grad(?:ient)?s?_(?:l2_|global_|total_)?norm"
    r"(?:_(?:total|global|l2|avg|mean|value|raw|unclipped|(?:before|pre)_?clip(?:ping)?|preclip))*"
)
_POLICY = re.compile(
    r"(?:^|[^a-z])(?:rew(?:ard)?s?|(?:ep_?)?ret(?:urn)?s?|ep_?rew\w*|entropy|(?:approx_?)?kl|clip_?frac(?:tion)?|explained_variance"
    r"|advantages?|episode_length|(?:avg|mean|average|ep|episode|cumulative)_r)(?:[^a-z]|$)"
)
"""Quantities of reinforcement learning that are no losses."""
_FITTED = re.compile(
    r"(?:(?:train|training|total|mean|avg|average|current|final|last)_)?(?:total|err(?:or)?|obj(?:ective)?|m[sa]e|rmse|energy|elbo|lower_?bound|misfit|nelbo|recon\w*"
    r"|residual|j)|objective_(?!acc|score|kl)\w{1,12}"
)
_SCORE = re.compile(
    r"(?:^|[/_ -])(?:acc|accuracy|hmean|dice|m?iou|f1|precision|recall|m?ap(?:_?(?:50|75)(?:_95)?)?|psnr|ssim)$"
)
_HYPERPARAMETER = re.compile(r"coef|scale|weight|target|threshold|penalty|factor|discount|normali[sz]e|clip_?range")
_PERPLEXITY = re.compile(r"(?:^|[/_ ])(?:ppl|perplexity)(?:[/_ ]|$)")
_MEASURED = re.compile(r"kl(?:_|$)|clip_?frac|variance|entropy|(?:mean|std|values?|rate|norm|acc|accuracy)$")
"""Quantities that CleanRL and others write below `losses/` that are not losses."""
_OF_ITS_OWN = re.compile(
    r"(?:^|[/_ ])(?:value|vf|critic|baseline|q\d?|qf\d?|td|actor|policy|pg|pi|surrogate|model|world_model|dynamics"
    r"|discriminator|generator|disc|gen|[dg])(?:_(?:function|fn|gradient|net|head))*_loss(?:_\w+)?$"
    r"|(?:^|[/_ ])loss_(?:pi|v|q\d?)$"
    r"|(?:^|[/_ ])loss(?:es)?[/_](?:value|vf|critic|qf?\d?|actor|policy|pg|surrogate|model|[dg])(?:_\w+)?$"
)
_PART = re.compile(
    r"l_(?:[gd]_)?(?:pix|total|percep|style|gan|real|fake|fea|rec|all)|[gd]_(?:gan|l|l1|vgg|feat|real|fake|[ab])|(?:cycle|idt)_[ab]|err_?[dg]"
    r"|(?:rpn|rcnn|smooth|b?box|loc|reg)\w*_?l1|generator|discriminator"
)
"""Names of loss components in image restoration (BasicSR), translation (CycleGAN, pix2pix) and detection (MXNet)."""
_SYMBOL = re.compile(r"(?:^|[/ _])L_[A-Za-z]\w*$")
"""A loss as formulas have it: `L_out`, `train_L_vae`."""
_OF_TRAINING = re.compile(
    r"(?:(?:avg|average|mean|total|epoch|batch|step|running|smoothed|meta)_)*(?:train(?:ing)?_)?"
    r"(?:(?:avg|average|mean|total|epoch|batch|step|running|smoothed|meta)_)*loss(?:_(?:so_far|avg|mean|value|epoch|step))*"
)
"""Names of a loss without further detail."""


@lru_cache(maxsize=1 << 14)
def plain(name: str) -> str:
    """A name in the spelling of the tables above."""
    name = re.sub(r"\s*\(([^)]*)\)\s*$", r"_\1", name.strip().strip("'\"").lower())
    return re.sub(r"[\s.]+", "_", name).strip("_:=-")


@lru_cache(maxsize=1 << 14)
def is_eval(name: str) -> bool:
    """Whether a name is of an evaluation."""
    low = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    return bool(_EVAL.search(low) and not _TRAIN.search(low)) or bool(
        not name.isascii() and _FOREIGN_EVAL.search(low) and "训练" not in low
    )


@lru_cache(maxsize=1 << 14)
def role_of(name: str) -> Role:
    """The role of a column with this name; `loss` for each candidate, of which `choose_loss` selects one."""
    name = _FOREIGN_LOSS.sub("loss", name)
    full = _without_statistic(name)
    last = re.split(r"/|\s-\s", full)[-1].strip("_")
    bare = re.sub(r"^(train(ing)?|optim|optimizer)[_/]", "", full)
    names = {full, last, bare, plain(name)}
    boosted = _BOOSTED.fullmatch(full)
    if boosted:
        return "loss" if boosted[1] else "eval_loss"
    if is_eval(name):
        told = ("loss" in full or "损失" in full) and not _NOT_LOSS.search(full)
        told = told or last == "tel" or re.split(r"'s_", _EVAL_LABEL.sub("", full))[-1] in _EVALUATED
        return "eval_loss" if told else "other"
    if "skipped" in full and "iter" in full:
        return "skipped_steps"
    if "nan" in full and "iter" in full:
        return "nan_steps"
    for role, table in _TABLES:
        if names & table:
            return role
    if _OF_TRAINING.fullmatch(last) or re.fullmatch(r"loss(?:es)?/(?:train(?:ing)?(?:_\w+)?|total|all|sum)", full):
        return "loss"
    if _NORM.fullmatch(last):
        return "grad_norm"
    if _RATE_OF_GROUP.fullmatch(last):
        return "learning_rate"
    if _PART.fullmatch(last) or _SYMBOL.search(name):
        return "component"
    below = full.startswith(("loss/", "losses/")) and not _MEASURED.search(last)
    if ("loss" in last or below) and not _NOT_LOSS.search(full):
        return "component"
    return "other"


def is_error(name: str) -> bool:
    """Whether a column is the error or the objective of a fit, which is its loss where no other is printed."""
    return _FITTED.fullmatch(plain(name)) is not None


def is_perplexity(name: str) -> bool:
    """Whether a column is a perplexity, the exponential of a loss."""
    return _PERPLEXITY.search(plain(name)) is not None


def is_model_loss(name: str) -> bool:
    """Whether a component is the total loss of a world model, which has the others as parts."""
    return re.search(r"(?:^|[/_ ])(?:world_)?model_loss$", _without_statistic(name)) is not None


@lru_cache(maxsize=1 << 14)
def is_of_policy(name: str) -> bool:
    """Whether a column shows reinforcement learning, without being a loss: a reward, an entropy, a KL divergence."""
    full = plain(CAMEL.sub("_", name))
    return _POLICY.search(full) is not None and _HYPERPARAMETER.search(full) is None


@lru_cache(maxsize=1 << 14)
def is_score(name: str) -> bool:
    """Whether a column is a share of right answers, which belongs to the record above."""
    return _SCORE.search(plain(name)) is not None


@lru_cache(maxsize=1 << 14)
def is_trained(name: str) -> bool:
    """Whether a component is the loss of a separate network, such as a critic, an actor or a discriminator."""
    return role_of(name) == "component" and _OF_ITS_OWN.search(_without_statistic(name)) is not None


def _without_statistic(name: str) -> str:
    """A name without a suffix for the mean: `lossAverage`, `actor_loss/Average`."""
    return _STATISTIC.sub("", plain(CAMEL.sub("_", name)))


_TABLES: tuple[tuple[Role, set[str]], ...] = (
    ("loss", _LOSS),
    ("grad_norm", _GRAD),
    ("learning_rate", _RATE),
    ("loss_scale", _SCALE),
    ("step_seconds", _SECONDS),
    ("throughput", _PACE),
)


def loss_rank(name: str, evaluated: bool = True) -> int:
    """Rank of a name as the training loss; the smallest is the best.

    evaluated: another column is an evaluation loss. If none is, a bare `loss` next to a `train_loss` is one.
    """
    full = plain(name)
    if full == "loss" and not evaluated:
        return _LOSS_ORDER.index("training_loss") + 1
    last = full.split("/")[-1]
    found = [_LOSS_ORDER.index(n) for n in (full, last) if n in _LOSS_ORDER]
    return min(found, default=len(_LOSS_ORDER)) + (0 if full.count("/") < 2 else 10)


@lru_cache(maxsize=1 << 14)
def step_rank(name: str) -> int | None:
    """Index of a key among those that count steps; None if it does not."""
    full = plain(name)
    found = _ORDER.get(full)
    if found is None:
        found = _ORDER.get(plain(CAMEL.sub("_", name)))
    last = full.rsplit("/", 1)[-1]
    if found is None and last != full and last in _COUNTERS and not is_eval(name):
        found = len(STEP_KEYS) + 1 + _ORDER[last]
    if found is None and _AT_EVALUATION.fullmatch(full):
        found = 2 * len(STEP_KEYS)
    return found


def counts_environment(name: str) -> bool:
    """Whether a step key counts samples (frames, episodes, images), not updates of the weights."""
    rank = step_rank(name)
    return rank is not None and ENVIRONMENT <= rank < len(STEP_KEYS)


def number(word: str) -> float | None:
    """A number from its form in logs, including NaN and infinities; None for `N/A` and `No Log` (not measured)."""
    text = word.strip().strip("'\"").replace(",", "")
    try:
        return float(text)
    except ValueError:
        pass
    if text.startswith((".nan", ".inf", "-.inf")):  # YAML
        return number(text.replace(".", "", 1))
    if _ODD_NAN.fullmatch(text):
        return math.nan
    windows = _WINDOWS.fullmatch(text)
    if windows:
        return math.nan if windows[2].upper() != "INF" else -math.inf if windows[1] == "-" else math.inf
    inner = _WRAPPED.fullmatch(word.strip()) if len(word) < _LONGEST_WRAPPED else None
    return number(inner[1]) if inner and inner[1] != word else None


def factor(after: str, role: Role, name: str) -> float:
    """The factor for a number, from the unit that follows it or that is in its name.

    Converts times to seconds, and 85.8G to a plain number.
    """
    low = plain(name)
    if role == "step_seconds":
        unit = re.match(r"\s?([a-zµ]+)", after)
        known = _UNITS.get(unit[1]) if unit else None
        return known if known is not None else 1e-3 if low.endswith("_ms") else 1.0
    si = re.match(r"([KMBGT])(?![A-Za-z])", after)
    return _SI[si[1]] if si else 1.0


class Counter:
    """Steps of records with an epoch. A count that restarts with each epoch is continued over epochs."""

    def __init__(self) -> None:
        self._offset, self._step, self._epoch = 0, -1, -math.inf

    def at(self, step: int, epoch: float | None) -> int:
        """The step over all epochs."""
        if epoch is not None:
            again = step == self._step and epoch == self._epoch + 1  # the length of each epoch
            if again or (epoch > self._epoch and step < self._step):
                self._offset += self._step + (step == 0)
            elif epoch < self._epoch:
                self._offset = 0
            self._epoch = epoch
        self._step = step
        return self._offset + step
