"""Compiled forms of the selective scan; each is optional and held to the plain reference."""
