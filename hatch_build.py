"""Build hook: compiles the selective scan's C kernel where there is a compiler, else goes on.

A wheel with the kernel is for one platform and any Python 3; one without it is for every platform.
An editable installation compiles in place.
"""

from __future__ import annotations

import importlib.util
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelHook(BuildHookInterface):  # type: ignore[type-arg]
    """Named in pyproject.toml; hatchling calls it round each wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Builds, and tells hatchling what came about."""
        kernels = Path("contourcast/models/kernels")
        builder = _builder(Path(self.root) / kernels / "build.py")
        editable = version == "editable"
        self.made = None if editable else tempfile.TemporaryDirectory()
        folder = Path(self.made.name if self.made else Path(self.root) / kernels)
        try:
            builder.build(folder)
        except (builder.BuildError, OSError) as error:
            self.app.display_warning(
                f"without the C kernel of the scan, torch's form runs: {error}"
            )
            return
        if editable:
            return
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"
        for name in (builder.LIBRARY, builder.RECORD):
            build_data["force_include"][str(folder / name)] = str(kernels / name)

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """The wheel holds its copies by now."""
        if self.made:
            self.made.cleanup()


def _builder(file: Path) -> ModuleType:
    """The package's own build module, read by path: at build time nothing is installed yet."""
    spec = importlib.util.spec_from_file_location("contourcast_kernel_build", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
