"""A draft of an adapter for a pipeline that none knows, from the attention calls that it makes."""
