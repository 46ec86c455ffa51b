"""How tensors become partials. One reduction, one folder: `naive.py` is the float64 definition (the oracle),
`eager.py` the plain-torch form that runs in training and traces under torch.compile.

Every function returns the partials of one cell as a float32 vector, in the order of its `Reduction`
(`stabwatch.signals.reductions`); `merge_` folds such a vector into a cell by the merge law. None of
them synchronises with the device.
"""
