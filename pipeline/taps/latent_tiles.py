"""Places of tiles: seen when the pipeline cuts them out of the latents, never computed again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from i2am.storage.format.tile import Tile


class TileTracker:
    """Sees 4-D tensors being cut (``latents[:, :, y0:y1, x0:x1]``) between the denoiser's calls.

    Inside a call it is paused, so that it costs the model nothing.
    """

    def __init__(self) -> None:
        self._cuts: list[Tile] = []
        self._mode: _SliceMode | None = None

    def __enter__(self) -> TileTracker:
        self.resume()
        return self

    def __exit__(self, *error: Any) -> None:
        self.pause()

    def pause(self) -> None:
        if self._mode is not None:
            self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self._mode = None

    def resume(self) -> None:
        if self._mode is None:
            self._mode = _SliceMode(self._cuts.append)
            self._mode.__enter__()  # type: ignore[no-untyped-call]

    def last_cut(self, rows: int, columns: int) -> Tile | None:
        """The last tile of this size that was cut since the last call of this method.

        Several tensors are cut for one call (latents, the ControlNet's input, the image); the latents have
        the size of the denoiser's input.
        """
        found = [cut for cut in self._cuts if (cut.rows, cut.columns) == (rows, columns)]
        self._cuts.clear()
        return found[-1] if found else None


class _SliceMode(TorchFunctionMode):
    def __init__(self, on_cut: Callable[[Tile], None]) -> None:
        super().__init__()
        self._on_cut = on_cut

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.__getitem__ and args[0].ndim == 4:
            self._on_slice(args[0].shape[2:], args[1])
        return func(*args, **(kwargs or {}))

    def _on_slice(self, canvas: torch.Size, index: Any) -> None:
        if not (isinstance(index, tuple) and len(index) == 4 and all(isinstance(i, slice) for i in index)):
            return
        (top, bottom, row_step), (left, right, column_step) = (
            part.indices(size) for part, size in zip(index[2:], canvas, strict=True)
        )
        cut = (bottom - top, right - left)
        if row_step == column_step == 1 and min(cut) > 0 and cut != tuple(canvas):
            self._on_cut(Tile(top, left, bottom - top, right - left, int(canvas[0]), int(canvas[1])))
