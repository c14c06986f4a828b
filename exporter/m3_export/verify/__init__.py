"""The PyTorch reference, parity with it, budgets, golden values."""
