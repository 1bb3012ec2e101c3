"""What this machine has: read by the command line and by the health route."""

from __future__ import annotations

import importlib.util
import os
import platform
from importlib.metadata import PackageNotFoundError, version

from sqlalchemy import create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from contourcast.service.api.routes.page_files import BUILT
from contourcast.service.settings import ServiceSettings
from contourcast.service.store.at_rest import encryption_of


def examine(settings: ServiceSettings) -> dict[str, str]:
    """A sentence for each thing that decides how fast, how safely, or whether it works here."""
    import torch

    from contourcast.models.predictor import load_network
    from contourcast.models.selective_scan import explain_scan
    from contourcast.models.weights import SHIPPED

    scan = explain_scan(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU only"
    try:
        network = load_network(None, device="cpu")
        weights = f"{network.name}, digest {network.digest[:12]}, from {SHIPPED.name}"
    except Exception as error:  # a broken installation is what a doctor is for
        weights = f"missing: {error}"
    return {
        "contourcast": version("contourcast"),
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "device": f"{device}, {os.cpu_count()} cores, torch {torch.__version__}",
        "selective scan": f"{scan.name} ({scan.why})",
        "weights": weights,
        "codecs": ", ".join(_codecs()),
        "elastix": _part("itk-elastix", "dir-t and dir-l fail: pip install contourcast[baselines]"),
        "cone-beam physics": _part(
            "itk-rtk", "image-domain form: pip install contourcast[simulation]"
        ),
        "jobs": f"dbos {version('dbos')}",
        "database": _database(settings),
        "data": encryption_of(settings.data_folder),
        "review page": "built" if (BUILT / "index.html").is_file() else "not built: make page",
    }


def _database(settings: ServiceSettings) -> str:
    if not settings.database_url:
        return "SQLite, embedded"
    engine = create_engine(settings.database_url)
    try:
        with engine.connect() as at:
            return f"PostgreSQL {at.execute(text('show server_version')).scalar()}"
    except SQLAlchemyError as error:
        return f"PostgreSQL does not answer: {type(error).__name__}"
    finally:
        engine.dispose()


def _codecs() -> list[str]:
    codecs = ["native", "deflate", "RLE"]
    for module, name in (
        ("jpeg_ls", "JPEG-LS"),
        ("openjpeg", "JPEG 2000, HTJ2K"),
        ("gdcm", "JPEG lossless"),
    ):
        found = importlib.util.find_spec(module) is not None
        codecs.append(name if found else f"no {name}")
    return codecs


def _part(package: str, without: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return f"not installed; {without}"
