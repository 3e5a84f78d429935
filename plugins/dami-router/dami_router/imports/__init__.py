"""`dami rollout import`: logs of other tools become rollouts. One module for each format; nothing in a log is run."""
