"""Servers for the router's tests: real HTTP on loopback, with every fault on demand."""
