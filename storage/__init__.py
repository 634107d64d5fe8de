"""The store: format, writer, reader, commit, plan and verification. Knows no model and no map."""
