"""The aggregations that come with the project, one a file."""
