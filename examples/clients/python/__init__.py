"""Clients on the generated stubs of phosphene.v1: one that waits, one for asyncio.

`phosphene.client` is the finished client; these show what is under it, for programs that want their own.
"""
