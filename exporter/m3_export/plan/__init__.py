"""The precision planner: which projection runs in which precision, chosen by measurement.

`plan` says what a plan is and reads and writes it; `sensitivity` measures what each choice costs in accuracy, `costs`
what it takes in time; `search` chooses; `picture` draws.
"""
