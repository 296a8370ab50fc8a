"""One step: from a forward pass to gradients. Knows no trainer, no task, no file."""
