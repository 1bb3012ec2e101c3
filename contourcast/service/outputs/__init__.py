"""What a propagation looks like to people and archives: report, pictures."""
