"""Keys and values with room ahead, so that a step of generation copies its own and not all that came before."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

AHEAD = 64


class Growing(DynamicLayer):  # type: ignore[misc]  # transformers carries no types here
    """`keys` and `values` are views of buffers that are replaced by larger ones when they are full."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """As DynamicLayer's."""
        super().__init__(*arguments, **named)
        self.keys: torch.Tensor | None
        self.values: torch.Tensor | None
        self.rooms: list[torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append (batch, heads, new, size) and return all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        begin = self.get_seq_length()
        end = begin + key_states.shape[-2]
        if self.rooms is None or self.rooms[0].shape[-2] < end:
            self.rooms = [
                _larger(old, new, begin, end)
                for old, new in ((self.keys, key_states), (self.values, value_states))
            ]
        for room, new in zip(self.rooms, (key_states, value_states), strict=True):
            room[..., begin:end, :] = new
        self.keys, self.values = (room[..., :end, :] for room in self.rooms)
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times."""
        super().batch_repeat_interleave(repeats)
        self.rooms = None

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """These rows only."""
        super().batch_select_indices(indices)
        self.rooms = None


def growing_cache() -> Cache:
    """An empty cache of such layers."""
    return Cache(layer_class_to_replicate=Growing)


def _larger(old: torch.Tensor | None, new: torch.Tensor, begin: int, end: int) -> torch.Tensor:
    room = new.new_empty(*new.shape[:-2], end + max(AHEAD, end // 4), new.shape[-1])
    if begin and old is not None:
        room[..., :begin, :] = old
    return room
