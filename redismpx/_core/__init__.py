"""Pure decisions. No asyncio, no socket, no clock, no randomness, no logging."""
