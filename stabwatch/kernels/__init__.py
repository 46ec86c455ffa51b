"""How tensors become partials. One reduction, one folder: `naive.py` is the float64 definition (the oracle),
`eager.py` the plain-torch form that runs in training and traces under torch.compile.

Every function returns the partials of one cell in the order of its `Reduction` (`stabwatch.signals.reductions`):
float32 on the device, or plain floats on the CPU; `merge_` folds them into a cell by the merge law. None of them
synchronises with an accelerator.
"""
