"""The one door to redis-py: options, dialling, transports, the slot map, error texts. Only this room imports redis."""
