"""What moves many bytes shares: hashes, a lock on a folder, progress."""
