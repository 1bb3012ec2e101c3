"""What the noise reduction module costs in training: Diff-UMamba against UMamba-Bot.

    python -m benchmarks.noise_reduction [--patch 64]

Forward and backward at nnU-Net's six stages, two channels, deep supervision, batch 1, float32, one
thread: what autograd keeps for the backward, and peak memory of fresh processes. The goal is at
most 1.05 times UMamba-Bot's memory. The second counts what the C library's allocator does not give
back, too, which weighs the more the smaller the patch is.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks.measure import compared, peak_mib
from contourcast.models.diff_umamba import DiffUMambaConfig
from contourcast.models.networks import build
from contourcast.models.noise_reduction import NrmConfig
from contourcast.models.umamba_bot import UMambaConfig


def main() -> None:
    """Prints time and memory of a training step with the module, plain and in slabs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--times", type=int, default=2, help="0: memory alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kept_by_bot = kept_mib(prepared("umamba-bot", UMambaConfig()), arguments.patch)
    bot = peak_mib(step, "umamba-bot", UMambaConfig(), arguments.patch)
    print(f"UMamba-Bot: {kept_by_bot:.0f} MiB kept, {bot:.0f} MiB at most")
    for name, slabs in (("in slabs", True), ("plain", False)):
        config = DiffUMambaConfig(nrm=NrmConfig(slabs=slabs))
        diff = peak_mib(step, "diff-umamba", config, arguments.patch)
        kept = kept_mib(prepared("diff-umamba", config), arguments.patch)
        print(
            f"Diff-UMamba, module {name}: {kept:.0f} MiB kept, ratio {kept / kept_by_bot:.3f}; "
            f"{diff:.0f} MiB at most, ratio {diff / bot:.3f}"
        )
        if not arguments.times:
            continue
        ours, peer = prepared("diff-umamba", config), prepared("umamba-bot", UMambaConfig())
        print(
            compared(
                f"training step, module {name}",
                partial(walk, ours, arguments.patch),
                partial(walk, peer, arguments.patch),
                times=arguments.times,
            )
        )


def step(name: str, config: Any, patch: int) -> None:
    """One training step from nothing; what a fresh process runs."""
    torch.set_num_threads(1)
    walk(prepared(name, config), patch)


def prepared(name: str, config: Any) -> Any:
    """The network, ready to train."""
    network: Any = build(name, replace(config))
    network.decoder.deep_supervision = True
    return network


def kept_mib(network: Any, patch: int) -> float:
    """What autograd keeps after the forward, each storage once."""
    sizes: dict[int, int] = {}

    def seen(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(seen, lambda tensor: tensor):
        logits = network(torch.zeros(1, network.config.channels_in, patch, patch, patch))
    total = sum(sizes.values()) / 2**20
    del logits  # until here nothing of it was freed, so no address was used twice
    return total


def walk(network: Any, patch: int) -> None:
    """Forward and backward."""
    logits = network(torch.zeros(1, network.config.channels_in, patch, patch, patch))
    sum(each.square().mean() for each in logits).backward()


if __name__ == "__main__":
    main()
