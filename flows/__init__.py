"""Orchestration: configuration, the capture and analysis jobs, their Prefect flows, and the command line.

The only package that knows storage, pipeline and analysis at once. Importing it loads none of them.
"""
