"""Others who run BGE-M3 on CPUs: their environments, and a checkpoint in the form that each of them reads."""
