"""What lies where in a run: layers, layout, header, commit records, shards, codecs. See FORMAT.md."""
