"""The traced model, the trace, and the passes over the graph."""
