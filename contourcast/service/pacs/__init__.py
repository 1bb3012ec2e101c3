"""The archives of a department: over DICOM, over Orthanc's REST, over DICOMweb."""
