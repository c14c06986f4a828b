"""`m3-bench record`: PyTorch's outputs and times on any machine that has it. Needs torch and transformers only."""
