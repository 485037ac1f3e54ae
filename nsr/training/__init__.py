"""The LightningModule and what its training step may need."""
