"""The run as a whole: pace, learning rate, and the cost and gaps of stabwatch itself. Host numbers, one per step."""

from __future__ import annotations

from typing import Any

from stabwatch.signals.declaration import Signal


def _host(name: str, help: str, unit: str = "1", **more: Any) -> Signal:
    return Signal(
        name=name, help=help, unit=unit, tap="host", reduction="host", fields=("last",), formula="same",
        scope="run", **{"tier": "always", **more},
    )  # fmt: skip


def _count(name: str, help: str) -> Signal:
    return Signal(
        name=name, help=help, unit="1", tap="host", reduction="host_count", fields=("sum",), formula="total",
        scope="run", kind="counter", tier="always",
    )  # fmt: skip


def _mean(name: str, help: str, unit: str = "1") -> Signal:
    return Signal(
        name=name, help=help, unit=unit, tap="host", reduction="host_count", fields=("sum", "count"), formula="mean",
        scope="run", tier="sampled",
    )  # fmt: skip


SIGNALS = (
    Signal(
        name="logged_value",
        help="A number that the training loop gave to `watch.log`; the label `name` holds its name unchanged.",
        unit="1",
        tap="logged",
        reduction="mean",
        fields=("sum", "count"),
        formula="mean",
        tier="always",
    ),
    _host("step_seconds", "Wall time of the step.", "seconds"),
    _host("data_wait_seconds", "Time from the end of the previous step to the model's next forward.", "seconds"),
    _host(
        "samples_per_second",
        "Samples (first dimension of the model's first input) per second of wall time.",
        worst="min",
    ),
    _host("learning_rate", "Largest learning rate among the optimizer's parameter groups."),
    _host("loss_scale", "Loss scale of the gradient scaler, if one is used.", worst="min"),
    _host("overhead_ratio", "Share of recent wall time that was spent in stabwatch.", "ratio"),
    _host(
        "taps_missing", "Taps that should have measured something by now and have not; `stabwatch doctor` lists them."
    ),
    _count("skipped_steps_total", "Optimizer steps that the gradient scaler skipped."),
    Signal(
        name="guard_interventions_total",
        help="Optimizer steps that a guard undid (skip_step) or shortened (taylor); measured if such a guard is on.",
        unit="1",
        tap="optimizer",
        reduction="host_count",
        fields=("sum",),
        formula="total",
        scope="run",
        kind="counter",
        tier="always",
    ),
    _host(
        "gradients_kept_ratio",
        "Share of a few parameters whose gradient was not empty when each backward pass of the step began; with "
        "`zero_grad` it is 0.",
        "ratio",
    ),
    _host(
        "weights_rewritten_ratio",
        "Change of some weights from the end of a step to the next one over their norm; above 0 where the program "
        "writes into them itself.",
        "ratio",
    ),
    _host(
        "weights_written",
        "Whether the program wrote into weights since the last optimizer step: 1, or 0; through `p.data` it is seen on "
        "a CPU only.",
    ),
    _host(
        "refrozen_ratio",
        "Share of an optimizer's numbers that are frozen, and that it had stepped before it was first seen.",
        "ratio",
    ),
    _host(
        "evaluation_mode_ratio",
        "Share of the layers with dropout or batch norm in evaluation mode in training: 1 after `model.eval()`, else "
        "of parts left in it.",
        "ratio",
    ),
    _host(
        "loss_broadcast_factor",
        "With how many targets a loss compared each output, `mse_loss` or its kin or one by hand; above 1, shapes "
        "differ.",
    ),
    _host(
        "target_out_of_range_ratio",
        "Share of targets that the loss does not take: not in 0 to 1 (binary), not -1 or 1 (margin), the blank (CTC).",
        "ratio",
        tier="sampled",
    ),
    _host(
        "binary_probability_ratio",
        "Share of what `binary_cross_entropy_with_logits`, or of the rows that `cross_entropy`, is given that is in 0 "
        "to 1.",
        "ratio",
        tier="sampled",
    ),
    _host(
        "log_probability_off_ratio",
        "Share of the rows given to `nll_loss` or `ctc_loss` whose probabilities do not add up to 1, or to `kl_div` "
        "to more than 1.",
        "ratio",
        tier="sampled",
    ),
    _host(
        "target_rms",
        "Root mean square of the targets of `mse_loss` and its kin, of at most 65,536 numbers.",
        tier="sampled",
    ),
    _host(
        "target_size_ratio",
        "The same over that of the outputs that they are compared with.",
        "ratio",
        tier="sampled",
    ),
    _mean(
        "output_spread_ratio",
        "How far outputs of different samples are apart, over how far their targets are; mean over the losses.",
        "ratio",
    ),
    _mean(
        "error_to_variance_ratio",
        "Squared error of `mse_loss` and its kin over the variance of the targets in the batch; their mean gives 1.",
        "ratio",
    ),
    _mean(
        "compared_loss",
        "What `mse_loss` and its kin and `binary_cross_entropy_with_logits` returned; mean over the losses.",
    ),
    _host(
        "compared_mean",
        "Mean of the targets of `mse_loss`, its kin and the binary cross-entropy, of one number for each sample.",
        tier="sampled",
    ),
    _host(
        "compared_deviation",
        "Standard deviation of the same in the batch.",
        tier="sampled",
    ),
    _host(
        "target_unreachable_ratio",
        "Share of the targets of `mse_loss` and its kin that lie outside of what the output's last function gives.",
        "ratio",
        tier="sampled",
    ),
    _host(
        "wanted_deviation",
        "How far targets (samples, features) are apart, of `mse_loss` and its kin; of `cosine_similarity` their "
        "directions.",
        tier="sampled",
    ),
    _host(
        "output_deviation",
        "How far the outputs of different samples are apart, (samples, features) scaled to length 1.",
        tier="sampled",
    ),
    _host(
        "linear_layers",
        "Linear layers one behind the other from output to input, with nothing but norms and dropout between; 0 where "
        "other functions are.",
        tier="sampled",
    ),
    _host(
        "output_layer_untrained",
        "Whether the last linear layer before the model's output is frozen, and its bias is exactly 0: 1, or 0.",
        tier="sampled",
    ),
    _host(
        "samples_mixed_ratio",
        "Whether a recurrent layer or an attention took the batch for the sequence (`batch_first` is not set): 1.",
        "ratio",
        tier="sampled",
    ),
    _host(
        "units_alike_ratio",
        "Share of some weight matrices whose rows are all the same and not zero, before the optimizer's first step.",
        "ratio",
    ),
    _host(
        "logits_scrambled_ratio",
        "Whether `view` gave logits of `cross_entropy` the shape that `transpose` should have given them: 1, or 0.",
        "ratio",
    ),
    _host(
        "overlap_of_logits_ratio",
        "Whether an overlap that the program writes by itself (dice, IoU) is given what a linear layer gives: 1, or 0.",
        "ratio",
        tier="sampled",
    ),
    _host(
        "input_span_ratio",
        "Largest over smallest root mean square of the inputs of the calls of one step; 1 where none is above 10.",
        "ratio",
        tier="sampled",
    ),
    _mean(
        "derivative_zero_ratio",
        "Share of the derivatives from which the loss is made (`autograd.grad(..., create_graph=True)`) that are 0 "
        "everywhere.",
        "ratio",
    ),
    _host(
        "class_weight_ratio",
        "Mean weight of the labels of a batch over the mean weight of its classes: below 1 where rare ones weigh more.",
        "ratio",
        tier="sampled",
    ),
    _host(
        "weights_unchanged_ratio",
        "Whether a step left all weights the same, though a backward pass had come: 1, or 0; 0 also where gradients "
        "were next to 0.",
        "ratio",
    ),
    _host(
        "gradients_thrown_ratio",
        "Whether the gradients of each backward pass of a step were set to zero before the next one began: 1, or 0; of "
        "three passes and more.",
        "ratio",
    ),
    _host(
        "input_alike_ratio",
        "Share of the samples of a batch that equal its first one; of several inputs the smallest.",
        "ratio",
        tier="sampled",
    ),
    _mean(
        "target_in_input_ratio",
        "Share of the samples whose target is one of the numbers of the model's input, the same column in each; "
        "the mean over the losses of the step.",
        "ratio",
    ),
    _host("backward_passes", "Backward passes of the step that reached the model's parameters."),
    _host(
        "closure_passes",
        "Backward passes of the step within the optimizer's own step: of a closure (L-BFGS); absent without any.",
    ),
    _host("forward_passes", "Training forwards of the model in the step."),
    _host(
        "calls_without_gradient",
        "Training-mode calls without gradients on new inputs, forwards of one sample beside a batch, and draws from "
        "what the model gives.",
    ),
    _host(
        "validation_in_training_ratio",
        "Share of the calls in training mode without gradients whose inputs were seen so in an earlier step; 0 without "
        "any.",
        "ratio",
    ),
    _host(
        "dropout_in_evaluation",
        "Whether dropout was on in a forward in evaluation mode: 1, or 0; known for the first ones, without compilers.",
    ),
    _host(
        "batch_repeated",
        "Whether the model's first input was that of the step before: 1, or 0; known for batches in the host's memory.",
    ),
    _host(
        "loader_restarted",
        "Whether the batch is the first of a loader that was begun again, as in the step before: 1, or 0; absent where "
        "none was begun.",
    ),
    _host(
        "random_numbers_repeated",
        "Whether the first forward of the step drew the random numbers of an earlier one: 1, or 0; absent where it "
        "drew none.",
    ),
    _host(
        "batch_shift_ratio",
        "Squared distance of the last three input batches from up to 64 before, over what chance gives; about 1.",
        "ratio",
    ),
    _host(
        "opponent_steps",
        "Whether an objective that reached the model gave gradients to an optimizer that steps on another one: 1, or "
        "0.",
    ),
    _host(
        "input_spread_ratio",
        "How far samples of the model's first input are apart, over its root mean square.",
        "ratio",
        tier="sampled",
    ),
    _host("input_rms", "Largest root mean square of the model's inputs of floating-point numbers.", tier="sampled"),
    _host(
        "weight_decay_ratio",
        "Largest share of the weights that weight decay takes in a step, rate times decay, of SGD and AdamW.",
        "ratio",
    ),
    _host("clip_limit", "Largest `max_norm` that `clip_grad_norm_` was given in the step."),
    _host("clip_value", "Largest `clip_value` that `clip_grad_value_` was given in the step."),
    _host(
        "clip_late_ratio",
        "Whether gradients were clipped only after the optimizer had used them: 1, or 0.",
        "ratio",
    ),
    _host(
        "scaled_step_ratio",
        "Whether the optimizer (none of Adam's kind) stepped with gradients that were still multiplied by the loss "
        "scale: 1, or 0.",
        "ratio",
    ),
    _host(
        "loss_terms_unscaled",
        "Whether a gradient scaler has scaled the loss of some of the step's backward passes, and not of all: 1, or 0.",
    ),
    _count(
        "optimizer_resets_total",
        "Steps at which the optimizer had lost its state (momentum, Adam's moments) although it had one before.",
    ),
    _count("probe_errors_total", "Exceptions that stabwatch's own probes raised; all were caught."),
    _count("records_dropped_total", "Records that could not be written to the run log."),
)
