"""Makes lkm_unet.npz and segmamba.npz: what the authors' own modules answer with our weights.

Run once by a developer, with the authors' files outside this repository:

    PYTHONPATH=tests python tests/golden/lkm_unet_segmamba.py \
        LKMUNet.py (wjh892521292/LKM-UNet, commit 6615775, lkmunet/nnunetv2/nets) \
        segmamba.py mamba_simple.py (ge-xing/SegMamba, commit cff3597, model_segmamba, mamba/…)

Their Mamba needs CUDA. In its place stand mambapy's layer (LKM-UNet), and for SegMamba the inner
function of one direction written out below; the order of directions remains theirs.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mambapy.mamba import MambaBlock
from mambapy.mamba import MambaConfig as PeerConfig
from torch import Tensor, nn
from torch.nn.functional import conv1d, pad, silu, softplus

from contourcast.models.lkm_unet import LkmUnet
from contourcast.models.segmamba import SegMamba
from support.golden import GOLDEN, fill, image
from support.golden_settings import LKM_FLAT, LKM_SOLID, SEG_CODE, SEG_TENSOR, shown


def main(lkm_file: str, segmamba_file: str, mamba_file: str) -> None:
    """Writes both files beside this one."""
    stub(
        "mamba_ssm",
        Mamba=lambda d_model, d_state, d_conv, expand, use_fast_path=False: MambaBlock(
            PeerConfig(
                d_model=d_model, n_layers=1, d_state=d_state, d_conv=d_conv, expand_factor=expand
            )
        ),
    )
    lkm = load("lkm_authors", lkm_file)
    answers = {
        name: transferred(LkmUnet(config), lkm_of_authors(lkm, config), lkm_name)(x)
        for name, config, x in (
            ("solid", LKM_SOLID, image(2, 20, 28, 24)),
            ("flat", LKM_FLAT, image(2, 20, 20)),
        )
    }
    save("lkm_unet", answers, "wjh892521292/LKM-UNet 6615775 with mambapy 1.2.0")

    stub("causal_conv1d", causal_conv1d_fn=None, causal_conv1d_update=None)
    stub(
        "mamba_ssm.ops.selective_scan_interface",
        selective_scan_fn=None,
        mamba_inner_fn=None,
        bimamba_inner_fn=None,
        mamba_inner_fn_no_out_proj=one_direction,
    )
    stub("mamba_ssm", Mamba=load("mamba_authors", mamba_file).Mamba)
    segmamba = load("segmamba_authors", segmamba_file)
    answers = {}
    for name, config in (("code", SEG_CODE), ("tensor", SEG_TENSOR)):
        theirs = segmamba.SegMamba(
            config.channels_in,
            config.channels_out,
            list(config.depths),
            list(config.features),
            hidden_size=config.hidden,
        )
        if config.slices == "tensor":
            for scale, stage in enumerate(theirs.vit.stages):
                for layer in stage:
                    layer.mamba.nslices = 32 // 2 ** (scale + 1)
        answers[name] = transferred(SegMamba(config), theirs, segmamba_name)(image(2, 32, 16, 64))
    save("segmamba", answers, "ge-xing/SegMamba cff3597, monai 1.6.1, one direction written out")


def lkm_of_authors(module: Any, config: Any) -> nn.Module:
    """As their trainer builds it."""
    axes = config.axes
    network: nn.Module = module.LKMUNet(
        config.channels_in,
        config.stages,
        list(config.features),
        {2: nn.Conv2d, 3: nn.Conv3d}[axes],
        [list(k) for k in config.kernels],
        [list(s) for s in config.strides],
        list(config.blocks),
        config.channels_out,
        list(config.decoder_blocks_asked),
        conv_bias=True,
        norm_op={2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[axes],
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )
    return network


def lkm_name(ours: str) -> str:
    """Their name of one of our parameters; ``skip.*`` has one convolution, somewhere."""
    for pattern, theirs in (
        (r"encoder\.stem\.0\.", "encoder.stem.convs.0.conv."),
        (r"encoder\.stem\.1\.", "encoder.stem.convs.0.norm."),
        (r"pixel_layers\.(\d+)\.bim", r"mamba_layers.\1"),
        (r"patch_layers\.(\d+)\.bim", r"w_mamba_layers.\1"),
        (r"\.forth\.", ".mamba_forw."),
        (r"\.back\.", ".mamba_backw."),
        (r"stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
        (r"\.conv([12])\.", r".conv\1.conv."),
        (r"\.norm([12])\.", r".conv\1.norm."),
        (r"shortcut\.0", "skip.*.conv"),
        (r"shortcut\.1", "skip.*.norm"),
        (r"ups\.(\d+)\.conv", r"transpconvs.\1"),
        (r"heads\.", "seg_layers."),
    ):
        ours = re.sub(pattern, theirs, ours)
    return ours


def segmamba_name(ours: str) -> str:
    """Their name of one of our parameters."""
    gates = {"wide1": "proj", "wide2": "proj2", "gate": "proj3", "out": "proj4"}
    for pattern, theirs in (
        (r"encoder\.downs\.0\.", "vit.downsample_layers.0.0."),
        (r"encoder\.downs\.", "vit.downsample_layers."),
        (r"encoder\.gates\.(\d)\.(\w+)", lambda m: f"vit.gscs.{m[1]}.{gates[m[2]]}"),
        (r"encoder\.layers\.", "vit.stages."),
        (r"mamba\.forth\.", "mamba."),
        (r"mamba\.back\.A_log", "mamba.A_b_log"),
        (r"mamba\.across\.A_log", "mamba.A_s_log"),
        (r"mamba\.back\.(\w+)", r"mamba.\1_b"),
        (r"mamba\.across\.(\w+)", r"mamba.\1_s"),
        (r"encoder\.mlps\.(\d)\.widen", r"vit.mlps.\1.fc1"),
        (r"encoder\.mlps\.(\d)\.narrow", r"vit.mlps.\1.fc2"),
        (r"skips\.(\d)\.(conv\d)", lambda m: f"encoder{int(m[1]) + 1}.layer.{m[2]}.conv"),
        (r"ups\.(\d)\.up", lambda m: f"decoder{5 - int(m[1])}.transp_conv.conv"),
        (
            r"ups\.(\d)\.block\.(conv\d)",
            lambda m: f"decoder{5 - int(m[1])}.conv_block.{m[2]}.conv",
        ),
        (r"last\.(conv\d)", r"decoder1.layer.\1.conv"),
        (r"^head\.", "out.conv.conv."),
    ):
        ours = re.sub(pattern, theirs, ours)
    return ours


@torch.no_grad()
def transferred(ours: nn.Module, theirs: nn.Module, name_of: Callable[[str], str]) -> nn.Module:
    """Their network with the weights that ``fill`` gives ours: all of them, each once."""
    fill(ours)
    waiting = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        pattern = re.escape(name_of(name)).replace(r"\*", r"\d")
        [theirs_name] = [n for n in waiting if re.fullmatch(pattern, n)]
        waiting.pop(theirs_name).copy_(parameter)
    if waiting:
        raise ValueError(f"nothing of ours is {', '.join(waiting)}")
    return theirs.eval()


def one_direction(
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_weight: Tensor,
    dt_weight: Tensor,
    decay: Tensor,
    no_b: None,
    no_c: None,
    direct: Tensor,
    *,
    delta_bias: Tensor,
    delta_softplus: bool,
) -> Tensor:
    """Convolution, coefficients, recurrence and gate, token by token, in float64."""
    assert delta_softplus
    assert no_b is no_c is None
    x, z = xz.double().chunk(2, 1)
    inner, rank, states = len(dt_weight), dt_weight.shape[1], decay.shape[1]
    padded = pad(x, (conv_weight.shape[-1] - 1, 0))
    x = silu(conv1d(padded, conv_weight.double(), conv_bias.double(), groups=inner))
    made = torch.einsum("rd,bdl->brl", x_weight.double(), x)
    delta, b, c = made[:, :rank], made[:, rank : rank + states], made[:, rank + states :]
    dt = torch.einsum("dr,brl->bdl", dt_weight.double(), delta) + delta_bias.double()[:, None]
    dt = softplus(dt)
    state, ys = x.new_zeros(len(x), inner, states), []
    for t in range(x.shape[-1]):
        state = torch.exp(dt[..., t, None] * decay.double()) * state
        state = state + (dt[..., t] * x[..., t])[..., None] * b[:, None, :, t]
        ys.append((state * c[:, None, :, t]).sum(-1))
    y = torch.stack(ys, -1) + direct.double()[:, None] * x
    return (y * silu(z)).to(xz.dtype)


def save(name: str, answers: dict[str, Any], source: str) -> None:
    """Every second voxel of each answer, and where it is from."""
    arrays = {}
    for key, answer in answers.items():
        levels = answer if isinstance(answer, list) else [answer]
        for level, logits in enumerate(levels):
            arrays[f"{key}_{level}"] = shown(logits).detach().numpy()
    made_by = f"{source}; torch {torch.__version__}"
    np.savez_compressed(GOLDEN / f"{name}.npz", made_by=np.array(made_by), **arrays)  # type: ignore[arg-type]


def stub(name: str, **contents: object) -> None:
    """A module that holds just this."""
    module = types.ModuleType(name)
    vars(module).update(contents)
    sys.modules[name] = module


def load(name: str, path: str) -> Any:
    """A module from a file."""
    spec = importlib.util.spec_from_file_location(name, Path(path))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main(*sys.argv[1:4])
