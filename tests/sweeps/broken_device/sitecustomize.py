"""On PYTHONPATH of one node of a loopback cluster: every refiner trained there meets a failed device, as torch reports one."""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from typing import Any


class _Breaker(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "idgbr.stages":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        run_module = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            run_module(module)
            run = module.run

            def broken(job: Any, *args: Any, **more: Any) -> Any:
                if job.stage == "refiner":
                    import torch

                    raise torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered")
                return run(job, *args, **more)

            module.run = broken

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _Breaker())
