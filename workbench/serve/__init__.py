"""Two precisions behind one address: server, router, and the client that replays a load."""
