"""router.yml: its schema, and the configuration that it gives."""
