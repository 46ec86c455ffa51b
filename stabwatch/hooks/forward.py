"""Forward hooks: the same few for all modules, so that torch.compile traces and shares them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import count
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from stabwatch.hooks import compiled
from stabwatch.hooks.backward import leave_uncompiled
from stabwatch.hooks.base.accumulators import Buffer
from stabwatch.hooks.base.context import TapContext
from stabwatch.hooks.base.entry import Hook, is_exporting, runs_for_real, unseen_by_modes
from stabwatch.hooks.base.parts import has_forward
from stabwatch.hooks.base.site_accumulators import register_own
from stabwatch.hooks.base.sites import Site, Target, WatchedModule
from stabwatch.hooks.base.tensors import device_of, first_tensor, new_accumulator, of_this_rank
from stabwatch.hooks.base.views import CALL_VIEWS
from stabwatch.hooks.cursor import CURSOR, called, caller, in_backward, root_of
from stabwatch.hooks.module_calls import measure_call
from stabwatch.hooks.passing import PassingHook
from stabwatch.hooks.patching import SOFTMAX_METHOD
from stabwatch.hooks.probes import activation, loops
from stabwatch.hooks.probes.attention import BRACKET, EXACT
from stabwatch.hooks.probes.depth import Stacks
from stabwatch.hooks.probes.directional import OwnCall
from stabwatch.kernels.where import compilers_used
from stabwatch.runlog import Accumulator

WITHIN_TRANSFORM = (
    "the model was called inside a transformation of `torch.func` (`grad`, `vmap`), where nothing is measured"
)


def _before_root(site: Site, module: nn.Module, args: Any, kwargs: Any) -> None:
    """The model is called: does this forward belong to a training step?"""
    if not runs_for_real():
        if module.training and not site.context.forwards and torch._C._functorch.peek_interpreter_stack() is not None:
            site.context.isolation.run("coverage", "always", site.context.unmeasured, "forward", "", WITHIN_TRANSFORM)
        return
    begun = site.context.isolation.begin()
    site.context.parts.leave()
    try:
        _model_begins(site, module, args, kwargs)
    finally:
        site.context.isolation.end(begun)


def _model_begins(site: Site, module: nn.Module, args: Any, kwargs: Any) -> None:
    training = torch.is_grad_enabled() and module.training and not OwnCall.now
    if training:
        if compilers_used():
            insert_hooks()
        with unseen_by_modes():
            named = {name: of_this_rank(value) for name, value in kwargs.items()}
            site.context.events.forward_begins((*map(of_this_rank, args), *named.values()), named)
        site = vars(module).get("_stabwatch") or site  # another one where the model has changed
        site.context.forwards += 1
    elif module.training and not OwnCall.now:
        _note_action(site, (*args, *kwargs.values()))
    elif not OwnCall.now and not compilers_used():
        site.context.isolation.run("evaluation", "always", site.context.evaluations.begins)
    site.outer = None if CURSOR.site is None else caller(outside=site.context)
    called(site)
    CURSOR.site = site
    site.flags.in_forward = training
    SOFTMAX_METHOD.set_installed(site.flags.recording and site.flags.deep)


def _after_root(site: Site, module: nn.Module, args: Any, output: Any) -> None:
    """The model has returned: its `.loss`, when it computes one itself."""
    CURSOR.site, site.outer = site.outer, None
    if site.context.evaluations.looking:
        site.context.isolation.run("evaluation", "always", site.context.evaluations.ends)
    if CURSOR.site is not None:
        called(root_of(CURSOR.site))
    else:
        SOFTMAX_METHOD.set_installed(False)
    if site.flags.in_forward and runs_for_real():
        isolation = site.context.isolation
        begun = isolation.begin()
        try:
            with unseen_by_modes():
                isolation.run("nonfinite", "always", site.context.trace.ends, output)
                if site.flags.attached:
                    site.context.events.forward_ended(output)
        finally:
            isolation.end(begun)


def _before(site: Site, module: nn.Module, args: Any) -> None:
    """A watched module is called."""
    if module.training and _by_itself(site) and not OwnCall.now:
        _called_by_itself(site, args)
        site = vars(module).get("_stabwatch") or site  # another one where the model has changed
    CURSOR.site = site
    site.context.trace.enters(site.name)
    if site.role.residual and site.flags.recording and site.flags.deep:
        with unseen_by_modes():
            site.input = first_tensor(args)


def _note_action(site: Site, inputs: Sequence[Any]) -> None:
    with unseen_by_modes():
        site.context.isolation.run("pace", "always", site.context.actions.note, inputs, site.context.step)


def _by_itself(site: Site) -> bool:
    """Is a module called outside of a call of its model? Modules that are called between such calls do not count."""
    root = CURSOR.root
    if CURSOR.site is None or root is None or root.context is not site.context:
        return True
    return CURSOR.site is root and site.context.parts.followed


def _called_by_itself(site: Site, args: Any) -> None:
    context = site.context
    if not torch.is_grad_enabled():
        if runs_for_real():
            _note_action(site, args)
    elif not context.parts.followed:
        context.parts.seen = True
        if site.activation is not None and runs_for_real() and not in_backward():
            context.unmeasured(activation.ACTIVATION.tap, site.name, activation.OUTSIDE)
    elif runs_for_real() and not in_backward():
        begun = context.isolation.begin()
        try:
            _part_begins(site, args)
        finally:
            context.isolation.end(begun)


def _part_begins(site: Site, args: Any) -> None:
    """The first of the parts of a model is called, or another one."""
    parts, root = site.context.parts, root_of(site)
    if _parts_are_called(site.context):
        if not parts.repeats(site.name):
            return
        _end_parts(site.context)
    model = root.module()
    if model is not None:
        _model_begins(root, model, args, {})
        parts.repeats(site.name)


def _parts_are_called(context: TapContext) -> bool:
    return CURSOR.root is not None and CURSOR.root.context is context and CURSOR.site is not None


def _end_parts(context: TapContext) -> None:
    """The forward of the parts, if one has begun, is over."""
    root = CURSOR.root
    model = None if root is None or not _parts_are_called(context) else root.module()
    context.parts.forget()
    if root is not None and model is not None:
        _after_root(root, model, (), None)


def _after(site: Site, module: nn.Module, args: Any, output: Any) -> None:
    """A watched module has returned."""
    CURSOR.site = site.parent
    if site.name in site.context.parts:
        CURSOR.site = root_of(site)
        site.context.trace.part_ends()
    flags = site.flags
    site.context.trace.leaves(site.name)
    if flags.recording and (flags.sampled or flags.deep or flags.outputs) and not in_backward():
        if runs_for_real():
            _measure(site, module, args, output)
        else:
            site.context.unmeasured(activation.ACTIVATION.tap, site.name, activation.TRANSFORMED)
    site.input = None


def _measure(site: Site, module: nn.Module, args: Any, output: Any) -> None:
    with unseen_by_modes():
        if site.flags.sampled:
            site.context.isolation.run("token_order", "sampled", site.context.input.layer, module, args)
        call = site.called()
        if site.flags.sampled and site.activation is not None:
            site.context.isolate(activation.ACTIVATION, activation.measure, site, output)
            if site.loop is not None:
                site.context.isolate(loops.OUTPUT, loops.measure, site, output, call)
        measure_call(site, module, args, output)


def _set_traced_root(site: Site, training: bool) -> None:
    site.flags.in_forward = training
    CURSOR.root = CURSOR.site = site


def _set_traced_site(site: Site | None) -> None:
    CURSOR.site = site


def _set_traced(site: Site) -> None:
    site.flags.traced = True


def _set_in_subgraph(site: Site) -> None:
    site.in_subgraph = site.flags.traced = True


ALL_TAPS: WeakSet[ModuleTaps] = WeakSet()
"""Those of all watches."""


def insert_hooks() -> bool:
    """Put in the hooks of all watched modules. A compiler that traces calls it at once; the graph gets the result."""
    leave_uncompiled()
    for taps in tuple(ALL_TAPS):
        taps.insert()
    return True


vars(insert_hooks)["_dynamo_marked_constant"] = True


def _before_root_traced(module: WatchedModule, args: Any, kwargs: Any) -> None:
    insert_hooks()
    site = module._stabwatch
    if site is not None and not is_exporting():
        compiled.unchecked(_set_traced_root, site, torch.is_grad_enabled() and module.training and not OwnCall.now)


def _after_root_traced(module: WatchedModule, args: Any, output: Any) -> None:
    if module._stabwatch is not None and not is_exporting():
        compiled.unchecked(_set_traced_site, None)


def _before_traced(module: WatchedModule, args: Any) -> None:
    if module._stabwatch is not None and not is_exporting():
        compiled.unchecked(_set_traced_site, module._stabwatch)


def _after_traced(module: WatchedModule, args: Any, output: Any) -> Any:
    """May return a new output, with operators in its graph."""
    site = module._stabwatch
    if site is None or is_exporting():
        return None
    compiled.unchecked(_set_traced_site, site.parent)
    if compiled.in_subgraph():
        compiled.unchecked(_set_in_subgraph, site)
        return None
    if not site.flags.in_forward:
        return None
    compiled.unchecked(_set_traced, site)
    return compiled.tap(site, args, output) if site.flags.sampled else None


BEFORE_ROOT = Hook("model_begins", _before_root, _before_root_traced)
AFTER_ROOT = Hook("model_ended", _after_root, _after_root_traced)
BEFORE = Hook("module_begins", _before, _before_traced)
AFTER = Hook("module_ended", _after, _after_traced)


class ModuleTaps:
    """The hooks of one watch on one model.

    Those of the modules below the model are in the modules' tables only while something is measured there: a module
    without hooks is called by a shorter way. They stay once a compiler is used, because its graphs contain them.
    before: those whose place they take, when the model has changed.
    """

    def __init__(self, targets: list[Target], context: TapContext, before: ModuleTaps | None = None) -> None:
        self.sites: dict[str, Site] = {}
        self._context = context
        self._passing: list[PassingHook] = []
        self._inserted = True
        self._hooked: dict[int, tuple[nn.Module, tuple[RemovableHandle, RemovableHandle]]] = {}
        self._before = {} if before is None else before.hand_over()
        self._index = count()
        for target in targets:
            around = (*target.around, "") if target.name else ()
            site = Site(target, context, next((self.sites[n] for n in around if n in self.sites), None))
            self._prepare(target, site)
            self._hook(target, site)
            self.sites[target.name] = site
        for module, handles in self._before.values():
            _unhook(module, handles)
        self.stacks = Stacks([(target, self.sites[target.name]) for target in targets], context)
        self.loops = loops.Loops(self.sites.values(), context)
        context.flags.outputs = any(
            probe.tier == "always" for s in self.sites.values() for view in s.views for probe in context.of(view)
        )
        context.parts.end = partial(_end_parts, context)
        ALL_TAPS.add(self)

    def follow_flags(self) -> None:
        """Put the hooks of the modules in if the flags say that something is measured there, or else take them out.

        They also stay in a model that is never called itself: calls of its parts show whether it makes its own data.
        """
        flags, parts = self._context.flags, self._context.parts
        if parts.followed and _parts_are_called(self._context):
            parts.forget()
            CURSOR.site = None
        wanted = flags.sampled or flags.deep or flags.outputs or flags.traced or compilers_used()
        wanted = wanted or not self._context.forwards or parts.followed
        if wanted != self._inserted:
            self._inserted = wanted
            for hook in self._passing:
                hook.insert() if wanted else hook.take_out()

    def insert(self) -> None:
        """Put the hooks of the modules in."""
        if not self._inserted:
            self._inserted = True
            for hook in self._passing:
                hook.insert()

    def _prepare(self, target: Target, site: Site) -> None:
        """Give a site its accumulators and its index in the round robin."""
        context, device = site.context, device_of(target.module, site.context.device)
        if target.activation:
            site.activation = new_accumulator("moments", device)
        if not target.name or target.contains or site.attention_like:
            site.bracket = context.brackets.add(BRACKET.accumulator(site.name))
            site.exact = new_accumulator("attention_exact", device)
            heads = vars(target.module).get("num_heads")
            site.heads = heads if isinstance(heads, int) else 0
        if target.role or site.bracket is not None or target.activation:
            compiled.graph_handle(site, target.module)
        context.declare_site(site)
        site.views = tuple(view for view in CALL_VIEWS if context.of(view) and view.seen_at(site))
        site.index = next(self._index) if context.takes_turns(site) else None

    def _hook(self, target: Target, site: Site) -> None:
        module = target.module
        if not takes_hooks(module):
            return
        object.__setattr__(module, "_stabwatch", site)
        if id(module) in self._before:  # its hooks keep their places among those of others
            self._hooked[id(module)] = self._before.pop(id(module))
        elif target.name:
            before, after = module.register_forward_pre_hook(BEFORE), module.register_forward_hook(AFTER)
            self._hooked[id(module)] = module, (before, after)
        else:
            self._context.parts.followed = not has_forward(module)
            before = module.register_forward_pre_hook(BEFORE_ROOT, with_kwargs=True)
            self._hooked[id(module)] = module, (before, module.register_forward_hook(AFTER_ROOT))
        if target.name:
            before, after = self._hooked[id(module)][1]
            self._passing.append(PassingHook(module._forward_pre_hooks, before, BEFORE))
            self._passing.append(PassingHook(module._forward_hooks, after, AFTER))

    def hand_over(self) -> dict[int, tuple[nn.Module, tuple[RemovableHandle, RemovableHandle]]]:
        """The modules and their hooks, by id of the module, for those that take the place of these."""
        self.insert()
        ALL_TAPS.discard(self)
        return self._hooked

    def register(self, buffer: Buffer) -> None:
        """Put the sites' own accumulators into the step's buffer."""
        own = {"activation": activation.ACTIVATION.accumulator, "exact": EXACT.accumulator}
        register_own(self.sites.values(), own, self._context.strays, buffer)
        self.stacks.register(buffer)
        self.loops.register(buffer)

    @property
    def in_turn(self) -> int:
        """Number of sites that are measured in turn."""
        return sum(site.index is not None for site in self.sites.values())

    def step_ends(self) -> None:
        """The step is over: what is computed from all calls of its forwards."""
        self.stacks.update()
        self._context.isolate(loops.GROWTH, self.loops.update)

    @property
    def expected(self) -> tuple[Accumulator, ...]:
        """The accumulators that every run should fill."""
        sites = [site for site in self.sites.values() if site.activation is not None]
        return tuple(activation.ACTIVATION.accumulator(site.name) for site in sites)

    def remove(self) -> None:
        """Take every hook and every attribute off the model again."""
        ALL_TAPS.discard(self)
        mine = set(map(id, self.sites.values()))
        for module, handles in self._hooked.values():
            _unhook(module, handles, mine)
        if CURSOR.root in self.sites.values():
            CURSOR.root = CURSOR.site = None


def takes_hooks(module: nn.Module) -> bool:
    """Can hooks be registered? Not with a module that was scripted."""
    own = type(module).register_forward_hook
    return not isinstance(module, torch.jit.ScriptModule) or own is nn.Module.register_forward_hook


def _unhook(module: nn.Module, handles: Iterable[RemovableHandle], sites: set[int] | None = None) -> None:
    """Remove hooks, and the site if it is one of `sites` (ids; None: any)."""
    for handle in handles:
        handle.remove()
    if "_stabwatch" in vars(module) and (sites is None or id(vars(module)["_stabwatch"]) in sites):
        del vars(module)["_stabwatch"]
