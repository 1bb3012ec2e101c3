"""A person decides; what was signed is the clinical record, and the next prior."""
