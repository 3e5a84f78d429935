"""What is on the wire, without any I/O: requests, thoughts, token counts, pinned λ."""
