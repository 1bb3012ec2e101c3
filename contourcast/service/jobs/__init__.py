"""Durable work: orders, steps, the engine that runs them."""
