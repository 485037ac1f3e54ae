"""Sensitivity as torchmetrics, per-epoch accumulators, a summary per layer."""
