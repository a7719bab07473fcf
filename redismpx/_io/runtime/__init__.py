"""Tasks, timers, notification and logging. Knows nothing of Redis."""
