"""What is done with what is kept: thrown away in time, rebuilt, given out without names."""
