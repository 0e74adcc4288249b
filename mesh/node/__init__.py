"""The processes of one node, each a shell around the core file of the same name."""
