"""The report on one page, for departments that file paper.

It holds what report.json holds, as far as a page has room, under a banner of who the patient is.
The same report gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Final
from xml.sax.saxutils import escape

from contourcast.imaging.source import Patient
from contourcast.service.outputs.report import JudgedFigure, Report

MARGIN_PT: Final = 36.0
INK: Final = "#1b1f24"
SOFT: Final = "#59636e"
LINE: Final = "#d5dae0"
PANEL: Final = "#f6f8fa"
COLORS: Final = {"accept": "#1a7f37", "look": "#9a6700", "reject": "#cf222e"}
FONTS: Final = {"Report": "DejaVuSans.ttf", "Report-Bold": "DejaVuSans-Bold.ttf"}
# What a page has room for; the rest is in report.json.
REASONS_AT_MOST: Final = 6
METHODS_AT_MOST: Final = 8
REASON_CHARACTERS: Final = 240
PICTURE_AT_LEAST_PT: Final = 200.0
GAP_PT: Final = 6.0
FOOT_PT: Final = 16.0


def report_pdf(report: Report, patient: Patient, overlay_png: bytes) -> bytes:
    """One page of A4.

    Args:
        report: The figures.
        patient: For the banner.
        overlay_png: Planes and contours.
    """
    from reportlab.lib.pagesizes import A4
    from reportlab.pdfgen.canvas import Canvas

    _register_fonts()
    out = BytesIO()
    canvas = Canvas(out, pagesize=A4, invariant=1, pageCompression=1)
    canvas.setTitle(_title(report))
    canvas.setAuthor("Contourcast")
    width = A4[0] - 2 * MARGIN_PT
    above, below = _above(report, patient, width), _below(report, width)
    room = A4[1] - 2 * MARGIN_PT - FOOT_PT
    room -= sum(part.wrapOn(canvas, width, A4[1])[1] + GAP_PT for part in [*above, *below])
    y = A4[1] - MARGIN_PT
    for part in [*above, _picture(overlay_png, width, max(room, PICTURE_AT_LEAST_PT)), *below]:
        y -= part.wrapOn(canvas, width, y)[1]
        part.drawOn(canvas, MARGIN_PT, y)
        y -= GAP_PT
    _foot(canvas, report)
    canvas.showPage()
    canvas.save()
    return out.getvalue()


def _title(report: Report) -> str:
    return f"{report.prior.roi_name} on the CBCT of {_day(report.cbct.series_date)}"


def _above(report: Report, patient: Patient, width: float) -> list[Any]:
    verdict = report.verdict.value
    return [
        _text(
            f'<font name="Report-Bold" size="15">{escape(_title(report))}: '
            f'<font color="{COLORS[verdict]}">{verdict}</font></font>',
            leading=19,
        ),
        _text(f'<font color="{COLORS["look"]}">{escape(report.notice)}</font>'),
        _banner(report, patient, width),
        *_reasons(report),
    ]


def _below(report: Report, width: float) -> list[Any]:
    return [_methods(report, width), _registration(report, width)]


def _picture(overlay_png: bytes, width: float, height: float) -> Any:
    """As large as the page has room for."""
    from reportlab.lib.utils import ImageReader
    from reportlab.platypus import Image

    columns, rows = ImageReader(BytesIO(overlay_png)).getSize()
    scale = min(width / columns, height / rows)
    return Image(BytesIO(overlay_png), columns * scale, rows * scale)


def _banner(report: Report, patient: Patient, width: float) -> Any:
    # a name may have groups of other scripts behind "="; the first is for everybody (PS3.5 §6.2)
    name = patient.name.split("=")[0].replace("^", " ").strip()
    cells = [
        ("Patient", name or "no name"),
        ("Patient ID", patient.patient_id or "none"),
        ("Born", _day(patient.birth_date)),
        ("Planning CT of", _day(report.planning_ct.series_date)),
        ("Prior", f"{report.prior.roi_name}, {report.prior.volume_cc:.1f} cc"),
    ]
    return _table(
        [[_text(_small(label)) for label, _ in cells], [_text(_bold(value)) for _, value in cells]],
        width,
        shares=(0.26, 0.2, 0.14, 0.16, 0.24),
        panel=True,
    )


def _reasons(report: Report) -> list[Any]:
    shown = [
        f"• {escape(reason[:REASON_CHARACTERS])}" for reason in report.reasons[:REASONS_AT_MOST]
    ]
    more = len(report.reasons) - len(shown)
    if more > 0:
        shown.append(f"and {more} more, see the report")
    if report.prior.vouched:
        shown.append(f"Vouched for by the user: {escape(report.prior.vouched[:300])}")
    return [_text("<br/>".join(shown))] if shown else []


def _methods(report: Report, width: float) -> Any:
    head = ["Method", "State", "Volume, cc", "of prior, %", "DSC with rigid", "HD95 to rigid, mm"]
    rows = [[_text(_small(one)) for one in head]]
    for method in report.methods[:METHODS_AT_MOST]:
        verdict = method.verdict.value
        agreement = method.agreement_with_rigid or {}
        share = (
            100 * method.volume_cc / report.prior.volume_cc
            if method.volume_cc is not None and report.prior.volume_cc
            else None
        )
        rows.append(
            [
                _text(_bold(method.method)),
                _text(f'{method.state}, <font color="{COLORS[verdict]}">{verdict}</font>'),
                _text(_number(method.volume_cc, 1)),
                _text(_number(share, 0)),
                _text(_number(agreement.get("dice"), 3)),
                _text(_number(agreement.get("hd95_mm"), 1)),
            ]
        )
    return _table(rows, width, shares=(0.2, 0.22, 0.13, 0.13, 0.16, 0.16))


def _registration(report: Report, width: float) -> Any:
    found = report.registration
    moved = found.at_gtv or found.at_isocenter
    x, y, z = moved.translation_xyz_mm
    verdict = found.verdict.value
    figures = " · ".join(_figure(one) for one in found.figures)
    return _table(
        [
            [_text(_small("Registration")), _text(_small(f"Motion, at the {moved.point}"))],
            [
                _text(f'by {found.focus}, <font color="{COLORS[verdict]}">{verdict}</font>'),
                _text(f"x {x:+.1f}, y {y:+.1f}, z {z:+.1f} mm; turned by {found.angle_deg:.2f}°"),
            ],
            [_text(_small("Figures")), _text(figures)],
        ],
        width,
        shares=(0.2, 0.8),
    )


def _figure(figure: JudgedFigure) -> str:
    color = COLORS[figure.verdict.value]
    return f'{escape(figure.name)} <font color="{color}">{_number(figure.value, 2)}</font>'


def _foot(canvas: Any, report: Report) -> None:
    made = report.provenance
    canvas.setFont("Report", 6.5)
    canvas.setFillColor(SOFT)
    network = f", {made.network} w:{made.weights_digest[:8]}" if made.network else ""
    lines = [
        f"CBCT series {report.cbct.series_instance_uid}",
        f"Contourcast {made.versions.get('contourcast', '')}{network}; inputs "
        f"{made.inputs_digest[:16]}; {made.made_at:%Y-%m-%d %H:%M} {made.made_at.tzname() or ''}",
    ]
    for n, line in enumerate(reversed(lines)):
        canvas.drawString(MARGIN_PT, MARGIN_PT - 12 + 9 * n, line)


def _table(
    rows: Sequence[Sequence[Any]], width: float, *, shares: Sequence[float], panel: bool = False
) -> Any:
    from reportlab.lib.colors import HexColor
    from reportlab.platypus import Table, TableStyle

    style: list[tuple[Any, ...]] = [
        ("VALIGN", (0, 0), (-1, -1), "TOP"),
        ("TOPPADDING", (0, 0), (-1, -1), 2),
        ("BOTTOMPADDING", (0, 0), (-1, -1), 2),
        ("LEFTPADDING", (0, 0), (-1, -1), 4),
    ]
    if panel:
        style.append(("BACKGROUND", (0, 0), (-1, -1), HexColor(PANEL)))
    else:
        style.append(("LINEBELOW", (0, 0), (-1, -1), 0.4, HexColor(LINE)))
    return Table(rows, colWidths=[width * share for share in shares], style=TableStyle(style))


def _text(markup: str, *, leading: float = 10.5) -> Any:
    from reportlab.lib.colors import HexColor
    from reportlab.lib.styles import ParagraphStyle
    from reportlab.platypus import Paragraph

    style = ParagraphStyle(
        "plain", fontName="Report", fontSize=8, leading=leading, textColor=HexColor(INK)
    )
    return Paragraph(markup, style)


def _small(text: str) -> str:
    return f'<font size="6.5" color="{SOFT}">{escape(text)}</font>'


def _bold(text: str) -> str:
    return f'<font name="Report-Bold">{escape(text)}</font>'


def _day(date: str) -> str:
    """A DICOM date as people of every country read it."""
    return f"{date[:4]}-{date[4:6]}-{date[6:]}" if len(date) == 8 and date.isdigit() else "–"


def _number(value: float | str | None, digits: int) -> str:
    return f"{value:.{digits}f}" if isinstance(value, int | float) else "–"


def _register_fonts() -> None:
    """Those that come with matplotlib: names have letters that PDF's own fonts lack."""
    import matplotlib
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.ttfonts import TTFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    for name, file in FONTS.items():
        if name not in pdfmetrics.getRegisteredFontNames():
            pdfmetrics.registerFont(TTFont(name, str(folder / file)))
