"""Virtual patients and whole courses with known truth."""
