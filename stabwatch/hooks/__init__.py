"""Where tensors are seen. The only room that touches `nn.Module`s, optimizers and torch's functions.

`sites.py` chooses and names the places, `modules.py` hooks them, `functions.py` sees calls that are no
modules (attention, losses, clipping), `parameters.py` reads gradients, weights and updates at the
optimizer step, `guard.py` makes sure that nothing of ours ever reaches the training loop.
"""
