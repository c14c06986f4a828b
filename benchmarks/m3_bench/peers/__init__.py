"""Other BGE-M3 runtimes on CPUs: their environments, and a checkpoint in the form that each of them reads."""
