"""The pure core: decisions only. No sockets, files, processes, clocks, randomness or environment."""
