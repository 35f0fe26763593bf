"""The engine for other programs: an HTTP server that speaks OpenAI's API.

The way of a request:

1. `protocol.py` cuts off who sends nothing; `guard.py` looks at the Host, the Origin and the key, and logs.
2. `app.py` reads the body within its limits; what it says is read by the room `api`, in a thread of its own,
   so that nobody waits for a long text. `openapi.py` documents the schemas.
3. `worker.py` is the one thread that owns the models. It admits parts by turns (`fair.py`) as long as there
   are rows and memory, reuses the beginnings of earlier prompts (`prefixes.py`), and sends tokens back.
4. The answers are written whole or as a stream (`streaming.py`).

`server.py` begins all this, and ends it when a signal comes. Nothing here writes to the terminal: lines of
the log go to whoever started the server. Starlette and uvicorn are imported in this room only.
"""
