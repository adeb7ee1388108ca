"""Server: a model over HTTP, with queues that fill across requests, and a page to try it."""
