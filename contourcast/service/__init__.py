"""Durable jobs and HTTP around the one verb."""
