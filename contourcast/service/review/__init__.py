"""A person decides: approve, reject; the signed contour is the clinical record and the next prior."""
