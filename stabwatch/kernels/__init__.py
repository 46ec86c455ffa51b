"""How tensors become partials. Each reduction has a folder: `naive.py` is its definition in float64 (the oracle of the
tests), `eager.py` the form in plain torch that runs in training and is traced by torch.compile.

Every function returns the partials of one accumulator in the order of its `Reduction`
(`stabwatch.signals.reductions`): float32 on the device, or plain floats on the CPU. `merge_` merges them into an
accumulator by the operators of the reduction. No function synchronises with an accelerator.
"""
