"""Replicas and the calls to them: the fleet, health, breakers, and HTTP/1.1."""
