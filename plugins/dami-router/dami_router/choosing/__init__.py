"""From λ(q) and the variants on offer to an order of variants. Pure: no I/O, no clock."""
