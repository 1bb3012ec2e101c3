"""Everything that Contourcast refuses, as one family.

```
ContourcastError                cause, where, remedy; at the rim an exit code or problem+json
├── InputError                  what came in cannot be used
│   ├── DicomError              … because of an attribute, a file or an instance
│   │   └── NotDicomError       … because the file is not DICOM at all
│   ├── IncompleteSeriesError   … because slices are missing
│   └── UnknownRoiError         … because no ROI has that name
├── GeometryError               two things do not share a space
│   ├── FrameMismatchError      different frames of reference
│   └── GridMismatchError       different grids
├── RegistrationRejectedError   no registration may carry a contour today
├── MethodError                 one method failed; the others stand
└── WeightsError                a model folder that is not what it says
```
"""

from __future__ import annotations


class ContourcastError(Exception):
    """A refusal in four parts, so that an API sends fields and a page shows a sentence.

    Args:
        cause: What is wrong, in one sentence without full stop.
        tag: The DICOM attribute, such as ``(0028,0030) Pixel Spacing``.
        uid: The UID or UIDs it concerns.
        file: The name of the file it concerns (the name alone, never a path).
        remedy: What the user can do.
    """

    exit_code = 1

    def __init__(
        self, cause: str, *, tag: str = "", uid: str = "", file: str = "", remedy: str = ""
    ) -> None:
        self.cause, self.tag, self.uid, self.file, self.remedy = cause, tag, uid, file, remedy
        super().__init__("; ".join(part for part in (cause, self.where, remedy) if part))

    @property
    def where(self) -> str:
        """File, attribute and UID, as far as they are known."""
        return "; ".join(part for part in (self.file, self.tag, self.uid) if part)

    @property
    def code(self) -> str:
        """A stable word for programs: ``frame-mismatch`` for FrameMismatchError."""
        name = type(self).__name__.removesuffix("Error")
        return "".join(f"-{c.lower()}" if c.isupper() else c for c in name).lstrip("-")

    def __reduce__(self) -> tuple[object, ...]:
        """Errors cross process borders (DIR runs in a child, jobs in a database)."""
        parts = (type(self), self.cause, self.tag, self.uid, self.file, self.remedy)
        notes = getattr(self, "__notes__", None)
        return (_rebuild, parts, {"__notes__": notes} if notes else None)


def _rebuild(
    kind: type[ContourcastError], cause: str, tag: str, uid: str, file: str, remedy: str
) -> ContourcastError:
    return kind(cause, tag=tag, uid=uid, file=file, remedy=remedy)


class InputError(ContourcastError):
    """What came in cannot be used."""

    exit_code = 2


class DicomError(InputError):
    """An attribute, a file or an instance is not what it has to be."""


class NotDicomError(DicomError):
    """A file that is not DICOM; beside DICOM files it is passed over."""


class IncompleteSeriesError(InputError):
    """Slices are missing, so the volume would lie about where things are."""


class UnknownRoiError(InputError):
    """The structure set has no ROI of that name."""


class GeometryError(ContourcastError):
    """Two things do not share a space."""

    exit_code = 3


class FrameMismatchError(GeometryError):
    """Different frames of reference."""


class GridMismatchError(GeometryError):
    """Different grids."""


class RegistrationRejectedError(ContourcastError):
    """No registration may carry a contour today."""

    exit_code = 4


class MethodError(ContourcastError):
    """One method failed; the others stand."""

    exit_code = 5


class WeightsError(ContourcastError):
    """A model folder that is not what it says."""

    exit_code = 6
