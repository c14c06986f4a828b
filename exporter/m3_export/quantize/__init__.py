"""Float graphs to INT8 variants, one module per engine."""
