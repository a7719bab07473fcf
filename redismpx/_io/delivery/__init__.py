"""From an event to the code that consumes it."""
