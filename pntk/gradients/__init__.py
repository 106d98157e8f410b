"""Per-sample gradients, straight from the factors that forward and backward leave behind."""
