"""Prefect flows, deployments, and the server they talk to."""
