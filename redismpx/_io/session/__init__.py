"""One connection after another to one endpoint, and the names that are subscribed on it."""
