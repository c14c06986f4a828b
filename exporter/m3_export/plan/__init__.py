"""The precision planner: which projection runs in which precision, chosen by measurement.

`plan` says what a plan is, and reads and writes it; `timing` measures what each precision costs in time, `costs` adds
it up; `simulation` gives what it costs in accuracy, as `losses`; `search` chooses; `planner` joins them.
"""
