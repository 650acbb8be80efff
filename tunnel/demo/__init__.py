"""A droplet for trying things out: an SSH server and an orchestration service on loopback."""
