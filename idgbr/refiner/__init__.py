"""Stage II: the denoiser, its guidance network, what they learn and how they are sampled. `Refiner` is the class that
users hold."""

from typing import Any

__all__ = ["Refined", "Refiner"]


def __getattr__(name: str) -> Any:  # torch is imported when a refiner is asked for, not before
    if name in __all__:
        from idgbr.refiner import refiner

        return getattr(refiner, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
