"""Scans, regions, contours and the geometry between them; DICOM in and out."""
