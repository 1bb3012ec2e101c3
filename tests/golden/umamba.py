"""Makes umamba.npz: what the authors' own U-Mambas and Mamba answer with our weights.

Run once by a developer, with the authors' files in one folder outside this repository:

    PYTHONPATH=tests python tests/golden/umamba.py FOLDER

``mamba_simple.py``, ``selective_scan_interface.py`` (state-spaces/mamba, commit e9594ce),
``UMambaBot_3d.py``, ``UMambaEnc_3d.py`` (bowang-lab/U-Mamba, commit 28459e3) and ``DiffUMamba.py``
(that UMambaBot with constructor and forward as read in DJ-CHB/DiffUMamba-Official, commit 327e4a3;
with ``scalars`` the modules and names of commit d3fcdd5).
Their CUDA kernel is not needed: the scan is their own ``selective_scan_ref``. The names in their
state dicts are kept too, so that the import of checkpoints is tried on all of them.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from contourcast.models.mamba import Mamba
from contourcast.models.weights import import_published
from support.golden import GOLDEN, fill, image
from support.golden_umamba import NETWORKS, PATCH, SIZES


def main(folder: Path) -> None:
    """Writes the file beside this one."""
    for name in ("triton", "triton.layer_norm"):
        stub(f"mamba_ssm.ops.{name}", _layer_norm_fwd=None)
    stub("mamba_ssm.utils.torch", custom_bwd=lambda f: f, custom_fwd=lambda f: f)
    scan = load("mamba_ssm.ops.selective_scan_interface", folder / "selective_scan_interface.py")
    scan.selective_scan_fn = scan.selective_scan_ref
    theirs_mamba = load("mamba_simple", folder / "mamba_simple.py").Mamba
    stub("mamba_ssm", Mamba=theirs_mamba)
    for name in ("nnunetv2.utilities.plans_handling.plans_handler", "nnunetv2.utilities"):
        stub(name, ConfigurationManager=None, PlansManager=None)
    stub("nnunetv2.utilities.network_initialization", InitWeights_He=None)
    modules = {
        name: load(name, folder / f"{name}.py")
        for name in ("UMambaBot_3d", "UMambaEnc_3d", "DiffUMamba")
    }
    networks = {
        "bot": modules["UMambaBot_3d"].UMambaBot(**arguments()),
        "enc": modules["UMambaEnc_3d"].UMambaEnc(input_size=PATCH, **arguments()),
        "diff": modules["DiffUMamba"].DiffUMamba(**arguments()),
        "diff_scalars": modules["DiffUMamba"].DiffUMamba(**arguments(), scalars=True),
    }
    arrays: dict[str, Any] = {"made_by": np.array(__doc__ + f"\ntorch {torch.__version__}")}
    for name, network in networks.items():
        transfer(NETWORKS[name](), network)
        with torch.no_grad():
            levels = network.eval()(image(2, *PATCH))
        arrays |= {f"{name}_{i}": v[..., ::2, ::2].numpy() for i, v in enumerate(levels)}
        arrays[f"{name}_keys"] = np.array(sorted(network.state_dict()))
    ours, theirs = Mamba(24), theirs_mamba(d_model=24)
    fill(ours)
    theirs.load_state_dict(ours.state_dict())
    arrays |= {"mamba_in": image(37, 24).numpy(), "mamba_out": theirs(image(37, 24)).detach()}
    np.savez_compressed(GOLDEN / "umamba.npz", **arrays)


def arguments() -> dict[str, Any]:
    """As their trainers call them; lists are theirs to write into."""
    return {
        "input_channels": 2,
        "n_stages": len(SIZES["features"]),
        "features_per_stage": list(SIZES["features"]),
        "conv_op": nn.Conv3d,
        "kernel_sizes": [list(k) for k in SIZES["kernels"]],
        "strides": [list(s) for s in SIZES["strides"]],
        "n_conv_per_stage": list(SIZES["blocks"]),
        "num_classes": 2,
        "n_conv_per_stage_decoder": list(SIZES["decoder_blocks_asked"]),
        "conv_bias": True,
        "norm_op": nn.InstanceNorm3d,
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
        "deep_supervision": True,
    }


@torch.no_grad()
def transfer(ours: nn.Module, theirs: nn.Module) -> None:
    """Their network with the weights that ``fill`` gives ours: all of them, each once."""
    fill(ours)
    waiting = dict(ours.state_dict())
    for key, value in theirs.state_dict().items():
        for name in import_published({key: value}):
            if key.startswith("lambda_"):
                value.copy_(ours.state_dict()[name][int(key[-1]) - 1])
                waiting.pop(name, None)
            else:
                value.copy_(waiting.pop(name))
    if waiting:
        raise ValueError(f"nothing of theirs is {', '.join(waiting)}")


def stub(name: str, **contents: object) -> None:
    """A module that holds just this, in packages that hold nothing."""
    parts = name.split(".")
    for i in range(1, len(parts)):
        sys.modules.setdefault(".".join(parts[:i]), types.ModuleType(parts[i - 1]))
    module = sys.modules.setdefault(name, types.ModuleType(name))
    vars(module).update(contents)


def load(name: str, path: Path) -> Any:
    """A module from a file."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main(Path(sys.argv[1]))
