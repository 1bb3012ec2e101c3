"""The program that reads a foreign checkpoint, alone in a process of its own.

``python -m contourcast.models.foreign_child [ENTRY] CHECKPOINT FOLDER`` writes the checkpoint's
weights (its entry ``network_weights``, as nnU-Net calls it, or another) as safetensors and the few
facts about it as JSON into FOLDER; on a refusal it writes what is wrong there and ends with
`REFUSED`. A checkpoint of torch is a pickle, and a pickle can be a program:
only a fixed list of names is allowed in one, nothing of it is called that is not on that list, and
this process has little memory, time and disk to lose.
"""

from __future__ import annotations

import json
import pickle
import resource
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors.torch
import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from contourcast.imaging.errors import WeightsError

TENSORS_FILE: Final = "tensors.safetensors"
FACTS_FILE: Final = "facts.json"
ERROR_FILE: Final = "error.json"
REFUSED: Final = 3
# The largest network of the table in float32 with its momentum and two spare tensors of each:
# 0.27 GB x 4, and as much again for whoever trains larger ones.
MAX_CHECKPOINT_BYTES: Final = 2**31
# Address space: the checkpoint, its tensors twice, the file that is written, and torch itself.
MEMORY_BYTES: Final = 16 * 2**30
SECONDS: Final = 300
DISK_BYTES: Final = MAX_CHECKPOINT_BYTES
# nnU-Net keeps its log as numbers of NumPy; these are what such a number is pickled of.
NUMBERS: Final[tuple[type[np.generic], ...]] = (
    np.float16,
    np.float32,
    np.float64,
    np.int32,
    np.int64,
    np.bool_,
)
NNUNET_ENTRY: Final = "network_weights"
WHAT_IS_READ: Final = (
    "trainer_name",
    "current_epoch",
    "_best_ema",
    "inference_allowed_mirroring_axes",
)


def main() -> int:
    """Reads one checkpoint; 0 when tensors and facts were written."""
    entry = sys.argv[1] if len(sys.argv) > 3 else NNUNET_ENTRY
    checkpoint, folder = (Path(argument) for argument in sys.argv[-2:])
    _limit()
    torch.set_num_threads(1)
    try:
        content = read_checkpoint(checkpoint, entry)
        safetensors.torch.save_file(weights_of(content, entry), folder / TENSORS_FILE)
        (folder / FACTS_FILE).write_text(json.dumps(facts_of(content)), encoding="utf-8")
    except WeightsError as error:
        parts = {"cause": error.cause, "file": error.file, "remedy": error.remedy}
        (folder / ERROR_FILE).write_text(json.dumps(parts), encoding="utf-8")
        return REFUSED
    return 0


def read_checkpoint(path: Path, entry: str = NNUNET_ENTRY) -> dict[str, Any]:
    """A checkpoint whose weights are its ``entry``, of which nothing was run.

    Raises:
        WeightsError: It is no checkpoint, it is too large, or it asks for something to be called.
    """
    if not path.is_file():
        raise WeightsError("the checkpoint is not there", file=path.name)
    size = path.stat().st_size
    if size > MAX_CHECKPOINT_BYTES:
        raise WeightsError(
            f"the checkpoint has {size} bytes, the limit is {MAX_CHECKPOINT_BYTES}", file=path.name
        )
    allowed = _allowed()
    try:
        with safe_globals(allowed):
            unsafe = get_unsafe_globals_in_checkpoint(path)
            if unsafe:
                raise WeightsError(
                    f"the checkpoint asks for {', '.join(sorted(unsafe)[:3])} to be called: it "
                    "holds a program, and none was run",
                    file=path.name,
                    remedy="ask whoever made it for a checkpoint as nnU-Net writes it",
                )
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise WeightsError(
            "the checkpoint holds something that is neither tensors nor numbers; none of it was "
            "run",
            file=path.name,
            remedy="ask whoever made it for a checkpoint as nnU-Net writes it",
        ) from error
    except (RuntimeError, ValueError, EOFError, KeyError, OSError) as error:
        raise WeightsError(
            "the checkpoint is cut short, damaged, or not torch's",
            file=path.name,
            remedy="copy it again",
        ) from error
    if not isinstance(content, dict) or entry not in content:
        raise WeightsError(
            "the file is no checkpoint of nnU-Net"
            if entry == NNUNET_ENTRY
            else f"the checkpoint has no entry '{entry}'",
            file=path.name,
        )
    return content


def weights_of(content: Mapping[str, Any], entry: str = NNUNET_ENTRY) -> dict[str, Tensor]:
    """The network's tensors, each with memory of its own.

    Raises:
        WeightsError: They are not tensors by name.
    """
    state = content[entry]
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise WeightsError(f"the checkpoint's {entry} are not tensors by name")
    return {
        key.removeprefix("module."): value.detach().float().clone().contiguous()
        for key, value in state.items()
    }


def facts_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """What else is worth keeping, as plain JSON."""
    arguments = content.get("init_args")
    arguments = arguments if isinstance(arguments, dict) else {}
    facts = {name: _plain(content.get(name)) for name in WHAT_IS_READ}
    facts["configuration"] = _plain(arguments.get("configuration"))
    facts["fold"] = _plain(arguments.get("fold"))
    return facts


def _plain(value: object) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value if isinstance(value, str | int | float | bool | None) else str(type(value))


def _allowed() -> list[Any]:
    """Names that may stand in a checkpoint: those of numbers, under NumPy 1's and 2's names.

    And that of the dict in which VMamba keeps its settings, which becomes a plain one.
    """
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    return [
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        (OrderedDict, "yacs.config.CfgNode"),
        np.dtype,
        *(type(np.dtype(number)) for number in NUMBERS),
        *NUMBERS,
    ]


def _limit() -> None:
    for what, most in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_CPU, SECONDS),
        (resource.RLIMIT_FSIZE, DISK_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(what)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))


if __name__ == "__main__":
    sys.exit(main())
