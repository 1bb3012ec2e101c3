"""The store: bytes by name, behind five verbs, wherever they lie."""
