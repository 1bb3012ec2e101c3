"""The only floor that speaks DICOM: one module for each kind of object and direction."""
