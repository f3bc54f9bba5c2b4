"""A GPU where there is none: tensors in main memory that say they are on one and, as there, do not mix with others."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

_GPU = torch.device("cuda", 0)
_ANYWHERE = (
    "tensor", "as_tensor", "copy_", "set_data", "__set__", "__setstate__", "__deepcopy__", "is_same_size",
    "_has_compatible_shallow_copy_type",
)  # fmt: skip
"""What takes tensors of several devices."""
_INDEXING = ("__getitem__", "__setitem__", "index_put", "index_put_")
_MADE_LIKE = ("new_tensor", "new_zeros", "new_ones", "new_full", "new_empty")


class TensorOnGpu(Tensor):
    """A tensor that says it is on a GPU."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return _called(function, args, kwargs or {})


class SimulatedGpu(TorchFunctionMode):
    """While it is entered, "cuda" is a device that computes what the CPU does.

    RuntimeError where a GPU would refuse: tensors of both devices in one operation (numbers without dimensions and
    indices may come from the CPU), CPU tensors indexed from the GPU, `numpy()` of a tensor on the GPU, random numbers
    there from a generator of the CPU. What kernels do differently on a GPU it cannot tell.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return _called(function, args, kwargs or {})


def _called(function: Callable, args: tuple, kwargs: dict) -> Any:
    name = getattr(function, "__name__", "")
    there = any(_on_gpu(value) for value in tree_leaves((args, kwargs)))
    if name == "__get__" and (said := _device_said(function, args[0])) is not None:
        return said
    if name in ("numpy", "__array__") and there:
        raise RuntimeError(f"{name} of a tensor on the GPU")
    args, kwargs, there = _moved(function, name, args, kwargs, there)
    with torch._C.DisableTorchFunctionSubclass():
        result = function(*args, **kwargs)
        if isinstance(result, torch.Size):
            return result
        return tree_map(lambda value: _placed(value, there) if isinstance(value, Tensor) else value, result)


def _on_gpu(value: Any) -> bool:
    return isinstance(value, TensorOnGpu)


def _device_said(function: Callable, tensor: Tensor) -> Any:
    """What a tensor says of its device, or None if something else is asked."""
    there = _on_gpu(tensor)
    answers = {"device": _GPU if there else torch.device("cpu"), "is_cuda": there, "is_cpu": not there}
    return answers.get(getattr(function.__self__, "__name__", ""))


def _moved(function: Callable, name: str, args: tuple, kwargs: dict, there: bool) -> tuple[tuple, dict, bool]:
    """The arguments as the CPU understands them, and whether the result is on the GPU."""
    if function is Tensor.to:
        places = [_on_gpu_says(value) for value in (*args[1:], *kwargs.values())]
        places = [place for place in places if place is not None]
        args = (args[0], *map(_for_cpu, args[1:]))
        return args, {key: _for_cpu(value) for key, value in kwargs.items()}, (places or [_on_gpu(args[0])])[0]
    if function is Tensor.cpu:
        return args, kwargs, False
    if kwargs.get("device") is not None:
        there = bool(_on_gpu_says(kwargs["device"]))
        kwargs = kwargs | {"device": "cpu"}
    elif name in _MADE_LIKE:
        there = _on_gpu(args[0])
    elif there:
        _check_together(name, args, kwargs)
    if there and kwargs.get("generator") is not None:
        raise RuntimeError(f"{name}: a generator of the CPU for a tensor on the GPU")
    return args, kwargs, there


def _on_gpu_says(value: Any) -> bool | None:
    """Whether a device, or a tensor that stands for its device, is the GPU; None of all else."""
    if isinstance(value, Tensor):
        return _on_gpu(value)
    return torch.device(value).type == "cuda" if isinstance(value, str | torch.device) else None


def _for_cpu(value: Any) -> Any:
    return torch.device("cpu") if isinstance(value, str | torch.device) else value


def _check_together(name: str, args: tuple, kwargs: dict) -> None:
    """Raise RuntimeError if tensors that an operation takes are on both devices."""
    if name in _ANYWHERE:
        return
    if name in _INDEXING and _on_gpu(args[0]):
        args = (args[0], *args[2:])  # indices may be anywhere
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    if any(not _on_gpu(tensor) and (tensor.ndim or name in ("cat", "stack")) for tensor in tensors):
        places = [("GPU" if _on_gpu(tensor) else "CPU", tuple(tensor.shape)) for tensor in tensors]
        raise RuntimeError(f"{name}: tensors on GPU and CPU: {places}")


def _placed(tensor: Tensor, on_gpu: bool) -> Tensor:
    return tensor if on_gpu == _on_gpu(tensor) else tensor.as_subclass(TensorOnGpu if on_gpu else Tensor)
