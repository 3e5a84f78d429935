"""router.yml: read strictly into frozen facts."""
