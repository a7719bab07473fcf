"""What touches asyncio and sockets."""
