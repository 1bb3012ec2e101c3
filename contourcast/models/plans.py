"""The networks of the table as nnU-Net's plans name them, such as ``contourcast.DiffUMamba``.

nnU-Net calls the class that a plans file names with its own argument names. Here they become the
network's frozen configuration; a name or a value that the network does not know is refused, and
what the plans state is never changed. Switches of ours (``nrm``, ``bottleneck``, ``mamba`` …)
stand among the arguments as plain JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

from contourcast.imaging.errors import InputError, WeightsError
from contourcast.models.blocks import CONV, NORM, NORM_EPS
from contourcast.models.config import NetworkConfig
from contourcast.models.networks import NETWORKS, build, config_from_plain, config_to_plain, entry

# nnU-Net's argument names, and the entries of a configuration that hold the same.
SIZES: Final = {
    "features_per_stage": "features",
    "kernel_sizes": "kernels",
    "strides": "strides",
    "n_conv_per_stage": "blocks",
    "n_blocks_per_stage": "blocks",
    "n_conv_per_stage_decoder": "decoder_blocks_asked",
}
# What all networks with stages are built of; plans may state it, and may state nothing else.
FIXED: Final[Mapping[str, tuple[object, ...]]] = {
    "conv_bias": (True,),
    "norm_op_kwargs": ({"eps": NORM_EPS, "affine": True},),
    "dropout_op": (None,),
    "dropout_op_kwargs": (None, {}),
    "nonlin": (nn.LeakyReLU, "torch.nn.LeakyReLU"),
    "nonlin_kwargs": ({"inplace": True}, {}, None),
}


class Planned:
    """What makes a network of the table one that nnU-Net builds; stands before it in the MRO."""

    table_name: ClassVar[str]
    config: NetworkConfig

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool = False,
        **arguments: object,
    ) -> None:
        config = config_of(
            self.table_name,
            arguments,
            input_channels=input_channels,
            num_classes=num_classes,
        )
        super().__init__(config)  # type: ignore[call-arg]
        decoder: Any = self.decoder  # type: ignore[attr-defined]
        decoder.deep_supervision = deep_supervision

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """Numbers in all feature maps that convolutions make of one image (nnU-Net's measure)."""
        return feature_map_size(self.table_name, self.config, input_size)


def class_name(name: str) -> str:
    """What plans call a network of the table."""
    return f"contourcast.{entry(name).network}"


def name_of_class(dotted: str) -> str | None:
    """The table's name of a class that plans name; None: no network of the table that segments."""
    for name, line in NETWORKS.items():
        if line.task == "segmentation" and dotted == class_name(name):
            return name
    return None


def planned_class(name: str) -> type[nn.Module]:
    """A subclass of the table's network that takes nnU-Net's arguments; its weights are the same.

    Raises:
        WeightsError: There is no such network.
        InputError: It needs a package that is not installed.
    """
    if name not in _classes:
        line = entry(name)
        namespace = {"table_name": name, "__module__": __name__, "__doc__": Planned.__doc__}
        _classes[name] = type(line.network, (Planned, line.network_kind), namespace)
    return _classes[name]


def config_of(
    name: str, arguments: Mapping[str, object], *, input_channels: int, num_classes: int
) -> NetworkConfig:
    """The configuration that a plans file's arguments describe.

    Raises:
        InputError: An argument that this network does not know, a value that it cannot take.
    """
    plain = config_to_plain(entry(name).config_kind())
    given = dict(arguments)
    plain["channels_in"], plain["channels_out"] = input_channels, num_classes
    stages = given.pop("n_stages", None)
    for theirs, ours in SIZES.items() if "strides" in plain else ():
        if theirs in given:
            plain[ours] = given.pop(theirs)
    convolution, norm = given.pop("conv_op", None), given.pop("norm_op", None)
    for key, allowed in FIXED.items():
        if key in given and (value := given.pop(key)) not in allowed:
            raise _refused(name, f"{key} is {value}, and it is built with {allowed[0]}")
    for key, value in given.items():
        if key not in plain:
            raise _refused(name, f"it has no argument '{key}'")
        plain[key] = _merged(plain[key], value)
    try:
        config = config_from_plain(name, plain)
    except (WeightsError, InputError) as error:
        raise _refused(name, error.cause.replace("the card's ", "the ")) from error
    _require_operators(name, config, convolution, norm)
    if stages is not None and "features" in plain and stages != len(plain["features"]):
        raise _refused(name, f"{stages} stages and {len(plain['features'])} widths")
    return config


def arguments_of(config: NetworkConfig) -> dict[str, Any]:
    """A configuration as the arguments of a plans file: `config_of` of it gives it back."""
    plain = config_to_plain(config)
    del plain["channels_in"], plain["channels_out"]
    if "strides" not in plain:
        return plain
    theirs = {ours: key for key, ours in SIZES.items() if key != "n_blocks_per_stage"}
    return {
        "n_stages": len(plain["features"]),
        "conv_op": f"torch.nn.modules.conv.Conv{config.axes}d",
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{config.axes}d",
    } | {theirs.get(key, key): value for key, value in plain.items()}


def feature_map_size(name: str, config: NetworkConfig, input_size: Sequence[int]) -> int:
    """Numbers in all feature maps that convolutions make of one image; nothing is computed."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # costs a second

    from contourcast.models.profile import idle_scans

    total = 0

    def count(_: nn.Module, __: object, output: Tensor) -> None:
        nonlocal total
        total += output.numel()

    with FakeTensorMode(), torch.no_grad(), idle_scans():
        network: Any = build(name, config).eval()
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
                module.register_forward_hook(count)
        network.decoder.deep_supervision = True
        network(torch.empty(1, config.channels_in, *input_size))
    return total


def _require_operators(name: str, config: NetworkConfig, convolution: object, norm: object) -> None:
    axes = config.axes
    for key, value, wanted in (
        ("conv_op", convolution, CONV[axes]),
        ("norm_op", norm, NORM[axes]),
    ):
        if value is None:
            continue
        stated = value.__name__ if isinstance(value, type) else str(value).rpartition(".")[2]
        if stated != wanted.__name__:
            raise _refused(name, f"{key} is {stated}, with {axes} axes it is {wanted.__name__}")


def _merged(default: object, given: object) -> object:
    """Switches that plans leave out keep their defaults, those of nested switches too."""
    if isinstance(default, dict) and isinstance(given, Mapping):
        return default | {k: _merged(default.get(k), v) for k, v in given.items()}
    return given


def _refused(name: str, what: str) -> InputError:
    return InputError(
        f"the plans fit no {name}: {what}", remedy="write them with: contourcast train plan"
    )


_classes: dict[str, type[nn.Module]] = {}


def __getattr__(name: str) -> type[nn.Module]:
    for key, line in NETWORKS.items():
        if line.network == name and line.task == "segmentation":
            return planned_class(key)
    raise AttributeError(f"no network of the table is called {name!r}")
