"""Where nnU-Net works: three folders, given to it for the length of a call."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from contourcast.imaging.errors import InputError

LOG_FILE: Final = "nnunet.log"


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """nnU-Net's three folders.

    Attributes:
        raw: Holds ``DatasetNNN_Name`` folders.
        preprocessed: Fingerprints, plans, splits and preprocessed cases.
        results: Trained models.
    """

    raw: Path
    preprocessed: Path
    results: Path

    @classmethod
    def at(cls, folder: Path) -> Workplace:
        """The usual three names in one folder."""
        return cls(
            raw=folder / "nnUNet_raw",
            preprocessed=folder / "nnUNet_preprocessed",
            results=folder / "nnUNet_results",
        )

    def dataset(self, number: int) -> str:
        """The full name of a data set, such as ``Dataset501_Thorax``.

        Raises:
            InputError: There is none of that number, or two.
        """
        places = (self.raw, self.preprocessed)
        names = {p.name for place in places for p in place.glob(f"Dataset{number:03d}_*")}
        if len(names) != 1:
            raise InputError(
                f"there are {len(names)} data sets of number {number:03d}",
                file=self.raw.name,
                remedy="make one with: contourcast train prepare",
            )
        return names.pop()

    @contextlib.contextmanager
    def at_work(self, *, workers: int = 0) -> Iterator[Path]:
        """nnU-Net's environment for the length of a call, its words in a file of their own.

        Args:
            workers: Processes that prepare batches; 0: this one does, and repeats itself exactly.
        """
        self.preprocessed.mkdir(parents=True, exist_ok=True)
        log = self.preprocessed / LOG_FILE
        wanted = {
            "nnUNet_raw": str(self.raw),
            "nnUNet_preprocessed": str(self.preprocessed),
            "nnUNet_results": str(self.results),
            "nnUNet_n_proc_DA": str(workers),
            "nnUNet_compile": "f",
            "nnUNet_wandb_enabled": "0",
        }
        before = {name: os.environ.get(name) for name in wanted}
        os.environ.update(wanted)
        try:
            with (
                log.open("a", encoding="utf-8") as file,
                contextlib.redirect_stdout(file),
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("ignore")  # nnU-Net's own, for the length of the call
                yield log
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
