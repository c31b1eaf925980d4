"""What no tensor tells of an object: its settings, and the code that it calls, as plain values to be compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cached_property, partial
from hashlib import sha256
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_IDLE = {*vars(nn.Module()), "_is_full_backward_hook", "grad_checkpointing", "fused_attn"}  # and what tensors tell


def short(value: Any) -> str:
    """Sixteen hex digits over `described`."""
    return sha256(repr(described(value)).encode()).hexdigest()[:16]


def described(value: Any, *, above: tuple[int, ...] = ()) -> Any:
    """Nested lists of plain values that differ between two objects of which one may compute what the other does not.

    Of a function they hold its code, defaults and closure, and the plain values and functions of its own module that it
    names; of any other object its class and attributes. What torch, timm and C code do is told by their names alone.

    Args:
        above: ids of the objects that this one is part of, which are not gone into again.
    """
    if isinstance(value, _PLAIN):
        return value
    if id(value) in above:
        return "above"
    inner = partial(described, above=(*above, id(value)))
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        return [tuple(value.shape), str(value.dtype), inner(data)]
    if isinstance(value, np.ndarray):
        return [value.shape, str(value.dtype), sha256(np.ascontiguousarray(value).tobytes()).hexdigest()]
    if isinstance(value, Mapping):
        return sorted([repr(key), inner(v)] for key, v in value.items())
    if isinstance(value, list | tuple):
        return [inner(v) for v in value]
    if isinstance(value, set | frozenset):
        return sorted(repr(inner(v)) for v in value)
    if isinstance(value, partial):
        return [inner(value.func), inner(value.args), inner(value.keywords)]
    if isinstance(value, MethodType):
        return [inner(value.__func__), inner(value.__self__)]
    if isinstance(value, FunctionType) and (value.__module__ or "").split(".")[0] not in ("torch", "timm"):
        return [_name(value), _code(value.__code__), *map(inner, _beside(value))]
    if isinstance(value, nn.Module):
        tensors = {**value.state_dict(), **dict(value.named_buffers())}
        return [_name(type(value)), inner(tensors), inner(settings_of(value))]
    if hasattr(value, "__dict__") and not isinstance(value, type):
        return [_name(type(value)), inner(given(value))]
    told = repr(value)
    return _name(value) if " at 0x" in told else told  # where it lies in memory is no part of what it is


def settings_of(module: nn.Module) -> dict[str, dict[str, Any]]:
    """Of each part of a module, by its name, the attributes that are neither tensors of its state nor parts."""
    return {
        name: {key: value for key, value in given(part).items() if key not in _IDLE}
        for name, part in module.named_modules()
    }


def given(instance: Any) -> dict[str, Any]:
    """The attributes of an object but those that a `cached_property` left there, which its code tells at any time."""
    kept = {name for kind in type(instance).__mro__ for name, v in vars(kind).items() if isinstance(v, cached_property)}
    return {name: value for name, value in vars(instance).items() if name not in kept}


def hooks_of(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """The forward hooks on a module and its parts, each with the part's name."""
    for name, part in module.named_modules():
        for hook in (*part._forward_pre_hooks.values(), *part._forward_hooks.values()):
            yield name, hook


def code_of(kind: type, known: type) -> list[Any]:
    """The code of a class and of those that it inherits from, up to one that is known."""
    heirs = kind.__mro__[: kind.__mro__.index(known)]
    return [[_name(heir), [[name, described(_function(v))] for name, v in vars(heir).items()]] for heir in heirs]


def _function(value: Any) -> Any:
    """What is called under a name in a class; None for what only documents it."""
    if isinstance(value, property):
        return [value.fget, value.fset]
    if isinstance(value, cached_property):
        return value.func
    value = getattr(value, "__func__", value)  # of static and class methods
    return value if isinstance(value, (*_PLAIN, FunctionType, Tensor, list, tuple, dict)) else None


def _code(code: CodeType) -> list[Any]:
    inside = [_code(c) if isinstance(c, CodeType) else described(c) for c in code.co_consts]
    return [code.co_code.hex(), code.co_names, inside]


def _beside(function: FunctionType) -> Iterator[Any]:
    """What a function works with besides its arguments."""
    yield function.__defaults__
    yield function.__kwdefaults__
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # an empty one
            yield cell.cell_contents
    for name in function.__code__.co_names:
        found = function.__globals__.get(name)
        own = isinstance(found, FunctionType) and found.__module__ == function.__module__
        if own or isinstance(found, _PLAIN):
            yield found


def _name(value: Any) -> str:
    """A class or function by its full name, any other object by its class's."""
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{getattr(named, '__module__', '')}.{named.__qualname__}"
