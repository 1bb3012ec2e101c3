"""Training with nnU-Net v2, unpatched: plans that name our networks, a trainer, an export."""
