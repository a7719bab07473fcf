"""Where the servers are, and which of them owns a name."""
