"""dami-router's own commands, one module each."""
