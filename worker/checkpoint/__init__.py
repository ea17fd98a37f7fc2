"""What a checkpoint is on disk: names, manifest, hashes, what fits what, what is kept. No torch, so that the command
line can list and verify without it; ``worker.recovery`` takes and restores them."""
