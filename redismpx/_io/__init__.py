"""asyncio and sockets, in rooms.

Imports go down this list only: hub, deployment, delivery, publishing, session, redispy, runtime.
"""
