"""`m3-bench run` and `m3-bench peers`: contenders in turns, each in a process of its own, through every scenario."""
