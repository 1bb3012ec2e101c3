"""An encoder starts from VMamba-T's weights, from a file that the user names.

Fits the first release alone (``vssmtiny_dp01_ckpt_epoch_292.pth``, once ``vmamba_tiny_e292.pth``);
later ones are of other networks. Nothing is fetched, and nothing is taken in silence: the file's
hash must be the one that is given, and how many tensors were taken is the answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from contourcast.imaging.errors import WeightsError
from contourcast.models.foreign import CHILD, read_apart
from contourcast.models.weights import MAX_WEIGHTS_BYTES, listed, tensors_of

# Where VMamba's trainer keeps the weights in a checkpoint.
ENTRY: Final = "model"
# What belongs to photographs and their classes: patches of three colours, final norm, classifier.
LEFT: Final = ("patch_embed.", "norm.", "head.")


def load_pretrained(network: nn.Module, path: Path, *, sha256: str) -> int:
    """Gives a network's encoder (``network.vssm_encoder``) the weights of a file.

    Patch embedding, final norm and classifier of the file are left; all else must fit, and the
    encoder must be filled but for its patch embedding.

    Args:
        network: Swin-UMamba or Swin-UMamba-D.
        path: Safetensors; or a checkpoint of torch, which another process reads without running
            anything of it.
        sha256: Of the file, in hex; the configuration's ``pretrained``, where it is stated.

    Returns:
        How many tensors were taken.

    Raises:
        WeightsError: The file is not the one named, cannot be read, or its tensors are of another
            encoder: its notes list every unknown, missing and misshapen one.
    """
    encoder: Any = getattr(network, "vssm_encoder", None)
    if not isinstance(encoder, nn.Module):
        raise WeightsError("this network has no encoder that VMamba's weights fit")
    config: Any = network.config
    if config.pretrained not in ("", sha256):
        raise WeightsError(
            f"the configuration says that the encoder began with {config.pretrained[:12]}…"
        )
    state = _read(path, sha256)
    renamed = {_renamed(k): v for k, v in state.items() if not k.startswith(LEFT)}
    own = {k: v for k, v in encoder.state_dict().items() if not k.startswith("patch_embed.")}
    _require_same(renamed, own, path)
    with torch.no_grad():
        for key, value in renamed.items():
            own[key].copy_(value)
    return len(renamed)


def _read(path: Path, sha256: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise WeightsError("the file of pretrained weights is not there", file=path.name)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256.lower():
        raise WeightsError(
            f"the file is not the one that was named: its SHA-256 is {found}",
            file=path.name,
            remedy="name the file that you trust by its own hash",
        )
    if path.suffix != ".safetensors":
        return read_apart(path, program=(*CHILD, ENTRY))[0]
    if path.stat().st_size > MAX_WEIGHTS_BYTES:
        raise WeightsError(f"the file has more than {MAX_WEIGHTS_BYTES} bytes", file=path.name)
    return tensors_of(path.read_bytes(), file=path.name)


def _renamed(key: str) -> str:
    """``layers.i.downsample.…`` is ``downsamples.i.…`` here."""
    head, found, tail = key.partition(".downsample.")
    return f"downsamples.{head.removeprefix('layers.')}.{tail}" if found else key


def _require_same(state: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path) -> None:
    unknown, missing = sorted(set(state) - set(own)), sorted(set(own) - set(state))
    misshapen = sorted(k for k in set(state) & set(own) if state[k].shape != own[k].shape)
    wrong = {"unknown": unknown, "missing": missing, "of another shape": misshapen}
    if not state or any(wrong.values()):
        parts = [listed(word, keys) for word, keys in wrong.items() if keys]
        error = WeightsError(
            f"of the file's {len(state)} tensors none was taken: {'; '.join(parts)}",
            file=path.name,
            remedy="only VMamba-T's first release fits: vssmtiny_dp01_ckpt_epoch_292.pth",
        )
        for word, keys in wrong.items():
            error.add_note(f"{word}: {', '.join(keys) or 'none'}")
        raise error
    if bad := sorted(key for key, value in state.items() if not torch.isfinite(value).all()):
        raise WeightsError(listed("not finite:", bad), file=path.name)
