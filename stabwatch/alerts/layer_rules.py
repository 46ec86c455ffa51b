"""Rules over the sampled and deep signals: steps, weights, gradients that fade, tokens, units, experts, samples."""

from __future__ import annotations

from stabwatch.alerts.rule import Condition, Level, Rule

_PROXIES = (
    "Wortsman et al. 2023, Small-scale proxies for large-scale Transformer training instabilities, arXiv:2309.14322"
)
_MEAN_MODE = "Lu 2026, Mean Mode Screaming, arXiv:2605.06169"
_GROKKING = "Prieto et al. 2025, Grokking at the edge of numerical stability, arXiv:2501.04697"
_SWITCH = "Fedus et al. 2021, Switch Transformers, arXiv:2101.03961"
_ADAM = "Molybog et al. 2023, A Theory on Adam Instability in Large-Scale Machine Learning, arXiv:2304.09871"
_SDC = "Dixit et al. 2021, Silent Data Corruptions at Scale, arXiv:2102.11245"
_ENTROPY = (
    "Zhai et al. 2023, Stabilizing Transformer Training by Preventing Attention Entropy Collapse, arXiv:2303.06296"
)
_TANH = "Glorot and Bengio 2010, Understanding the difficulty of training deep feedforward neural networks"
_RESIDUAL = "Zhang et al. 2019, Fixup Initialization, arXiv:1901.09321"
_GHOSTS = "Ghosts of Softmax, arXiv:2603.13552"
_SHESHA = "shesha-geometry 0.3.0, rdm_drift"
_RELU = "Lu et al. 2019, Dying ReLU and Initialization, arXiv:1903.06733"
_CALIBRATED = "docs/detection.md"

LAYER_RULES: tuple[Rule, ...] = (
    Rule(
        name="UpdateTooLarge",
        title="Steps too large for the weights",
        family="update",
        summary="Steps are far too large for the weights.",
        description="A step changes the weights by {update_to_weight_median_ratio:.2g} of their size in the median "
        "layer, {update_to_weight_to_peak_ratio:.3g} times the largest before; 0.001 is usual.",
        levels=(
            Level(
                severity="warning",
                when=(
                    Condition("update_to_weight_median_ratio", above=0.02),
                    Condition("update_to_weight_to_peak_ratio", above=4.0),
                ),
                summary="Steps have become many times larger than any before.",
            ),
            Level(severity="warning", when=(Condition("update_to_weight_median_ratio", above=0.07),), hold=4),
        ),
        outside=(Condition("update_to_weight_median_ratio", above=0.02),),
        warm_up=8,
        source=f"seventy times the usual 1e-3; the healthy runs of {_CALIBRATED} stay below 0.04 after eight points",
        remedy=(
            "Lower the learning rate until updates are about a thousandth of the weights.",
            "Warm it up over the first hundreds of steps; look for a jump in the schedule.",
        ),
        references=(_PROXIES,),
    ),
    Rule(
        name="WeightsChangedOutsideStep",
        title="Weights changed from outside",
        family="weight",
        summary="Weights changed by more than the optimizer's steps explain.",
        description="The weights of {where} changed by {weight_unexplained_ratio:.3g} of their norm beyond what the "
        "updates explain.",
        levels=(Level(severity="warning", when=(Condition("weight_unexplained_ratio", above=0.05),)),),
        outside=(Condition("weight_unexplained_ratio", above=0.05),),
        source="a norm after a step lies within 1 +- the step's own ratio; 0.05 is rounding many times over",
        remedy=(
            "Was a checkpoint loaded, an average swapped in, a layer initialised again here? Then all is well.",
            "If not: memory of this device is suspect. Resume from before this step on another one."
            " Run its diagnostics.",
        ),
        references=(_SDC,),
    ),
    Rule(
        name="VanishingGradients",
        title="Vanishing gradients",
        family="gradient_fade",
        summary="Gradients have faded, and the loss stands still.",
        description="The gradient RMS of the median layer is {gradient_fade_ratio:.2g} of what it was, and the loss is "
        "still {loss_left_ratio:.0%} of its first value and stands still.",
        levels=(
            Level(
                severity="warning",
                when=(
                    Condition("gradient_fade_ratio", below=0.02),
                    Condition("loss_left_ratio", above=0.5),
                    Condition("loss_stall_ratio", above=0.97),
                ),
                hold=8,
            ),
        ),
        outside=(Condition("gradient_fade_ratio", below=0.05), Condition("loss_left_ratio", above=0.5)),
        warm_up=24,
        source=f"healthy runs with half of their loss left keep a fifth of their gradients ({_CALIBRATED})",
        remedy=(
            "Which layers? The gradient of the first layers gone: warm up longer, normalise before the branches.",
            "Go back to before the onset: a network in this state does not learn its way out.",
        ),
        references=(_RELU,),
    ),
    Rule(
        name="TokenCollapse",
        title="Mean-mode collapse: tokens become one",
        family="token_similarity",
        summary="Tokens become one: their representations no longer differ.",
        description="The mean cosine between tokens is {token_similarity_median:.4g} in the median layer, "
        "{token_similarity_rise:.2g} higher than at first.",
        levels=(
            Level(
                severity="warning",
                when=(Condition("token_similarity_median", above=0.97), Condition("token_similarity_rise", above=0.3)),
                hold=16,
            ),
        ),
        outside=(Condition("token_similarity_median", above=0.9), Condition("token_similarity_rise", above=0.2)),
        warm_up=16,
        source=f"1 is the end ({_MEAN_MODE}); {_CALIBRATED}",
        remedy=(
            "Stop: queries and keys get no gradient any more. Resume from before the onset with a lower learning rate.",
            "For good: take the token mean out of what the branches write (MV-Split), pre-norm, scaled residuals.",
        ),
        references=(_MEAN_MODE,),
    ),
    Rule(
        name="AdamStepTooLarge",
        title="Adam's second moment is stale",
        family="adam_step_rms",
        summary="Adam's second moment is stale: its steps are longer than the learning rate.",
        description="The root mean square of m / (sqrt(v) + eps) of {where} is {adam_step_rms:.3g}; steady gradients "
        "give at most 1.",
        levels=(
            Level(severity="warning", when=(Condition("adam_step_rms", above=2.0),)),
            Level(severity="info", when=(Condition("adam_step_rms", above=1.1),)),
        ),
        outside=(Condition("adam_step_rms", above=1.1),),
        warm_up=2,
        source="1 is what gradients that never change give; one gradient far larger than all before gives up to "
        "(1 - beta1) / sqrt(1 - beta2) = 3.2",
        remedy=(
            "What changed here: the data, the weight of a loss, a layer that began to learn?",
            "Lower beta2 (0.95), clip updates (StableAdamW), or clip the gradient.",
        ),
        references=(_ADAM,),
    ),
    Rule(
        name="AdamEpsilonTooLarge",
        title="Adam's epsilon is too large",
        family="adam_epsilon",
        summary="Adam's epsilon is larger than the gradients: it sets the steps.",
        description="In the median layer, {adam_epsilon_median_ratio:.0%} of the second moments lie below epsilon "
        "squared.",
        levels=(Level(severity="warning", when=(Condition("adam_epsilon_median_ratio", above=0.8),), hold=8),),
        outside=(Condition("adam_epsilon_median_ratio", above=0.5),),
        source=f"gradient RMS below epsilon ({_PROXIES}); embeddings reach 0.75 in healthy runs, other layers 0.1",
        remedy=("Lower epsilon (1e-8, or 1e-15 for large models), or scale the loss up.",),
        references=(_PROXIES,),
    ),
    Rule(
        name="SoftmaxCollapse",
        title="Softmax collapse",
        family="softmax_collapse_ratio",
        summary="Softmax collapse: most samples' losses are exactly zero, and teach nothing.",
        description="The loss of {softmax_collapse_ratio:.0%} of the samples is exactly zero.",
        levels=(Level(severity="warning", when=(Condition("softmax_collapse_ratio", above=0.8),), hold=16),),
        outside=(Condition("softmax_collapse_ratio", above=0.3),),
        source=f"{_GROKKING}; {_CALIBRATED}",
        remedy=(
            "Has it learned all there is? Then stop here.",
            "If it should still generalise: weight decay, StableMax, or the loss in a higher precision.",
        ),
        references=(_GROKKING,),
    ),
    Rule(
        name="RouterCollapse",
        title="Router collapse",
        family="router_max_violation",
        summary="A router sends nearly everything to one expert.",
        description="The busiest expert of {where} has {router_max_violation:.3g} times more than its share.",
        levels=(Level(severity="warning", when=(Condition("router_max_violation", above=2.5),), hold=64),),
        outside=(Condition("router_max_violation", above=2.0),),
        source=f"3 is all tokens to one of four experts, or to the same two of eight; {_CALIBRATED}",
        remedy=(
            "Raise the weight of the load-balancing loss, or use a bias per expert; lower the router's learning rate.",
            "Resume from before the onset: experts that got nothing have learned nothing.",
        ),
        references=(_SWITCH,),
    ),
    Rule(
        name="DeadUnits",
        title="Dead units",
        family="dead_units_ratio",
        summary="Hidden units die.",
        description="{dead_units_ratio:.0%} of the inputs of {where} are zero for every token, "
        "{dead_units_ratio_rise:.0%} more than at first.",
        levels=(
            Level(
                severity="warning",
                when=(Condition("dead_units_ratio", above=0.8), Condition("dead_units_ratio_rise", above=0.3)),
                hold=3,
            ),
        ),
        outside=(Condition("dead_units_ratio", above=0.5), Condition("dead_units_ratio_rise", above=0.2)),
        source=f"{_CALIBRATED}",
        remedy=(
            "Lower the learning rate; dead units stay dead, so resume from before the onset.",
            "For good: GELU or leaky ReLU, warm-up, smaller biases.",
        ),
        references=(_RELU,),
    ),
    Rule(
        name="SaturatedUnits",
        title="Saturated units",
        family="saturated_units_ratio",
        summary="Hidden units saturate.",
        description="{saturated_units_ratio:.0%} of the units of {where} are saturated for every token, "
        "{saturated_units_ratio_rise:.0%} more than at first.",
        levels=(
            Level(
                severity="warning",
                when=(
                    Condition("saturated_units_ratio", above=0.8),
                    Condition("saturated_units_ratio_rise", above=0.3),
                ),
                hold=3,
            ),
        ),
        outside=(Condition("saturated_units_ratio", above=0.5), Condition("saturated_units_ratio_rise", above=0.2)),
        source="as dead units: four fifths of a layer pass no gradient back",
        remedy=(
            "Lower the learning rate; resume from before the onset, as saturated units hardly come back.",
            "For good: normalise before the activation, initialise smaller, or use GELU or SiLU in place of tanh.",
        ),
        references=(_TANH,),
    ),
    Rule(
        name="AttentionEntropyCollapse",
        title="Attention-entropy collapse",
        family="attention_entropy",
        summary="Attention looks at one token only: its entropy has collapsed.",
        description="The mean entropy of the attention of {where} is {attention_entropy:.2g} nat, "
        "{attention_entropy_rise:.2g} against its first value.",
        levels=(
            Level(
                severity="warning",
                when=(Condition("attention_entropy", below=0.05), Condition("attention_entropy_rise", below=-1.0)),
                hold=8,
            ),
        ),
        outside=(Condition("attention_entropy", below=0.2), Condition("attention_entropy_rise", below=-0.5)),
        source=f"0.05 nat is 99% of the weight on one token, over all heads of the layer ({_ENTROPY}); {_CALIBRATED}",
        remedy=(
            "Lower the learning rate; look at the attention logits of the layer named here.",
            "For good: QK-norm, or sigma-reparametrisation of the weights; a longer warm-up.",
        ),
        references=(_ENTROPY,),
    ),
    Rule(
        name="ResidualStreamGrowth",
        title="Exploding residual stream",
        family="residual_growth",
        summary="The residual stream grows from block to block.",
        description="From block to block of {where} the output RMS grows by the factor exp({residual_growth:.2g}), "
        "{residual_growth_rise:.2g} more than at first.",
        levels=(
            Level(
                severity="warning",
                when=(Condition("residual_growth", above=2.0), Condition("residual_growth_rise", above=1.0)),
                hold=3,
            ),
        ),
        outside=(Condition("residual_growth", above=1.0), Condition("residual_growth_rise", above=0.5)),
        source=f"2 is sevenfold in each block ({_RESIDUAL}); healthy stacks reach 1.1 ({_CALIBRATED})",
        remedy=(
            "Lower the learning rate; look at the branch over trunk of the first blocks named here.",
            "For good: normalise each branch, or scale its output by 1 / sqrt(2 x depth).",
        ),
        references=(_RESIDUAL,),
    ),
    Rule(
        name="RepresentationDrift",
        title="Representation drift",
        family="geometry_drift",
        summary="What the network makes of the fixed batch has changed its geometry.",
        description="The token distances of the fixed batch have drifted by {geometry_drift_median:.2g} in the median "
        "layer, {geometry_drift_jump:.2g} since the point before; 1 is unrelated.",
        levels=(
            Level(
                severity="warning",
                when=(Condition("geometry_drift_median", above=0.3), Condition("geometry_drift_jump", above=0.2)),
                summary="What the network makes of the fixed batch has changed its geometry at one blow.",
            ),
            Level(severity="warning", when=(Condition("geometry_drift_median", above=0.85),), hold=3),
        ),
        outside=(Condition("geometry_drift_median", above=0.3),),
        source=f"1 is a geometry that has nothing of the reference ({_SHESHA}); a healthy ViT and GPT from scratch "
        "reach 0.7 in 240 steps and move by 0.1 from point to point; a learning-rate spike of 30 times moves 0.3",
        remedy=(
            "Fine-tuning? What was learned before is being lost: lower the learning rate, or freeze the first layers.",
            "A sudden jump: look at what came just before it, and go back to a checkpoint from before.",
            "Was the reference taken at initialisation? Then take it again (`watch.probe`) from a trained network.",
        ),
    ),
    Rule(
        name="ExpertTokensDropped",
        title="A router drops tokens",
        family="router_dropped_ratio",
        summary="Experts are full, and tokens are dropped.",
        description="{router_dropped_ratio:.0%} of the assignments of {where} are beyond the experts' capacity.",
        levels=(Level(severity="warning", when=(Condition("router_dropped_ratio", above=0.3),), hold=64),),
        outside=(Condition("router_dropped_ratio", above=0.2),),
        source=f"{_SWITCH}: below 1% once balanced; 0.3 for 64 points, as routers begin unbalanced",
        remedy=(
            "Raise the weight of the load-balancing loss; a larger capacity factor meanwhile.",
            "Is the router collapsing (RouterCollapse)? Then resume from before the onset.",
        ),
        references=(_SWITCH,),
    ),
    Rule(
        name="StepBeyondRadius",
        title="Steps longer than the Taylor radius",
        family="beyond_radius_ratio",
        summary="Steps are longer than the radius within which the loss is what its series says.",
        description="For {beyond_radius_ratio:.0%} of the samples the step is longer than the Taylor radius.",
        levels=(Level(severity="warning", when=(Condition("beyond_radius_ratio", above=0.5),), hold=3),),
        outside=(Condition("beyond_radius_ratio", above=0.25),),
        source=f"no step within the radius failed, seven of ten beyond it did ({_GHOSTS}; docs/validation.md)",
        remedy=(
            "Lower the learning rate; lengthen the warm-up.",
            'The guard `guard="taylor"` shortens such steps.',
        ),
        references=(_GHOSTS,),
    ),
)
