"""The derived store of marginals: from which every level but the specific one is an average."""
