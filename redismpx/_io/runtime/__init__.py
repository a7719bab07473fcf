"""Tasks, timers, notification and logging."""
