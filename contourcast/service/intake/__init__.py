"""How what came in finds its course: facts in, a decision with written reasons out."""
