"""Runs beside a recorded reference: parity per head, speed side by side, cost."""
