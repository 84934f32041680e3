"""A module around one other that adds nothing to the names of its tensors."""

from typing import Any

from torch import nn

_INNER = "inner."


class Transparent(nn.Module):
    """Contain a module as `inner`; its state dict is `inner`'s own, names included.

    Networks of other libraries get the interface of ours so, and checkpoints keep the library's names. The
    hooks are those of torch's own wrappers (activation checkpointing).
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.register_state_dict_post_hook(_without_inner)
        self.register_load_state_dict_pre_hook(_with_inner)

    def get_submodule(self, target: str) -> nn.Module:
        """Return a module by its name in the other library, or by its own."""
        own = target == "inner" or target.startswith(_INNER)
        return super().get_submodule(target) if own else self.inner.get_submodule(target)


def _without_inner(
    module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any
) -> dict[str, Any] | None:
    for name in [name for name in state if name.startswith(prefix + _INNER)]:
        state[prefix + name[len(prefix + _INNER) :]] = state.pop(name)
    return None


def _with_inner(
    module: nn.Module,
    state: dict[str, Any],
    prefix: str,
    metadata: Any,
    strict: bool,
    missing: list[str],
    unexpected: list[str],
    errors: list[str],
) -> None:
    for name in [name for name in state if name.startswith(prefix)]:
        state[prefix + _INNER + name[len(prefix) :]] = state.pop(name)
