"""The chat page: a small web server on this machine, one HTML page, and the conversations that it has open."""
