"""Site acceptance: what this machine draws of known patients, refuses, and makes of its own."""
