"""Reductions of tensors to partial aggregates. Each has a folder: `naive.py` defines it in float64 (the oracle of the
tests); `eager.py` is plain torch, which runs in training and which torch.compile traces.

Every function returns the partial aggregates of one accumulator, in the order of the fields of its `Reduction`
(`stabwatch.signals.reductions`): float32 on the device, or plain floats on the CPU. `merge_` merges them into an
accumulator by the operators of the reduction. No function synchronises with an accelerator.
"""
