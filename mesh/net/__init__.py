"""The shells around ZeroMQ: the only importer of zmq."""
