"""Mistakes that one number shows: of the loop, of the optimizer, of the shapes, of the last layer."""

from __future__ import annotations

from stabwatch.alerts.features import Feature, LastingFeature, PlainFeature
from stabwatch.alerts.rule import Condition, Rule, Threshold

DECAY = 0.01
"""Of the weights, in a step: half of them are gone after 70."""


def features() -> tuple[Feature, ...]:
    """Fresh state for one run."""
    return (
        PlainFeature("gradients_thrown_ratio"),
        PlainFeature("weights_unchanged_ratio"),
        LastingFeature("weight_decay_ratio", above=DECAY),
        PlainFeature("units_alike_ratio"),
        PlainFeature("samples_mixed_ratio"),
        PlainFeature("logits_scrambled_ratio"),
        PlainFeature("target_unreachable_ratio"),
        PlainFeature("linear_layers"),
        PlainFeature("output_layer_untrained"),
        PlainFeature("overlap_of_logits_ratio"),
        PlainFeature("class_weight_ratio"),
        LastingFeature("derivative_zero_ratio"),
    )


RULES: tuple[Rule, ...] = (
    Rule(
        name="GradientsThrownAway",
        title="Gradients of micro-batches are thrown away",
        family="gradients_thrown_ratio",
        summary="Gradients are set to zero before each micro-batch: the step uses those of the last one alone.",
        description="The gradients of each backward pass of the step were gone when the next one began.",
        thresholds=(
            Threshold(severity="warning", when=(Condition("gradients_thrown_ratio", above=0.5),), for_points=4),
        ),
        abnormal=(Condition("gradients_thrown_ratio", above=0.5),),
        source="all, in steps of three backward passes and more, at four points; where the program itself puts "
        "gradients in their place (one for each sample, or for each task) nothing is said",
        remedy=("Call `optimizer.zero_grad()` once for each `optimizer.step()`, not once for each batch.",),
        fact=True,
    ),
    Rule(
        name="UpdatesZero",
        title="The optimizer steps, and nothing changes",
        family="weights_unchanged_ratio",
        summary="The optimizer steps, and the weights stay the same: nothing is learned any more.",
        description="All weights that were looked at are the same after the step as before, at a learning rate that is "
        "not 0 and after a backward pass; or no parameter of the model requires a gradient.",
        thresholds=(
            Threshold(severity="warning", when=(Condition("weights_unchanged_ratio", above=0.99),), for_points=4),
        ),
        abnormal=(Condition("weights_unchanged_ratio", above=0.99),),
        source="up to 64 numbers of each of three matrices, to the bit, at four points 17 steps apart: an optimizer "
        "that collects gradients of several steps changes them in one of those",
        remedy=(
            "Are gradients set to zero, or to None, between `backward` and `step`?",
            "Does any parameter require a gradient? Adapters of PEFT that are loaded do not without "
            "`is_trainable=True`.",
            "Look at the optimizer's state: a second moment that has become infinite, or huge after one enormous "
            "gradient, divides all later steps to nothing.",
            "Does the program put old weights back after each step, or multiply updates by a mask or a factor of 0?",
            "In bfloat16 and float16: keep float32 weights in the optimizer, as small steps are rounded away.",
        ),
        fact=True,
    ),
    Rule(
        name="WeightDecayTooLarge",
        title="Weight decay takes the weights away",
        family="weight_decay_ratio",
        summary="Weight decay takes a per cent of the weights and more in each step: they fall towards zero.",
        description="Rate times weight decay is {weight_decay_ratio:.2g}; 1e-4 is usual.",
        thresholds=(
            Threshold(
                severity="warning",
                when=(Condition("weight_decay_ratio", above=DECAY), Condition("weight_decay_ratio_steps", above=31.0)),
                for_points=2,
            ),
        ),
        abnormal=(Condition("weight_decay_ratio", above=DECAY),),
        source="a per cent of the weights in a step, a hundred times the usual 1e-4, for 32 steps",
        remedy=(
            "Lower the weight decay: 0.01 to 0.1 in AdamW, 1e-4 to 5e-4 in SGD.",
            "Is it the number of another optimizer, or the learning rate?",
        ),
        fact=True,
    ),
    Rule(
        name="UnitsAlike",
        title="All units of a layer begin alike",
        family="units_alike_ratio",
        summary="Weights begin at one and the same number: the units of a layer get the same gradient and stay alike.",
        description="{units_alike_ratio:.0%} of the weight matrices that were looked at had equal rows before the "
        "first step.",
        thresholds=(Threshold(severity="warning", when=(Condition("units_alike_ratio", above=0.5),)),),
        abnormal=(Condition("units_alike_ratio", above=0.5),),
        source="more than half of the matrices, zeros not counted: units that begin alike have the same gradient for "
        "ever",
        remedy=(
            "Draw the weights at random: `kaiming_normal_`, `xavier_uniform_`, or what the layer does by itself.",
            "Biases may begin at one number.",
        ),
        references=("Goodfellow et al. 2016, Deep Learning, 8.4",),
        fact=True,
    ),
    Rule(
        name="NoNonlinearity",
        title="Nothing lies between the linear layers",
        family="linear_layers",
        summary="No activation function lies between the linear layers of the model: together they are one.",
        description="From input to output the model consists of {linear_layers:.0f} linear layers, and of nothing else "
        "but norms, dropout and shapes: one linear layer can do the same.",
        thresholds=(Threshold(severity="warning", when=(Condition("linear_layers", above=1.5),), for_points=2),),
        abnormal=(Condition("linear_layers", above=1.5),),
        source="two layers and more, none of which is narrower than both ends, as those of a factorisation are: what "
        "linear functions of linear functions are",
        remedy=(
            "Put an activation function between the layers: `nn.ReLU()`, `nn.GELU()`, `nn.Tanh()`.",
            "Is one declared in `__init__` and not called in `forward`?",
            "If a linear model is meant, one layer does the same.",
        ),
        references=("Goodfellow et al. 2016, Deep Learning, 6.1",),
        fact=True,
    ),
    Rule(
        name="OutputLayerUntrained",
        title="The output layer is frozen and was never trained",
        family="output_layer_untrained",
        summary="The layer that gives the output is frozen as it was drawn, while other parts are trained.",
        description="The last linear layer before the output requires no gradient, and its bias is exactly 0: it is as "
        "it was initialised.",
        thresholds=(
            Threshold(severity="warning", when=(Condition("output_layer_untrained", above=0.5),), for_points=3),
        ),
        abnormal=(Condition("output_layer_untrained", above=0.5),),
        source="three points: a layer that was trained has no bias of exactly 0",
        remedy=(
            "With PEFT give `LoraConfig` the `task_type`, or name the head in `modules_to_save`.",
            "Set requires_grad of the head to True, and hand its parameters to the optimizer.",
            "Should it come from a checkpoint? Then it was not loaded.",
        ),
        fact=True,
    ),
    Rule(
        name="SamplesMixed",
        title="The batch is taken for the sequence",
        family="samples_mixed_ratio",
        summary="A recurrent layer, an attention or a softmax goes along the batch: samples are mixed, and places are "
        "not.",
        description="The first dimension of its input is the batch: it has no `batch_first=True`, or its softmax goes "
        "along dimension 0.",
        thresholds=(Threshold(severity="warning", when=(Condition("samples_mixed_ratio", above=0.5),), for_points=2),),
        abnormal=(Condition("samples_mixed_ratio", above=0.5),),
        source="any: without `batch_first` the first dimension is the sequence; here it has one number for each "
        "target. Of a softmax over scores of each sample with each nothing is said",
        remedy=(
            "Give the layer `batch_first=True`, or its input as (sequence, batch, features).",
            "Give the softmax its dimension: of scores (batch, places) `dim=1`. Without one it is 0 of three "
            "dimensions.",
            "Test it: the output of a sample must be the same whatever the other samples are.",
        ),
        fact=True,
    ),
    Rule(
        name="LogitsScrambled",
        title="Classes and places of the logits are mixed up",
        family="logits_scrambled_ratio",
        summary="`view` or `reshape` stands where `transpose` is meant: a logit is taken for that of another class at "
        "another place.",
        description="The logits were (batch, places, classes), and were given to `cross_entropy` as (batch, classes, "
        "places) by a `view`, which leaves the numbers in their order.",
        thresholds=(
            Threshold(severity="warning", when=(Condition("logits_scrambled_ratio", above=0.5),), for_points=2),
        ),
        abnormal=(Condition("logits_scrambled_ratio", above=0.5),),
        source="any: the sizes of two dimensions are exchanged, and the numbers are not",
        remedy=(
            "Use `logits.transpose(1, 2)` or `permute`.",
            "Or flatten both: `logits.flatten(0, 1)` and `targets.flatten()`.",
        ),
        fact=True,
    ),
    Rule(
        name="TargetsOutOfReach",
        title="Targets are out of the output's reach",
        family="target_unreachable_ratio",
        summary="The last function of the model bounds its outputs, and many targets lie outside: they cannot be "
        "reached.",
        description="{target_unreachable_ratio:.0%} of the targets lie outside of what the last function can give "
        "(sigmoid and softmax: 0 to 1; tanh: -1 to 1; ReLU, softplus and exp: 0 and more; a sigmoid after a sigmoid: "
        "0.5 to 0.73, after a ReLU: 0.5 to 1).",
        thresholds=(
            Threshold(severity="warning", when=(Condition("target_unreachable_ratio", above=0.1),), for_points=3),
        ),
        abnormal=(Condition("target_unreachable_ratio", above=0.1),),
        source="a tenth of the targets, by more than 0.05, at three points: the definition of the function",
        remedy=(
            "Leave out the activation after the last layer of a regression.",
            "Or scale the targets to its range: pixels to 0 to 1 for a sigmoid, to -1 to 1 for a tanh.",
        ),
        fact=True,
    ),
    Rule(
        name="OverlapOfLogits",
        title="A loss of overlap is given logits",
        family="overlap_of_logits_ratio",
        summary="A dice or IoU loss that the program writes by itself is given logits in place of probabilities: it "
        "has no bound.",
        description="The output of a linear layer is multiplied with a mask and divided by its own sum.",
        thresholds=(
            Threshold(severity="critical", when=(Condition("overlap_of_logits_ratio", above=0.5),), for_points=2),
        ),
        abnormal=(Condition("overlap_of_logits_ratio", above=0.5),),
        source="any: an overlap is one of numbers between 0 and 1; sums of logits may be 0 or negative",
        remedy=(
            "Apply a sigmoid (or a softmax over the classes) to the output before the loss of overlap.",
            "Where the same output also goes to a loss that takes logits, give that one the output as it is.",
        ),
        references=("Milletari et al. 2016, V-Net, arXiv:1606.04797",),
        fact=True,
    ),
    Rule(
        name="ClassWeightsInverted",
        title="Frequent classes weigh more than rare ones",
        family="class_weight_ratio",
        summary="The weights of the classes are the wrong way round: the most frequent ones weigh most, and rare ones "
        "are not learned.",
        description="A label of the batch weighs {class_weight_ratio:.2g} times what its classes weigh in the mean.",
        thresholds=(Threshold(severity="warning", when=(Condition("class_weight_ratio", above=1.5),), for_points=8),),
        abnormal=(Condition("class_weight_ratio", above=1.5),),
        source="half as much again, at eight points: 1 for equal weights, and less for all that favour rare classes; "
        "two classes of which one is in nine of ten labels come to 1.6 where they weigh what they are frequent",
        remedy=(
            "Divide by the frequency of a class: `weight = total / (classes * counts)`.",
            "Of a binary loss `pos_weight` is the number of negatives over that of positives.",
            "Print the weights beside the names of the classes: are they in the same order?",
        ),
        references=("Cui et al. 2019, Class-Balanced Loss, arXiv:1901.05555",),
        fact=True,
    ),
    Rule(
        name="DerivativeZero",
        title="A derivative in the loss is zero everywhere",
        family="derivative_zero_ratio",
        summary="The loss is made of a derivative that is exactly zero everywhere: nothing can be learned from it.",
        description="{derivative_zero_ratio:.0%} of the derivatives from which the loss is made are 0 everywhere, "
        "as for {derivative_zero_ratio_steps:.0f} steps.",
        thresholds=(
            Threshold(
                severity="critical",
                when=(
                    Condition("derivative_zero_ratio", above=0.0),
                    Condition("derivative_zero_ratio_steps", above=15.0),
                ),
                for_points=4,
            ),
        ),
        abnormal=(Condition("derivative_zero_ratio", above=0.0),),
        source="any, for 16 steps: the second derivative of a network of ReLUs is 0 wherever there is one; a last "
        "layer that begins at zero has a derivative after its first step",
        remedy=(
            "Use a smooth activation where a loss has derivatives of the output: tanh, sine, SiLU, softplus.",
            "Does the output depend on what is differentiated? Is it a copy, rounded, or a code?",
        ),
        references=("Raissi et al. 2019, Physics-informed neural networks", "arXiv:2512.11184"),
        fact=True,
    ),
)
