"""Hooks on modules, functions and optimizers: the only package that reads the tensors of the training loop.

`forward.py` hooks modules, `functions.py` replaces functions of torch (attention, losses, clipping), `compiled.py`
works inside compiled graphs, and `optimizer_step.py` measures at the optimizer's step. `base/` is what they share:
`TapContext`, sites, views, the registry of probes. `probes/` declares what is measured, one file per subject.
"""
