"""The rules. Each names the gauges it compares, the constants and where they come from."""

from __future__ import annotations

from stabwatch.alerts.layer_rules import LAYER_RULES
from stabwatch.alerts.precision import PRECISION_RULES
from stabwatch.alerts.ranks import RANK_RULES
from stabwatch.alerts.rule import Condition, Level, Rule

_PROXIES = (
    "Wortsman et al. 2023, Small-scale proxies for large-scale Transformer training instabilities, arXiv:2309.14322"
)
_VIT22B = "Dehghani et al. 2023, Scaling Vision Transformers to 22 Billion Parameters, arXiv:2302.05442"
_MUONCLIP = "Kimi Team 2025, Kimi K2 (MuonClip), arXiv:2507.20534"
_PALM = "Chowdhery et al. 2022, PaLM, arXiv:2204.02311"
_MAXACT = "Sun et al. 2024, Massive Activations in Large Language Models, arXiv:2402.17762"
_ZCLIP = "Kumar et al. 2025, ZClip, arXiv:2504.02507"

RULES: tuple[Rule, ...] = (
    Rule(
        name="NonFinite",
        title="Non-finite numbers",
        family="nonfinite",
        summary="NaN or infinite values appeared in training.",
        description="{nonfinite:.0f} non-finite values in {signal} of {where} at step {step}.",
        levels=(
            Level(severity="critical", when=(Condition("nonfinite_new", above=0),)),
            Level(
                severity="info",
                when=(Condition("nonfinite", above=0),),
                summary="Non-finite values from the first record on, beside a finite loss: a mask, most likely.",
            ),
        ),
        outside=(Condition("nonfinite", above=0),),
        recover=20,
        source="any; information where the first record has them already beside a finite loss, as masks of -inf do",
        remedy=(
            "Stop, and resume from the last checkpoint before the onset.",
            "Look at the batch of that step, and at the first layer named here: what came in finite and went out not?",
            "In fp16: let a gradient scaler skip the step; or train in bfloat16.",
        ),
    ),
    Rule(
        name="AttentionLogitGrowth",
        title="Attention-logit growth",
        family="attention_logit",
        summary="Attention logits grow past a safe size.",
        description="The largest attention logit of {where} is at least {attention_logit_bound:.4g} and {growth} "
        "(limit 100).",
        levels=(
            Level(
                severity="critical",
                when=(
                    Condition("attention_logit_bound", above=100.0),
                    Condition("attention_logit_rise_ratio", above=1.5),
                ),
                hold=3,
            ),
            Level(
                severity="warning",
                when=(
                    Condition("attention_logit_bound", above=40.0),
                    Condition("attention_logit_steps_to_limit", below=200.0),
                    Condition("attention_logit_rise_ratio", above=1.5),
                ),
                hold=3,
            ),
            Level(
                severity="info",
                when=(Condition("attention_logit_bound", above=100.0),),
                hold=3,
                summary="Attention logits are large, and were so in the first record.",
            ),
        ),
        outside=(Condition("attention_logit_bound", above=30.0),),
        source=f"100: QK-clip's tau ({_MUONCLIP}); healthy small models stay under 35 (docs/calibration.md); "
        "1.5 times the first value, as models to be fine-tuned may come with logits beyond 100",
        remedy=(
            "Lower the learning rate, or lengthen its warm-up, before the loss moves.",
            "For good: normalise queries and keys (QK-norm), or clip them (QK-clip at 100).",
        ),
        references=(_VIT22B, _PROXIES, _MUONCLIP),
    ),
    Rule(
        name="OutputLogitDrift",
        title="Output-logit divergence",
        family="output_logit",
        summary="Output logits drift away from zero.",
        description="The mean logsumexp of the output logits is {output_logit_logsumexp:.4g}, "
        "{output_logit_drift:.4g} farther from 0 than at first.",
        levels=(
            Level(severity="critical", when=(Condition("output_logit_drift", above=300.0),), hold=5),
            Level(severity="warning", when=(Condition("output_logit_drift", above=100.0),), hold=5),
        ),
        outside=(Condition("output_logit_drift", above=50.0),),
        source="at 128 the spacing of bfloat16 is 1, so that probabilities lose their first digit",
        remedy=(
            "Add a z-loss of 1e-4 times the mean square of the logsumexp.",
            "Lower the learning rate; use weight decay on the output layer.",
        ),
        references=(_PALM, _PROXIES),
    ),
    Rule(
        name="ActivationOutlierGrowth",
        title="Exploding activations",
        family="activation",
        summary="Activations of a layer grow by orders of magnitude.",
        description="The largest activation of {where} is {activation_abs_max:.4g}, "
        "{activation_growth_ratio:.3g} times its recent least.",
        levels=(
            Level(
                severity="warning",
                when=(Condition("activation_abs_max", above=1000.0), Condition("activation_growth_ratio", above=50.0)),
                hold=2,
            ),
        ),
        outside=(Condition("activation_abs_max", above=100.0), Condition("activation_growth_ratio", above=10.0)),
        source=f"massive activations begin at 100 and 1000 times the median ({_MAXACT}); 50-fold growth in 64 points",
        remedy=(
            "Lower the learning rate; look at the update-to-weight ratio of the layer named here (usual: 1e-3).",
            "For good: normalise branch outputs, or scale residual branches down with depth.",
        ),
        references=(_MAXACT,),
    ),
    Rule(
        name="GradientNormExplosion",
        title="Gradient explosion",
        family="gradient_norm",
        summary="The gradient norm explodes.",
        description="The gradient norm is {gradient_norm:.4g}, {gradient_norm_to_median_ratio:.3g} times its recent "
        "median.",
        levels=(
            Level(
                severity="critical",
                when=(
                    Condition("gradient_norm_to_median_ratio", above=100.0),
                    Condition("gradient_norm_robust_z", above=6.0),
                ),
                hold=3,
            ),
            Level(
                severity="warning",
                when=(
                    Condition("gradient_norm_to_median_ratio", above=10.0),
                    Condition("gradient_norm_robust_z", above=6.0),
                ),
                hold=3,
            ),
        ),
        outside=(Condition("gradient_norm_robust_z", above=4.0),),
        warm_up=24,
        source="ten times the recent median, and beyond its own scatter",
        remedy=(
            "Clip the global gradient norm at its usual size.",
            "Look at the batches of these steps, and at the layer whose gradient norm rose first.",
            "Lower the learning rate; in recurrent models, check the recurrent weights' largest singular value.",
        ),
        references=(_ZCLIP,),
    ),
    Rule(
        name="LossSpike",
        title="A loss spike with no earlier sign",
        family="loss",
        summary="The loss spikes.",
        description="The loss is {loss:.4g}: {loss_to_median_ratio:.3g} times its recent median, "
        "{loss_robust_z:.3g} times its usual scatter.",
        levels=(
            Level(
                severity="warning",
                when=(Condition("loss_robust_z", above=5.0), Condition("loss_to_median_ratio", above=1.3)),
                hold=3,
            ),
        ),
        outside=(Condition("loss_robust_z", above=4.0),),
        warm_up=24,
        source="robust form of SpikeScore's 6 sigma (OLMo), held over three points as KillLossSpike does over five",
        remedy=(
            "If it recovers within some hundred steps, go on; if spikes come back, lower the learning rate.",
            "If it does not: go back to a checkpoint before the onset and skip the batches of these steps.",
        ),
        references=(_PALM,),
    ),
    Rule(
        name="LossShift",
        title="The loss stays on a higher level",
        family="loss",
        summary="The loss has jumped to a higher level.",
        description="The last losses are {loss_shift_ratio:.3g} times those before: in {loss_shift_share:.0%} of all "
        "pairs the later one is higher.",
        levels=(
            Level(
                severity="warning",
                when=(Condition("loss_shift_share", above=0.95), Condition("loss_shift_ratio", above=1.2)),
                hold=3,
            ),
        ),
        outside=(Condition("loss_shift_share", above=0.75), Condition("loss_shift_ratio", above=1.1)),
        warm_up=40,
        source="nearly each of eight losses is above nearly all of the 64 before, three times in a row: no healthy run "
        "of half A has 0.9 once, beside a median a tenth higher (docs/detection.md)",
        remedy=(
            "Look at the batches since the onset, and at what changed there: data, learning rate, a loss's weight.",
            "Was a change of data or loss meant? Announce it (`watch.announce`), and this stays silent.",
        ),
        references=(_PALM,),
    ),
    Rule(
        name="LossRisesWithRate",
        title="The loss gets worse as the learning rate climbs",
        family="loss",
        summary="The loss gets worse while the learning rate climbs.",
        description="{loss_worse_share:.0%} of the last losses exceed those of the best stretch, and the learning rate "
        "is {learning_rate_climb_ratio:.3g} times what it ever was until then.",
        levels=(
            Level(
                severity="warning",
                when=(
                    Condition("loss_climb_score", above=0.2),
                    Condition("learning_rate_climb_ratio", above=1.25),
                    Condition("loss_worse_share", above=0.6),
                    Condition("loss_lost_ratio", above=0.1),
                ),
                hold=8,
            ),
        ),
        outside=(Condition("loss_worse_share", above=0.6), Condition("loss_climb_score", above=0.0)),
        warm_up=64,
        source="a score of 0.2 is a share of 0.8 (a shift by 1.2 standard deviations) where the rate is 1.26 times as "
        "high, or 0.6 where it has doubled; and a tenth of the progress lost (docs/detection.md)",
        remedy=(
            "End the warm-up here: go back to where the loss was best, and keep to the learning rate it had there.",
            "Warming up again on a checkpoint of a finished run? Then some rise is usual; watch that it ends.",
        ),
        references=(_PROXIES,),
    ),
    Rule(
        name="LossDivergence",
        title="Loss divergence",
        family="loss",
        summary="The loss has diverged.",
        description="The loss is {loss:.4g}; at its best it was {loss_best:.4g}, at first {loss_first:.4g}.",
        levels=(Level(severity="critical", when=(Condition("loss_lost_ratio", above=0.5),), hold=24),),
        outside=(Condition("loss_lost_ratio", above=0.25),),
        warm_up=40,
        source="half of the progress lost, or half again its best, in the median of 16 points, for longer than a spike "
        "stays in that median",
        remedy=(
            "Stop. Resume from a checkpoint before the onset with a lower learning rate, or past the bad batches.",
        ),
        references=(_PROXIES,),
    ),
    *LAYER_RULES,
    *PRECISION_RULES,
    *RANK_RULES,
    Rule(
        name="TrainingStopped",
        title="The process stopped",
        family="run",
        summary="Training stopped without finishing, or stands still.",
        description="{what}",
        source="the end event; no record for 20 median steps, 60 s, and twice the longest pause before",
        remedy=(
            "Look at the end of the training's own output: out of memory, a lost node, a killed job?",
            "Resume from the last checkpoint; look first at what else fired here before the end.",
        ),
    ),
)

BY_NAME: dict[str, Rule] = {rule.name: rule for rule in RULES}
