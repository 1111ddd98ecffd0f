"""`s2d.stages` where accelerate shards on CPUs too: it does so on accelerators only, though PyTorch does it with gloo.

So what several GPUs run can be run without one. `python -m torch.distributed.run … tests/sharded_on_cpu.py TASK.json`
"""

from __future__ import annotations

import sys
from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from s2d.stages.__main__ import program

_init = AcceleratorState.__init__


def _with_sharding(self: AcceleratorState, *args: Any, **kwargs: Any) -> None:
    _init(self, *args, **kwargs)
    plugin = kwargs.get("fsdp_plugin")
    if plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        if self._mixed_precision != "no":
            plugin.set_mixed_precision(self._mixed_precision)
        # Every later state takes what the partial one says.
        PartialState._shared_state["distributed_type"] = self.distributed_type = DistributedType.FSDP
        self.fsdp_plugin = plugin


if __name__ == "__main__":
    AcceleratorState.__init__ = _with_sharding  # type: ignore[method-assign]
    sys.exit(program(sys.argv[1:]))
