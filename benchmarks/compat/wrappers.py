"""What wraps a model, or changes how it is run."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.compat.attention import TOKENS, WIDTH, Net, _module, fused
from benchmarks.compat.program import Case, NotTried, Program

Wrap = Callable[[nn.Module], nn.Module]


class Own(nn.Module):
    """A wrapper of one's own."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As of the inner module."""
        return self.module(*args, **kwargs)


def program(wrap: Wrap, inner: bool = False) -> Program:
    """Two blocks, wrapped. inner: `attach` gets the model inside of the wrapper."""
    model = Net(_module(fused()))
    wrapped = wrap(model)
    x = torch.randn(3, TOKENS, WIDTH)
    return Program(wrapped, lambda: wrapped(x).square().mean(), watched=model if inner else None)


def group() -> None:
    """A process group of this process alone."""
    if not torch.distributed.is_initialized():
        store = os.path.join(tempfile.mkdtemp(), "store")
        torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)


def compiled(model: nn.Module, **options: Any) -> nn.Module:
    """torch.compile with a back end that needs no compiler of C++."""
    torch.compiler.reset()
    return torch.compile(model, **{"backend": "aot_eager", **options})  # type: ignore[return-value]


def compiled_blocks(model: Any) -> nn.Module:
    """Each block on its own."""
    torch.compiler.reset()
    for i, block in enumerate(model.blocks):
        model.blocks[i] = torch.compile(block, backend="aot_eager")
    return model  # type: ignore[no-any-return]


def compiled_in_place(model: nn.Module) -> nn.Module:
    """`model.compile()`."""
    torch.compiler.reset()
    model.compile(backend="aot_eager")
    return model


def ddp(model: nn.Module, **options: Any) -> nn.Module:
    """DistributedDataParallel of one process."""
    group()
    return nn.parallel.DistributedDataParallel(model, **options)


def fsdp1(model: Any) -> nn.Module:
    """FullyShardedDataParallel of one process."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    group()
    try:
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)
    except Exception as error:
        raise NotTried(str(error).split("\n")[0]) from error


def fsdp2(model: Any) -> nn.Module:
    """`fully_shard` of one process: the blocks, then the model."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    group()
    mesh = init_device_mesh("cpu", (1,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)  # type: ignore[no-any-return]


def checkpointed(model: Any) -> nn.Module:
    """`checkpoint_wrapper` around the blocks."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    for i, block in enumerate(model.blocks):
        model.blocks[i] = checkpoint_wrapper(block)
    return model  # type: ignore[no-any-return]


class Checkpoints(nn.Module):
    """torch.utils.checkpoint in the forward."""

    def __init__(self, net: Any, reentrant: bool) -> None:
        super().__init__()
        self.net = net
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, features)."""
        if self.reentrant:
            x = x.detach().requires_grad_()
        for block in self.net.blocks:
            x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=self.reentrant)
        return x


def peft(model: nn.Module, kind: str = "LoraConfig", **options: Any) -> nn.Module:
    """Adapters of PEFT."""
    try:
        import peft as library
    except ImportError as error:
        raise NotTried("peft is not installed") from error
    config = getattr(library, kind)(target_modules=["qkv"], **options)
    return library.get_peft_model(model, config)  # type: ignore[arg-type]


def scripted(model: nn.Module) -> nn.Module:
    """TorchScript, traced."""
    return torch.jit.trace(model, torch.randn(3, TOKENS, WIDTH))  # type: ignore[no-any-return]


def normed(kind: Callable[[nn.Module], nn.Module]) -> Wrap:
    """A parametrization of all linear layers."""

    def wrap(model: nn.Module) -> nn.Module:
        for module in list(model.modules()):
            if isinstance(module, nn.Linear):
                kind(module)
        return model

    return wrap


def tied(model: Any) -> nn.Module:
    """The blocks share their weights, and one block is in two places."""
    model.blocks[1].mlp[0].weight = model.blocks[0].mlp[0].weight
    model.blocks.append(model.blocks[0])
    return model  # type: ignore[no-any-return]


def averaged(model: nn.Module) -> nn.Module:
    """An average of the weights is kept beside the model."""
    wrapper = Own(model)
    object.__setattr__(wrapper, "average", torch.optim.swa_utils.AveragedModel(model))
    return wrapper


def in_half(model: nn.Module) -> nn.Module:
    """Weights in bfloat16."""

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model.bfloat16()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.bfloat16()).float()  # type: ignore[no-any-return]

    return Half()


def with_autocast(model: nn.Module) -> nn.Module:
    """Autocast around the forward."""

    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return self.inner(x).float()  # type: ignore[no-any-return]

    return Cast()


WRAPPERS: dict[str, Wrap] = {
    "nothing": lambda model: model,
    "own wrapper": Own,
    "own wrapper, twice": lambda model: Own(Own(model)),
    "DataParallel": nn.DataParallel,
    "torch.compile": compiled,
    "torch.compile, whole graph": partial(compiled, fullgraph=True),
    "torch.compile, eager back end": partial(compiled, backend="eager"),
    "torch.compile of each block": compiled_blocks,
    "Module.compile": compiled_in_place,
    "DistributedDataParallel": ddp,
    "DistributedDataParallel, static graph": partial(ddp, static_graph=True),
    "torch.compile of DistributedDataParallel": lambda model: compiled(ddp(model)),
    "DistributedDataParallel of torch.compile": lambda model: ddp(compiled(model)),
    "FullyShardedDataParallel": fsdp1,
    "fully_shard": fsdp2,
    "checkpoint_wrapper": checkpointed,
    "checkpoint": lambda model: Checkpoints(model, False),
    "checkpoint, reentrant": lambda model: Checkpoints(model, True),
    "PEFT LoRA": partial(peft, r=2),
    "PEFT DoRA": partial(peft, r=2, use_dora=True),
    "PEFT IA3": partial(peft, kind="IA3Config", feedforward_modules=[]),
    "PEFT OFT": partial(peft, kind="OFTConfig", oft_block_size=4),
    "torch.jit.trace": scripted,
    "spectral_norm": normed(torch.nn.utils.parametrizations.spectral_norm),
    "weight_norm": normed(torch.nn.utils.parametrizations.weight_norm),
    "tied weights, a shared block": tied,
    "AveragedModel beside it": averaged,
    "bfloat16 weights": in_half,
    "autocast": with_autocast,
}
INSIDE = ("own wrapper", "torch.compile", "DistributedDataParallel", "DataParallel")
"""Those of which the inner model is attached too."""


def cases() -> Iterator[Case]:
    """One case for each wrapper."""
    for name, wrap in WRAPPERS.items():
        yield Case("wrappers", name, partial(program, wrap), " ")
    for name in INSIDE:
        yield Case("wrappers", f"{name}, the inner model attached", partial(program, WRAPPERS[name], True), " ")
