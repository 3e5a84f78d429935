"""`dami sweep`: from two checkpoints to the λ worth having, through a live server.

- `sweep_plan`: which λ to ask next, which are not worth more questions, and when to stop; no I/O.
- `sweep_server`: `dami live` in a process of its own, for as long as the sweep runs.
- `sweeping`: the run, stage by stage; every answer is on disk before it counts.
- `sweep_results`: rollouts, recipe and report.
"""
